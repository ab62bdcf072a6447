//! Location of the cgroup v2 hierarchy.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::errors::Refusal;
use kernel_support::Reason;

/// Returns the cgroup v2 directory at `mount`: itself, or `unified` in it if the node runs v1 and v2 side by side
/// (systemd's hybrid mode).
///
/// `mount` is `/sys/fs/cgroup`, or the path at which a pod mounts the node's.
///
/// # Errors
/// [`Reason::CgroupV2Missing`] where neither is cgroup v2.
pub fn find_cgroup_root(mount: &Path) -> Result<PathBuf, Refusal> {
    [mount.to_path_buf(), mount.join("unified")].into_iter().find(|candidate| is_cgroup2(candidate)).ok_or_else(|| {
        Refusal {
            reason: Reason::CgroupV2Missing,
            message: format!(
                "neither {} nor its directory `unified` is a cgroup v2 hierarchy; mount one, or say where it is",
                mount.display()
            ),
        }
    })
}

/// Returns whether this directory belongs to a cgroup v2 hierarchy.
pub(super) fn is_cgroup2(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_file_system_is_refused_by_name() {
        let refusal = find_cgroup_root(Path::new("/proc")).unwrap_err();
        assert_eq!(refusal.reason, Reason::CgroupV2Missing);
        assert!(refusal.message.contains("/proc"), "{refusal}");
    }
}
