//! Conntrack entries of connections that no scan of the sockets has shown.
//!
//! An entry has two sides, client and server, each in the network namespace with its address. A side waits until a scan
//! shows its socket (then the socket counts), or until it is certain that none will (then the entry counts). A
//! connection therefore counts once, in any order of events. Pure.

use std::collections::{BTreeSet, HashSet, VecDeque};

use indexmap::IndexMap;
use smallvec::SmallVec;
use topology::{
    flow::{FlowKey, Role},
    nat_peer::NatPeer,
};

use super::{
    conntrack_entry::{ConntrackEntry, EntryEnd, Side},
    entries::{Current, KnownEntry, LateBytes, MessageOrigin, Name},
};
use crate::capture::fallback::{
    netlink::conntrack_message::{Change, ConntrackMessage, tcp_state},
    socket::Endpoints,
};
use crate::malloc::is_worth_shrinking;

/// Number of lookups after which a side whose address no namespace has belongs to another node.
const LOOK_UPS: u8 = 8;

/// Maximum number of entries for each track: the kernel keeps entries for up to two minutes after their connection's end.
const MOST_ENTRIES: usize = 4;

/// Conntrack entry of a socket that was observed for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) struct Match {
    pub(in crate::capture::fallback) role: Role,
    /// Flow for which the track has counted it, and whether it has counted its end, too.
    pub(in crate::capture::fallback) counted: Option<(FlowKey, bool)>,
    /// True if it existed when the capture began.
    pub(in crate::capture::fallback) old: bool,
    /// Real address of the other side, if the socket observes another one.
    pub(in crate::capture::fallback) nat_peer: Option<NatPeer>,
}

/// Counts connections that no scan has shown.
pub(in crate::capture::fallback) trait Settling {
    /// Decides the state of a waiting side.
    fn decide(&mut self, track: &ConntrackEntry, role: Role) -> Side;

    /// Counts the end of a side that was counted.
    fn close(&mut self, key: FlowKey, track: &ConntrackEntry, role: Role);
}

/// Conntrack entries of all connections.
#[derive(Debug)]
pub(in crate::capture::fallback) struct ConntrackTable {
    /// Maximum number of tracks; those that are over and counted are at most half of it.
    most: usize,
    /// Entries by a serial number, because conntrack can reuse an entry.
    by_number: IndexMap<u64, ConntrackEntry>,
    next: u64,
    /// Entries that exist.
    current: IndexMap<Name, KnownEntry>,
    /// Sides by namespace and addresses.
    at: IndexMap<(u32, Endpoints), SmallVec<[u64; 2]>>,
    /// Entries with a waiting side, or with an end that was not counted yet.
    undecided: BTreeSet<u64>,
    /// Entries with a side whose namespace is unknown.
    homeless: BTreeSet<u64>,
    finished: VecDeque<(u64, u64)>,
    stage: MessageOrigin,
    /// Counts the lists, from 1.
    lists: u32,
    /// Entries that the latest list did not have.
    dropped: Vec<Name>,
    /// Connections for which there was no room.
    refused: u64,
    /// True if reported entries were dropped for lack of room. A later entry without a report of its first packet may be
    /// one of them, so only the namespaces' own counters count it.
    is_strict: bool,
    /// Namespaces of tracks that were dropped for lack of room before the scan that could still show their sockets.
    unscanned: HashSet<u32>,
}

impl ConntrackTable {
    /// Returns an empty set with room for so many tracks.
    pub(in crate::capture::fallback) fn new(most: usize) -> Self {
        Self {
            most,
            by_number: IndexMap::new(),
            next: 0,
            current: IndexMap::new(),
            at: IndexMap::new(),
            undecided: BTreeSet::new(),
            homeless: BTreeSet::new(),
            finished: VecDeque::new(),
            stage: MessageOrigin::default(),
            lists: 0,
            dropped: Vec::new(),
            refused: 0,
            is_strict: false,
            unscanned: HashSet::new(),
        }
    }

    /// Processes a message of conntrack; `now` increases with each message. `at_start`: the entry is in the first list.
    /// `home` returns the namespace of an address. Returns late bytes of a connection that has ended before.
    pub(in crate::capture::fallback) fn take(
        &mut self,
        entry: &ConntrackMessage,
        now: u64,
        at_start: bool,
        home: impl Fn(&Endpoints) -> Option<u32>,
    ) -> Option<LateBytes> {
        let name = (entry.id, entry.original);
        let begins = matches!(entry.state, Some(tcp_state::SYN_SENT | tcp_state::SYN_RECEIVED));
        if self.stage == MessageOrigin::Behind && self.is_outdated(&name, begins, entry.change) {
            if let Some(Current::Entry(serial)) = self.current.get(&name).map(|known| &known.current)
                && let Some(track) = self.by_number.get_mut(serial)
            {
                track.unheard = true;
            }
            return None;
        }
        let serial = match self.current.get(&name).map(|known| &known.current) {
            Some(Current::Entry(serial))
                if !begins || self.by_number.get(serial).is_some_and(ConntrackEntry::is_beginning) =>
            {
                *serial
            }
            Some(Current::Counted(_)) if entry.change == Change::Gone => {
                let Some(KnownEntry { current: Current::Counted(Some(flows)), .. }) = self.current.swap_remove(&name)
                else {
                    return None;
                };
                return entry.carried.map(|carried| LateBytes { flows: *flows, carried });
            }
            Some(Current::Counted(_)) if !begins => {
                self.mark_listed(&name);
                return None;
            }
            None if entry.change == Change::Gone => return None,
            None if self.is_strict && entry.change != Change::New => return None,
            earlier => {
                if let Some(Current::Entry(serial)) = earlier {
                    let serial = *serial;
                    self.end_unheard(serial, now);
                }
                if self.by_number.len() >= self.most {
                    self.refuse(&name);
                    return None;
                }
                self.make_room();
                self.begin(entry, (now, begins), at_start, &home)
            }
        };
        let track = self.by_number.get_mut(&serial)?;
        let counted = track.finished.then(|| track.without_bytes());
        track.take(entry, now);
        if !track.finished && (track.over.is_some() || track.waits()) {
            self.undecided.insert(serial);
        }
        if entry.change == Change::Gone {
            self.current.swap_remove(&name);
        } else {
            let listed = if self.stage == MessageOrigin::Listing { self.lists } else { self.listed_in(&name, serial) };
            self.current.insert(name, KnownEntry { current: Current::Entry(serial), listed });
        }
        counted.zip(entry.carried).map(|(flows, carried)| LateBytes { flows, carried })
    }

    /// Returns the list that contained this track of an entry.
    fn listed_in(&self, name: &Name, serial: u64) -> u32 {
        let known = self.current.get(name).filter(|known| known.current == Current::Entry(serial));
        known.map_or(0, |known| known.listed)
    }

    fn mark_listed(&mut self, name: &Name) {
        if self.stage == MessageOrigin::Listing
            && let Some(known) = self.current.get_mut(name)
        {
            known.listed = self.lists;
        }
    }

    /// Makes room for another entry. The bytes of dropped entries that are counted stay unknown.
    fn make_room(&mut self) {
        if self.current.len() >= MOST_ENTRIES * self.most {
            self.current.retain(|_, known| matches!(known.current, Current::Entry(_)));
            self.is_strict = true;
        }
    }

    fn refuse(&mut self, name: &Name) {
        self.current.swap_remove(name);
        self.refused += 1;
        self.is_strict = true;
    }

    /// Returns the number of connections for which there was no room.
    pub(in crate::capture::fallback) fn refused(&self) -> u64 {
        self.refused
    }

    /// Ends an entry whose end was not received: the kernel reused or dropped it.
    fn end_unheard(&mut self, serial: u64, now: u64) {
        if self.by_number.get_mut(&serial).is_some_and(|track| track.lose(now)) {
            self.undecided.insert(serial);
        }
    }

    fn begin(
        &mut self,
        entry: &ConntrackMessage,
        begun: (u64, bool),
        at_start: bool,
        home: &impl Fn(&Endpoints) -> Option<u32>,
    ) -> u64 {
        let serial = self.next;
        self.next += 1;
        let track = ConntrackEntry::new(entry, begun, at_start);
        self.by_number.insert(serial, track);
        self.homeless.insert(serial);
        self.settle_in(serial, false, home);
        serial
    }

    /// Looks up the unknown namespaces of sides. `counts`: whether this counts as an attempt.
    pub(in crate::capture::fallback) fn find_homes(&mut self, counts: bool, home: impl Fn(&Endpoints) -> Option<u32>) {
        for serial in self.homeless.clone() {
            self.settle_in(serial, counts, &home);
        }
    }

    fn settle_in(&mut self, serial: u64, counts: bool, home: &impl Fn(&Endpoints) -> Option<u32>) {
        let Some(track) = self.by_number.get_mut(&serial) else {
            self.homeless.remove(&serial);
            return;
        };
        let mut homeless = false;
        for role in [Role::Client, Role::Server] {
            let Side::Waiting(attempts) = track.sides[role as usize] else { continue };
            if track.namespaces[role as usize].is_some() {
                continue;
            }
            let ends = track.ends(role);
            if let Some(namespace) = home(&ends) {
                track.namespaces[role as usize] = Some(namespace);
                self.at.entry((namespace, ends)).or_default().push(serial);
            } else if attempts >= LOOK_UPS {
                track.sides[role as usize] = Side::Nobodys;
            } else {
                track.sides[role as usize] = Side::Waiting(attempts + u8::from(counts));
                homeless = true;
            }
        }
        if !homeless {
            self.homeless.remove(&serial);
        }
    }

    /// Starts a list that is newer than all received messages.
    pub(in crate::capture::fallback) fn begin_list(&mut self) {
        self.stage = MessageOrigin::Listing;
        self.lists += 1;
    }

    /// Ends the list. If it is complete, entries that it lacks are gone.
    pub(in crate::capture::fallback) fn end_list(&mut self, is_complete: bool, now: u64) {
        self.stage = MessageOrigin::Behind;
        if !is_complete {
            return;
        }
        let lists = self.lists;
        let gone: Vec<_> =
            self.current.iter().filter(|(_, known)| known.listed != lists).map(|(name, _)| *name).collect();
        for name in gone {
            let Some(known) = self.current.get_mut(&name) else { continue };
            if let Current::Entry(serial) = std::mem::replace(&mut known.current, Current::Counted(None)) {
                self.end_unheard(serial, now);
            }
            self.dropped.push(name);
        }
    }

    /// Records that all messages from before the end of the latest list were received.
    pub(in crate::capture::fallback) fn caught_up(&mut self) {
        if self.stage == MessageOrigin::Live {
            return;
        }
        self.stage = MessageOrigin::Live;
        for name in std::mem::take(&mut self.dropped) {
            if self.current.get(&name).is_some_and(|known| known.current == Current::Counted(None)) {
                self.current.swap_remove(&name);
            }
        }
    }

    /// Returns whether the latest list may be newer than this message about an entry.
    fn is_outdated(&self, name: &Name, begins: bool, change: Change) -> bool {
        match self.current.get(name) {
            _ if change == Change::Gone => false,
            Some(KnownEntry { current: Current::Entry(_), listed }) => *listed == self.lists,
            Some(KnownEntry { current: Current::Counted(_), .. }) => true,
            None => !begins,
        }
    }

    /// Returns the latest track that can belong to a socket, which a scan has shown for the first time. `began`: the
    /// beginning of that scan.
    pub(in crate::capture::fallback) fn claim(
        &mut self,
        namespace: u32,
        ends: &Endpoints,
        is_closing: bool,
        began: u64,
    ) -> Option<Match> {
        let serials = self.at.get(&(namespace, *ends))?;
        let role_of = |track: &ConntrackEntry| {
            [Role::Client, Role::Server]
                .into_iter()
                .find(|role| track.namespaces[*role as usize] == Some(namespace) && track.ends(*role) == *ends)
        };
        // The track of an open socket had not ended when the scan began.
        let possible = |track: &ConntrackEntry| {
            track.over.is_none_or(|over| over > began) || track.end != EntryEnd::Ended || is_closing
        };
        let find = |wanted: fn(Side) -> bool| {
            serials.iter().rev().find_map(|serial| {
                let track = self.by_number.get(serial)?;
                let role = role_of(track)?;
                (possible(track) && wanted(track.side(role))).then_some((*serial, role))
            })
        };
        let (serial, role) = find(|side| matches!(side, Side::Waiting(_)))
            .or_else(|| find(|side| matches!(side, Side::Counted(_, false))))?;
        let track = self.by_number.get_mut(&serial)?;
        let side = &mut track.sides[role as usize];
        let counted = if let Side::Counted(cgroup, _) = *side {
            *side = Side::Counted(cgroup, true);
            track.flow(role, cgroup).map(|flow| (flow, track.closed[role as usize]))
        } else {
            *side = Side::Socket;
            None
        };
        Some(Match { role, counted, old: track.old, nat_peer: track.nat_peer(role) })
    }

    /// Records that a scan has shown a socket again: its tracks have nothing to count. `began`: the beginning of that
    /// scan. `is_tracked`: it has a track already, so only one that conntrack began in the middle can also be its own.
    pub(in crate::capture::fallback) fn confirm(
        &mut self,
        namespace: u32,
        ends: &Endpoints,
        is_tracked: bool,
        closes: bool,
        began: u64,
    ) -> bool {
        let mut found = false;
        for serial in self.at.get(&(namespace, *ends)).into_iter().flatten() {
            let Some(track) = self.by_number.get_mut(serial) else { continue };
            let (first_known, by_first_packet) = track.begun;
            let is_later = by_first_packet && (is_tracked || first_known > began);
            let is_earlier = !closes && track.end == EntryEnd::Ended && track.over.is_some_and(|over| over <= began);
            if is_later || is_earlier || track.has_failed() {
                continue;
            }
            for role in [Role::Client, Role::Server] {
                if track.namespaces[role as usize] == Some(namespace)
                    && track.ends(role) == *ends
                    && matches!(track.side(role), Side::Waiting(_))
                {
                    track.sides[role as usize] = Side::Socket;
                    found = true;
                }
            }
        }
        found
    }

    /// Records an attempt of a socket. Returns whether a track will report its result.
    pub(in crate::capture::fallback) fn note_attempt(
        &mut self,
        namespace: u32,
        ends: &Endpoints,
        cgroup: Option<u64>,
    ) -> bool {
        let Some(serial) = self.at.get(&(namespace, *ends)).and_then(|serials| serials.last()) else { return false };
        let Some(track) = self.by_number.get_mut(serial) else { return false };
        track.attempted_by = cgroup.or(track.attempted_by);
        // No message follows for an entry that restarts in a possibly outdated message.
        track.unheard || matches!(track.side(Role::Client), Side::Waiting(_))
    }

    /// Removes the waiting side of a socket that is not the node's.
    pub(in crate::capture::fallback) fn disown(&mut self, namespace: u32, ends: &Endpoints) {
        for serial in self.at.get(&(namespace, *ends)).into_iter().flatten() {
            let Some(track) = self.by_number.get_mut(serial) else { continue };
            for role in [Role::Client, Role::Server] {
                if track.namespaces[role as usize] == Some(namespace)
                    && track.ends(role) == *ends
                    && matches!(track.side(role), Side::Waiting(_))
                {
                    track.sides[role as usize] = Side::Nobodys;
                }
            }
        }
    }

    /// Returns the namespaces whose scan would decide something about entries that are over, or were established with this
    /// message or an earlier one.
    pub(in crate::capture::fallback) fn namespaces_to_scan(&self, established_by: u64) -> HashSet<u32> {
        let tracks = self.undecided.iter().filter_map(|serial| self.by_number.get(serial));
        let is_old = |track: &&ConntrackEntry| track.established.is_some_and(|when| when <= established_by);
        let known = tracks.filter(|track| track.over.is_some() || is_old(track));
        let waiting = |track: &ConntrackEntry, role| {
            track.namespace(role).filter(|_| matches!(track.side(role), Side::Waiting(_)))
        };
        known.flat_map(|track| [waiting(track, Role::Client), waiting(track, Role::Server)]).flatten().collect()
    }

    /// Returns the number of waiting sides of this role that may be in this namespace.
    pub(in crate::capture::fallback) fn waiting(&self, namespace: u32, role: Role) -> u64 {
        let tracks = self.undecided.iter().filter_map(|serial| self.by_number.get(serial));
        let may_be = |track: &&ConntrackEntry| {
            track.namespace(role).is_none_or(|at| at == namespace) && matches!(track.side(role), Side::Waiting(_))
        };
        tracks.filter(may_be).count() as u64
    }

    /// Decides what can be decided.
    pub(in crate::capture::fallback) fn settle(&mut self, now: u64, by: &mut impl Settling) {
        for serial in self.undecided.clone() {
            let Some(track) = self.by_number.get_mut(&serial) else {
                self.undecided.remove(&serial);
                continue;
            };
            for role in [Role::Client, Role::Server] {
                if matches!(track.side(role), Side::Waiting(_)) {
                    track.sides[role as usize] = by.decide(track, role);
                }
            }
            if track.waits() {
                continue;
            }
            self.undecided.remove(&serial);
            if track.over.is_none() {
                continue;
            }
            for role in [Role::Client, Role::Server] {
                // If a socket was found since, its end counts.
                if let Side::Counted(cgroup, false) = track.side(role)
                    && !track.has_failed()
                    && let Some(flow) = track.flow(role, cgroup)
                {
                    track.closed[role as usize] = true;
                    by.close(flow, track, role);
                }
            }
            track.finished = true;
            self.finished.push_back((serial, now));
        }
    }

    /// Drops tracks that are over and counted, after the last scan that could show their sockets; earlier for lack of room.
    pub(in crate::capture::fallback) fn forget(&mut self, scanned_at: impl Fn(u32) -> u64) {
        let mut kept = VecDeque::new();
        while let Some((serial, at)) = self.finished.pop_front() {
            let Some(track) = self.by_number.get(&serial) else { continue };
            let mut unscanned =
                track.namespaces.iter().flatten().filter(|namespace| scanned_at(**namespace) <= at).peekable();
            if unscanned.peek().is_none() || kept.len() + self.finished.len() >= self.most / 2 {
                self.unscanned.extend(unscanned);
                self.remove(serial);
            } else {
                kept.push_back((serial, at));
            }
        }
        self.finished = kept;
        self.shrink();
    }

    /// Returns whether a closing socket that a scan of this namespace shows for the first time may have been counted by a
    /// track that was dropped since the scan before.
    pub(in crate::capture::fallback) fn may_have_counted(&self, namespace: u32) -> bool {
        self.unscanned.contains(&namespace)
    }

    /// Records that a scan has shown all sockets of this namespace.
    pub(in crate::capture::fallback) fn scanned(&mut self, namespace: u32) {
        self.unscanned.remove(&namespace);
    }

    /// Frees memory that was needed only at the peak.
    fn shrink(&mut self) {
        macro_rules! shrink {
            ($($table:ident),*) => { $(
                if is_worth_shrinking(self.$table.capacity(), self.$table.len()) {
                    self.$table.shrink_to(2 * self.$table.len());
                }
            )* };
        }
        shrink!(by_number, current, at, finished);
    }

    fn remove(&mut self, serial: u64) {
        let Some(track) = self.by_number.swap_remove(&serial) else { return };
        self.homeless.remove(&serial);
        // Later messages of the kernel about the entry belong to this connection.
        let name = (track.id, track.original);
        let known = self.current.get_mut(&name).filter(|known| known.current == Current::Entry(serial));
        if let Some(known) = known {
            known.current = Current::counted(track.without_bytes());
        }
        for role in [Role::Client, Role::Server] {
            let Some(namespace) = track.namespace(role) else { continue };
            let at = (namespace, track.ends(role));
            if let Some(serials) = self.at.get_mut(&at) {
                serials.retain(|other| *other != serial);
                if serials.is_empty() {
                    self.at.swap_remove(&at);
                }
            }
        }
    }

    /// Returns the number of remembered entries.
    pub(in crate::capture::fallback) fn len(&self) -> usize {
        self.by_number.len()
    }
}
