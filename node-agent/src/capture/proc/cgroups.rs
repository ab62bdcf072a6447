//! The node's own cgroups: their ids, and where a process is among them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::small_files::read_small;
use crate::capture::cgroup_root::is_cgroup2;

/// The id of the real root of the hierarchy: below it is everything.
const WHOLE_MACHINE: u64 = 1;

/// Cgroups of others that are remembered as such.
const MOST_FOREIGN: usize = 100_000;

/// The longest `/proc/<pid>/cgroup` that is read: cgroup v1 has a line for each controller.
const LONGEST: u64 = 64 * 1024;

/// The cgroups below the node's root.
#[derive(Debug)]
pub(in crate::capture) struct Cgroups {
    root: PathBuf,
    root_id: u64,
    /// The root below the mount point.
    root_path: Vec<String>,
    /// Path of this process's root cgroup below the mount point, to which `/proc/<pid>/cgroup` is relative.
    base: Vec<String>,
    /// Known ids, with their paths below the root.
    ids: HashMap<u64, Vec<String>>,
    foreign: HashSet<u64>,
}

impl Cgroups {
    /// Those below this directory of a cgroup v2 hierarchy.
    pub(in crate::capture) fn open(root: &Path, proc: &Path) -> io::Result<Self> {
        let root_id = fs::metadata(root)?.ino();
        let mount = root.ancestors().take_while(|directory| is_cgroup2(directory)).last().unwrap_or(root);
        let mut cgroups = Self {
            root: root.to_path_buf(),
            root_id,
            root_path: parts(&root.strip_prefix(mount).unwrap_or(Path::new("")).to_string_lossy()),
            base: base(mount, proc),
            ids: HashMap::new(),
            foreign: HashSet::new(),
        };
        cgroups.walk();
        Ok(cgroups)
    }

    /// Returns whether this cgroup is the root or below it.
    pub(in crate::capture) fn is_ours(&self, id: u64) -> bool {
        self.root_id == WHOLE_MACHINE || self.ids.contains_key(&id)
    }

    /// Finds out whether unknown cgroups are new ones of the node.
    pub(in crate::capture) fn learn(&mut self, seen: impl Iterator<Item = u64>) {
        if self.root_id == WHOLE_MACHINE {
            return;
        }
        let unknown: Vec<u64> = seen.filter(|id| !self.ids.contains_key(id) && !self.foreign.contains(id)).collect();
        if unknown.is_empty() {
            return;
        }
        self.walk();
        if self.foreign.len() > MOST_FOREIGN {
            self.foreign.clear();
        }
        // Ids are never used again.
        self.foreign.extend(unknown.into_iter().filter(|id| !self.ids.contains_key(id)));
    }

    /// The cgroup of a process by its directory in `/proc`; `None` where it is not below the root.
    pub(in crate::capture) fn of(&mut self, process: &Path) -> Option<u64> {
        let text = read_small(&process.join("cgroup"), LONGEST).ok()?;
        let text = String::from_utf8_lossy(&text);
        let shown = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let path = self.below_root(shown)?;
        let id = fs::metadata(self.root.join(path.join("/"))).ok()?.ino();
        self.ids.insert(id, path);
        Some(id)
    }

    /// The closest cgroup that all of these are below of.
    pub(in crate::capture) fn common(&self, of: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut paths = of.into_iter().map(|id| self.ids.get(&id));
        let mut common = paths.next()??.clone();
        for path in paths {
            let same = common.iter().zip(path?).take_while(|(one, other)| one == other).count();
            common.truncate(same);
        }
        Some(fs::metadata(self.root.join(common.join("/"))).ok()?.ino())
    }

    fn below_root(&self, shown: &str) -> Option<Vec<String>> {
        let path = absolute(&self.base, shown)?;
        path.strip_prefix(self.root_path.as_slice()).map(<[String]>::to_vec)
    }

    fn walk(&mut self) {
        self.ids.clear();
        let mut to_do = vec![Vec::new()];
        while let Some(path) = to_do.pop() {
            let directory = self.root.join(path.join("/"));
            let Ok(metadata) = fs::metadata(&directory) else { continue };
            if let Ok(entries) = fs::read_dir(&directory) {
                let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                to_do.extend(below.map(|entry| {
                    let mut below = path.clone();
                    below.push(entry.file_name().to_string_lossy().into_owned());
                    below
                }));
            }
            self.ids.insert(metadata.ino(), path);
        }
    }
}

fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Converts a path of `/proc/<pid>/cgroup`. It begins with `..` if it is not below the reader's own root.
fn absolute(base: &[String], shown: &str) -> Option<Vec<String>> {
    let mut path = base.to_vec();
    for part in shown.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            path.pop()?;
        } else {
            path.push(part.to_owned());
        }
    }
    Some(path)
}

/// Returns the path of this process's root cgroup below the mount point. It is empty, unless the process has a cgroup
/// namespace of its own and the mount comes from elsewhere, as in a pod that has the node's cgroups mounted.
fn base(mount: &Path, proc: &Path) -> Vec<String> {
    let own = fs::read_link(proc.join("self")).ok().and_then(|pid| pid.to_str()?.parse::<u32>().ok());
    let shown = fs::read_to_string(proc.join("self/cgroup")).ok();
    let shown = shown.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::")));
    let (Some(own), Some(shown)) = (own, shown) else { return Vec::new() };
    let shown = parts(shown);
    if holds(&mount.join(shown.join("/")), own) {
        return Vec::new();
    }
    let mut to_do = vec![Vec::<String>::new()];
    while let Some(path) = to_do.pop() {
        let directory = mount.join(path.join("/"));
        if path.ends_with(&shown) && holds(&directory, own) {
            return path[..path.len() - shown.len()].to_vec();
        }
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let mut below = path.clone();
                below.push(entry.file_name().to_string_lossy().into_owned());
                to_do.push(below);
            }
        }
    }
    Vec::new()
}

/// Returns whether a process is directly in this cgroup.
fn holds(directory: &Path, pid: u32) -> bool {
    let pid = pid.to_string();
    fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|text| text.lines().any(|line| line == pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn paths_count_from_the_readers_own_root() {
        let own = named(&["kubepods", "pod1", "agent"]);
        assert_eq!(absolute(&own, "/"), Some(own.clone()));
        assert_eq!(absolute(&own, "/../../pod2/web"), Some(named(&["kubepods", "pod2", "web"])));
        assert_eq!(absolute(&own, "/../../../../elsewhere"), None, "above what is mounted here");
        assert_eq!(absolute(&[], "/system.slice/a.service"), Some(named(&["system.slice", "a.service"])));
    }

    /// A pretended node: an agent with a cgroup namespace of its own in a pod, and others beside it.
    #[test]
    fn processes_are_found_from_within_a_pod() {
        let (root, proc) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("pods/one/agent/cgroup.procs", "7\n");
        write("pods/two/web/cgroup.procs", "8\n");
        write("pods/two/sidecar/cgroup.procs", "9\n");
        for (pid, shown) in [(7, "/"), (8, "/../../two/web"), (9, "/../../two/sidecar"), (10, "/../../../../x")] {
            let process = proc.path().join(pid.to_string());
            fs::create_dir(&process).unwrap();
            fs::write(process.join("cgroup"), format!("1:name=systemd:/\n0::{shown}\n")).unwrap();
        }
        std::os::unix::fs::symlink("7", proc.path().join("self")).unwrap();
        let mut cgroups = Cgroups::open(root.path(), proc.path()).unwrap();
        let id = |path: &str| fs::metadata(root.path().join(path)).unwrap().ino();
        let mut of = |pid: u32| cgroups.of(&proc.path().join(pid.to_string()));
        let found = [of(7), of(8), of(9), of(10)];
        assert_eq!(found, [Some(id("pods/one/agent")), Some(id("pods/two/web")), Some(id("pods/two/sidecar")), None]);
        assert_eq!(cgroups.common([id("pods/two/web"), id("pods/two/sidecar")]), Some(id("pods/two")));
        assert_eq!(cgroups.common([id("pods/two/web")]), Some(id("pods/two/web")));
        assert_eq!(cgroups.common([id("pods/two/web"), id("pods/one/agent")]), Some(id("pods")));
    }

    #[test]
    fn new_cgroups_are_learned_and_those_of_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroups = Cgroups::open(root.path(), Path::new("/proc")).unwrap();
        let born = root.path().join("born");
        fs::create_dir(&born).unwrap();
        let born = fs::metadata(&born).unwrap().ino();
        assert!(!cgroups.is_ours(born));
        cgroups.learn([born, u64::MAX].into_iter());
        assert!(cgroups.is_ours(born) && !cgroups.is_ours(u64::MAX));
    }
}
