//! Reads the TCP counters of a network namespace from `/proc/<pid>/net/snmp`. Any process may read it.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// TCP counters of a network namespace since its creation (RFC 4022).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::capture) struct TcpCounts {
    /// Attempts to connect.
    pub(in crate::capture) active_opens: u64,
    /// Connections accepted by the kernel.
    pub(in crate::capture) passive_opens: u64,
    /// Attempts that failed.
    pub(in crate::capture) attempt_fails: u64,
    /// Connections reset.
    pub(in crate::capture) resets: u64,
    /// Open now.
    pub(in crate::capture) established: u64,
}

/// Open counters of one namespace: reading them again costs one system call. Keeps the namespace alive.
#[derive(Debug)]
pub(in crate::capture) struct TcpCounter {
    file: File,
}

impl TcpCounter {
    /// Opens the counters of the namespace of the process with this directory.
    pub(in crate::capture) fn open(process: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(process.join("net/snmp"))? })
    }

    pub(in crate::capture) fn read(&self) -> io::Result<TcpCounts> {
        let mut text = [0; 8192];
        let length = self.file.read_at(&mut text, 0)?;
        tcp_counts(&String::from_utf8_lossy(&text[..length]))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no counters of TCP in net/snmp"))
    }
}

fn tcp_counts(text: &str) -> Option<TcpCounts> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut counts = TcpCounts::default();
    let mut found = 0;
    for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
        let field = match name {
            "ActiveOpens" => &mut counts.active_opens,
            "PassiveOpens" => &mut counts.passive_opens,
            "AttemptFails" => &mut counts.attempt_fails,
            "EstabResets" => &mut counts.resets,
            "CurrEstab" => &mut counts.established,
            _ => continue,
        };
        *field = value.parse().ok()?;
        found += 1;
    }
    (found == 5).then_some(counts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_namespaces_own_counts_are_read() {
        let text = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoAlgorithm MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs\nTcp: 1 -1 5 6 7 8 9 10\n";
        let expected = TcpCounts { active_opens: 5, passive_opens: 6, attempt_fails: 7, resets: 8, established: 9 };
        assert_eq!(tcp_counts(text), Some(expected));
        assert_eq!(tcp_counts("Tcp: ActiveOpens\nTcp: 5\n"), None);
        assert!(TcpCounter::open(Path::new("/proc/self")).unwrap().read().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".*") {
            let _ = tcp_counts(&text);
        }
    }
}
