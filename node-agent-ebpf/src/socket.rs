//! Fields of a TCP socket.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_skc_to_tcp_sock};
use node_agent_common::{FlowKey, Origin, Role};

use crate::{
    destination::End,
    memory::{Access, Direct, Pointer, Probing},
    offsets::offset,
};

/// A pointer to a structure of a type that the verifier knows.
pub type KernelPointer = Pointer<Direct>;

/// A `struct tcp_sock`.
#[derive(Clone, Copy)]
pub struct TcpSocket<A = Direct>(Pointer<A>);

impl TcpSocket {
    /// From a `struct sock` or `struct sock_common`, if it is a full TCP socket.
    #[inline(always)]
    pub fn from_sock(sock: KernelPointer) -> Option<Self> {
        // SAFETY: the helper takes any socket pointer and answers null where it is not a full TCP socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sock.address() as *mut c_void) };
        KernelPointer::new(tcp as u64).map(Self)
    }

    /// Returns its origin. `connect()` chooses ports that no other call uses: their `fastreuse` is -1.
    #[inline(always)]
    pub fn origin(self) -> Origin {
        const CHOSEN_BY_CONNECT: i8 = -1;
        if self.has_room_for_waiting() {
            return Origin::Listener;
        }
        if offset!(bind_bucket) == 0 {
            return Origin::Unknown;
        }
        let bucket = self.0.follow(offset!(bind_bucket));
        if bucket.load::<i8>(offset!(bucket_reuse)) == CHOSEN_BY_CONNECT { Origin::Connect } else { Origin::Unknown }
    }

    /// Any socket of the internet protocols, for the fields that all of them have.
    #[inline(always)]
    pub fn unchecked(sock: KernelPointer) -> Self {
        Self(sock)
    }
}

impl TcpSocket<Probing> {
    /// Wraps what is known from elsewhere to be a full TCP socket.
    #[inline(always)]
    pub fn assumed(sock: Pointer<Probing>) -> Self {
        Self(sock)
    }
}

impl<A: Access> TcpSocket<A> {
    /// Returns its address: an identity for as long as the socket lives, which another socket may have later.
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0.address()
    }

    /// The flow that this socket belongs to, as the end of this role.
    #[inline(always)]
    pub fn flow(self, role: Role) -> FlowKey {
        let port = match role {
            Role::Client => self.remote_port(),
            Role::Server => self.local_port(),
        };
        FlowKey::new(self.cgroup_id(), self.netns(), role, port, self.local(), self.remote())
    }

    /// The flow that this client's socket belongs to, with this original destination.
    #[inline(always)]
    pub fn flow_to(self, destination: &End) -> FlowKey {
        let End { address, port, .. } = *destination;
        FlowKey::new(self.cgroup_id(), self.netns(), Role::Client, port, self.local(), address)
    }

    #[inline(always)]
    pub fn remote_end(self) -> End {
        End::of(self.remote(), self.remote_port())
    }

    #[inline(always)]
    pub fn local_port(self) -> u16 {
        self.0.load(offset!(sock_num))
    }

    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        u16::from_be(self.0.load(offset!(sock_dport)))
    }

    #[inline(always)]
    pub fn local(self) -> [u8; 16] {
        if self.is_inet6() {
            self.address_at(offset!(sock_v6_rcv_saddr))
        } else {
            mapped(self.0.load(offset!(sock_rcv_saddr)))
        }
    }

    #[inline(always)]
    pub fn remote(self) -> [u8; 16] {
        if self.is_inet6() { self.address_at(offset!(sock_v6_daddr)) } else { mapped(self.0.load(offset!(sock_daddr))) }
    }

    /// Reads an address by words: by bytes, it would take 16 loads, each with a check of its own.
    #[inline(always)]
    fn address_at(self, offset: usize) -> [u8; 16] {
        bytes([self.0.load(offset), self.0.load(offset + size_of::<u64>())])
    }

    #[inline(always)]
    fn is_inet6(self) -> bool {
        const AF_INET6: u16 = 10;
        self.0.load::<u16>(offset!(sock_family)) == AF_INET6
    }

    #[inline(always)]
    pub fn netns(self) -> u32 {
        self.0.follow(offset!(sock_net)).load(offset!(net_inum))
    }

    /// The `struct cgroup` in which the socket was made.
    #[inline(always)]
    pub fn cgroup(self) -> Pointer<A> {
        self.0.follow(offset!(sock_cgroup))
    }

    #[inline(always)]
    pub fn cgroup_id(self) -> u64 {
        self.cgroup().follow(offset!(cgroup_kn)).load(offset!(kernfs_id))
    }

    /// Returns the socket's cookie; 0 if it was never requested.
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        self.0.load(offset!(sock_cookie))
    }

    /// Returns whether it has a backlog: a listener's, which the sockets that come from it inherit.
    #[inline(always)]
    pub fn has_room_for_waiting(self) -> bool {
        self.0.load::<u32>(offset!(sock_backlog)) != 0
    }

    #[inline(always)]
    pub fn protocol(self) -> u16 {
        self.0.load(offset!(sock_protocol))
    }

    #[inline(always)]
    pub fn state(self) -> u8 {
        self.0.load(offset!(sock_state))
    }

    #[inline(always)]
    pub fn callbacks(self) -> u8 {
        self.0.load(offset!(tcp_callback_flags))
    }

    /// Returns whether it is in a map of sockets. The kernel then keeps a `struct sk_psock` in `sk_user_data`, with the flag
    /// `SK_USER_DATA_NOCOPY` and without `SK_USER_DATA_BPF`.
    #[inline(always)]
    pub fn is_in_sockmap(self) -> bool {
        const NOCOPY: u64 = 1;
        const BPF: u64 = 2;
        let at = offset!(sock_user_data);
        at != 0 && self.0.load::<u64>(at) & (NOCOPY | BPF) == NOCOPY
    }

    /// Payload sent once, however often it had to be sent again.
    #[inline(always)]
    pub fn sent(self) -> u64 {
        let all: u64 = self.0.load(offset!(tcp_bytes_sent));
        all.wrapping_sub(self.0.load(offset!(tcp_bytes_retrans)))
    }

    /// Segments sent again; 0 where this kernel does not tell.
    #[inline(always)]
    pub fn retransmits(self) -> u32 {
        if offset!(tcp_total_retrans) == 0 { 0 } else { self.0.load(offset!(tcp_total_retrans)) }
    }

    /// The smoothed round-trip time in microseconds; 0 where none was measured, or this kernel does not tell.
    #[inline(always)]
    pub fn srtt(self) -> u32 {
        const SCALE_BITS: u32 = 3;
        if offset!(tcp_srtt_us) == 0 { 0 } else { self.0.load::<u32>(offset!(tcp_srtt_us)) >> SCALE_BITS }
    }

    /// Payload received. The kernel counts a received FIN, which takes a sequence number, as a byte: `tcp_fin` is the
    /// only place that sets `SOCK_DONE`, just after that byte was counted.
    #[inline(always)]
    pub fn received(self) -> u64 {
        let all: u64 = self.0.load(offset!(tcp_bytes_received));
        let flags: u64 = self.0.load(offset!(sock_flags));
        all.wrapping_sub(flags >> (offset!(done_bit) & 63) & 1)
    }
}

/// An IPv4 address in network order as an IPv4-mapped one.
#[inline(always)]
pub fn mapped(address: u32) -> [u8; 16] {
    const MARK: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    const SHIFT: u32 = if cfg!(target_endian = "little") { 32 } else { 0 };
    bytes([0, MARK | u64::from(address) << SHIFT])
}

/// An address from words as they lie in memory.
#[inline(always)]
pub fn bytes(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: two words are sixteen bytes.
    unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(words) }
}

/// An address in network order from its words.
#[inline(always)]
pub fn joined(words: [u64; 4]) -> [u8; 16] {
    let words = words.map(|word| word as u32);
    // SAFETY: four words are sixteen bytes.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) }
}
