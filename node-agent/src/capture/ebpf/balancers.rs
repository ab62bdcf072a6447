//! Load balancers at the sockets: finds them, and attaches the programs that note original destinations before them.
//!
//! Without such a load balancer, the programs are not loaded and cost nothing.

use std::{
    collections::{BTreeMap, HashSet, btree_map::Entry},
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{CgroupSockAddr, ProgramError},
};
use node_agent_common::balancing;

use super::{
    cgroup_hooks::{AttachedPrograms, Hook, Position, attach, effective_programs, own_programs},
    load_errors::describe,
    object::program,
};

/// Interval at which load balancers are looked for at the root, where they usually are.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same for the cgroups below, which takes longer.
const INTERVAL_BELOW: Duration = Duration::from_secs(10);

/// Hooks whose programs, if they are others', may replace destinations. The agent's own programs on `sendmsg()` are always
/// attached, so that a load balancer shows by its other hooks.
const SIGNS: [Hook; 4] = [Hook::Connect4, Hook::Connect6, Hook::Recvmsg4, Hook::Recvmsg6];

/// Programs that note original destinations, and their hooks.
const PROGRAMS: [(&str, Hook); 4] = [
    ("asked_connect_v4", Hook::Connect4),
    ("asked_connect_v6", Hook::Connect6),
    ("asked_sendmsg_v4", Hook::Sendmsg4),
    ("asked_sendmsg_v6", Hook::Sendmsg6),
];

/// Cause for which the programs do not run before a load balancer's.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefusedHook {
    #[error("{path}: {source}")]
    Cgroup { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("writing to the programs' maps: {0}")]
    Map(#[from] aya::maps::MapError),
    #[error("the load balancer's programs at {path} allow no other beside them")]
    Exclusive { path: PathBuf },
}

/// Load balancers at the sockets of a node.
pub(super) struct Balancers {
    root: PathBuf,
    /// The programs' own word about them: see [`balancing`].
    word: Array<MapData, u64>,
    /// False if the kernel runs programs in the order of cgroups only.
    has_positions: bool,
    /// IDs of the programs; none until they are loaded.
    own: HashSet<u32>,
    /// Links of the programs, by cgroup.
    links: BTreeMap<PathBuf, Vec<OwnedFd>>,
    /// True if there were some at the last check.
    are_present: bool,
    /// True if the programs were refused; they are tried again when there was no load balancer in between.
    is_refused: bool,
    next_check: Instant,
    /// Cgroup right below the root at which there is one.
    below: Option<PathBuf>,
    next_check_below: Instant,
}

impl Balancers {
    /// Returns a value without any load balancer.
    pub(super) fn new(root: &Path, word: Array<MapData, u64>, has_positions: bool) -> Self {
        Self {
            root: root.to_owned(),
            word,
            has_positions,
            own: HashSet::new(),
            links: BTreeMap::new(),
            are_present: false,
            is_refused: false,
            next_check: Instant::now(),
            below: None,
            next_check_below: Instant::now(),
        }
    }

    /// Looks for load balancers if that is due. Returns true if it is and there are some.
    ///
    /// # Errors
    /// Returns an error that keeps the programs from running first, once.
    pub(super) fn check(&mut self, programs: &mut Ebpf, now: Instant) -> Result<bool, RefusedHook> {
        if now < self.next_check {
            return Ok(false);
        }
        self.next_check = now + INTERVAL;
        match self.find_and_attach(programs, now) {
            Ok(()) => Ok(self.are_present),
            Err(_) if self.is_refused => Ok(false),
            Err(refused) => {
                self.is_refused = true;
                self.detach()?;
                Err(refused)
            }
        }
    }

    fn find_and_attach(&mut self, programs: &mut Ebpf, now: Instant) -> Result<(), RefusedHook> {
        self.are_present = self.find(now)?;
        if !self.are_present {
            self.is_refused = false;
            return self.detach();
        }
        if self.is_refused { Ok(()) } else { self.attach(programs) }
    }

    /// Returns whether there were some at the last check.
    pub(super) fn are_present(&self) -> bool {
        self.are_present
    }

    /// Returns whether others' programs are attached to the node's root, above it, or to a cgroup right below it.
    fn find(&mut self, now: Instant) -> Result<bool, RefusedHook> {
        let root = Cgroup::open(&self.root)?;
        for hook in SIGNS {
            if self.has_foreign(&root.effective(hook)?) {
                return Ok(true);
            }
        }
        if let Some(below) = &self.below
            && self.is_at(below)?
        {
            return Ok(true);
        }
        self.below = None;
        if now >= self.next_check_below {
            self.next_check_below = now + INTERVAL_BELOW;
            for child in children(&self.root)? {
                if self.is_at(&child)? {
                    self.below = Some(child);
                    break;
                }
            }
        }
        Ok(self.below.is_some())
    }

    /// Returns whether others' programs are attached to a cgroup itself.
    fn is_at(&self, path: &Path) -> Result<bool, RefusedHook> {
        let Some(cgroup) = Cgroup::open_if_present(path)? else { return Ok(false) };
        for hook in SIGNS {
            if self.has_foreign(&cgroup.own(hook)?.ids) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn has_foreign(&self, ids: &[u32]) -> bool {
        ids.iter().any(|id| !self.own.contains(id))
    }

    fn attach(&mut self, programs: &mut Ebpf) -> Result<(), RefusedHook> {
        if self.own.is_empty() {
            self.own = load(programs)?;
        }
        if self.links.is_empty() {
            // Before the programs: what they note then is of this time.
            self.word.set(0, balancing::found(self.word.get(&0, 0)?), 0)?;
        }
        if self.has_positions {
            if self.links.contains_key(&self.root) {
                return Ok(());
            }
            let root = Cgroup::open(&self.root)?;
            match root.attach(programs, Position::BeforeAll) {
                Ok(links) => {
                    self.links.insert(self.root.clone(), links);
                    return Ok(());
                }
                Err(RefusedHook::Cgroup { source, .. }) if source.raw_os_error() == Some(nix::libc::EINVAL) => {
                    self.has_positions = false;
                }
                Err(refused) => return Err(refused),
            }
        }
        self.attach_below(programs)
    }

    /// Attaches the programs to the cgroups below those with programs of others, whose programs run later.
    fn attach_below(&mut self, programs: &mut Ebpf) -> Result<(), RefusedHook> {
        let mut places = Vec::new();
        let mut above = vec![self.root.clone()];
        while let Some(path) = above.pop() {
            for child in children(&path)? {
                if self.is_at(&child)? {
                    above.push(child);
                } else if let Some(cgroup) = Cgroup::open_if_present(&child)? {
                    places.push((child, cgroup));
                }
            }
        }
        self.links.retain(|path, _| places.iter().any(|(place, _)| place == path));
        if places.iter().all(|(path, _)| self.links.contains_key(path)) {
            return Ok(());
        }
        self.demand_sharing()?;
        for (path, cgroup) in places {
            if let Entry::Vacant(place) = self.links.entry(path) {
                match cgroup.attach(programs, Position::Appended) {
                    Ok(links) => {
                        place.insert(links);
                    }
                    // It was removed meanwhile.
                    Err(_) if !cgroup.path.exists() => {}
                    Err(refused) => return Err(refused),
                }
            }
        }
        Ok(())
    }

    /// Checks that programs at the root run beside others below it: otherwise these would replace them.
    fn demand_sharing(&self) -> Result<(), RefusedHook> {
        let root = Cgroup::open(&self.root)?;
        for (_, hook) in PROGRAMS {
            if !root.own(hook)?.allows_others {
                return Err(RefusedHook::Exclusive { path: self.root.clone() });
            }
        }
        Ok(())
    }

    fn detach(&mut self) -> Result<(), RefusedHook> {
        let word = self.word.get(&0, 0)?;
        if word != balancing::gone(word) {
            self.word.set(0, balancing::gone(word), 0)?;
        }
        self.links.clear();
        Ok(())
    }
}

/// A cgroup, with its path for messages.
struct Cgroup {
    path: PathBuf,
    directory: File,
}

impl Cgroup {
    fn open(path: &Path) -> Result<Self, RefusedHook> {
        let directory = File::open(path).map_err(|source| at(path, source))?;
        Ok(Self { path: path.to_owned(), directory })
    }

    /// Returns `None` for a cgroup that is gone.
    fn open_if_present(path: &Path) -> Result<Option<Self>, RefusedHook> {
        match Self::open(path) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(RefusedHook::Cgroup { source, .. }) if is_gone(&source) => Ok(None),
            Err(refused) => Err(refused),
        }
    }

    fn effective(&self, hook: Hook) -> Result<Vec<u32>, RefusedHook> {
        self.unless_gone(effective_programs(&self.directory, hook))
    }

    fn own(&self, hook: Hook) -> Result<AttachedPrograms, RefusedHook> {
        self.unless_gone(own_programs(&self.directory, hook))
    }

    /// A cgroup that was removed since it was opened has no programs.
    fn unless_gone<T: Default>(&self, result: io::Result<T>) -> Result<T, RefusedHook> {
        match result {
            Err(error) if is_gone(&error) => Ok(T::default()),
            other => other.map_err(|source| at(&self.path, source)),
        }
    }

    /// Attaches all programs. Programs of others have to go on running.
    fn attach(&self, programs: &mut Ebpf, position: Position) -> Result<Vec<OwnedFd>, RefusedHook> {
        let mut links = Vec::new();
        for (name, hook) in PROGRAMS {
            let before = self.effective(hook)?;
            let program = program::<CgroupSockAddr>(programs, name)?;
            let link =
                attach(program.fd()?, &self.directory, hook, position).map_err(|source| at(&self.path, source))?;
            let after: HashSet<u32> = self.effective(hook)?.into_iter().collect();
            if !before.iter().all(|id| after.contains(id)) {
                return Err(RefusedHook::Exclusive { path: self.path.clone() });
            }
            links.push(link);
        }
        Ok(links)
    }
}

fn at(path: &Path, source: io::Error) -> RefusedHook {
    RefusedHook::Cgroup { path: path.to_owned(), source }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV))
}

/// Loads the programs and returns their IDs.
fn load(programs: &mut Ebpf) -> Result<HashSet<u32>, RefusedHook> {
    let mut ids = HashSet::new();
    for (name, _) in PROGRAMS {
        let program = program::<CgroupSockAddr>(programs, name)?;
        program.load()?;
        ids.insert(program.info()?.id());
    }
    Ok(ids)
}

fn children(cgroup: &Path) -> Result<Vec<PathBuf>, RefusedHook> {
    let mut children = Vec::new();
    let entries = match fs::read_dir(cgroup) {
        Err(error) if is_gone(&error) => return Ok(children),
        entries => entries.map_err(|source| at(cgroup, source))?,
    };
    for entry in entries {
        let entry = entry.map_err(|source| at(cgroup, source))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// Message about programs that do not run before a load balancer's.
pub(super) fn refusal(refused: &RefusedHook) -> String {
    format!(
        "the programs on connect() that run before the load balancer at the sockets could not be attached: {}. Connections \
         that it leads to backends are shown without their Service",
        describe(refused)
    )
}
