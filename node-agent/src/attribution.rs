//! Attribution of sockets: from the kernel's cgroup ID to the cgroup's path and owner.

use std::{
    collections::HashMap,
    io,
    os::fd::BorrowedFd,
    path::Path,
    time::{Duration, Instant},
};

use topology::entity::CgroupOwner;

use self::{
    shape::{Shape, shape},
    tree::CgroupTree,
};

pub mod processes;
pub mod shape;
pub mod tree;

/// Time after which the agent retries the attribution of a cgroup without a path, or of one that only its processes can
/// identify and that had none.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Owner of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributed {
    /// Path below the node's cgroup v2 root; empty if the cgroup was removed before the agent read its path.
    pub path: String,
    /// Owner of the cgroup; without a path, a host process with a name for that case.
    pub owner: CgroupOwner,
}

/// All cgroups of the node and their owners.
#[derive(Debug)]
pub struct Attribution {
    tree: CgroupTree,
    known: HashMap<u64, OwnerCacheEntry>,
}

#[derive(Debug)]
struct OwnerCacheEntry {
    attributed: Attributed,
    /// Time at which to retry a provisional result.
    again: Option<Instant>,
}

impl Attribution {
    /// Reads and watches the cgroups below `root`, the directory of the node's cgroup v2 root.
    ///
    /// # Errors
    /// If `root` can't be read.
    pub fn open(root: &Path) -> io::Result<Self> {
        Ok(Self { tree: CgroupTree::open(root)?, known: HashMap::new() })
    }

    /// Becomes readable when cgroups were made or removed; then call [`Attribution::catch_up`].
    #[must_use]
    pub fn births(&self) -> Option<BorrowedFd<'_>> {
        self.tree.births()
    }

    /// Takes in the births and deaths of cgroups.
    pub fn catch_up(&mut self, now: Instant) {
        self.tree.catch_up(now);
    }

    /// The owner of a cgroup. A name, once found, stays while the cgroup is known, so that a host process isn't a new
    /// peer each time that something starts beside it.
    pub fn owner(&mut self, id: u64, now: Instant) -> &Attributed {
        let settled = self.known.get(&id).is_some_and(|known| known.again.is_none_or(|again| now < again));
        if !settled {
            let (attributed, provisional) = self.look_up(id, now);
            self.known.insert(id, OwnerCacheEntry { attributed, again: provisional.then(|| now + LOOK_AGAIN) });
        }
        &self.known[&id].attributed
    }

    /// Returns whether the cgroup was requested before and is still remembered.
    #[must_use]
    pub fn is_known(&self, id: u64) -> bool {
        self.known.contains_key(&id)
    }

    /// Returns whether the cgroup still exists.
    #[must_use]
    pub fn is_live(&self, id: u64) -> bool {
        self.tree.is_live(id)
    }

    /// Returns the number of live cgroups, and of remembered dead ones.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        self.tree.len()
    }

    /// Removes dead cgroups that are not `needed`.
    pub fn forget_dead(&mut self, now: Instant, needed: impl Fn(u64) -> bool) {
        self.tree.forget_dead(now, &needed);
        let tree = &self.tree;
        self.known.retain(|id, _| tree.is_live(*id) || needed(*id));
    }

    fn look_up(&mut self, id: u64, now: Instant) -> (Attributed, bool) {
        let Some(path) = self.tree.path(id, now).map(str::to_owned) else {
            let owner = CgroupOwner::HostProcess { name: format!("unknown cgroup {id}") };
            return (Attributed { path: String::new(), owner }, true);
        };
        let (owner, provisional) = match shape(&path) {
            Shape::Named(owner) => (owner, false),
            Shape::Nameless => match processes::commands(&self.tree.directory(&path)) {
                Some(name) => (CgroupOwner::HostProcess { name: shape::bounded(&name) }, false),
                None => (CgroupOwner::HostProcess { name: shape::own_name(&path) }, self.tree.is_live(id)),
            },
        };
        (Attributed { path, owner }, provisional)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn owners_by_path_by_process_and_unknown() {
        let root = tempfile::tempdir().unwrap();
        let service = root.path().join("system.slice/web.service");
        let nameless = root.path().join("batch");
        fs::create_dir_all(&service).unwrap();
        fs::create_dir(&nameless).unwrap();
        let id = |path: &Path| fs::metadata(path).unwrap().ino();
        let host = |name: &str| CgroupOwner::HostProcess { name: name.into() };
        let now = Instant::now();
        let mut attribution = Attribution::open(root.path()).unwrap();

        let web = Attributed { path: "/system.slice/web.service".into(), owner: host("web.service") };
        assert_eq!(attribution.owner(id(&service), now), &web);
        assert_eq!(attribution.owner(id(&nameless), now).owner, host("cgroup batch"));
        fs::write(nameless.join("cgroup.procs"), format!("0\n{}\n", std::process::id())).unwrap();
        assert_eq!(attribution.owner(id(&nameless), now).owner, host("cgroup batch"), "not looked at again at once");
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(attribution.owner(id(&nameless), now + LOOK_AGAIN).owner, host(comm.trim_end()));
        fs::write(nameless.join("cgroup.procs"), "").unwrap();
        assert_eq!(attribution.owner(id(&nameless), now + 9 * LOOK_AGAIN).owner, host(comm.trim_end()), "settled");

        assert_eq!(attribution.owner(u64::MAX, now).owner, host(&format!("unknown cgroup {}", u64::MAX)));
    }
}
