//! One connection or attempt, as conntrack reports it. Pure.

use topology::{
    flow::{FlowKey, Role},
    nat_peer::NatPeer,
};

use super::namespace::key;
use crate::capture::fallback::{
    netlink::conntrack_message::{Carried, Change, ConntrackMessage, Direction, tcp_state},
    socket::Endpoints,
};

/// State of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) enum Side {
    /// Not decided; number of failed lookups of its namespace.
    Waiting(u8),
    /// A socket counts.
    Socket,
    /// The track counts, for the flow of this cgroup. True if a socket was found since.
    Counted(u64, bool),
    /// Side without an owner: of another node, or preexisting.
    Nobodys,
}

/// End of a conntrack entry, if it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) enum EntryEnd {
    Open,
    /// The connection has ended.
    Ended,
    /// Conntrack has dropped it after a timeout or on request.
    Dropped,
    /// It was missing in a list after events were lost.
    Unheard,
}

/// One connection or attempt.
#[derive(Clone, Debug)]
pub(in crate::capture::fallback) struct ConntrackEntry {
    pub(in crate::capture::fallback) id: u32,
    pub(in crate::capture::fallback) original: Direction,
    pub(in crate::capture::fallback) reply: Direction,
    /// Network namespaces of the client's and the server's side.
    pub(in crate::capture::fallback) namespaces: [Option<u32>; 2],
    pub(in crate::capture::fallback) sides: [Side; 2],
    /// True if the end of each side was counted.
    pub(in crate::capture::fallback) closed: [bool; 2],
    /// True if it is over and everything is counted.
    pub(in crate::capture::fallback) finished: bool,
    /// Cgroup of the socket whose attempt was observed, if one was.
    pub(in crate::capture::fallback) attempted_by: Option<u64>,
    /// Time of the report that the handshake was complete.
    pub(in crate::capture::fallback) established: Option<u64>,
    /// Time of the report that it was over.
    pub(in crate::capture::fallback) over: Option<u64>,
    pub(in crate::capture::fallback) end: EntryEnd,
    /// True if a message about it may have been older than its state.
    pub(in crate::capture::fallback) unheard: bool,
    /// True if it existed when the capture began.
    pub(in crate::capture::fallback) old: bool,
    /// Time of its first report, and whether that was of its first packet; otherwise it may be older.
    pub(in crate::capture::fallback) begun: (u64, bool),
    pub(in crate::capture::fallback) carried: Option<[Carried; 2]>,
}

impl ConntrackEntry {
    /// Returns the track of an entry that was first reported at `begun.0`; see `begun`. `at_start`: it existed when the
    /// capture began.
    pub(in crate::capture::fallback) fn new(entry: &ConntrackMessage, begun: (u64, bool), at_start: bool) -> Self {
        Self {
            id: entry.id,
            original: entry.original,
            reply: entry.reply,
            namespaces: [None; 2],
            sides: [Side::Waiting(0); 2],
            closed: [false; 2],
            finished: false,
            attempted_by: None,
            established: None,
            over: None,
            end: EntryEnd::Open,
            unheard: false,
            old: at_start && !begun.1,
            begun,
            carried: None,
        }
    }

    /// Returns the addresses of a side, as it observes them.
    pub(in crate::capture::fallback) fn ends(&self, role: Role) -> Endpoints {
        match role {
            Role::Client => Endpoints { local: self.original.from, remote: self.original.to },
            Role::Server => Endpoints { local: self.reply.from, remote: self.reply.to },
        }
    }

    /// Returns the real address of the other side, if this side observes another one.
    pub(in crate::capture::fallback) fn nat_peer(&self, role: Role) -> Option<NatPeer> {
        match role {
            Role::Client => {
                let (ip, port) = self.reply.from;
                (self.reply.from != self.original.to).then_some(NatPeer { ip, port })
            }
            Role::Server => {
                let ip = self.original.from.0;
                (ip != self.reply.to.0).then_some(NatPeer { ip, port: 0 })
            }
        }
    }

    pub(in crate::capture::fallback) fn side(&self, role: Role) -> Side {
        self.sides[role as usize]
    }

    pub(in crate::capture::fallback) fn namespace(&self, role: Role) -> Option<u32> {
        self.namespaces[role as usize]
    }

    /// Returns the flow for which a side in this cgroup counts.
    pub(in crate::capture::fallback) fn flow(&self, role: Role, cgroup: u64) -> Option<FlowKey> {
        self.namespace(role).map(|netns| key(netns, cgroup, role, &self.ends(role)))
    }

    /// Returns whether it ended without having been established.
    pub(in crate::capture::fallback) fn has_failed(&self) -> bool {
        self.over.is_some() && self.established.is_none()
    }

    /// Returns whether it existed when the capture began.
    pub(in crate::capture::fallback) fn is_old(&self) -> bool {
        self.old
    }

    /// Returns whether the handshake can still be in progress.
    pub(in crate::capture::fallback) fn is_beginning(&self) -> bool {
        self.over.is_none() && self.established.is_none()
    }

    /// Returns whether its result is unknown.
    pub(in crate::capture::fallback) fn is_unknown(&self) -> bool {
        (self.end == EntryEnd::Unheard || self.unheard) && self.has_failed()
    }

    /// Ends an entry whose end was not reported. Returns whether anything changed.
    pub(in crate::capture::fallback) fn lose(&mut self, now: u64) -> bool {
        let is_open = self.over.is_none();
        if is_open {
            (self.over, self.end) = (Some(now), EntryEnd::Unheard);
        }
        is_open
    }

    /// Returns whether it may be older than its first event.
    pub(in crate::capture::fallback) fn may_be_older(&self) -> bool {
        !self.begun.1
    }

    /// Returns the flows for which it was counted without its bytes.
    pub(in crate::capture::fallback) fn without_bytes(&self) -> [Option<FlowKey>; 2] {
        [Role::Client, Role::Server].map(|role| match self.side(role) {
            Side::Counted(cgroup, false) if self.carried.is_none() && !self.has_failed() => self.flow(role, cgroup),
            _ => None,
        })
    }

    pub(in crate::capture::fallback) fn waits(&self) -> bool {
        self.sides.iter().any(|side| matches!(side, Side::Waiting(_)))
    }

    pub(in crate::capture::fallback) fn take(&mut self, entry: &ConntrackMessage, now: u64) {
        let established = entry.assured
            || entry.state.is_some_and(|state| (tcp_state::ESTABLISHED..=tcp_state::TIME_WAIT).contains(&state));
        if established && !self.has_failed() {
            self.established.get_or_insert(now);
        }
        let ended = matches!(entry.state, Some(tcp_state::TIME_WAIT | tcp_state::CLOSE));
        if (ended || entry.change == Change::Gone) && self.over.is_none() {
            self.over = Some(now);
            self.end = if ended { EntryEnd::Ended } else { EntryEnd::Dropped };
        }
        if entry.carried.is_some() {
            self.carried = entry.carried;
        }
    }
}
