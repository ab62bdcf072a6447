//! Conntrack entries of connections that no scan of the sockets has shown.
//!
//! An entry has two sides, client and server, each in the network namespace with its address. A side waits until a scan
//! shows its socket (then the socket counts), or until it is certain that none will (then the entry counts). A
//! connection therefore counts once, in any order of events. Pure.

use std::collections::{BTreeSet, HashSet, VecDeque};

use indexmap::IndexMap;
use smallvec::SmallVec;
use topology::{
    far_end::FarEnd,
    flow::{FlowKey, Role},
};

use super::{
    conntrack_message::{Change, Entry, tcp_state},
    entries::{Current, KnownEntry, LateBytes, Name, Stage},
    socket::Endpoints,
    track::{End, Side, Track},
};
use crate::memory::is_worth_shrinking;

/// A side whose address no namespace has after so many attempts is not of this node.
const LOOK_UPS: u8 = 8;

/// Entries that are known at a time at most, for each track: the kernel keeps them for up to two minutes after their
/// connection's end.
const MOST_ENTRIES: usize = 4;

/// Conntrack entry of a socket that was observed for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) role: Role,
    /// The flow for which the track has counted it, and whether it has counted its end, too.
    pub(super) counted: Option<(FlowKey, bool)>,
    /// It was there when the capture began.
    pub(super) old: bool,
    /// Real address of the other side, if the socket observes another one.
    pub(super) far_end: Option<FarEnd>,
}

/// Counts what no look has shown.
pub(super) trait Settling {
    /// Decides the state of a waiting side.
    fn decide(&mut self, track: &Track, role: Role) -> Side;

    /// A side that was counted is over.
    fn close(&mut self, key: FlowKey, track: &Track, role: Role);
}

/// All of them.
#[derive(Debug)]
pub(super) struct Tracks {
    /// The most that are remembered at a time; those that are over and counted make half of that at most.
    most: usize,
    /// By number of our own, as an entry of conntrack's can begin anew.
    by_number: IndexMap<u64, Track>,
    next: u64,
    /// Entries that exist.
    current: IndexMap<Name, KnownEntry>,
    /// Sides by where they are.
    at: IndexMap<(u32, Endpoints), SmallVec<[u64; 2]>>,
    /// With a side that waits, or over and not counted as such.
    undecided: BTreeSet<u64>,
    /// With a side that waits to know where it is.
    homeless: BTreeSet<u64>,
    finished: VecDeque<(u64, u64)>,
    stage: Stage,
    /// Counts the lists, from 1.
    lists: u32,
    /// Entries that the latest list did not have.
    dropped: Vec<Name>,
    /// Connections for which there was no room.
    refused: u64,
    /// There are entries that have been heard of and are not known any more. One whose first packet was not told of may be
    /// one of them, and is left to what the namespaces count themselves.
    is_strict: bool,
}

impl Tracks {
    /// With room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            by_number: IndexMap::new(),
            next: 0,
            current: IndexMap::new(),
            at: IndexMap::new(),
            undecided: BTreeSet::new(),
            homeless: BTreeSet::new(),
            finished: VecDeque::new(),
            stage: Stage::default(),
            lists: 0,
            dropped: Vec::new(),
            refused: 0,
            is_strict: false,
        }
    }

    /// Takes in what conntrack says; `now` counts up with each message. `at_start`: the entry is of the list that the
    /// capture begins with. `home` is where an address is. Returns what is now known of a connection that has ended before.
    pub(super) fn take(
        &mut self,
        entry: &Entry,
        now: u64,
        at_start: bool,
        home: impl Fn(&Endpoints) -> Option<u32>,
    ) -> Option<LateBytes> {
        let name = (entry.id, entry.original);
        let begins = matches!(entry.state, Some(tcp_state::SYN_SENT | tcp_state::SYN_RECEIVED));
        if self.stage == Stage::Behind && self.is_outdated(&name, begins, entry.change) {
            if let Some(Current::Track(serial)) = self.current.get(&name).map(|known| &known.current)
                && let Some(track) = self.by_number.get_mut(serial)
            {
                track.unheard = true;
            }
            return None;
        }
        let serial = match self.current.get(&name).map(|known| &known.current) {
            Some(Current::Track(serial)) if !begins || self.by_number.get(serial).is_some_and(Track::is_beginning) => {
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
                if let Some(Current::Track(serial)) = earlier {
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
            let listed = if self.stage == Stage::Listing { self.lists } else { self.listed_in(&name, serial) };
            self.current.insert(name, KnownEntry { current: Current::Track(serial), listed });
        }
        counted.zip(entry.carried).map(|(flows, carried)| LateBytes { flows, carried })
    }

    /// The list that has shown this track of an entry.
    fn listed_in(&self, name: &Name, serial: u64) -> u32 {
        let known = self.current.get(name).filter(|known| known.current == Current::Track(serial));
        known.map_or(0, |known| known.listed)
    }

    fn mark_listed(&mut self, name: &Name) {
        if self.stage == Stage::Listing
            && let Some(known) = self.current.get_mut(name)
        {
            known.listed = self.lists;
        }
    }

    /// Makes room for another entry. Of those that are counted, the bytes then stay unknown.
    fn make_room(&mut self) {
        if self.current.len() >= MOST_ENTRIES * self.most {
            self.current.retain(|_, known| matches!(known.current, Current::Track(_)));
            self.is_strict = true;
        }
    }

    fn refuse(&mut self, name: &Name) {
        self.current.swap_remove(name);
        self.refused += 1;
        self.is_strict = true;
    }

    /// Connections for which there was no room.
    pub(super) fn refused(&self) -> u64 {
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
        entry: &Entry,
        begun: (u64, bool),
        at_start: bool,
        home: &impl Fn(&Endpoints) -> Option<u32>,
    ) -> u64 {
        let serial = self.next;
        self.next += 1;
        let track = Track::new(entry, begun, at_start);
        self.by_number.insert(serial, track);
        self.homeless.insert(serial);
        self.settle_in(serial, false, home);
        serial
    }

    /// Finds the namespaces of sides again, as far as they are not known; whether that counts as an attempt.
    pub(super) fn find_homes(&mut self, counts: bool, home: impl Fn(&Endpoints) -> Option<u32>) {
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
            if track.spaces[role as usize].is_some() {
                continue;
            }
            let ends = track.ends(role);
            if let Some(space) = home(&ends) {
                track.spaces[role as usize] = Some(space);
                self.at.entry((space, ends)).or_default().push(serial);
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
    pub(super) fn begin_list(&mut self) {
        self.stage = Stage::Listing;
        self.lists += 1;
    }

    /// That was the list. Entries that it does not have are gone, if it is complete.
    pub(super) fn end_list(&mut self, is_complete: bool, now: u64) {
        self.stage = Stage::Behind;
        if !is_complete {
            return;
        }
        let lists = self.lists;
        let gone: Vec<_> =
            self.current.iter().filter(|(_, known)| known.listed != lists).map(|(name, _)| *name).collect();
        for name in gone {
            let Some(known) = self.current.get_mut(&name) else { continue };
            if let Current::Track(serial) = std::mem::replace(&mut known.current, Current::Counted(None)) {
                self.end_unheard(serial, now);
            }
            self.dropped.push(name);
        }
    }

    /// Everything is heard that had been said when it was last listed.
    pub(super) fn caught_up(&mut self) {
        if self.stage == Stage::Live {
            return;
        }
        self.stage = Stage::Live;
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
            Some(KnownEntry { current: Current::Track(_), listed }) => *listed == self.lists,
            Some(KnownEntry { current: Current::Counted(_), .. }) => true,
            None => !begins,
        }
    }

    /// A socket was seen for the first time, by a look that began then: the latest track that can be its own.
    pub(super) fn claim(&mut self, space: u32, ends: &Endpoints, is_closing: bool, began: u64) -> Option<Match> {
        let serials = self.at.get(&(space, *ends))?;
        let role_of = |track: &Track| {
            [Role::Client, Role::Server]
                .into_iter()
                .find(|role| track.spaces[*role as usize] == Some(space) && track.ends(*role) == *ends)
        };
        // A socket that has not begun to end has no track that had ended when the look began.
        let possible =
            |track: &Track| track.over.is_none_or(|over| over > began) || track.end != End::Ended || is_closing;
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
        Some(Match { role, counted, old: track.old, far_end: track.far_end(role) })
    }

    /// A look that began then has shown a socket again: tracks that are its own have nothing to count. `is_tracked`: it
    /// has one already, so that only one that conntrack has begun in the middle is its own.
    pub(super) fn confirm(&mut self, space: u32, ends: &Endpoints, is_tracked: bool, closes: bool, began: u64) -> bool {
        let mut found = false;
        for serial in self.at.get(&(space, *ends)).into_iter().flatten() {
            let Some(track) = self.by_number.get_mut(serial) else { continue };
            let (first_known, by_first_packet) = track.begun;
            let is_later = by_first_packet && (is_tracked || first_known > began);
            let is_earlier = !closes && track.end == End::Ended && track.over.is_some_and(|over| over <= began);
            if is_later || is_earlier || track.has_failed() {
                continue;
            }
            for role in [Role::Client, Role::Server] {
                if track.spaces[role as usize] == Some(space)
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

    /// A socket was seen attempting. Whether a track will tell what comes of it.
    pub(super) fn note_attempt(&mut self, space: u32, ends: &Endpoints, cgroup: Option<u64>) -> bool {
        let Some(serial) = self.at.get(&(space, *ends)).and_then(|serials| serials.last()) else { return false };
        let Some(track) = self.by_number.get_mut(serial) else { return false };
        track.attempted_by = cgroup.or(track.attempted_by);
        // No message follows for an entry that restarts in a possibly outdated message.
        track.unheard || matches!(track.side(Role::Client), Side::Waiting(_))
    }

    /// Removes the waiting side of a socket that is not the node's.
    pub(super) fn disown(&mut self, space: u32, ends: &Endpoints) {
        for serial in self.at.get(&(space, *ends)).into_iter().flatten() {
            let Some(track) = self.by_number.get_mut(serial) else { continue };
            for role in [Role::Client, Role::Server] {
                if track.spaces[role as usize] == Some(space)
                    && track.ends(role) == *ends
                    && matches!(track.side(role), Side::Waiting(_))
                {
                    track.sides[role as usize] = Side::Nobodys;
                }
            }
        }
    }

    /// The namespaces at which a look would decide something.
    pub(super) fn to_look_at(&self) -> HashSet<u32> {
        let tracks = self.undecided.iter().filter_map(|serial| self.by_number.get(serial));
        let known = tracks.filter(|track| track.established.is_some() || track.over.is_some());
        let waiting = |track: &Track, role| track.space(role).filter(|_| matches!(track.side(role), Side::Waiting(_)));
        known.flat_map(|track| [waiting(track, Role::Client), waiting(track, Role::Server)]).flatten().collect()
    }

    /// Returns the number of waiting sides of this role that may be in this namespace.
    pub(super) fn waiting(&self, space: u32, role: Role) -> u64 {
        let tracks = self.undecided.iter().filter_map(|serial| self.by_number.get(serial));
        let may_be = |track: &&Track| {
            track.space(role).is_none_or(|at| at == space) && matches!(track.side(role), Side::Waiting(_))
        };
        tracks.filter(may_be).count() as u64
    }

    /// Decides what can be decided.
    pub(super) fn settle(&mut self, now: u64, by: &mut impl Settling) {
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
                // Where a socket has been found since, its end counts.
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

    /// Lets go of what is over and counted, once every look that could show a rest of it has come.
    pub(super) fn forget(&mut self, looked: impl Fn(u32) -> u64) {
        let mut kept = VecDeque::new();
        while let Some((serial, at)) = self.finished.pop_front() {
            let Some(track) = self.by_number.get(&serial) else { continue };
            let seen = track.spaces.iter().flatten().all(|space| looked(*space) > at);
            if seen || kept.len() + self.finished.len() >= self.most / 2 {
                self.remove(serial);
            } else {
                kept.push_back((serial, at));
            }
        }
        self.finished = kept;
        self.shrink();
    }

    /// Returns memory that was needed at the peak alone.
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
        // What the kernel still says of the entry is known.
        let name = (track.id, track.original);
        let known = self.current.get_mut(&name).filter(|known| known.current == Current::Track(serial));
        if let Some(known) = known {
            known.current = Current::counted(track.without_bytes());
        }
        for role in [Role::Client, Role::Server] {
            let Some(space) = track.space(role) else { continue };
            let at = (space, track.ends(role));
            if let Some(serials) = self.at.get_mut(&at) {
                serials.retain(|other| *other != serial);
                if serials.is_empty() {
                    self.at.swap_remove(&at);
                }
            }
        }
    }

    /// Returns the number of remembered entries.
    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}
