//! The node's processes, with their network namespaces and cgroups.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{cgroups::Cgroups, small_files::read_small};

/// Number of scans in which a new process is read again: a container's first process moves to its namespace and its
/// cgroup after its creation.
const YOUNG: u8 = 3;

/// Number of scans after which other processes are read again, because PIDs are reused.
const AGAIN: u32 = 16;

#[derive(Clone, Copy, Debug)]
struct Process {
    /// Inode of a file below `/proc/<pid>/net`, of which each namespace has its own. It is readable without privileges.
    file: u32,
    /// Inode of the namespace, if it is readable.
    netns: Option<u32>,
    /// Cgroup; `None` if it is not one of the node's.
    cgroup: Option<u64>,
    /// True if it is a pause process: it holds a pod's namespaces and has no connections.
    is_pause: bool,
    scans: u8,
}

/// Network namespace with processes of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::capture) struct Namespace {
    /// Its processes by PID, so that the oldest is usually first.
    pub(in crate::capture) pids: Vec<u32>,
    /// Cgroups of the processes that can have connections.
    pub(in crate::capture) cgroups: BTreeSet<u64>,
    /// True if it also contains processes that are not the node's.
    pub(in crate::capture) is_shared: bool,
}

/// All processes.
#[derive(Debug)]
pub(in crate::capture) struct Processes {
    proc: PathBuf,
    known: HashMap<u32, Process>,
    /// Names of namespaces, by their files. A file stays as long as the namespace.
    names: HashMap<u32, u32>,
    scans: u32,
}

impl Processes {
    pub(in crate::capture) fn new(proc: &Path) -> Self {
        Self { proc: proc.to_path_buf(), known: HashMap::new(), names: HashMap::new(), scans: 0 }
    }

    /// Returns the directory of a process.
    pub(in crate::capture) fn directory(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    /// Returns the cgroup of a process that existed at the latest scan.
    pub(in crate::capture) fn cgroup(&self, pid: u32) -> Option<u64> {
        self.known.get(&pid)?.cgroup
    }

    /// Returns the network namespace of a process that existed at the latest scan.
    pub(in crate::capture) fn netns(&self, pid: u32) -> Option<u32> {
        self.names.get(&self.known.get(&pid)?.file).copied()
    }

    /// Returns the namespaces of the node's processes.
    pub(in crate::capture) fn scan(&mut self, cgroups: &mut Cgroups) -> io::Result<HashMap<u32, Namespace>> {
        self.scans = self.scans.wrapping_add(1);
        let mut pids = Vec::with_capacity(self.known.len() + 64);
        for entry in fs::read_dir(&self.proc)? {
            pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        pids.sort_unstable();
        let mut earlier = std::mem::take(&mut self.known);
        for pid in &pids {
            let old = earlier.remove(pid);
            let is_settled = |process: &Process| process.scans >= YOUNG && !(self.scans ^ pid).is_multiple_of(AGAIN);
            let process = match old {
                Some(process) if is_settled(&process) => Some(process),
                _ => self.read(*pid, old.map_or(0, |process| process.scans), cgroups),
            };
            if let Some(process) = process {
                self.known.insert(*pid, process);
            }
        }
        self.name_namespaces(&pids);
        Ok(self.namespaces(&pids))
    }

    /// Finds the inodes of namespaces, by those of their processes that grant access.
    fn name_namespaces(&mut self, pids: &[u32]) {
        let mut names = HashMap::<u32, Option<u32>>::new();
        for process in pids.iter().filter_map(|pid| self.known.get(pid)) {
            let name = names.entry(process.file).or_default();
            *name = name.or(process.netns);
        }
        let old = std::mem::take(&mut self.names);
        self.names =
            names.into_iter().map(|(file, name)| (file, old.get(&file).copied().or(name).unwrap_or(file))).collect();
    }

    fn namespaces(&self, pids: &[u32]) -> HashMap<u32, Namespace> {
        let mut namespaces = HashMap::<u32, Namespace>::new();
        let mut pauses = HashMap::<u32, u64>::new();
        for pid in pids {
            let Some(process) = self.known.get(pid) else { continue };
            let Some(netns) = self.names.get(&process.file).copied() else { continue };
            let namespace = namespaces.entry(netns).or_default();
            match process.cgroup {
                None => namespace.is_shared = true,
                Some(cgroup) => {
                    namespace.pids.push(*pid);
                    if process.is_pause {
                        pauses.insert(netns, cgroup);
                    } else {
                        namespace.cgroups.insert(cgroup);
                    }
                }
            }
        }
        for (netns, cgroup) in pauses {
            if let Some(namespace) = namespaces.get_mut(&netns).filter(|namespace| namespace.cgroups.is_empty()) {
                namespace.cgroups.insert(cgroup);
            }
        }
        namespaces.retain(|_, namespace| !namespace.pids.is_empty());
        namespaces
    }

    /// Reads a process; `None` if it has ended or is a zombie.
    fn read(&self, pid: u32, scans: u8, cgroups: &mut Cgroups) -> Option<Process> {
        let directory = self.directory(pid);
        let number = |path: &str| u32::try_from(fs::metadata(directory.join(path)).ok()?.ino()).ok();
        Some(Process {
            file: number("net/tcp")?,
            netns: number("ns/net"),
            cgroup: cgroups.of(&directory),
            is_pause: read_small(&directory.join("comm"), 16).is_ok_and(|name| name == b"pause\n"),
            scans: scans.saturating_add(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_in_its_namespace() {
        let mut cgroups = Cgroups::open(Path::new("/"), Path::new("/proc")).unwrap();
        let mut processes = Processes::new(Path::new("/proc"));
        processes.scan(&mut cgroups).unwrap();
        let own = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        assert_eq!(processes.netns(std::process::id()), Some(own));
    }

    #[test]
    fn namespaces_have_the_cgroups_that_matter() {
        let process = |file, cgroup, is_pause| Process { file, netns: None, cgroup, is_pause, scans: 9 };
        let mut processes = Processes::new(Path::new("/proc"));
        processes.known = HashMap::from([
            (1, process(7, Some(10), true)),
            (2, process(7, Some(11), false)),
            (3, process(8, Some(12), true)),
            (4, process(9, None, false)),
            (5, process(6, None, false)),
            (6, process(6, Some(13), false)),
        ]);
        // One of its processes tells the number; later ones do not change it.
        processes.known.insert(2, Process { netns: Some(70), ..process(7, Some(11), false) });
        processes.name_namespaces(&[1, 2, 3, 4, 5, 6]);
        processes.known.insert(3, Process { netns: Some(80), ..process(8, Some(12), true) });
        processes.name_namespaces(&[1, 2, 3, 4, 5, 6]);
        let found = processes.namespaces(&[1, 2, 3, 4, 5, 6]);
        let namespace = |pids: &[u32], cgroup, is_shared| Namespace {
            pids: pids.to_vec(),
            cgroups: BTreeSet::from([cgroup]),
            is_shared,
        };
        let expected = HashMap::from([
            (70, namespace(&[1, 2], 11, false)),
            // Nothing else is there yet.
            (8, namespace(&[3], 12, false)),
            (6, namespace(&[6], 13, true)),
        ]);
        assert_eq!(found, expected);
    }
}
