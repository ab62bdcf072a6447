//! Flows and their counters.

use crate::{Role, plain_data};

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Protocol {
    /// TCP connections.
    Tcp = 0,
    /// UDP conversations.
    Udp = 1,
}

/// Bit of the field `role` of a [`FlowKey`] that marks UDP.
const UDP: u8 = 0x10;

/// `0.0.0.0` as IPv4-mapped.
const UNSPECIFIED_V4: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
/// `::`
const UNSPECIFIED_V6: [u8; 16] = [0; 16];

/// Key of a flow. Equal keys have equal bytes, as a map of the kernel requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    cgroup: u64,
    /// From low to high bits: network namespace (32), port (16), role (8), version of the addresses (8). One word, since
    /// the kernel hashes words: those that were written in pieces take longer to read.
    numbers: u64,
    local: [u8; 16],
    remote: [u8; 16],
}
const _: () = assert!(size_of::<FlowKey>() == 8 + 8 + 16 + 16);
plain_data!(FlowKey);

impl FlowKey {
    /// Key of no flow.
    pub const NONE: Self = Self { cgroup: 0, numbers: 0, local: [0; 16], remote: [0; 16] };

    const PORT: u32 = 32;
    /// A [`Role`], with the bit [`UDP`] for that protocol.
    const ROLE: u32 = 48;
    /// 4 or 6, independent of the socket's own family.
    const FAMILY: u32 = 56;

    /// Returns the key for a socket's fields: addresses in network order, IPv4 as IPv4-mapped; the service port as this
    /// end observes it, as a number.
    #[inline]
    #[must_use]
    pub const fn new(cgroup: u64, netns: u32, role: Role, port: u16, local: [u8; 16], remote: [u8; 16]) -> Self {
        let family = if is_mapped(&remote) { 4_u64 } else { 6 };
        let numbers = netns as u64 | (port as u64) << Self::PORT | (role as u64) << Self::ROLE | family << Self::FAMILY;
        Self { cgroup, numbers, local, remote }
    }

    /// Returns the same key for UDP.
    #[inline]
    #[must_use]
    pub const fn over_udp(self) -> Self {
        Self { numbers: self.numbers | (UDP as u64) << Self::ROLE, ..self }
    }

    /// Returns the key of the folded row that counts this flow while the table is nearly full: the remote address is the
    /// unspecified one of its version.
    #[inline]
    #[must_use]
    pub const fn folded(self) -> Self {
        Self { remote: if is_mapped(&self.remote) { UNSPECIFIED_V4 } else { UNSPECIFIED_V6 }, ..self }
    }

    /// Returns whether this is the key of a folded row. A connection has no unspecified remote address.
    #[must_use]
    pub const fn is_folded(&self) -> bool {
        matches!(self.remote, UNSPECIFIED_V4 | UNSPECIFIED_V6)
    }

    /// Returns the ID of the cgroup in which the socket was created.
    #[must_use]
    pub const fn cgroup(&self) -> u64 {
        self.cgroup
    }

    /// Returns the inode number of the socket's network namespace.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the number's own bits")]
    pub const fn netns(&self) -> u32 {
        self.numbers as u32
    }

    /// Returns the service port as this end observes it.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the number's own bits")]
    pub const fn port(&self) -> u16 {
        (self.numbers >> Self::PORT) as u16
    }

    /// Returns the role; `None` if the bytes are not a role.
    #[must_use]
    pub const fn role(&self) -> Option<Role> {
        match self.role_byte() & !UDP {
            1 => Some(Role::Client),
            2 => Some(Role::Server),
            _ => None,
        }
    }

    /// Returns the transport protocol.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        if self.role_byte() & UDP == 0 { Protocol::Tcp } else { Protocol::Udp }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the number's own bits")]
    const fn role_byte(&self) -> u8 {
        (self.numbers >> Self::ROLE) as u8
    }

    /// Returns this end's address, IPv4 as IPv4-mapped.
    #[must_use]
    pub const fn local(&self) -> [u8; 16] {
        self.local
    }

    /// Returns the other end's address as this end observes it, IPv4 as IPv4-mapped.
    #[must_use]
    pub const fn remote(&self) -> [u8; 16] {
        self.remote
    }
}

/// Returns whether an address is IPv4-mapped: `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2). It avoids a loop, which the
/// kernel's verifier would have to follow.
#[inline]
const fn is_mapped(address: &[u8; 16]) -> bool {
    let word = u128::from_be_bytes(*address);
    word >> 32 == 0xffff
}

/// Slot: one row of counters. Counters only grow, also when the agent assigns the slot to another flow. Counters of 32
/// bits wrap around; the agent reads them so often that this happens at most once between two readings. Each slot takes
/// memory, assigned or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowStats {
    /// Payload that ended connections sent, in bytes, without retransmissions.
    pub sent: u64,
    /// Payload that ended connections received, in bytes.
    pub received: u64,
    /// Connections established.
    pub opened: u32,
    /// Connections ended.
    pub closed: u32,
    /// Failed attempts.
    pub failed: u32,
    /// Ended connections that ended during the agent's first listing and were not counted as opened.
    pub older: u32,
    /// Ended connections with an unobserved end and unknown payload: a program found the memory of their sockets in use
    /// by others.
    pub unseen: u32,
    /// Segments that ended connections retransmitted.
    pub retransmits: u32,
    /// Ended connections by their last smoothed round-trip time: see [`rtt_bucket`]. Connections without a measured
    /// time are in no bucket.
    pub rtt: [u32; RTT_BUCKETS],
    /// Connections with a guessed role: UDP conversations of `opened` that may be preexisting, and TCP connections of
    /// `closed` whose sockets did not show a role.
    pub inferred: u32,
    /// Number of times that the agent has taken the slot from a flow. Programs that remember a slot compare it.
    pub generation: u32,
    /// Ended connections whose payload may have gone past TCP: see [`sockmap`](crate::sockmap).
    pub past_tcp: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<FlowStats>() == 2 * 8 + 10 * 4 + RTT_BUCKETS * 4);
plain_data!(FlowStats);

/// Number of buckets for round-trip times.
pub const RTT_BUCKETS: usize = 14;

/// Returns the bucket of a round-trip time: 0 below 64 µs. The bound of each following bucket is twice that of the one
/// before. The last bucket has 262.144 ms and more.
#[inline]
#[must_use]
pub const fn rtt_bucket(microseconds: u32) -> usize {
    let bits = (u32::BITS - (microseconds >> 6).leading_zeros()) as usize;
    if bits < RTT_BUCKETS { bits } else { RTT_BUCKETS - 1 }
}

/// Notification of a new flow, sent through the ring buffer when a flow gets its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NewFlow {
    /// Key of the flow.
    pub key: FlowKey,
    /// Index of the flow's slot.
    pub slot: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<NewFlow>() == size_of::<FlowKey>() + 4 + 4);
plain_data!(NewFlow);

/// Losses, as indices of a per-CPU array of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// Established connections of flows without a slot.
    Opened = 0,
    /// Ended connections of flows without a slot.
    Closed = 1,
    /// Failed attempts of flows without a slot.
    Failed = 2,
    /// Notifications of new flows without room in the ring buffer.
    NewFlow = 3,
    /// Connections established or ended during the first listing, without room for their note.
    Recent = 4,
    /// Sockets that the kernel did not show as TCP sockets, so that no program could read them.
    Unreadable = 5,
    /// DNS responses without room in the ring buffer.
    Answer = 6,
    /// Original destinations of UDP datagrams without room to store them until the datagram leaves.
    OriginalDestination = 7,
    /// Original destinations that a load balancer at the sockets replaced, without room to store them.
    BalancedDestination = 8,
}

impl Loss {
    /// Number of kinds.
    pub const COUNT: u32 = 9;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_round_trips_are_powers_of_two() {
        let buckets = [0, 63, 64, 127, 128, 131_071, 131_072, 262_143, 262_144, u32::MAX].map(rtt_bucket);
        assert_eq!(buckets, [0, 0, 1, 1, 2, 11, 12, 12, 13, 13]);
    }

    #[test]
    fn folded_key_differs_in_remote_address_alone() {
        let remote = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 1];
        let key = |remote| FlowKey::new(1, 2, Role::Server, 80, [3; 16], remote).over_udp();
        for (remote, unspecified) in [(remote, UNSPECIFIED_V4), ([9; 16], UNSPECIFIED_V6)] {
            let folded = key(remote).folded();
            assert_eq!(folded, key(unspecified));
            assert!(folded.is_folded() && folded.folded() == folded && !key(remote).is_folded());
        }
    }

    #[test]
    fn the_family_is_that_of_the_addresses() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let mut not_quite = mapped;
        not_quite[3] = 1;
        let family = |remote| FlowKey::new(1, 2, Role::Client, 80, mapped, remote).numbers >> FlowKey::FAMILY;
        assert_eq!((family(mapped), family(not_quite), family([0; 16])), (4, 6, 6));
    }
}
