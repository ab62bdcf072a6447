//! An edge of the graph: all conversations between one client and one server at one port, through one Service or none.

use std::{net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    count,
    entity::{ServicePortRef, ServiceRef, Workload},
    flow::{Methods, Protocol},
    rtt::RttBucket,
};

/// Maximum number of DNS names of an edge.
pub const MAX_DNS_NAMES: usize = 4;

/// Maximum number of transparent proxies of an edge.
pub const MAX_PROXIES: usize = 4;

/// Entity at one end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Peer {
    /// A workload's pods.
    Workload(Workload),
    /// A pod that the operator has no object for (yet, or any more), by UID.
    UnknownPod {
        /// `metadata.uid`.
        uid: String,
    },
    /// An address of a pods' network of which it is not known whose it was.
    SomePod {
        /// The address.
        ip: IpAddr,
    },
    /// A Service whose backend is unknown: the attempt failed, or the answer was not observed.
    Service(ServiceRef),
    /// A process of a node, outside of all pods.
    HostProcess {
        /// The node's name.
        node: String,
        /// The unit or command.
        name: String,
    },
    /// A node's address, where it is not known which of its processes or host-network pods it was.
    Node {
        /// The node's name.
        node: String,
    },
    /// A client whose address a node replaced by its own, and which is none that the node's agent observed: it is outside of
    /// the cluster, or in a pod that no agent observes.
    BehindNode {
        /// The node's name.
        node: String,
    },
    /// An address outside of the cluster.
    External {
        /// The address.
        ip: IpAddr,
    },
    /// Addresses outside of the cluster to which a person has given a name (`spec.topology.externalGroups`).
    ExternalGroup {
        /// The name.
        name: String,
    },
    /// An external peer behind a DNS name, as its client's agent resolved it.
    ExternalName {
        /// The name, without a dot at its end.
        name: String,
    },
    /// The cluster's API server, known by its address.
    ApiServer,
    /// Addresses outside of the cluster that are too many to be edges of their own.
    OtherExternal,
}

/// Properties that all conversations of an edge share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeKey {
    /// The client.
    pub client: Peer,
    /// The server.
    pub server: Peer,
    /// Service and port that the client asked for, if it called a Service.
    pub service: Option<ServicePortRef>,
    /// Port at which the server listens. `None` if it is not known, or if the edge stands for several ports.
    pub port: Option<u16>,
    /// Transport protocol at that port.
    #[serde(default)]
    pub protocol: Protocol,
}

impl EdgeKey {
    /// Returns the key without a Service, which stands for all edges between the same peers.
    #[must_use]
    pub fn direct(&self) -> Self {
        Self { service: None, ..self.clone() }
    }
}

/// Counters of an edge, from the client's point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeCounters {
    /// Connections that were established, including preexisting ones.
    pub opened: u64,
    /// Of these, open now.
    pub active: u64,
    /// Attempts that were refused, timed out or were given up.
    pub failed: u64,
    /// Attempts that are pending now; in neither `opened` nor `failed`.
    #[serde(default)]
    pub pending: u64,
    /// Payload from client to server.
    pub bytes_sent: u64,
    /// Payload from server to client.
    pub bytes_received: u64,
    /// Of `opened`, those whose payload is not, or not fully, known: bytes are a lower bound.
    #[serde(default)]
    pub without_bytes: u64,
    /// Of `opened` + `failed`, those of which it is a guess who called whom.
    #[serde(default)]
    pub inferred: u64,
    /// Segments that had to be sent again: the client's, where its end was seen, and the server's, where that was.
    #[serde(default)]
    pub retransmits: u64,
}

impl EdgeCounters {
    /// All counts, in one order: what holds for each of them follows from this list.
    fn counts_mut(&mut self) -> [&mut u64; 9] {
        let Self { opened, active, failed, pending, bytes_sent, bytes_received, without_bytes, inferred, retransmits } =
            self;
        [opened, active, failed, pending, bytes_sent, bytes_received, without_bytes, inferred, retransmits]
    }

    fn counts(mut self) -> [u64; 9] {
        self.counts_mut().map(|count| *count)
    }

    /// Returns the counts of both, combined one by one.
    fn with_each(mut self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        for (count, other) in self.counts_mut().into_iter().zip(other.counts()) {
            *count = combine(*count, other);
        }
        self
    }

    /// Adds another conversation's counters.
    ///
    /// Invariant: no count becomes less, if none is beyond [`count::MAX_COUNT`], which stands for all beyond it.
    pub fn add(&mut self, other: &Self) {
        *self = self.with_each(other, count::add);
    }

    /// Returns whether all counts are what was counted: one that has come to [`count::MAX_COUNT`] may be less.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.counts().into_iter().all(|count| count < count::MAX_COUNT)
    }

    /// Adds what the other end had to send again of the same connections.
    ///
    /// Invariant: no other count changes.
    pub fn add_retransmits_of(&mut self, other_end: &Self) {
        self.retransmits = count::add(self.retransmits, other_end.retransmits);
    }

    /// The greater of each.
    ///
    /// Invariant: no count is less than in either.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        self.with_each(other, u64::max)
    }

    /// The lesser of each.
    ///
    /// Invariant: no count is greater than in either.
    #[must_use]
    pub fn at_most(&self, other: &Self) -> Self {
        self.with_each(other, u64::min)
    }

    /// Returns the difference to `other`, at least 0.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.with_each(other, u64::saturating_sub)
    }

    /// The same connections; where the bytes of some are not known, with those that `other` knows, who counted them, or
    /// some of them, at the other end. Never less than before where neither has become less.
    #[must_use]
    pub fn with_bytes_known_to(&self, other: &Self) -> Self {
        if self.without_bytes == 0 {
            return *self;
        }
        let knows_all = other.opened >= self.opened;
        Self {
            bytes_sent: self.bytes_sent.max(other.bytes_sent),
            bytes_received: self.bytes_received.max(other.bytes_received),
            without_bytes: if knows_all { self.without_bytes.min(other.without_bytes) } else { self.without_bytes },
            ..*self
        }
    }

    /// The share of `opened` connections (at most all) in these counters, failed and pending attempts excepted: all of it if they
    /// are all connections, else in proportion, rounded down.
    ///
    /// Invariant: no count is greater than here.
    #[must_use]
    pub fn share(&self, opened: u64) -> Self {
        let opened = opened.min(self.opened);
        if opened == self.opened {
            return Self { failed: 0, pending: 0, ..*self };
        }
        // `self.opened` is greater than `opened` and so not 0, and the quotient not greater than `count`.
        let part = |count: u64| {
            u64::try_from(u128::from(count) * u128::from(opened) / u128::from(self.opened)).unwrap_or(count)
        };
        let mut share = *self;
        share.counts_mut().into_iter().for_each(|count| *count = part(*count));
        Self { failed: 0, pending: 0, ..share }
    }
}

/// Time of the last activity. While a connection is open, it is the present, which is later than all other times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LastSeen {
    /// The last change, when nothing was open any more.
    At(SystemTime),
    /// A connection is open.
    Now,
}

impl LastSeen {
    /// Returns the time, if it is `now` at present.
    #[must_use]
    pub fn at(self, now: SystemTime) -> SystemTime {
        match self {
            Self::At(time) => time,
            Self::Now => now,
        }
    }
}

/// When the conversations of an edge happened, by the operator's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Times {
    /// Nothing of it is known to have happened before.
    pub first_seen: SystemTime,
    /// Time of the last change.
    pub last_seen: LastSeen,
    /// Time of the last failed attempt, as far as one was reported; not before that attempt.
    pub last_failed: Option<SystemTime>,
}

impl Times {
    /// Returns the times with `now` as the present, so that they stay as they are.
    #[must_use]
    pub fn as_of(self, now: SystemTime) -> Self {
        Self { last_seen: LastSeen::At(self.last_seen.at(now)), ..self }
    }

    /// Times of both together.
    ///
    /// Invariant: the result covers both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            first_seen: self.first_seen.min(other.first_seen),
            last_seen: self.last_seen.max(other.last_seen),
            last_failed: self.last_failed.max(other.last_failed),
        }
    }

    /// Times of both together, as far as either is known.
    #[must_use]
    pub fn of_both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        one.zip(other).map(|(one, other)| one.with(&other)).or(one).or(other)
    }
}

/// One pod's or process's part in an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The pod's name; empty for host processes and the outside.
    pub pod: String,
    /// The container's name; empty where it is not known (an end that was not observed, found by its address).
    pub container: String,
    /// Connections established by or with this endpoint on this edge.
    pub opened: u64,
    /// Failed attempts by or at this endpoint on this edge, where it is known.
    pub failed: u64,
}

/// Ends that an agent observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Seen {
    /// Both.
    Both,
    /// The client's only: the server is known by its address.
    Client,
    /// The server's only: the client is known by its address.
    Server,
}

/// Side of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Side {
    /// The client's.
    Client,
    /// The server's.
    Server,
}

/// Transparent proxy that the network of a pod puts between the two ends of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// End whose pod has it in its network.
    pub side: Side,
    /// Peer to which the proxy belongs.
    pub peer: Peer,
    /// Name of the proxy's container; empty where it is not known.
    pub container: String,
}

/// Evidence for a peer's identity, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Identity {
    /// By the cgroup of its sockets: certain.
    Cgroup,
    /// By the network namespace of its sockets: the pod is certain, its container is not known.
    Netns,
    /// By connection tracking of the other end's node, and by who owned the address that it knows.
    Conntrack,
    /// By who owned the address.
    Ip,
}

/// One edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge {
    /// Key of the edge.
    pub key: EdgeKey,
    /// Counters of the edge.
    pub counters: EdgeCounters,
    /// When; `None` where it is not known.
    #[serde(default)]
    pub times: Option<Times>,
    /// The part of it that servers have counted and no client.
    pub from_servers: EdgeCounters,
    /// The parts of `clients` in `from_servers`.
    #[serde(default)]
    pub clients_from_servers: Vec<Endpoint>,
    /// The parts of `servers` in `from_servers`.
    #[serde(default)]
    pub servers_from_servers: Vec<Endpoint>,
    /// The client's pods and containers, sorted by name.
    pub clients: Vec<Endpoint>,
    /// The server's pods and containers, sorted by name.
    pub servers: Vec<Endpoint>,
    /// Ends that were observed.
    pub seen: Seen,
    /// Evidence for the client's identity.
    pub client_identity: Identity,
    /// Evidence for the server's identity.
    pub server_identity: Identity,
    /// Capture methods at either end.
    pub methods: Methods,
    /// The DNS names that led to the server's address, sorted, at most [`MAX_DNS_NAMES`]; only where it is shown by its
    /// address because several did.
    pub dns_names: Vec<String>,
    /// Number of addresses behind a [`Peer::OtherExternal`], without those that agents counted together in folded rows; at
    /// least 1. 0 on all other edges.
    pub addresses: u64,
    /// True if either end reported retransmissions; otherwise the number is 0.
    #[serde(default)]
    pub knows_retransmits: bool,
    /// Median round-trip time of the conversations that agents report now. It is the client's, if known and not mixed
    /// with conversations to other servers; otherwise the server's.
    #[serde(default)]
    pub rtt: Option<RttBucket>,
    /// Transparent proxies between the two ends, the client's first.
    #[serde(default)]
    pub via: Vec<Proxy>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::examples;

    /// Returns an edge with so many connections.
    pub(crate) fn edge(opened: u64) -> Edge {
        let key = EdgeKey {
            client: Peer::ApiServer,
            server: Peer::OtherExternal,
            service: None,
            port: Some(80),
            protocol: Protocol::Tcp,
        };
        examples::edge(key, EdgeCounters { opened, bytes_sent: 10 * opened, ..EdgeCounters::default() })
    }
}
