//! Sockets of one network namespace, as a scan by any method shows them.

use std::{collections::HashSet, net::IpAddr};

use topology::rtt::RttBucket;

use crate::capture::traffic::Traffic;

/// An address and a port.
pub(super) type Endpoint = (IpAddr, u16);

/// Local and remote end of a connection, as this end observes them. IPv4-mapped addresses are IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Endpoints {
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
}

/// Distinguishes a socket from a later one between the same endpoints: its cookie, or its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SocketId(pub(super) u64);

impl SocketId {
    /// ID of a socket that no process holds any more, if sockets are distinguished only by their inodes.
    pub(super) const NOBODYS: Self = Self(0);
}

/// One end of a connection, or of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) id: SocketId,
    pub(super) ends: Endpoints,
    /// See [`node_agent_common::state`].
    pub(super) state: u8,
    /// ID of the cgroup in which it was created, if the kernel reports it.
    pub(super) cgroup: Option<u64>,
    /// Payload and retransmissions so far, if the kernel reports them.
    pub(super) bytes: Option<Traffic>,
    /// Its smoothed round-trip time, if the kernel has measured and reports one.
    pub(super) rtt: Option<RttBucket>,
    /// True if no more payload can follow.
    pub(super) is_final: bool,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Listener {
    /// Its address; `None` for any.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    /// See [`Socket::cgroup`].
    pub(super) cgroup: Option<u64>,
    /// Inode of a socket whose cgroup must be found by its process.
    pub(super) inode: Option<u64>,
}

/// Result of one scan of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dump {
    pub(super) sockets: Vec<Socket>,
    pub(super) listeners: Vec<Listener>,
}

impl Dump {
    /// Adds the listeners that it lacks.
    pub(super) fn add_listeners(&mut self, others: Vec<Listener>) {
        let known: HashSet<_> = self.listeners.iter().copied().collect();
        self.listeners.extend(others.into_iter().filter(|listener| !known.contains(listener)));
    }
}
