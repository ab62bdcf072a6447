//! Flows and their counters.

use crate::{Role, plain_data};

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Protocol {
    /// Connections.
    Tcp = 0,
    /// Conversations of datagrams.
    Udp = 1,
}

/// In [`FlowKey`], beside the role.
const UDP: u8 = 0x10;

/// Key under which connections are counted together. Every value of the same flow has the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    cgroup: u64,
    netns: u32,
    port: u16,
    /// A [`Role`], and [`UDP`] where it is that.
    role: u8,
    /// Version of the addresses, 4 or 6, independent of the socket's own family.
    family: u8,
    local: [u8; 16],
    remote: [u8; 16],
}
const _: () = assert!(size_of::<FlowKey>() == 8 + 4 + 2 + 1 + 1 + 16 + 16);
plain_data!(FlowKey);

impl FlowKey {
    /// No flow.
    pub const NONE: Self = Self { cgroup: 0, netns: 0, port: 0, role: 0, family: 0, local: [0; 16], remote: [0; 16] };

    /// A flow's key from a socket's fields: addresses in network order, IPv4 ones as IPv4-mapped; the server's port as
    /// this end sees it, as a number.
    #[inline]
    #[must_use]
    pub const fn new(cgroup: u64, netns: u32, role: Role, port: u16, local: [u8; 16], remote: [u8; 16]) -> Self {
        let family = if is_mapped(&remote) { 4 } else { 6 };
        Self { cgroup, netns, port, role: role as u8, family, local, remote }
    }

    /// The same, of datagrams.
    #[inline]
    #[must_use]
    pub const fn over_udp(self) -> Self {
        Self { role: self.role | UDP, ..self }
    }

    /// The id of the cgroup that the socket was made in.
    #[must_use]
    pub const fn cgroup(&self) -> u64 {
        self.cgroup
    }

    /// The inode number of the socket's network namespace.
    #[must_use]
    pub const fn netns(&self) -> u32 {
        self.netns
    }

    /// The server's port as this end sees it.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the role; `None` for bytes that none of our programs wrote.
    #[must_use]
    pub const fn role(&self) -> Option<Role> {
        match self.role & !UDP {
            1 => Some(Role::Client),
            2 => Some(Role::Server),
            _ => None,
        }
    }

    /// Returns the transport protocol.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        if self.role & UDP == 0 { Protocol::Tcp } else { Protocol::Udp }
    }

    /// This end's address, IPv4 ones as IPv4-mapped.
    #[must_use]
    pub const fn local(&self) -> [u8; 16] {
        self.local
    }

    /// The other end's address as this end sees it, IPv4 ones as IPv4-mapped.
    #[must_use]
    pub const fn remote(&self) -> [u8; 16] {
        self.remote
    }
}

/// `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), as two words: no loop for the kernel's verifier to follow.
#[inline]
const fn is_mapped(address: &[u8; 16]) -> bool {
    let word = u128::from_be_bytes(*address);
    word >> 32 == 0xffff
}

/// A slot of the table of counters. They only grow, whichever flow the slot is lent to. Those of 32 bits begin again at 0
/// after their greatest value: the agent reads them so often that this happens once at most in between. Each slot of a
/// table of 65,536 takes memory whether it is lent or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowStats {
    /// Payload that ended connections had sent, without retransmissions.
    pub sent: u64,
    /// Payload that ended connections had received.
    pub received: u64,
    /// Connections established.
    pub opened: u32,
    /// Connections ended.
    pub closed: u32,
    /// Attempts that came to nothing.
    pub failed: u32,
    /// Of the ended connections, those that ended during the agent's first look and had not been counted as opened.
    pub older: u32,
    /// Of the ended connections, those whose end was not seen, nor their payload: their sockets' memory was found in
    /// use by others.
    pub unseen: u32,
    /// Segments that ended connections had sent again.
    pub retransmits: u32,
    /// Ended connections by their smoothed round-trip time when they ended: see [`rtt_bucket`]. Those that had measured
    /// none are in no bucket.
    pub rtt: [u32; RTT_BUCKETS],
    /// Those whose role is a guess: of `opened`, conversations of datagrams that may be older; of `closed`, connections whose
    /// sockets did not show it.
    pub inferred: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<FlowStats>() == 2 * 8 + 8 * 4 + RTT_BUCKETS * 4);
plain_data!(FlowStats);

/// Number of buckets for round-trip times.
pub const RTT_BUCKETS: usize = 14;

/// The bucket of a round-trip time: 0 below 64 µs, each of the following reaches twice as far as the one before, and the
/// last one has 262.144 ms and more.
#[inline]
#[must_use]
pub const fn rtt_bucket(microseconds: u32) -> usize {
    let bits = (u32::BITS - (microseconds >> 6).leading_zeros()) as usize;
    if bits < RTT_BUCKETS { bits } else { RTT_BUCKETS - 1 }
}

/// Told through the ring buffer when a flow gets its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FirstSight {
    /// The flow.
    pub key: FlowKey,
    /// Its place in the table of counters.
    pub slot: u32,
    /// Always 0.
    pub reserved: u32,
}
const _: () = assert!(size_of::<FirstSight>() == size_of::<FlowKey>() + 4 + 4);
plain_data!(FirstSight);

/// Losses, as indices of a per-CPU array of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Loss {
    /// Connections established, no slot for their flow.
    Opened = 0,
    /// Connections ended, no slot for their flow.
    Closed = 1,
    /// Attempts that came to nothing, no slot for their flow.
    Failed = 2,
    /// Flows that got a slot, no room in the ring buffer to say so.
    FirstSight = 3,
    /// Connections established or ended during the first look that could not be noted.
    Recent = 4,
    /// Sockets that the kernel would not show as TCP sockets, so that nothing is known of them.
    Unreadable = 5,
    /// Answers of name servers, no room in the ring buffer to pass them on.
    Answer = 6,
    /// Addresses that UDP was sent to, no room to remember them until the datagram leaves.
    Dialled = 7,
}

impl Loss {
    /// Number of kinds.
    pub const COUNT: u32 = 8;
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
    fn the_family_is_that_of_the_addresses() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        let mut not_quite = mapped;
        not_quite[3] = 1;
        let family = |remote| FlowKey::new(1, 2, Role::Client, 80, mapped, remote).family;
        assert_eq!((family(mapped), family(not_quite), family([0; 16])), (4, 6, 6));
    }
}
