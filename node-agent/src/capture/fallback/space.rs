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

use super::{
    super::traffic::Traffic,
    proc_net::TcpCounts,
    socket::{Dump, Endpoints, Socket, SocketId},
};
use crate::memory::is_worth_shrinking;

/// Maximum number of ended connections that are kept for each namespace, see [`Space::ended`].
const REMEMBERED: usize = 1024;

/// Scan of one namespace.
pub(super) struct Look<'a> {
    pub(super) netns: u32,
    pub(super) dump: &'a Dump,
    /// Method of the scan.
    pub(super) methods: Methods,
    /// Number of the latest conntrack message that was processed before the scan began.
    pub(super) began: u64,
    /// True if the namespace existed when the capture began and this is its first scan.
    pub(super) finds_old: bool,
    /// Default owner of the namespace's connections; `None` if several share it.
    pub(super) whose: Option<u64>,
    /// Returns whether a cgroup is one of the node's.
    pub(super) is_ours: &'a dyn Fn(u64) -> bool,
    /// The namespace's counters before and after the scan.
    pub(super) counts: Option<[TcpCounts; 2]>,
}

/// State of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It tries to connect: number of scans that have shown it, and whether conntrack will report the result.
    Attempt(u32, bool),
    Open,
    /// Its end has been counted already, or it has no account.
    Over,
}

/// Socket that a scan has shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) id: SocketId,
    pub(super) key: FlowKey,
    pub(super) phase: Phase,
    pub(super) bytes: Traffic,
    /// Round-trip time in the latest scan.
    pub(super) rtt: Option<RttBucket>,
    pub(super) state: u8,
    /// True if these are all bytes that it will transfer.
    pub(super) is_final: bool,
    /// True if conntrack has it as well.
    pub(super) tracked: bool,
    /// True if it already counts as one with unknown payload.
    pub(super) without_bytes: bool,
    /// Latest scan that has shown it, see [`Space::looks`].
    pub(super) shown: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Listening {
    pub(super) address: Option<IpAddr>,
    /// Cgroup of the socket; `None` if it is not the node's.
    pub(super) cgroup: Option<u64>,
}

/// A network namespace.
#[derive(Debug, Default)]
pub(super) struct Space {
    pub(super) sockets: HashMap<Endpoints, Known>,
    /// Listening sockets by port.
    pub(super) listeners: HashMap<u16, Vec<Listening>>,
    /// Ended connections that conntrack had not reported: a later list may still contain them.
    pub(super) ended: VecDeque<Endpoints>,
    /// Sockets that the latest scan counted as gone.
    pub(super) lately_gone: HashMap<SocketId, FlowKey>,
    /// Number of scans, from 1.
    pub(super) looks: u32,
    /// [`Look::began`] of the latest scan.
    pub(super) looked: Option<u64>,
    pub(super) whose: Option<u64>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) counted: Counted,
}

/// Observed counts of a namespace, compared with its own.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// The namespace's own counts when counting began.
    pub(super) base: Option<TcpCounts>,
    /// The namespace's own counts before the latest scan.
    pub(super) earlier: TcpCounts,
    pub(super) clients: u64,
    pub(super) servers: u64,
    pub(super) failed: u64,
    pub(super) missed: Missed,
}

/// Connections and attempts that a namespace has counted and that no scan or event has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Missed {
    pub(super) opened: u64,
    pub(super) failed: u64,
}

impl Counted {
    pub(super) fn count(&mut self, role: Role) {
        match role {
            Role::Client => self.clients += 1,
            Role::Server => self.servers += 1,
        }
    }
}

impl Space {
    pub(super) fn take_listeners(&mut self, look: &Look<'_>) {
        self.listeners.clear();
        for listener in &look.dump.listeners {
            let cgroup = listener.cgroup.or(look.whose).filter(|cgroup| (look.is_ours)(*cgroup));
            let at = Listening { address: listener.address, cgroup };
            self.listeners.entry(listener.port).or_default().push(at);
        }
    }

    /// Stores a socket of the present scan.
    pub(super) fn insert(&mut self, ends: Endpoints, known: Known) {
        self.sockets.insert(ends, Known { shown: self.looks, ..known });
    }

    /// Removes and returns the sockets that the present scan has not shown.
    pub(super) fn take_unshown(&mut self) -> Vec<(Endpoints, Known)> {
        let looks = self.looks;
        let unshown = self.sockets.extract_if(|_, known| known.shown != looks).collect();
        if is_worth_shrinking(self.sockets.capacity(), self.sockets.len()) {
            self.sockets.shrink_to(2 * self.sockets.len());
        }
        unshown
    }

    pub(super) fn remember_ended(&mut self, ends: Endpoints) {
        if self.ended.len() >= REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(ends);
    }

    /// Returns the listener at this address.
    pub(super) fn listens(&self, at: (IpAddr, u16)) -> Option<Listening> {
        let candidates = self.listeners.get(&at.1)?;
        let exact = candidates.iter().find(|listening| listening.address == Some(at.0));
        exact.or_else(|| candidates.iter().find(|listening| listening.address.is_none())).copied()
    }
}

impl Known {
    pub(super) fn new(socket: &Socket, key: FlowKey, phase: Phase) -> Self {
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
        }
    }

    /// Records that a track has counted it for this flow, and whether it has counted its end.
    pub(super) fn adopted(&mut self, by: FlowKey, over: bool) {
        self.key = by;
        self.phase = if over { Phase::Over } else { Phase::Open };
        self.without_bytes = true;
    }

    /// Returns whether only its end reveals that not all of its payload is known.
    pub(super) fn ends_unknown(&self) -> bool {
        !self.is_final && !self.without_bytes
    }

    /// Returns whether it is the socket with this ID. A socket that waits to be accepted, or that its process has closed,
    /// has no inode in `/proc`.
    pub(super) fn is(&self, id: SocketId) -> bool {
        self.id == id || id == SocketId::NOBODYS || self.id == SocketId::NOBODYS
    }
}

pub(super) fn is_closing(of: u8) -> bool {
    !matches!(of, state::ESTABLISHED | state::SYN_SENT)
}

pub(super) fn key(netns: u32, cgroup_id: u64, role: Role, ends: &Endpoints) -> FlowKey {
    let port = match role {
        Role::Client => ends.remote.1,
        Role::Server => ends.local.1,
    };
    FlowKey { cgroup_id, netns, role, local: ends.local.0, remote: ends.remote.0, port, protocol: Protocol::Tcp }
}
