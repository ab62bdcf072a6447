//! State of one network namespace: its sockets, its listeners, and its own counters. Pure.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use node_agent_common::state;
use topology::{
    flow::{FlowKey, Methods, Protocol, Role},
    rtt::RttBucket,
};

use crate::capture::{
    fallback::socket::{Dump, Endpoints, Socket, SocketId},
    proc::tcp_counters::TcpCounts,
    traffic::Traffic,
};
use crate::malloc::is_worth_shrinking;

/// Maximum number of ended connections that are kept for each namespace, see [`NamespaceState::ended`].
const REMEMBERED: usize = 1024;

/// Scan of one namespace.
pub(in crate::capture::fallback) struct Scan<'a> {
    pub(in crate::capture::fallback) netns: u32,
    pub(in crate::capture::fallback) dump: &'a Dump,
    /// Method of the scan.
    pub(in crate::capture::fallback) methods: Methods,
    /// Number of the latest conntrack message that was processed before the scan began.
    pub(in crate::capture::fallback) began: u64,
    /// True if the namespace existed when the capture began and this is its first scan.
    pub(in crate::capture::fallback) finds_old: bool,
    /// Default owner of the namespace's connections; `None` if several share it.
    pub(in crate::capture::fallback) default_owner: Option<u64>,
    /// Returns whether a cgroup is one of the node's.
    pub(in crate::capture::fallback) is_ours: &'a dyn Fn(u64) -> bool,
    /// The namespace's counters before and after the scan.
    pub(in crate::capture::fallback) counts: Option<[TcpCounts; 2]>,
}

/// State of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) enum Phase {
    /// It tries to connect: number of scans that have shown it, and whether conntrack will report the result.
    Attempt(u32, bool),
    Open,
    /// Its end has been counted already, or it has no account.
    Over,
}

/// Socket that a scan has shown.
#[derive(Clone, Copy, Debug)]
pub(in crate::capture::fallback) struct KnownSocket {
    pub(in crate::capture::fallback) id: SocketId,
    pub(in crate::capture::fallback) key: FlowKey,
    pub(in crate::capture::fallback) phase: Phase,
    pub(in crate::capture::fallback) bytes: Traffic,
    /// Round-trip time in the latest scan.
    pub(in crate::capture::fallback) rtt: Option<RttBucket>,
    pub(in crate::capture::fallback) state: u8,
    /// True if these are all bytes that it will transfer.
    pub(in crate::capture::fallback) is_final: bool,
    /// True if conntrack has it as well.
    pub(in crate::capture::fallback) tracked: bool,
    /// True if it already counts as one with unknown payload.
    pub(in crate::capture::fallback) without_bytes: bool,
    /// Latest scan that has shown it, see [`NamespaceState::scans`].
    pub(in crate::capture::fallback) shown: u32,
    /// First scan that has shown it other than as an attempt; 0 before.
    pub(in crate::capture::fallback) established: u32,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::capture::fallback) struct Listening {
    pub(in crate::capture::fallback) address: Option<IpAddr>,
    /// Cgroup of the socket; `None` if it is not the node's.
    pub(in crate::capture::fallback) cgroup: Option<u64>,
}

/// A network namespace.
#[derive(Debug, Default)]
pub(in crate::capture::fallback) struct NamespaceState {
    pub(in crate::capture::fallback) sockets: HashMap<Endpoints, KnownSocket>,
    /// Listening sockets by port.
    pub(in crate::capture::fallback) listeners: HashMap<u16, Vec<Listening>>,
    /// Ended connections that conntrack had not reported: a later list may still contain them.
    pub(in crate::capture::fallback) ended: VecDeque<Endpoints>,
    /// Sockets that the latest scan counted as gone.
    pub(in crate::capture::fallback) lately_gone: HashMap<SocketId, FlowKey>,
    /// Number of scans, from 1.
    pub(in crate::capture::fallback) scans: u32,
    /// [`Scan::began`] of the latest scan.
    pub(in crate::capture::fallback) scanned_at: Option<u64>,
    pub(in crate::capture::fallback) default_owner: Option<u64>,
    pub(in crate::capture::fallback) addresses: Vec<IpAddr>,
    pub(in crate::capture::fallback) counted: Counted,
}

/// Observed counts of a namespace, compared with its own.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::capture::fallback) struct Counted {
    /// The namespace's own counts when counting began.
    pub(in crate::capture::fallback) base: Option<TcpCounts>,
    /// The namespace's own counts before the latest scan.
    pub(in crate::capture::fallback) earlier: TcpCounts,
    pub(in crate::capture::fallback) clients: u64,
    pub(in crate::capture::fallback) servers: u64,
    pub(in crate::capture::fallback) failed: u64,
    pub(in crate::capture::fallback) missed: Missed,
}

/// Connections and attempts that a namespace has counted and that no scan or event has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::capture::fallback) struct Missed {
    pub(in crate::capture::fallback) opened: u64,
    pub(in crate::capture::fallback) failed: u64,
}

impl Counted {
    pub(in crate::capture::fallback) fn count(&mut self, role: Role) {
        match role {
            Role::Client => self.clients += 1,
            Role::Server => self.servers += 1,
        }
    }
}

impl NamespaceState {
    pub(in crate::capture::fallback) fn take_listeners(&mut self, scan: &Scan<'_>) {
        self.listeners.clear();
        for listener in &scan.dump.listeners {
            let cgroup = listener.cgroup.or(scan.default_owner).filter(|cgroup| (scan.is_ours)(*cgroup));
            let at = Listening { address: listener.address, cgroup };
            self.listeners.entry(listener.port).or_default().push(at);
        }
    }

    /// Stores a socket of the present scan.
    pub(in crate::capture::fallback) fn insert(&mut self, ends: Endpoints, known: KnownSocket) {
        let established = match (known.phase, known.established) {
            (Phase::Attempt(..), _) => 0,
            (_, 0) => self.scans,
            (_, first) => first,
        };
        self.sockets.insert(ends, KnownSocket { shown: self.scans, established, ..known });
    }

    /// Removes and returns the sockets that the present scan has not shown.
    pub(in crate::capture::fallback) fn take_unshown(&mut self) -> Vec<(Endpoints, KnownSocket)> {
        let scans = self.scans;
        let unshown = self.sockets.extract_if(|_, known| known.shown != scans).collect();
        if is_worth_shrinking(self.sockets.capacity(), self.sockets.len()) {
            self.sockets.shrink_to(2 * self.sockets.len());
        }
        unshown
    }

    pub(in crate::capture::fallback) fn remember_ended(&mut self, ends: Endpoints) {
        if self.ended.len() >= REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(ends);
    }

    /// Returns the listener at this address.
    pub(in crate::capture::fallback) fn listens(&self, at: (IpAddr, u16)) -> Option<Listening> {
        let candidates = self.listeners.get(&at.1)?;
        let exact = candidates.iter().find(|listening| listening.address == Some(at.0));
        exact.or_else(|| candidates.iter().find(|listening| listening.address.is_none())).copied()
    }
}

impl KnownSocket {
    pub(in crate::capture::fallback) fn new(socket: &Socket, key: FlowKey, phase: Phase) -> Self {
        let (id, state) = (socket.id, socket.state);
        Self {
            id,
            key,
            phase,
            bytes: Traffic::default(),
            rtt: None,
            state,
            is_final: false,
            tracked: false,
            without_bytes: false,
            shown: 0,
            established: 0,
        }
    }

    /// Records that a track has counted it for this flow, and whether it has counted its end.
    pub(in crate::capture::fallback) fn adopted(&mut self, by: FlowKey, over: bool) {
        self.key = by;
        self.phase = if over { Phase::Over } else { Phase::Open };
        self.without_bytes = true;
    }

    /// Returns whether no second scan has shown it established: its first messages may not have arrived at the first one.
    pub(in crate::capture::fallback) fn is_new(&self) -> bool {
        self.established == self.shown
    }

    /// Returns whether only its end reveals that not all of its payload is known.
    pub(in crate::capture::fallback) fn ends_unknown(&self) -> bool {
        !self.is_final && !self.without_bytes
    }

    /// Returns whether it is the socket with this ID. A socket that waits to be accepted, or that its process has closed,
    /// has no inode in `/proc`.
    pub(in crate::capture::fallback) fn is(&self, id: SocketId) -> bool {
        self.id == id || id == SocketId::NOBODYS || self.id == SocketId::NOBODYS
    }
}

pub(in crate::capture::fallback) fn is_closing(of: u8) -> bool {
    !matches!(of, state::ESTABLISHED | state::SYN_SENT)
}

pub(in crate::capture::fallback) fn key(netns: u32, cgroup_id: u64, role: Role, ends: &Endpoints) -> FlowKey {
    let port = match role {
        Role::Client => ends.remote.1,
        Role::Server => ends.local.1,
    };
    FlowKey { cgroup_id, netns, role, local: ends.local.0, remote: ends.remote.0, port, protocol: Protocol::Tcp }
}
