//! Connections as observed by scans and by conntrack, and the resulting flows. Pure.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use node_agent_common::state;
use topology::flow::{FlowKey, Methods, Role};

use super::{
    accounts::{Evidence, FlowAccounts},
    conntrack_only::{ConntrackOnly, payload},
    conntrack_table::ConntrackTable,
    entries::LateBytes,
    namespace::{KnownSocket, Missed, NamespaceState, Phase, Scan, is_closing, key},
};
use crate::capture::{
    fallback::{
        netlink::conntrack_message::ConntrackMessage,
        socket::{Endpoints, Socket, SocketId},
    },
    proc::tcp_counters::TcpCounts,
    traffic::Traffic,
};

/// First port that the kernel chooses for sockets without a requested port (default of `ip_local_port_range`).
const EPHEMERAL: u16 = 32_768;

/// Minimum size of the table of conntrack entries, for any number of flows.
const LEAST_TRACKS: usize = 1024;

/// State of all connections.
#[derive(Debug)]
pub(in crate::capture::fallback) struct Connections {
    namespaces: HashMap<u32, NamespaceState>,
    tracks: ConntrackTable,
    pub(in crate::capture::fallback) accounts: FlowAccounts,
    owners: HashMap<IpAddr, Option<u32>>,
    /// Namespace whose conntrack events are received: its loopback is its own.
    conntrack_at: Option<u32>,
    clock: u64,
    missed_by_gone: Missed,
}

impl Connections {
    pub(in crate::capture::fallback) fn new(most_flows: usize) -> Self {
        Self::with_room(most_flows, (most_flows / 2).max(LEAST_TRACKS))
    }

    pub(in crate::capture::fallback) fn with_room(most_flows: usize, most_tracks: usize) -> Self {
        Self {
            namespaces: HashMap::new(),
            tracks: ConntrackTable::new(most_tracks),
            accounts: FlowAccounts::new(most_flows),
            owners: HashMap::new(),
            conntrack_at: None,
            clock: 0,
            missed_by_gone: Missed::default(),
        }
    }

    /// See [`Scan::began`].
    pub(in crate::capture::fallback) fn now(&self) -> u64 {
        self.clock
    }

    pub(in crate::capture::fallback) fn listen_to_conntrack_of(&mut self, netns: u32) {
        self.conntrack_at = Some(netns);
    }

    /// Records the addresses of a namespace, and the default owner of its connections. An address of several namespaces
    /// belongs to none.
    pub(in crate::capture::fallback) fn record_namespace(
        &mut self,
        netns: u32,
        default_owner: Option<u64>,
        addresses: Vec<IpAddr>,
    ) {
        let namespace = self.namespaces.entry(netns).or_default();
        namespace.default_owner = default_owner;
        if namespace.addresses != addresses {
            namespace.addresses = addresses;
            self.find_owners();
        }
    }

    fn find_owners(&mut self) {
        self.owners.clear();
        for (netns, namespace) in &self.namespaces {
            for address in &namespace.addresses {
                let owner = self.owners.entry(*address).or_insert(Some(*netns));
                if *owner != Some(*netns) {
                    *owner = None;
                }
            }
        }
    }

    /// Processes a message of conntrack; `at_start` for entries that existed when the capture began.
    pub(in crate::capture::fallback) fn track(&mut self, entry: &ConntrackMessage, at_start: bool) {
        self.clock += 1;
        let (owners, here) = (&self.owners, self.conntrack_at);
        let late = self.tracks.take(entry, self.clock, at_start, |ends| home(owners, here, ends));
        if let Some(LateBytes { flows, carried }) = late {
            for (role, key) in [Role::Client, Role::Server].into_iter().zip(flows) {
                if let Some(key) = key {
                    self.accounts.transfer_late(key, payload(carried, role, key.remote));
                }
            }
        }
    }

    /// Begins a list of conntrack's entries, after events were lost.
    pub(in crate::capture::fallback) fn begin_list(&mut self) {
        self.tracks.begin_list();
    }

    /// Ends the list. Entries that a complete list lacks are gone. Following messages may be older than the list, until
    /// [`Self::caught_up`].
    pub(in crate::capture::fallback) fn end_list(&mut self, is_complete: bool) {
        self.clock += 1;
        self.tracks.end_list(is_complete, self.clock);
    }

    /// Records that all messages from before the end of the latest list were received.
    pub(in crate::capture::fallback) fn caught_up(&mut self) {
        self.tracks.caught_up();
    }

    /// Returns the namespaces whose scan would decide something about connections that are over, or that conntrack reported
    /// with this message or an earlier one.
    pub(in crate::capture::fallback) fn namespaces_to_scan(&self, reported_by: u64) -> HashSet<u32> {
        self.tracks.namespaces_to_scan(reported_by)
    }

    /// Returns the number of conntrack entries that are remembered.
    pub(in crate::capture::fallback) fn tracked(&self) -> usize {
        self.tracks.len()
    }

    /// Returns the number of conntrack entries for which there was no room.
    pub(in crate::capture::fallback) fn untracked(&self) -> u64 {
        self.tracks.refused()
    }

    /// Returns whether a socket of this namespace is changing, so that it should be scanned again soon.
    pub(in crate::capture::fallback) fn is_in_motion(&self, netns: u32) -> bool {
        self.namespaces.get(&netns).is_some_and(|namespace| {
            // Established sockets, and those that wait for the application, show in the namespace's counters when their
            // state changes. Their bytes do not.
            let at_rest =
                |known: &KnownSocket| !known.is_new() && matches!(known.state, state::ESTABLISHED | state::CLOSE_WAIT);
            !namespace.sockets.values().all(at_rest)
        })
    }

    /// Processes a scan. All messages that conntrack sent before the end of the scan must have been processed.
    pub(in crate::capture::fallback) fn scan(&mut self, scan: &Scan<'_>) {
        let (owners, here) = (&self.owners, self.conntrack_at);
        self.tracks.find_homes(false, |ends| home(owners, here, ends));
        let mut namespace = self.namespaces.remove(&scan.netns).unwrap_or_default();
        namespace.default_owner = scan.default_owner;
        namespace.take_listeners(scan);
        namespace.scans += 1;
        let (mut new, mut shown_new) = (Vec::new(), HashSet::new());
        for socket in &scan.dump.sockets {
            let known = namespace.sockets.get(&socket.ends).copied();
            // A table that is read in parts may show a socket twice.
            if known.is_some_and(|known| known.shown == namespace.scans) || shown_new.contains(&socket.ends) {
                continue;
            }
            let Some(cgroup) = socket.cgroup.or(scan.default_owner).filter(|cgroup| (scan.is_ours)(*cgroup)) else {
                self.tracks.disown(scan.netns, &socket.ends);
                continue;
            };
            match known {
                Some(known) if known.is(socket.id) => {
                    let known = self.go_on(&mut namespace, scan, known, socket);
                    namespace.insert(socket.ends, known);
                }
                replaced => {
                    if let Some(replaced) = replaced {
                        namespace.sockets.remove(&socket.ends);
                        self.end(&mut namespace, scan, socket.ends, replaced, false);
                    }
                    new.push((socket, cgroup));
                    shown_new.insert(socket.ends);
                }
            }
        }
        drop(shown_new);
        let gone = std::mem::take(&mut namespace.lately_gone);
        let over = namespace.take_unshown();
        let attempts = over.iter().filter(|(_, known)| matches!(known.phase, Phase::Attempt(_, false))).count() as u64;
        let all_failed = scan.counts.is_some_and(|[_, after]| {
            let before = namespace.counted.earlier;
            let begun = after.active_opens.saturating_sub(before.active_opens) + attempts;
            after.attempt_fails.saturating_sub(before.attempt_fails) >= begun
        });
        for (ends, known) in over {
            self.end(&mut namespace, scan, ends, known, all_failed);
        }
        self.begin(&mut namespace, scan, &new, &gone);
        self.tracks.scanned(scan.netns);
        namespace.scanned_at = Some(scan.began);
        self.compare(&mut namespace, scan);
        self.namespaces.insert(scan.netns, namespace);
    }

    fn go_on(
        &mut self,
        namespace: &mut NamespaceState,
        scan: &Scan<'_>,
        mut known: KnownSocket,
        socket: &Socket,
    ) -> KnownSocket {
        if let Phase::Attempt(scans, tracked) = known.phase {
            if socket.state == state::SYN_SENT {
                let tracked = tracked || self.tracks.note_attempt(scan.netns, &socket.ends, socket.cgroup);
                known.phase = Phase::Attempt(scans + 1, tracked);
                return known;
            }
            let claimed = self.tracks.claim(scan.netns, &socket.ends, is_closing(socket.state), scan.began);
            known.tracked = claimed.is_some();
            let methods = if claimed.is_some() { scan.methods.union(Methods::CONNTRACK) } else { scan.methods };
            if let Some((counted_for, over)) = claimed.and_then(|found| found.counted) {
                known.adopted(counted_for, over);
                self.accounts.see(counted_for, methods);
            } else {
                known.without_bytes = socket.bytes.is_none();
                let evidence = Evidence { methods, inferred: false, without_bytes: known.without_bytes };
                let fits = self.accounts.open(known.key, evidence);
                self.accounts.lead(known.key, claimed.and_then(|found| found.nat_peer));
                namespace.counted.count(Role::Client);
                known.phase = if fits { Phase::Open } else { Phase::Over };
            }
        } else if self.tracks.confirm(scan.netns, &socket.ends, known.tracked, is_closing(socket.state), scan.began) {
            known.tracked = true;
        }
        if socket.id != SocketId::NOBODYS {
            known.id = socket.id;
        }
        self.weigh(&mut known, socket);
        known
    }

    /// Counts the bytes that a socket has transferred.
    fn weigh(&mut self, known: &mut KnownSocket, socket: &Socket) {
        if let (Phase::Open, Some(bytes)) = (known.phase, socket.bytes) {
            let bytes = bytes.max(known.bytes);
            self.accounts.transfer(known.key, bytes.minus(known.bytes));
            self.accounts.measure(known.key, known.rtt, socket.rtt.or(known.rtt));
            known.bytes = bytes;
            known.rtt = socket.rtt.or(known.rtt);
        }
        known.is_final = socket.is_final && socket.bytes.is_some();
        known.state = socket.state;
    }

    /// Counts sockets that no scan has shown before.
    fn begin(
        &mut self,
        namespace: &mut NamespaceState,
        scan: &Scan<'_>,
        new: &[(&Socket, u64)],
        lately_gone: &HashMap<SocketId, FlowKey>,
    ) {
        // Connections that the namespace has accepted since the last scan and that no listener explains.
        let accepted =
            scan.counts.map(|[_, after]| after.passive_opens.saturating_sub(namespace.counted.earlier.passive_opens));
        let explained = new.iter().filter(|(socket, _)| namespace.listens(socket.ends.local).is_some()).count() as u64;
        let all_others_are_clients = !scan.finds_old && accepted.is_some_and(|accepted| accepted <= explained);
        for (socket, cgroup) in new {
            let ends = socket.ends;
            if socket.state == state::SYN_SENT {
                let tracked = self.tracks.note_attempt(scan.netns, &ends, Some(*cgroup));
                let key = key(scan.netns, *cgroup, Role::Client, &ends);
                namespace.insert(ends, KnownSocket::new(socket, key, Phase::Attempt(1, tracked)));
                continue;
            }
            if let Some(key) = lately_gone.get(&socket.id).filter(|_| socket.id != SocketId::NOBODYS) {
                namespace.insert(ends, KnownSocket::new(socket, *key, Phase::Over));
                continue;
            }
            let claimed = self.tracks.claim(scan.netns, &ends, is_closing(socket.state), scan.began);
            if claimed.is_none() && is_closing(socket.state) && self.tracks.may_have_counted(scan.netns) {
                // The namespace's own counters tell whether it is missing.
                let key = key(scan.netns, *cgroup, Role::Server, &ends);
                namespace.insert(ends, KnownSocket::new(socket, key, Phase::Over));
                continue;
            }
            let (role, inferred) = match claimed {
                Some(found) => (found.role, false),
                None => self.role(namespace, scan.netns, &ends, all_others_are_clients),
            };
            let methods = if claimed.is_some() { scan.methods.union(Methods::CONNTRACK) } else { scan.methods };
            if let Some((counted_for, over)) = claimed.and_then(|found| found.counted) {
                self.accounts.see(counted_for, methods);
                let mut known = KnownSocket::new(socket, counted_for, Phase::Open);
                known.adopted(counted_for, over);
                self.weigh(&mut known, socket);
                namespace.insert(ends, known);
                continue;
            }
            let key = key(scan.netns, *cgroup, role, &ends);
            let evidence = Evidence { methods, inferred, without_bytes: socket.bytes.is_none() };
            let bytes = socket.bytes.unwrap_or_default();
            let fits = if scan.finds_old && claimed.is_none_or(|found| found.old) {
                self.accounts.find(key, bytes, evidence)
            } else {
                namespace.counted.count(role);
                self.accounts.open(key, evidence)
            };
            self.accounts.lead(key, claimed.and_then(|found| found.nat_peer));
            let mut known = KnownSocket::new(socket, key, if fits { Phase::Open } else { Phase::Over });
            known.without_bytes = evidence.without_bytes;
            known.tracked = claimed.is_some();
            self.weigh(&mut known, socket);
            namespace.insert(ends, known);
        }
    }

    /// Ends a socket that is gone. `all_failed`: all attempts of the namespace that were in progress at the last scan,
    /// or began since, have failed.
    fn end(
        &mut self,
        namespace: &mut NamespaceState,
        scan: &Scan<'_>,
        ends: Endpoints,
        known: KnownSocket,
        all_failed: bool,
    ) {
        match known.phase {
            // Conntrack reports the result of an attempt.
            Phase::Over | Phase::Attempt(_, true) => {}
            Phase::Attempt(scans, false) => {
                let evidence = Evidence { methods: scan.methods, inferred: false, without_bytes: true };
                let failures = scan.counts.map_or(0, |[_, after]| {
                    after.attempt_fails.saturating_sub(namespace.counted.earlier.attempt_fails)
                });
                // Unobserved end. A socket that waited for two scans was not answered. Otherwise the namespace's
                // counters decide; if some attempts failed and others did not, it counts as missing.
                if scans == 1 && failures > 0 && !all_failed {
                    return;
                }
                namespace.counted.count(Role::Client);
                if scans > 1 || failures > 0 || scan.counts.is_none() {
                    namespace.counted.failed += 1;
                    self.accounts.fail(known.key, evidence);
                } else if self.accounts.open(known.key, evidence) {
                    self.accounts.close(known.key, Traffic::default(), false);
                }
            }
            Phase::Open => {
                self.accounts.close(known.key, known.bytes, known.ends_unknown());
                if !known.tracked {
                    namespace.remember_ended(ends);
                }
                if known.id != SocketId::NOBODYS {
                    namespace.lately_gone.insert(known.id, known.key);
                }
            }
        }
    }

    /// Returns the role of a socket, and whether it is inferred.
    fn role(
        &self,
        namespace: &NamespaceState,
        netns: u32,
        ends: &Endpoints,
        all_others_are_clients: bool,
    ) -> (Role, bool) {
        if namespace.listens(ends.local).is_some() {
            return (Role::Server, false);
        }
        let there =
            if ends.remote.0.is_loopback() { Some(netns) } else { self.owners.get(&ends.remote.0).copied().flatten() };
        let listens = match there {
            Some(there) if there == netns => namespace.listens(ends.remote).is_some(),
            Some(there) => {
                self.namespaces.get(&there).is_some_and(|namespace| namespace.listens(ends.remote).is_some())
            }
            None => false,
        };
        if listens || all_others_are_clients {
            return (Role::Client, false);
        }
        let looks_like_a_server = ends.local.1 < EPHEMERAL && ends.remote.1 >= EPHEMERAL;
        (if looks_like_a_server { Role::Server } else { Role::Client }, true)
    }

    /// Decides about conntrack entries of connections that no scan has shown. `ends_pass`: all namespaces were looked for since
    /// the last such call, so that an address without one is less likely to get one.
    pub(in crate::capture::fallback) fn settle(&mut self, ends_pass: bool) {
        let (owners, here) = (&self.owners, self.conntrack_at);
        self.tracks.find_homes(ends_pass, |ends| home(owners, here, ends));
        self.tracks
            .settle(self.clock, &mut ConntrackOnly { namespaces: &mut self.namespaces, accounts: &mut self.accounts });
        // A scan that begins from here on is later, also without a message in between.
        self.clock += 1;
        let namespaces = &self.namespaces;
        self.tracks
            .forget(|netns| namespaces.get(&netns).map_or(u64::MAX, |namespace| namespace.scanned_at.unwrap_or(0)));
    }

    /// Ends all connections of a namespace without processes.
    pub(in crate::capture::fallback) fn leave(&mut self, netns: u32) {
        let Some(mut namespace) = self.namespaces.remove(&netns) else { return };
        for known in std::mem::take(&mut namespace.sockets).into_values() {
            if known.phase == Phase::Open {
                self.accounts.close(known.key, known.bytes, known.ends_unknown());
            }
        }
        namespace.scanned_at = Some(u64::MAX);
        // A last time, for connections that only conntrack has reported.
        self.namespaces.insert(netns, namespace);
        self.settle(false);
        if let Some(namespace) = self.namespaces.remove(&netns) {
            self.missed_by_gone.opened += namespace.counted.missed.opened;
            self.missed_by_gone.failed += namespace.counted.missed.failed;
        }
        self.find_owners();
    }

    /// Returns a lower bound of connections that namespaces counted and no scan or event showed.
    pub(in crate::capture::fallback) fn missed(&self) -> Missed {
        self.namespaces.values().map(|namespace| namespace.counted.missed).fold(self.missed_by_gone, |sum, missed| {
            Missed { opened: sum.opened + missed.opened, failed: sum.failed + missed.failed }
        })
    }

    /// Compares the counts with the namespace's own counters.
    fn compare(&self, namespace: &mut NamespaceState, scan: &Scan<'_>) {
        let Some([before, after]) = scan.counts else { return };
        let counted = &mut namespace.counted;
        counted.earlier = before;
        let base = *counted.base.get_or_insert(if scan.finds_old { after } else { TcpCounts::default() });
        // In a shared namespace, the difference may belong to others.
        if scan.default_owner.is_none() {
            return;
        }
        let attempts =
            namespace.sockets.values().filter(|known| matches!(known.phase, Phase::Attempt(..))).count() as u64;
        let clients = before.active_opens.saturating_sub(base.active_opens).saturating_sub(counted.clients + attempts);
        let servers = before.passive_opens.saturating_sub(base.passive_opens).saturating_sub(counted.servers);
        if clients + servers == 0 {
            return;
        }
        let clients = clients.saturating_sub(self.tracks.waiting(scan.netns, Role::Client));
        let servers = servers.saturating_sub(self.tracks.waiting(scan.netns, Role::Server));
        let fails = before.attempt_fails.saturating_sub(base.attempt_fails).saturating_sub(counted.failed);
        let failed = clients.min(fails);
        counted.missed.failed = counted.missed.failed.max(failed);
        counted.missed.opened = counted.missed.opened.max(clients - failed + servers);
    }
}

fn home(owners: &HashMap<IpAddr, Option<u32>>, conntrack_at: Option<u32>, ends: &Endpoints) -> Option<u32> {
    if ends.local.0.is_loopback() { conntrack_at } else { owners.get(&ends.local.0).copied().flatten() }
}
