//! Thread of the capture: scans the network namespaces, and receives conntrack events in between.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
    thread,
    time::{Duration, Instant},
};

use super::{
    cpu_budget::CpuBudget,
    netlink::{conntrack::Conntrack, socket::Buffer},
    reader::Source,
    settings::FallbackSettings,
    shared::SharedState,
    socket_owners::SocketOwners,
    state::namespace::Scan,
};
use crate::{
    capture::proc::{
        cgroups::Cgroups,
        processes::{Namespace, Processes},
        tcp_counters::TcpCounts,
    },
    node_addresses,
};

/// Maximum time for which events wait to be read.
const LISTEN_EVERY: Duration = Duration::from_millis(100);

/// Time between two decisions about connections that only conntrack has reported.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// Age from which a scan looks for the socket of an open connection that conntrack has reported. Most end before.
const LONG: Duration = Duration::from_millis(500);

/// Part of the budget for scans of namespaces that conntrack tells about, as a divisor.
const SCANS_SHARE: u32 = 2;

/// Excess over the budget at which the thread also stops receiving events. Lost events are counted.
const DEEP_IN_DEBT: Duration = Duration::from_secs(5);

/// Number of scans after which a namespace's addresses are read again.
const ADDRESSES_EVERY: u32 = 16;
/// Number of first scans that all read the addresses: they are assigned after the namespace is created.
const FIRST_SCANS: u32 = 4;

/// State of the thread.
pub(super) struct Worker {
    settings: FallbackSettings,
    shared: Arc<SharedState>,
    processes: Processes,
    cgroups: Cgroups,
    socket_owners: SocketOwners,
    sources: HashMap<u32, Source>,
    conntrack: Option<Conntrack>,
    buffer: Buffer,
    budget: CpuBudget,
    passes: u64,
    settled_at: Instant,
    /// Two times and the numbers of the latest messages then, the later one first, at least [`LONG`] apart.
    marks: [(Instant, u64); 2],
    /// Notified after the first scan.
    first_pass: Option<SyncSender<()>>,
}

impl Worker {
    pub(super) fn new(
        settings: FallbackSettings,
        shared: Arc<SharedState>,
        cgroups: Cgroups,
        conntrack: Option<Conntrack>,
        first_pass: SyncSender<()>,
    ) -> Self {
        Self {
            processes: Processes::new(&settings.proc),
            cgroups,
            socket_owners: SocketOwners::default(),
            sources: HashMap::new(),
            conntrack,
            buffer: Buffer::new(),
            budget: CpuBudget::new(settings.cpu_millicores),
            passes: 0,
            settled_at: Instant::now(),
            marks: [(Instant::now(), 0); 2],
            first_pass: Some(first_pass),
            settings,
            shared,
        }
    }

    /// Scans until it is stopped.
    ///
    /// # Errors
    /// Returns an error if the processes cannot be listed any more.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.listen_from_the_start()?;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let (began, used) = (Instant::now(), self.budget.used());
            self.pass()?;
            self.passes += 1;
            if let Some(first_pass) = self.first_pass.take() {
                self.budget.forgive();
                // The receiver is gone if the starter gave up.
                let _ = first_pass.send(());
            }
            let cost = self.budget.used().saturating_sub(used);
            self.rest(began + self.settings.interval)?;
            let known_until = self.sources.values().map(|source| source.known_until).fold(began, Instant::min);
            self.shared.lock().passed(known_until, cost, self.budget.used());
        }
        Ok(())
    }

    /// Scans everything that can have changed.
    fn pass(&mut self) -> io::Result<()> {
        self.listen()?;
        let namespaces = self.processes.scan(&mut self.cgroups)?;
        self.leave_others(&namespaces)?;
        if let Some(host) = self.conntrack.as_ref().and(self.processes.netns(self.settings.host_pid)) {
            self.shared.lock().connections.listen_to_conntrack_of(host);
        }
        for (netns, namespace) in &namespaces {
            self.record_namespace(*netns, namespace);
        }
        self.settle(false);
        let wanted = self.shared.lock().connections.namespaces_to_scan(self.reported_long_ago());
        let mut namespaces: Vec<_> = namespaces.iter().collect();
        let known_until = |netns| self.sources.get(netns).map(|source| source.known_until);
        namespaces.sort_by_key(|(netns, _)| (!wanted.contains(netns), known_until(netns)));
        let spacing = self.spacing();
        for (netns, namespace) in namespaces {
            let is_wanted = wanted.contains(netns);
            let is_covered = self.conntrack.is_some() && self.default_owner(namespace).is_some();
            let spacing = if is_covered && !is_wanted { spacing } else { Duration::ZERO };
            self.scan_if_due(*netns, namespace, is_wanted, spacing)?;
            // No reading is published before the first scan is complete.
            if self.passes > 0 {
                self.pay()?;
            }
            if self.shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        self.listen()?;
        self.settle(true);
        Ok(())
    }

    /// Decides about connections that only conntrack has reported, and announces new flows.
    fn settle(&mut self, ends_pass: bool) {
        self.settled_at = Instant::now();
        let mut shared = self.shared.lock();
        shared.connections.settle(ends_pass);
        let has_new = shared.connections.accounts.has_new();
        drop(shared);
        if has_new && self.passes > 0 {
            self.shared.announce();
        }
    }

    /// Returns the time between two scans of a namespace in which those that change keep to their part of the budget.
    ///
    /// The kernel walks through the connections of all namespaces for each, so that the cost of a scan grows with what
    /// others do.
    fn spacing(&self) -> Duration {
        let cost = self.sources.values().filter(|source| source.changes).map(|source| source.cost).sum();
        self.budget.time_to_earn(cost) * SCANS_SHARE
    }

    /// Returns the number of a message that was received at least [`LONG`] ago.
    fn reported_long_ago(&self) -> u64 {
        let [(at, latest), (_, earlier)] = self.marks;
        if at.elapsed() >= LONG { latest } else { earlier }
    }

    /// Scans namespaces without processes a last time, and removes them.
    fn leave_others(&mut self, namespaces: &HashMap<u32, Namespace>) -> io::Result<()> {
        let gone: Vec<u32> = self.sources.keys().filter(|netns| !namespaces.contains_key(netns)).copied().collect();
        for netns in gone {
            self.scan_if_due(netns, &Namespace::default(), false, Duration::ZERO)?;
            self.sources.remove(&netns);
            self.socket_owners.leave(netns);
            self.shared.lock().connections.leave(netns);
        }
        Ok(())
    }

    /// Records a namespace with its addresses and default owner.
    fn record_namespace(&mut self, netns: u32, namespace: &Namespace) {
        if !self.sources.contains_key(&netns) {
            let is_old = self.passes == 0;
            // A process may have ended since it was found, or deny access.
            let processes: Vec<_> = namespace.pids.iter().take(8).map(|pid| self.processes.directory(*pid)).collect();
            let Ok(source) = Source::open(&processes, is_old) else { return };
            self.sources.insert(netns, source);
        }
        let Some(source) = self.sources.get_mut(&netns) else { return };
        source.passes += 1;
        if source.passes > FIRST_SCANS && source.passes % ADDRESSES_EVERY != 0 {
            return;
        }
        let Some(pid) = namespace.pids.first() else { return };
        let addresses = node_addresses::of(&self.processes.directory(*pid)).into_iter().collect();
        let default_owner = self.default_owner(namespace);
        self.shared.lock().connections.record_namespace(netns, default_owner, addresses);
    }

    /// Returns the default owner of the namespace's connections: its only container, or the common ancestor of all.
    fn default_owner(&self, namespace: &Namespace) -> Option<u64> {
        if namespace.is_shared { None } else { self.cgroups.common(namespace.cgroups.iter().copied()) }
    }

    /// Scans a namespace if that can show something new and the last scan was at least `spacing` ago.
    fn scan_if_due(&mut self, netns: u32, namespace: &Namespace, wanted: bool, spacing: Duration) -> io::Result<()> {
        let Some(source) = self.sources.get_mut(&netns) else { return Ok(()) };
        let (now, before) = (Instant::now(), source.counts());
        let in_motion = || self.shared.lock().connections.is_in_motion(netns);
        source.changes = wanted || source.is_due(before, now) || in_motion();
        if source.changes && source.is_early(now, spacing) {
            return Ok(());
        }
        source.known_until = now;
        if !source.changes {
            return Ok(());
        }
        let used = self.budget.used();
        self.scan(netns, namespace, before)?;
        let cost = self.budget.used().saturating_sub(used);
        // The first scan also searches for the owners of sockets, outside of the budget.
        if let Some(source) = self.sources.get_mut(&netns).filter(|_| self.passes > 0) {
            source.cost = cost;
        }
        Ok(())
    }

    fn scan(&mut self, netns: u32, namespace: &Namespace, before: Option<TcpCounts>) -> io::Result<()> {
        let Some(source) = self.sources.get_mut(&netns) else { return Ok(()) };
        let finds_old = source.is_old && source.is_new();
        let owner = self.default_owner(namespace);
        self.listen()?;
        let began = self.shared.lock().connections.now();
        let directories = namespace.pids.iter().map(|pid| self.processes.directory(*pid));
        let Some(source) = self.sources.get_mut(&netns) else { return Ok(()) };
        let mut dump = match source.scan(before, directories, &mut self.buffer) {
            Ok(dump) => dump,
            Err(error) => {
                tracing::debug!(%error, netns, "cannot scan a network namespace");
                return Ok(());
            }
        };
        let counts = before.zip(source.counts()).map(|(before, after)| [before, after]);
        let methods = source.methods();
        // A namespace without processes is scanned a last time: what it has counted is still its last owner's.
        let default_owner = if namespace.pids.is_empty() { source.owner } else { owner };
        source.owner = default_owner;
        self.listen()?;
        if dump.sockets.iter().any(|socket| socket.cgroup.is_none()) && namespace.cgroups.len() > 1 {
            let socket_owners = namespace
                .pids
                .iter()
                .filter_map(|pid| Some((self.processes.directory(*pid), self.processes.cgroup(*pid)?)));
            let (budget, is_first) = (&mut self.budget, self.passes == 0);
            let complete =
                self.socket_owners.fill(netns, &mut dump, socket_owners, || is_first || budget.debt().is_zero());
            self.shared.lock().unattributed(netns, !complete);
        }
        self.cgroups.learn(dump.sockets.iter().filter_map(|socket| socket.cgroup));
        let cgroups = &self.cgroups;
        self.shared.lock().connections.scan(&Scan {
            netns,
            dump: &dump,
            methods,
            began,
            finds_old,
            default_owner,
            is_ours: &|cgroup| cgroups.is_ours(cgroup),
            counts,
        });
        Ok(())
    }

    /// Reads the conntrack entries from before the first scan.
    fn listen_from_the_start(&mut self) -> io::Result<()> {
        let Some(conntrack) = &mut self.conntrack else { return Ok(()) };
        let shared = &self.shared;
        conntrack.list(&mut self.buffer, |entry| shared.lock().connections.track(entry, true))?;
        Ok(())
    }

    /// Processes all messages of conntrack.
    fn listen(&mut self) -> io::Result<()> {
        let Some(conntrack) = &mut self.conntrack else { return Ok(()) };
        loop {
            let news = conntrack.drain(&mut self.buffer)?;
            let mut shared = self.shared.lock();
            for entry in &news.entries {
                shared.connections.track(entry, false);
            }
            drop(shared);
            if news.overflowed {
                let shared = &self.shared;
                shared.lock().connections.begin_list();
                let is_complete =
                    conntrack.list(&mut self.buffer, |entry| shared.lock().connections.track(entry, false))?;
                let mut shared = shared.lock();
                shared.overflows = conntrack.overflows();
                shared.connections.end_list(is_complete);
            }
            if !news.more {
                if !news.overflowed {
                    self.shared.lock().connections.caught_up();
                }
                return Ok(());
            }
        }
    }

    /// Waits until the budget is kept.
    fn pay(&mut self) -> io::Result<()> {
        loop {
            let debt = self.budget.debt();
            if debt.is_zero() || self.shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(debt.min(LISTEN_EVERY));
            if debt < DEEP_IN_DEBT {
                self.keep_up()?;
            }
        }
    }

    /// Receives events until the next scan.
    fn rest(&mut self, until: Instant) -> io::Result<()> {
        self.pay()?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            thread::sleep(left.min(LISTEN_EVERY));
            self.keep_up()?;
        }
    }

    /// Receives events, and decides about what they have reported.
    fn keep_up(&mut self) -> io::Result<()> {
        self.listen()?;
        if self.marks[0].0.elapsed() >= LONG {
            self.marks = [(Instant::now(), self.shared.lock().connections.now()), self.marks[0]];
        }
        if self.settled_at.elapsed() >= SETTLE_EVERY {
            self.settle(false);
        }
        Ok(())
    }
}
