//! A flow: all connections of one cgroup in one role between two addresses at one service port, and its counters.

mod counts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{count, rtt::RttHistogram};

/// End of the connections at which a flow was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// The end that called `connect()`.
    Client,
    /// The end that listened.
    Server,
}

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Conversations: datagrams between one socket and one address and port.
    Udp,
}

/// Properties that all connections of a flow share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowKey {
    /// ID of the cgroup in which the socket was created (its directory's inode number on cgroup v2).
    pub cgroup_id: u64,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// Observed end.
    pub role: Role,
    /// This end's address; IPv4-mapped addresses appear as IPv4.
    pub local: IpAddr,
    /// The other end's address as this end observes it (a client of a Service observes the Service's). Unspecified in a folded
    /// row, which counts many external addresses together.
    pub remote: IpAddr,
    /// The server's port as this end observes it: a client's remote port, a server's local port.
    pub port: u16,
    /// Transport protocol at that port.
    #[serde(default)]
    pub protocol: Protocol,
}

impl FlowKey {
    /// Returns the address that the flow's client called.
    pub(crate) fn called(&self) -> IpAddr {
        if self.role == Role::Client { self.remote } else { self.local }
    }

    /// Returns the key of the folded row that counts this flow while an agent's table is nearly full: its remote address is
    /// the unspecified one.
    ///
    /// Invariant: the folded key of a folded key is itself.
    #[must_use]
    pub fn folded(&self) -> Self {
        let remote = match self.remote {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { remote, ..*self }
    }

    /// Returns whether this is the key of a folded row.
    ///
    /// Invariant: true of each folded key.
    #[must_use]
    pub fn is_folded(&self) -> bool {
        self.remote.is_unspecified()
    }
}

/// Set of capture methods of a flow or an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Methods(u8);

impl Methods {
    /// By programs in the kernel, connection by connection.
    pub const EBPF: Self = Self(1);
    /// By dumps of the kernel's socket tables over netlink.
    pub const SOCK_DIAG: Self = Self(2);
    /// By reading `/proc/<pid>/net/tcp`.
    pub const PROCFS: Self = Self(4);
    /// By the kernel's connection tracking, between two dumps.
    pub const CONNTRACK: Self = Self(8);
    const ALL: Self = Self(15);

    /// Returns the empty set.
    ///
    /// Invariant: all sets contain it.
    #[must_use]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Returns the union of both sets.
    ///
    /// Invariant: it contains both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether the set contains all of `other`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns whether a part was observed by scans, so that connections may be missing.
    #[must_use]
    pub const fn is_sampled(self) -> bool {
        self.0 & !Self::EBPF.0 != 0
    }

    /// Returns the bits that a report contains.
    ///
    /// Invariant: [`Self::from_bits`] returns the same set for them.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// Returns the set for the bits of a report; `None` if one of them is unknown.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits & !Self::ALL.bits() == 0 {
            // Checked just now to be among four bits.
            #[expect(clippy::cast_possible_truncation, reason = "at most 15")]
            return Some(Self(bits as u8));
        }
        None
    }
}

/// Cumulative counters of one flow within one run of one epoch of one agent. Bytes are TCP payload without
/// retransmissions.
///
/// Invariants, as far as nothing was lost: `closed <= opened + preexisting`;
/// `preexisting_bytes_* <= bytes_*`; `open_bytes_* <= bytes_*`; the same of retransmits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowCounters {
    /// Number of the run of the flow's counters within its epoch. An agent may evict a flow that is fully reported and
    /// has no open connection; if the flow returns, its counters restart from zero in a greater run.
    #[serde(default)]
    pub run: u64,
    /// Connections whose opening was observed.
    pub opened: u64,
    /// Connections whose end was observed.
    pub closed: u64,
    /// Attempts that were refused, timed out or were given up.
    pub failed: u64,
    /// Connections that were open when the epoch began; not in `opened`.
    pub preexisting: u64,
    /// Payload sent by this end, on all connections of the flow, preexisting ones included.
    pub bytes_sent: u64,
    /// Payload received by this end, on all connections of the flow, preexisting ones included.
    pub bytes_received: u64,
    /// Part of `bytes_sent` that preexisting connections had sent when the epoch began.
    pub preexisting_bytes_sent: u64,
    /// Part of `bytes_received` that preexisting connections had received when the epoch began.
    pub preexisting_bytes_received: u64,
    /// Part of `bytes_sent` that belongs to connections that are still open.
    pub open_bytes_sent: u64,
    /// Part of `bytes_received` that belongs to connections that are still open.
    pub open_bytes_received: u64,
    /// Capture methods of its connections.
    #[serde(default)]
    pub methods: Methods,
    /// Connections and attempts in `opened`, `preexisting` and `failed` whose direction is inferred.
    #[serde(default)]
    pub inferred: u64,
    /// Connections in `opened` and `preexisting` whose payload is not fully known: bytes are a lower bound.
    #[serde(default)]
    pub without_bytes: u64,
    /// Open connections whose payload becomes known only when they end; not in `without_bytes`.
    #[serde(default)]
    pub open_without_bytes: u64,
    /// Segments that this end retransmitted, on all connections of the flow, preexisting ones included. Those of
    /// connections in `without_bytes` are not fully known. `None` if the capture does not report any.
    #[serde(default)]
    pub retransmits: Option<u64>,
    /// Part of `retransmits` that preexisting connections had when the epoch began.
    #[serde(default)]
    pub preexisting_retransmits: u64,
    /// Part of `retransmits` that belongs to connections that are still open.
    #[serde(default)]
    pub open_retransmits: u64,
    /// Attempts that became pending: they had no answer for about two seconds.
    #[serde(default)]
    pub pending_begun: u64,
    /// Part of `pending_begun` that is not pending any more: opened, failed, or lost from sight.
    #[serde(default)]
    pub pending_ended: u64,
    /// Round-trip times that this end measured: the last ones of ended connections, and the present ones of open
    /// connections, as far as known.
    #[serde(default)]
    pub rtt: RttHistogram,
}

impl FlowCounters {
    /// Returns the number of open connections; 0 if a loss made `closed` exceed the others.
    #[must_use]
    pub fn active(&self) -> u64 {
        count::bounded(self.opened.saturating_add(self.preexisting).saturating_sub(self.closed))
    }

    /// Returns the number of pending attempts.
    #[must_use]
    pub fn pending(&self) -> u64 {
        count::bounded(self.pending_begun.saturating_sub(self.pending_ended))
    }

    /// Returns the counters with each growing count combined with that of `other`.
    fn with_each_growing(mut self, mut other: Self, combine: fn(u64, u64) -> u64) -> Self {
        let (growing, others) = (self.counts_mut().0, other.counts_mut().0);
        for (count, other) in growing.into_iter().zip(others) {
            *count = combine(*count, *other);
        }
        self
    }

    /// Returns the counters with each count limited to [`count::MAX_COUNT`].
    ///
    /// Invariant: a part of another count does not exceed that count.
    #[must_use]
    pub fn bounded(&self) -> Self {
        let mut bounded = Self { retransmits: self.retransmits.map(count::bounded), ..*self };
        let (growing, open) = bounded.counts_mut();
        for count in growing.into_iter().chain(open) {
            *count = count::bounded(*count);
        }
        bounded
    }

    /// Merges another report of the same flow, epoch and run, which may be older, newer or the same.
    ///
    /// Counters only grow within an epoch, so the greater value of each is the newer one. Values of open connections
    /// shrink when connections close: they are taken from the report with more progress.
    ///
    /// Invariant: the order and repetition of reports with growing counters make no difference.
    pub fn merge(&mut self, other: &Self) {
        let (newer, older) = if other.progress() >= self.progress() { (*other, *self) } else { (*self, *other) };
        *self = Self {
            run: self.run.max(other.run),
            methods: self.methods.union(other.methods),
            retransmits: self.retransmits.max(other.retransmits),
            ..newer.with_each_growing(older, u64::max)
        };
    }

    /// Returns these counters and later ones as one run.
    ///
    /// Invariant: no count is less than in either, except those of open connections.
    #[must_use]
    pub fn followed_by(&self, later: &Self) -> Self {
        // Nothing was open in between: what is open is the later one's.
        Self {
            run: self.run,
            methods: self.methods.union(later.methods),
            retransmits: sum(self.retransmits, later.retransmits),
            rtt: self.rtt.plus(&later.rtt),
            ..later.with_each_growing(*self, count::add)
        }
    }

    /// Returns a number that grows with every change of the flow.
    fn progress(&self) -> u128 {
        let counts = [self.opened, self.closed, self.failed, self.preexisting, self.bytes_sent, self.bytes_received];
        let pending = [self.pending_begun, self.pending_ended];
        counts.iter().chain(&pending).chain(&self.retransmits).map(|count| u128::from(*count)).sum()
    }
}

/// Returns the sum of the known values; `None` if neither is known.
pub(crate) fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.zip(other).map(|(one, other)| count::add(one, other)).or(one).or(other)
}

/// A flow's account over all epochs, from the point of view of the end at which it was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTotals {
    /// Connections established, preexisting ones included.
    pub opened: u64,
    /// Connections of `opened` that are open now, as far as known.
    pub active: u64,
    /// Attempts that were refused, timed out or were given up.
    pub failed: u64,
    /// Attempts that are pending now, as far as known; in neither `opened` nor `failed`.
    #[serde(default)]
    pub pending: u64,
    /// Payload sent by this end.
    pub bytes_sent: u64,
    /// Payload received by this end.
    pub bytes_received: u64,
    /// Capture methods.
    #[serde(default)]
    pub methods: Methods,
    /// Connections and attempts in `opened` and `failed` whose direction is inferred.
    #[serde(default)]
    pub inferred: u64,
    /// Connections in `opened` whose payload is not fully known.
    #[serde(default)]
    pub without_bytes: u64,
    /// Segments that this end retransmitted. Those of connections in `without_bytes` are not fully known. `None` if none
    /// are reported.
    #[serde(default)]
    pub retransmits: Option<u64>,
    /// Round-trip times of the connections that the agent reports now.
    #[serde(default)]
    pub rtt: RttHistogram,
}

impl FlowTotals {
    /// Returns whether anything was counted.
    #[must_use]
    pub fn has_counts(&self) -> bool {
        Self { methods: Methods::empty(), retransmits: None, ..*self } != Self::default()
    }

    /// Limits inferred and incomplete connections to those that exist: one that was open in two epochs counts once.
    ///
    /// Limits open connections as well: one that an earlier epoch has counted in another row is not among `opened`.
    ///
    /// Invariants: `inferred <= opened + failed`, `without_bytes <= opened`, `active <= opened`; no other count changes.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            active: self.active.min(self.opened),
            inferred: self.inferred.min(self.opened.saturating_add(self.failed)),
            without_bytes: self.without_bytes.min(self.opened),
            ..self
        }
    }
}
