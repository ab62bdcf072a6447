//! The cgroups below the node's root by id: an id is the inode number of the cgroup's directory (kernfs, Linux 4.18+).
//!
//! A container that lived one second must still have its name, so births are watched for (inotify) and the dead are
//! remembered. Where inotify is refused the tree is walked again whenever an unknown id is asked for.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt, fs::DirEntryExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};

/// Maximum number of dead cgroups that are remembered beside those that are still needed.
const MAX_DEAD: usize = 16_384;

/// Minimum time for which a dead cgroup is remembered, as far as [`MAX_DEAD`] allows.
const REMEMBER_DEAD: Duration = Duration::from_mins(10);

/// At most one walk in this time is done for ids that are not known.
const WALK_INTERVAL: Duration = Duration::from_secs(1);

/// Deeper cgroups than this are not walked; the kernel's own limit is the length of a path.
const MAX_DEPTH: usize = 64;

/// The tree, live and dead.
#[derive(Debug)]
pub struct CgroupTree {
    root: PathBuf,
    cgroups: HashMap<u64, Cgroup>,
    /// The live cgroup at each path.
    at_path: HashMap<String, u64>,
    dead: VecDeque<(Instant, u64)>,
    births: Option<Births>,
    last_walk: Option<Instant>,
}

#[derive(Debug)]
struct Cgroup {
    path: String,
    died: bool,
}

#[derive(Debug)]
struct Births {
    inotify: Inotify,
    /// Cgroup of each watch.
    watched: HashMap<WatchDescriptor, u64>,
}

impl CgroupTree {
    /// Reads the tree below `root`, the directory of the node's cgroup v2 root, and begins to watch it.
    ///
    /// # Errors
    /// If `root` can't be read.
    pub fn open(root: &Path) -> io::Result<Self> {
        let births = match Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC) {
            Ok(inotify) => Some(Births { inotify, watched: HashMap::new() }),
            Err(error) => {
                tracing::warn!(%error, "can't watch for new cgroups; containers that live shorter than the report interval may stay nameless. Raise fs.inotify.max_user_instances");
                None
            }
        };
        let mut tree = Self {
            root: root.to_owned(),
            cgroups: HashMap::new(),
            at_path: HashMap::new(),
            dead: VecDeque::new(),
            births,
            last_walk: None,
        };
        fs::read_dir(root)?;
        tree.walk(Instant::now());
        Ok(tree)
    }

    /// Becomes readable when cgroups were made or removed; then call [`CgroupTree::catch_up`].
    #[must_use]
    pub fn births(&self) -> Option<BorrowedFd<'_>> {
        self.births.as_ref().map(|births| births.inotify.as_fd())
    }

    /// Takes in what inotify has noted.
    pub fn catch_up(&mut self, now: Instant) {
        loop {
            let Some(births) = &self.births else { return };
            match births.inotify.read_events() {
                Ok(events) if events.is_empty() => return,
                Ok(events) => self.take_in(events, now),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "can't read which cgroups are new; walking the tree instead");
                    self.births = None;
                    return self.walk(now);
                }
            }
        }
    }

    /// The path below the root of a cgroup, live or remembered. An unknown id causes a walk, at most one a second.
    pub fn path(&mut self, id: u64, now: Instant) -> Option<&str> {
        if !self.cgroups.contains_key(&id) {
            self.catch_up(now);
        }
        let may_walk = self.last_walk.is_none_or(|last| now.duration_since(last) >= WALK_INTERVAL);
        if !self.cgroups.contains_key(&id) && may_walk {
            self.walk(now);
        }
        self.cgroups.get(&id).map(|cgroup| cgroup.path.as_str())
    }

    /// Returns whether the cgroup is known and exists.
    #[must_use]
    pub fn is_live(&self, id: u64) -> bool {
        self.cgroups.get(&id).is_some_and(|cgroup| !cgroup.died)
    }

    /// The directory of a cgroup by its path below the root.
    #[must_use]
    pub fn directory(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the number of live cgroups, and of remembered dead ones.
    #[must_use]
    pub fn len(&self) -> (usize, usize) {
        (self.at_path.len(), self.dead.len())
    }

    /// Removes dead cgroups that are not `needed`: after a while, or if there are too many.
    pub fn forget_dead(&mut self, now: Instant, needed: impl Fn(u64) -> bool) {
        let mut surplus = self.dead.len().saturating_sub(MAX_DEAD);
        let cgroups = &mut self.cgroups;
        self.dead.retain(|(died, id)| {
            let keep = needed(*id) || (surplus == 0 && now.duration_since(*died) < REMEMBER_DEAD);
            if !keep {
                surplus = surplus.saturating_sub(1);
                cgroups.remove(id);
            }
            keep
        });
    }

    fn take_in(&mut self, events: Vec<InotifyEvent>, now: Instant) {
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                self.walk(now);
                continue;
            }
            let Some(births) = &mut self.births else { return };
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                births.watched.remove(&event.wd);
                continue;
            }
            let parent = births.watched.get(&event.wd).and_then(|id| self.cgroups.get(id));
            let (Some(parent), Some(name)) = (parent, event.name) else { continue };
            let path = child_path(&parent.path, &name);
            if event.mask.contains(AddWatchFlags::IN_CREATE) {
                self.add_below(&path);
            } else if event.mask.contains(AddWatchFlags::IN_DELETE)
                && let Some(id) = self.at_path.get(&path)
                // A directory of the same name may have been made since.
                && fs::metadata(self.directory(&path)).map(|directory| directory.ino()).ok() != Some(*id)
            {
                self.bury(&path, now);
            }
        }
    }

    fn walk(&mut self, now: Instant) {
        self.last_walk = Some(now);
        self.add_below("/");
        let gone: Vec<String> = self
            .at_path
            .iter()
            .filter(|(path, id)| fs::metadata(self.directory(path)).map(|directory| directory.ino()).ok() != Some(**id))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.bury(&path, now);
        }
    }

    /// Adds a cgroup and all below it. What vanishes meanwhile is left out.
    fn add_below(&mut self, path: &str) {
        let Ok(metadata) = fs::metadata(self.directory(path)) else { return };
        let mut pending = vec![(path.to_owned(), metadata.ino(), 0)];
        while let Some((path, id, depth)) = pending.pop() {
            // First watch, then list: what is made in between is seen at least once.
            self.add(&path, id);
            self.watch(&path, id);
            let Ok(entries) = fs::read_dir(self.directory(&path)) else { continue };
            for entry in entries.filter_map(Result::ok) {
                if depth < MAX_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push((child_path(&path, &entry.file_name()), entry.ino(), depth + 1));
                }
            }
        }
    }

    fn add(&mut self, path: &str, id: u64) {
        if let Some(before) = self.at_path.insert(path.to_owned(), id)
            && before != id
        {
            self.mark_dead(before, Instant::now());
        }
        self.cgroups.entry(id).or_insert_with(|| Cgroup { path: path.to_owned(), died: false });
    }

    fn watch(&mut self, path: &str, id: u64) {
        let directory = self.directory(path);
        let Some(births) = &mut self.births else { return };
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        match births.inotify.add_watch(&directory, flags) {
            Ok(watch) => {
                births.watched.insert(watch, id);
            }
            Err(Errno::ENOENT) => {}
            Err(error) => {
                tracing::warn!(%error, cgroup = path, "can't watch for new cgroups here; they are found when a connection of theirs is. Raise fs.inotify.max_user_watches");
            }
        }
    }

    fn bury(&mut self, path: &str, now: Instant) {
        if let Some(id) = self.at_path.remove(path) {
            self.mark_dead(id, now);
        }
    }

    fn mark_dead(&mut self, id: u64, now: Instant) {
        if let Some(cgroup) = self.cgroups.get_mut(&id)
            && !cgroup.died
        {
            cgroup.died = true;
            self.dead.push_back((now, id));
        }
    }
}

fn child_path(parent: &str, name: &OsStr) -> String {
    format!("{}/{}", parent.trim_end_matches('/'), String::from_utf8_lossy(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(directory: &Path) -> u64 {
        fs::metadata(directory).unwrap().ino()
    }

    #[test]
    fn births_and_deaths_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("old");
        fs::create_dir(&old).unwrap();
        let mut tree = CgroupTree::open(root.path()).unwrap();
        let now = Instant::now();
        assert_eq!(tree.path(id(root.path()), now), Some("/"));
        assert_eq!(tree.path(id(&old), now), Some("/old"));

        let deep = old.join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        let deep_id = id(&deep);
        tree.catch_up(now);
        fs::remove_dir(&deep).unwrap();
        tree.catch_up(now);
        assert_eq!(tree.path(deep_id, now), Some("/old/a/b/c"), "remembered after its death");
        assert!(!tree.is_live(deep_id) && tree.is_live(id(&old)));
        assert_eq!(tree.len(), (4, 1));
    }

    #[test]
    fn without_inotify_a_miss_walks() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = CgroupTree::open(root.path()).unwrap();
        tree.births = None;
        let born = root.path().join("born");
        fs::create_dir(&born).unwrap();
        let born = id(&born);
        let now = Instant::now();
        assert_eq!(tree.path(born, now), None, "the last walk was less than a second ago");
        assert_eq!(tree.path(born, now + WALK_INTERVAL), Some("/born"));
        fs::remove_dir(root.path().join("born")).unwrap();
        assert_eq!(tree.path(u64::MAX, now + 2 * WALK_INTERVAL), None);
        assert!(!tree.is_live(born), "a walk finds deaths, too");
    }

    #[test]
    fn tree_drops_dead_cgroups_without_users() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = CgroupTree::open(root.path()).unwrap();
        let now = Instant::now();
        for n in 0..3u64 {
            tree.add(&format!("/{n}"), 1_000_000 + n);
            tree.bury(&format!("/{n}"), now);
        }
        tree.forget_dead(now + REMEMBER_DEAD / 2, |_| false);
        assert_eq!(tree.len().1, 3);
        tree.forget_dead(now + REMEMBER_DEAD, |id| id == 1_000_001);
        assert_eq!(tree.len().1, 1);
        assert_eq!(tree.cgroups[&1_000_001].path, "/1");
        assert!(!tree.cgroups.contains_key(&1_000_000));
    }

    #[test]
    fn too_many_dead_leave_oldest_first() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = CgroupTree::open(root.path()).unwrap();
        let now = Instant::now();
        for n in 0..=MAX_DEAD as u64 {
            tree.add("/same", 1_000_000 + n);
        }
        tree.add("/same", 1);
        tree.forget_dead(now, |_| false);
        assert_eq!(tree.len().1, MAX_DEAD);
        assert!(!tree.cgroups.contains_key(&1_000_000) && tree.cgroups.contains_key(&1_000_001));
    }

    #[test]
    fn a_missing_root_is_an_error() {
        assert!(CgroupTree::open(Path::new("/no/such/root")).is_err());
    }
}
