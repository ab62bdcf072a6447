//! The memory that this process may use: the limit of its cgroup and of those above it, as far as they can be seen.

use std::{fs, path::Path};

/// Limits from here on are none: cgroup v1 writes the greatest number of whole pages.
const NONE: u64 = 1 << 60;

/// Memory limits of a cgroup hierarchy.
struct Hierarchy {
    /// In `mountinfo`, the type of file system.
    kind: &'static str,
    /// In `mountinfo`, the option of the mount that has it; empty for any.
    option: &'static str,
    /// In `/proc/self/cgroup`, the controller; empty on v2.
    controller: &'static str,
    /// File with the limit.
    limit: &'static str,
}

const HIERARCHIES: [Hierarchy; 2] = [
    Hierarchy { kind: "cgroup2", option: "", controller: "", limit: "memory.max" },
    Hierarchy { kind: "cgroup", option: "memory", controller: "memory", limit: "memory.limit_in_bytes" },
];

/// The least limit, in bytes; `None` where there is none, or none that can be seen. `process` is the directory of this
/// process in `/proc`.
#[must_use]
pub fn read(process: &Path) -> Option<u64> {
    let text = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
    let (cgroups, mounts) = (text("cgroup"), text("mountinfo"));
    HIERARCHIES.iter().filter_map(|hierarchy| hierarchy.least_limit(&cgroups, &mounts)).min()
}

impl Hierarchy {
    fn least_limit(&self, cgroups: &str, mounts: &str) -> Option<u64> {
        let cgroup = cgroups.lines().find_map(|line| self.path(line))?;
        let mounts = mounts.lines().filter_map(|line| self.mount(line));
        // Of several mounts, those of other parts of the tree do not have this process's cgroup.
        mounts.filter_map(|(root, mount)| self.least_limit_up(mount, below(root, cgroup)?)).min()
    }

    /// Limits of a cgroup below a mount point, and of all between the two.
    fn least_limit_up(&self, mount: &Path, cgroup: &Path) -> Option<u64> {
        let limits = cgroup.ancestors().filter_map(|directory| {
            let text = fs::read_to_string(mount.join(directory).join(self.limit)).ok()?;
            text.trim().parse().ok().filter(|limit| *limit < NONE)
        });
        limits.min()
    }

    /// This process's cgroup, by a line of `/proc/self/cgroup`.
    fn path<'a>(&self, line: &'a str) -> Option<&'a Path> {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|controller| controller == self.controller).then_some(Path::new(path))
    }

    /// The cgroup at a mount's root and the mount point, by a line of `mountinfo` (`proc_pid_mountinfo(5)`).
    fn mount<'a>(&self, line: &'a str) -> Option<(&'a Path, &'a Path)> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next()?, file_system.nth(1)?);
        let has_option = self.option.is_empty() || options.split(',').any(|option| option == self.option);
        let mut fields = mount.split(' ').skip(3);
        (kind == self.kind && has_option).then_some((Path::new(fields.next()?), Path::new(fields.next()?)))
    }
}

/// A cgroup's path below the one that a mount shows as its root.
fn below<'a>(root: &Path, cgroup: &'a Path) -> Option<&'a Path> {
    cgroup.strip_prefix(root).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pretended process and its cgroup file systems.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(cgroup: &str, mounts: &[(&str, &str, &str, &str)], limits: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |path: &str| format!("{}/{path}", folder.path().display());
            let mounts: Vec<String> = mounts
                .iter()
                .map(|(root, point, kind, options)| {
                    format!("30 25 0:26 {root} {} rw,nosuid shared:9 - {kind} cgroup {options}\n", at(point))
                })
                .collect();
            let mounts = mounts.concat();
            fs::write(at("cgroup"), cgroup).unwrap();
            fs::write(at("mountinfo"), format!("1 0 8:1 / / rw - ext4 /dev/root rw\n{mounts}")).unwrap();
            for (path, limit) in limits {
                fs::create_dir_all(Path::new(&at(path)).parent().unwrap()).unwrap();
                fs::write(at(path), limit).unwrap();
            }
            Self(folder)
        }

        fn limit(&self) -> Option<u64> {
            read(self.0.path())
        }
    }

    #[test]
    fn least_limit_on_the_way_up_counts() {
        let v2 = ("/", "fs", "cgroup2", "rw");
        let limits = [("fs/a/b/memory.max", "max\n"), ("fs/a/memory.max", "5000\n"), ("fs/a/b/c/memory.max", "9000\n")];
        assert_eq!(Machine::new("0::/a/b/c\n", &[v2], &limits).limit(), Some(5000));
        assert_eq!(Machine::new("0::/a/b\n", &[v2], &limits[..1]).limit(), None);
    }

    #[test]
    fn container_sees_its_own_cgroup_as_the_root() {
        let node = ("/../../..", "host", "cgroup2", "rw");
        let own = ("/", "fs", "cgroup2", "rw");
        let limits = [("fs/memory.max", "128\n"), ("host/memory.max", "1\n")];
        assert_eq!(Machine::new("0::/\n", &[node, own], &limits).limit(), Some(128));
    }

    #[test]
    fn version_1_beside_an_unlimited_version_2_counts() {
        let cgroups = "9:name=systemd:/x\n4:cpu,memory:/kubepods/pod1/agent\n0::/\n";
        let mounts = [
            ("/kubepods/pod1/agent", "memory", "cgroup", "rw,memory"),
            ("/kubepods/pod1/agent", "pids", "cgroup", "rw,pids"),
            ("/", "unified", "cgroup2", "rw"),
        ];
        let limits = [("memory/memory.limit_in_bytes", "134217728\n"), ("pids/memory.limit_in_bytes", "1\n")];
        assert_eq!(Machine::new(cgroups, &mounts, &limits).limit(), Some(134_217_728));
        let none = [("memory/memory.limit_in_bytes", "9223372036854771712\n")];
        assert_eq!(Machine::new(cgroups, &mounts, &none).limit(), None);
    }

    #[test]
    fn what_cannot_be_read_is_no_limit() {
        assert_eq!(read(Path::new("/nonexistent")), None);
    }
}
