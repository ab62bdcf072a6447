//! The node's processes: in which network namespaces they are, and in which cgroups.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{cgroups::Cgroups, proc_net::read_small};

/// A process is read again so many times while it is young: a container's first process moves to its namespace and its
/// cgroup after it was made.
const YOUNG: u8 = 3;

/// Others are read again every so many scans: numbers are used again.
const AGAIN: u32 = 16;

/// How network namespaces are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbering {
    /// By the namespace's own number, which everybody knows it by.
    Namespace,
    /// By the number of the namespace's own file below `/proc/<pid>/net`: anybody may ask for that one.
    File,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    netns: u32,
    /// `None`: not one of the node's.
    cgroup: Option<u64>,
    /// Holds a pod's namespaces and has no connections.
    is_pause: bool,
    scans: u8,
}

/// A network namespace with processes of the node's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespace {
    /// The oldest first, as far as numbers tell.
    pub(super) pids: Vec<u32>,
    /// The cgroups of those processes that can have connections.
    pub(super) cgroups: BTreeSet<u64>,
    /// Whether processes that are not the node's are there, too.
    pub(super) is_shared: bool,
}

/// All processes.
#[derive(Debug)]
pub(super) struct Processes {
    proc: PathBuf,
    known: HashMap<u32, Process>,
    numbering: Numbering,
    scans: u32,
}

impl Processes {
    pub(super) fn new(proc: &Path) -> Self {
        Self { proc: proc.to_path_buf(), known: HashMap::new(), numbering: Numbering::Namespace, scans: 0 }
    }

    /// The directory of a process.
    pub(super) fn directory(&self, pid: u32) -> PathBuf {
        self.proc.join(pid.to_string())
    }

    /// The cgroup of a process that was there at the latest scan.
    pub(super) fn cgroup(&self, pid: u32) -> Option<u64> {
        self.known.get(&pid)?.cgroup
    }

    /// The network namespace of a process that was there at the latest scan.
    pub(super) fn netns(&self, pid: u32) -> Option<u32> {
        Some(self.known.get(&pid)?.netns)
    }

    /// The namespaces of the node's processes.
    pub(super) fn scan(&mut self, cgroups: &mut Cgroups) -> io::Result<HashMap<u32, Namespace>> {
        let numbering = self.numbering;
        let namespaces = self.scan_once(cgroups)?;
        if numbering == self.numbering { Ok(namespaces) } else { self.scan_once(cgroups) }
    }

    fn scan_once(&mut self, cgroups: &mut Cgroups) -> io::Result<HashMap<u32, Namespace>> {
        self.scans = self.scans.wrapping_add(1);
        let mut pids = Vec::with_capacity(self.known.len() + 64);
        for entry in fs::read_dir(&self.proc)? {
            pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        pids.sort_unstable();
        let mut earlier = std::mem::take(&mut self.known);
        for pid in &pids {
            let old = earlier.remove(pid);
            let is_settled = |process: &Process| process.scans >= YOUNG && (self.scans ^ pid) % AGAIN != 0;
            let process = match old {
                Some(process) if is_settled(&process) => Some(process),
                _ => self.read(*pid, old.map_or(0, |process| process.scans), cgroups),
            };
            if let Some(process) = process {
                self.known.insert(*pid, process);
            }
        }
        Ok(self.namespaces(&pids))
    }

    fn namespaces(&self, pids: &[u32]) -> HashMap<u32, Namespace> {
        let mut namespaces = HashMap::<u32, Namespace>::new();
        let mut pauses = HashMap::<u32, u64>::new();
        for pid in pids {
            let Some(process) = self.known.get(pid) else { continue };
            let namespace = namespaces.entry(process.netns).or_default();
            match process.cgroup {
                None => namespace.is_shared = true,
                Some(cgroup) => {
                    namespace.pids.push(*pid);
                    if process.is_pause {
                        pauses.insert(process.netns, cgroup);
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

    /// `None` for one that is gone, or as good as.
    fn read(&mut self, pid: u32, scans: u8, cgroups: &mut Cgroups) -> Option<Process> {
        let directory = self.directory(pid);
        if self.numbering == Numbering::Namespace {
            match fs::metadata(directory.join("ns/net")) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    // For all: one namespace must not have two numbers.
                    self.numbering = Numbering::File;
                    self.known.clear();
                }
                found => return Self::process(&directory, &found.ok()?, scans, cgroups),
            }
        }
        Self::process(&directory, &fs::metadata(directory.join("net/tcp")).ok()?, scans, cgroups)
    }

    fn process(directory: &Path, netns: &fs::Metadata, scans: u8, cgroups: &mut Cgroups) -> Option<Process> {
        Some(Process {
            netns: u32::try_from(netns.ino()).ok()?,
            cgroup: cgroups.of(directory),
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
        if processes.numbering == Numbering::Namespace {
            assert_eq!(processes.netns(std::process::id()), Some(own));
        }
    }

    #[test]
    fn namespaces_have_the_cgroups_that_matter() {
        let process = |netns, cgroup, is_pause| Process { netns, cgroup, is_pause, scans: 9 };
        let mut processes = Processes::new(Path::new("/proc"));
        processes.known = HashMap::from([
            (1, process(7, Some(10), true)),
            (2, process(7, Some(11), false)),
            (3, process(8, Some(12), true)),
            (4, process(9, None, false)),
            (5, process(6, None, false)),
            (6, process(6, Some(13), false)),
        ]);
        let found = processes.namespaces(&[1, 2, 3, 4, 5, 6]);
        let namespace = |pids: &[u32], cgroup, is_shared| Namespace {
            pids: pids.to_vec(),
            cgroups: BTreeSet::from([cgroup]),
            is_shared,
        };
        let expected = HashMap::from([
            (7, namespace(&[1, 2], 11, false)),
            // Nothing else is there yet.
            (8, namespace(&[3], 12, false)),
            (6, namespace(&[6], 13, true)),
        ]);
        assert_eq!(found, expected);
    }
}
