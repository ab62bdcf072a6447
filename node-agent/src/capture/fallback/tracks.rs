//! What conntrack has told of connections: which of them no look at the sockets has shown.
//!
//! A track has two sides, the client's and the server's, each in the network namespace that has its address. A side
//! waits until a look shows its socket (then the socket counts), or until it is certain that none will (then the track
//! counts). So a connection counts once, whatever is known of it first. Pure.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use topology::{
    far_end::FarEnd,
    flow::{FlowKey, Role},
};

use super::{
    conntrack_message::{Carried, Change, Direction, Entry, tcp_state},
    socket::Endpoints,
    track::{End, Side, Track},
};

/// A side whose address no namespace has after so many attempts is not of this node.
const LOOK_UPS: u8 = 8;

/// Tracks that are over are remembered for late looks, but no more than so many.
const REMEMBERED: usize = 65_536;

/// What a socket that was seen for the first time belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) role: Role,
    /// The flow for which the track has counted it, and whether it has counted its end, too.
    pub(super) counted: Option<(FlowKey, bool)>,
    /// It was there when the capture began.
    pub(super) old: bool,
    /// Where the other side really is, if the socket sees another address.
    pub(super) far_end: Option<FarEnd>,
}

/// An entry of conntrack's: the kernel makes its number of where the entry is stored, so it needs the addresses.
pub(super) type Name = (u32, Direction);

/// What an entry of conntrack's is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    /// A track, by number.
    Track(u64),
    /// A connection that has ended and is counted, for these flows of the client's and the server's side, but for its
    /// bytes: the kernel tells them when it drops the entry.
    Counted([Option<FlowKey>; 2]),
}

/// The bytes of a connection whose end was counted long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LateBytes {
    /// Those of the client's and of the server's side that it counts for.
    pub(super) flows: [Option<FlowKey>; 2],
    pub(super) carried: [Carried; 2],
}

/// Counts what no look has shown.
pub(super) trait Settling {
    /// What becomes of a side that waits.
    fn decide(&mut self, track: &Track, role: Role) -> Side;

    /// A side that was counted is over.
    fn close(&mut self, key: FlowKey, track: &Track, role: Role);
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    /// By number of our own, as an entry of conntrack's can begin anew.
    by_number: HashMap<u64, Track>,
    next: u64,
    /// Entries that exist.
    current: HashMap<Name, Current>,
    /// Sides by where they are.
    at: HashMap<(u32, Endpoints), Vec<u64>>,
    /// With a side that waits, or over and not counted as such.
    undecided: BTreeSet<u64>,
    /// With a side that waits to know where it is.
    homeless: BTreeSet<u64>,
    finished: VecDeque<(u64, u64)>,
    stage: Stage,
    /// What the latest list has shown, until what is heard is certainly newer.
    listed: HashSet<u64>,
    /// Entries that the latest list did not have.
    dropped: Vec<Name>,
}

/// Where messages come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// They are heard as things happen.
    #[default]
    Live,
    /// They are of a list, and newer than all that was heard.
    Listing,
    /// They are heard again, and may be older than the list.
    Behind,
}

impl Tracks {
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
        let known = self.current.get(&name).copied();
        if self.stage == Stage::Behind && self.is_outdated(known, begins, entry.change) {
            if let Some(Current::Track(serial)) = known
                && let Some(track) = self.by_number.get_mut(&serial)
            {
                track.unheard = true;
            }
            return None;
        }
        let serial = match known {
            Some(Current::Track(serial)) if !begins || self.by_number.get(&serial).is_some_and(Track::is_beginning) => {
                serial
            }
            Some(Current::Counted(flows)) if entry.change == Change::Gone => {
                self.current.remove(&name);
                return entry.carried.map(|carried| LateBytes { flows, carried });
            }
            Some(Current::Counted(_)) if !begins => return None,
            None if entry.change == Change::Gone => return None,
            earlier => {
                if let Some(Current::Track(serial)) = earlier {
                    self.end_unheard(serial, now);
                }
                self.begin(entry, (now, begins), at_start, &home)
            }
        };
        if self.stage == Stage::Listing {
            self.listed.insert(serial);
        }
        let track = self.by_number.get_mut(&serial)?;
        let counted = track.finished.then(|| track.without_bytes());
        track.take(entry, now);
        if !track.finished && (track.over.is_some() || track.waits()) {
            self.undecided.insert(serial);
        }
        if entry.change == Change::Gone {
            self.current.remove(&name);
        } else {
            self.current.insert(name, Current::Track(serial));
        }
        counted.zip(entry.carried).map(|(flows, carried)| LateBytes { flows, carried })
    }

    /// Where the end of this track was not heard, it is over now: the entry has begun anew, or is gone.
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

    /// What comes now is a list, and newer than all that was heard.
    pub(super) fn begin_list(&mut self) {
        self.stage = Stage::Listing;
        self.listed.clear();
    }

    /// That was the list. Entries that it does not have are gone, if it is complete.
    pub(super) fn end_list(&mut self, complete: Option<&HashSet<Name>>, now: u64) {
        self.stage = Stage::Behind;
        let Some(listed) = complete else { return };
        let gone: Vec<_> = self.current.keys().filter(|name| !listed.contains(name)).copied().collect();
        for name in gone {
            self.dropped.push(name);
            let Some(Current::Track(serial)) = self.current.insert(name, Current::Counted([None; 2])) else { continue };
            self.end_unheard(serial, now);
        }
    }

    /// Everything is heard that had been said when it was last listed.
    pub(super) fn caught_up(&mut self) {
        self.stage = Stage::Live;
        self.listed.clear();
        for name in std::mem::take(&mut self.dropped) {
            if self.current.get(&name) == Some(&Current::Counted([None; 2])) {
                self.current.remove(&name);
            }
        }
    }

    /// Whether the latest list may have said more of an entry than this message, which may have come before it.
    fn is_outdated(&self, known: Option<Current>, begins: bool, change: Change) -> bool {
        match known {
            _ if change == Change::Gone => false,
            Some(Current::Track(serial)) => self.listed.contains(&serial),
            Some(Current::Counted(_)) => true,
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
        let counted = if let Side::Counted(key, _) = *side {
            *side = Side::Counted(key, true);
            Some((key, track.closed[role as usize]))
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
        // Of one that begins anew in what may be outdated, nothing is told any more.
        track.unheard || matches!(track.side(Role::Client), Side::Waiting(_))
    }

    /// A socket of somebody else's is there.
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

    /// How many sides of this role wait that may be in this namespace.
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
                if let Side::Counted(key, false) = track.side(role)
                    && !track.has_failed()
                {
                    track.closed[role as usize] = true;
                    by.close(key, track, role);
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
            if seen || kept.len() + self.finished.len() >= REMEMBERED {
                self.remove(serial);
            } else {
                kept.push_back((serial, at));
            }
        }
        self.finished = kept;
    }

    fn remove(&mut self, serial: u64) {
        let Some(track) = self.by_number.remove(&serial) else { return };
        self.homeless.remove(&serial);
        // What the kernel still says of the entry is known.
        let current = self.current.get_mut(&(track.id, track.original));
        if let Some(current) = current.filter(|now| **now == Current::Track(serial)) {
            *current = Current::Counted(track.without_bytes());
        }
        for role in [Role::Client, Role::Server] {
            let Some(space) = track.space(role) else { continue };
            let at = (space, track.ends(role));
            if let Some(serials) = self.at.get_mut(&at) {
                serials.retain(|other| *other != serial);
                if serials.is_empty() {
                    self.at.remove(&at);
                }
            }
        }
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }
}
