//! Limit of the files that the operator may have open at a time (`RLIMIT_NOFILE`). Each connection is one.

use nix::{
    errno::Errno,
    sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit},
};

/// Files for all but agents' connections: connections to the API server, scrapes, probes and the runtime's own.
const OTHER_FILES: u32 = 128;

/// Limit of a process's open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    limit: u64,
}

impl OpenFiles {
    /// Raises the soft limit to the hard limit, which needs no privilege.
    ///
    /// # Errors
    /// Returns an error if the system refuses to report or to set the limit.
    pub fn raise() -> Result<Self, Errno> {
        let (soft, hard) = getrlimit(RLIMIT_NOFILE)?;
        if soft < hard {
            setrlimit(RLIMIT_NOFILE, hard, hard)?;
        }
        Ok(Self { limit: hard })
    }

    /// Returns the limit.
    #[must_use]
    pub fn limit(self) -> u64 {
        self.limit
    }

    /// Returns how many of the connections that the settings allow have a file, with enough files left for all else.
    #[must_use]
    pub fn connections(self, allowed: u32) -> u32 {
        let limit = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let others = OTHER_FILES.min(limit / 2);
        allowed.min(limit - others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raise_sets_soft_limit_to_hard_limit() {
        let (_, hard) = getrlimit(RLIMIT_NOFILE).unwrap();
        // Only by one: other tests open files meanwhile.
        setrlimit(RLIMIT_NOFILE, hard - 1, hard).unwrap();
        let raised = OpenFiles::raise().unwrap();
        assert_eq!(getrlimit(RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(raised.limit(), hard);
    }

    #[test]
    fn connections_leave_files_for_all_else() {
        let connections = |limit, allowed| OpenFiles { limit }.connections(allowed);
        assert_eq!(connections(1 << 20, 8192), 8192);
        assert_eq!(connections(u64::MAX, 8192), 8192);
        assert_eq!(connections(8192 + 128, 8192), 8192);
        assert_eq!(connections(8192 + 127, 8192), 8191);
        assert_eq!(connections(1024, 8192), 896);
        assert_eq!(connections(64, 8192), 32, "half of a limit that is too low for all else");
    }
}
