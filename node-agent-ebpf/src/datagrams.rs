//! Counts UDP datagrams. Runs for each packet that a socket of the node's cgroups sends or receives.
//!
//! For a TCP packet it reads one byte. It sees whole datagrams: before fragmentation, after reassembly. If the network
//! namespace applies NAT (the node's own does so for addresses of Services), sent datagrams are already translated. The
//! original destination is that of the connected socket, or the one that [`original_destinations`] noted.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    cty::c_void,
    helpers::generated::{
        bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use node_agent_common::{FlowKey, Loss, Role, direction::FirstDatagram};

use crate::{
    answers, balanced_sockets,
    conversations::{self, Beginning, Conversation, Name},
    destination::End,
    flows::{Event, SlotHandle, count, lose},
    memory::{Pointer, Probing, load},
    offsets::offset,
    original_destinations, roles,
    socket::{bytes, joined, mapped},
    stored_conversations::{self, Stored},
};

const UDP: u8 = 17;
const UDP_HEADER: u32 = 8;
/// Bytes of the ports, with which it begins.
const PORTS: usize = 4;
/// Of `socket(2)`.
const SOCK_DGRAM: u32 = 2;
/// Values of `if_packet.h` for unicast packets; the others are for broadcast and multicast.
const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

/// Every packet may pass.
const PASS: i32 = 1;

#[cgroup_skb(egress)]
pub fn datagrams_out(context: SkBuffContext) -> i32 {
    let _ = see(Packet(context.skb.skb), Direction::Out);
    PASS
}

#[cgroup_skb(ingress)]
pub fn datagrams_in(context: SkBuffContext) -> i32 {
    let _ = see(Packet(context.skb.skb), Direction::In);
    PASS
}

#[inline(always)]
fn see(packet: Packet, direction: Direction) -> Option<()> {
    let header = packet.header()?;
    let socket = packet.socket()?;
    let [source_port, destination_port] = packet.ports(&header)?;
    let (local, remote) = match direction {
        Direction::Out => (End::of(header.source, source_port), End::of(header.destination, destination_port)),
        Direction::In => (End::of(header.destination, destination_port), End::of(header.source, source_port)),
    };
    let datagram = Datagram { packet, direction, header, local, remote };
    let stored = stored_conversations::of(socket.0.cast_mut());
    if let Some(stored) = stored
        && datagram.is_of(stored, socket)
        && stored.count_datagram(datagram.sent(), datagram.received())
    {
        if datagram.is_from_name_server() && stored.is_client() {
            datagram.pass_answer();
        }
        return Some(());
    }
    see_other(datagram, socket, stored)
}

/// Counts a datagram of a conversation that is not stored with its socket.
#[inline(always)]
fn see_other(datagram: Datagram, socket: Socket, stored: Option<Stored>) -> Option<()> {
    let Datagram { packet, direction, header, mut local, mut remote } = datagram;
    if stored.is_none() && !socket.is_of_datagrams() {
        return None;
    }
    let cookie = packet.cookie();
    if direction == Direction::Out
        && let Some(original) = socket.connected_to(header.family).or_else(|| original_destinations::of(cookie, stored))
        && original != remote
        && packet.is_tracked()
    {
        // NAT has replaced the original destination, and maybe the socket's own address.
        remote = original;
        local.address = socket.bound_to(header.family).unwrap_or(local.address);
    }
    if datagram.is_to_several() || !local.is_one() || !remote.is_one() {
        return None;
    }
    let name = Name { cookie, remote: remote.address, remote_port: remote.port, reserved: [0; 3] };
    let is_stored = stored.is_some_and(|stored| *stored.remote() == remote);
    if let Some(stored) = stored
        && is_stored
    {
        stored_conversations::settle(stored, socket.0.cast_mut(), &name);
    }
    let (sent, received) = (datagram.sent(), datagram.received());
    let before = match conversations::go_on(&name) {
        Err(before) => before.or_else(|| stored.filter(|_| is_stored).map(Stored::role)),
        Ok(conversation) => {
            let flow = conversation.flow();
            if !conversation.slot().count_datagram(sent, received) {
                count_datagram(flow, sent, received);
            }
            let is_to_be_stored = match stored {
                None => conversation.is_busy(),
                Some(stored) => !is_stored && stored.is_displaced_by(&remote),
            };
            if is_to_be_stored {
                stored_conversations::store(conversation, socket.0.cast_mut(), &name, stored);
            }
            // Who has asked has a conversation that goes on.
            if datagram.is_from_name_server() && matches!(flow.role(), Some(Role::Client)) {
                datagram.pass_answer();
            }
            return Some(());
        }
    };
    let judged = before.unwrap_or_else(|| {
        let first = FirstDatagram {
            is_sent: direction == Direction::Out,
            is_connected: socket.is_connected(),
            local_port: local.port,
            remote_port: remote.port,
        };
        roles::judge(packet.0, cookie, first)
    });
    let port = match judged.role {
        Role::Client => {
            let is_connected = socket.connected_to(header.family) == Some(remote);
            remote = balanced_sockets::destination_of_conversation(socket.0.cast_mut(), &name, is_connected)
                .unwrap_or(remote);
            remote.port
        }
        Role::Server => local.port,
    };
    let netns = netns(socket.0);
    let flow = FlowKey::new(packet.cgroup(), netns, judged.role, port, local.address, remote.address).over_udp();
    let mut conversation = Conversation::of(flow, judged.is_guess || conversations::may_be_evicted());
    provide_slot(&mut conversation);
    match conversations::begin(&name, &conversation) {
        Beginning::First { inferred } => count_conversation(&conversation.flow, sent, received, inferred),
        Beginning::Known => count_datagram(&conversation.flow, sent, received),
        Beginning::Nowhere => lose(Loss::Opened),
    }
    Some(())
}

/// A datagram with the addresses that the packet shows.
#[derive(Clone, Copy)]
struct Datagram {
    packet: Packet,
    direction: Direction,
    header: Header,
    local: End,
    remote: End,
}

impl Datagram {
    /// Returns whether this is a datagram of a socket's stored conversation; false where the long way has to decide.
    #[inline(always)]
    fn is_of(&self, stored: Stored, socket: Socket) -> bool {
        let remote = stored.remote();
        if !self.local.is_one() {
            return false;
        }
        match self.direction {
            Direction::In => self.remote == *remote && !self.is_to_several(),
            Direction::Out => {
                let is_destination = match socket.connected_to(self.header.family) {
                    Some(original) => original == *remote,
                    None => stored.is_destination(),
                };
                // NAT has replaced the destination where the packet shows another one.
                is_destination && (self.remote == *remote || self.packet.is_tracked())
            }
        }
    }

    /// Returns whether it may have come to other hosts as well.
    #[inline(always)]
    fn is_to_several(&self) -> bool {
        self.direction == Direction::In && !matches!(self.packet.kind(), PACKET_HOST | PACKET_OTHERHOST)
    }

    #[inline(always)]
    fn is_from_name_server(&self) -> bool {
        self.direction == Direction::In && self.remote.port == answers::DOMAIN
    }

    /// Passes the DNS response that it may be to the agent.
    #[inline(always)]
    fn pass_answer(&self) {
        answers::pass_on(self.packet.0, self.header.length + UDP_HEADER, self.payload(), self.packet.cgroup());
    }

    #[inline(always)]
    fn payload(&self) -> u64 {
        u64::from(self.packet.length().saturating_sub(self.header.length + UDP_HEADER))
    }

    #[inline(always)]
    fn sent(&self) -> u64 {
        if self.direction == Direction::Out { self.payload() } else { 0 }
    }

    #[inline(always)]
    fn received(&self) -> u64 {
        if self.direction == Direction::In { self.payload() } else { 0 }
    }
}

/// A function of its own, so that the stack suffices.
#[inline(never)]
fn count_datagram(flow: &FlowKey, sent: u64, received: u64) {
    count(flow, Event::Datagram { sent, received });
}

/// As [`count_datagram`].
#[inline(never)]
fn provide_slot(conversation: &mut Conversation) {
    let slot = SlotHandle::provide(&mut conversation.flow);
    conversation.set_slot(slot);
}

/// As [`count_datagram`].
#[inline(never)]
fn count_conversation(flow: &FlowKey, sent: u64, received: u64, inferred: bool) {
    count(flow, Event::Conversation { sent, received, inferred });
}

impl End {
    /// Returns whether exactly one host can answer there.
    #[inline(always)]
    fn is_one(&self) -> bool {
        self.port != 0 && is_one(&self.address)
    }
}

/// Returns whether this is the address of exactly one host. Compares two words: the verifier has no loop to follow.
#[inline(always)]
fn is_one(address: &[u8; 16]) -> bool {
    let word = u128::from_be_bytes(*address);
    let v4 = word as u32;
    if word >> 32 == 0xffff {
        // 0.0.0.0, 224.0.0.0/4, 255.255.255.255 (RFC 6890).
        v4 != 0 && v4 >> 28 != 14 && v4 != u32::MAX
    } else {
        // ::, ff00::/8 (RFC 4291).
        word != 0 && word >> 120 != 0xff
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Of the internet protocol, and the UDP header's beginning.
#[derive(Clone, Copy)]
struct Header {
    family: Family,
    /// In bytes.
    length: u32,
    source: [u8; 16],
    destination: [u8; 16],
    /// Source and destination in network order, if they could be read with the header: both in one word, as they lie in
    /// memory.
    ports: Option<u32>,
}

/// An IPv4 header without options (RFC 791).
#[repr(C, packed)]
struct V4Header {
    first: [u8; 9],
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// An IPv6 header (RFC 8200).
#[repr(C, packed)]
struct V6Header {
    first: [u8; 6],
    next: u8,
    hops: u8,
    source: [u64; 2],
    destination: [u64; 2],
}

/// The packet of one call.
#[derive(Clone, Copy)]
struct Packet(*mut __sk_buff);

impl Packet {
    /// # Safety
    /// `field` has to belong to this call's context.
    #[inline(always)]
    unsafe fn read<T: Copy>(field: *const T) -> T {
        // SAFETY: the caller's promise. Volatile, for the kernel rewrites each access on its own: none may be merged.
        unsafe { core::ptr::read_volatile(field) }
    }

    #[inline(always)]
    fn length(self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { Self::read(&raw const (*self.0).len) }
    }

    #[inline(always)]
    fn kind(self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { Self::read(&raw const (*self.0).pkt_type) }
    }

    /// Returns the UDP header, if it is one. Does not parse extension headers of IPv6.
    #[inline(always)]
    fn header(self) -> Option<Header> {
        // SAFETY: the context's own fields: where the packet begins, with its internet header, and ends.
        let (data, end) = unsafe {
            (Self::read(&raw const (*self.0).data) as usize, Self::read(&raw const (*self.0).data_end) as usize)
        };
        if data + size_of::<V4Header>() > end {
            return None;
        }
        // SAFETY: these bytes have just been compared with the packet's end, as the verifier demands.
        let (first, protocol) =
            unsafe { (*(data as *const u8), *((data + offset_of!(V4Header, protocol)) as *const u8)) };
        match first >> 4 {
            4 if protocol == UDP => Some(Header {
                family: Family::V4,
                length: u32::from(first & 15) * 4,
                source: mapped(load!("u32", data, V4Header, source) as u32),
                destination: mapped(load!("u32", data, V4Header, destination) as u32),
                // Without options.
                ports: (first & 15 == 5 && data + size_of::<V4Header>() + PORTS <= end)
                    .then(|| load!("u32", data, V4Header, destination, 4) as u32),
            }),
            // SAFETY: as above.
            6 if data + size_of::<V6Header>() <= end
                && unsafe { *((data + offset_of!(V6Header, next)) as *const u8) } == UDP =>
            {
                Some(Header {
                    family: Family::V6,
                    length: size_of::<V6Header>() as u32,
                    source: bytes([load!("u64", data, V6Header, source), load!("u64", data, V6Header, source, 8)]),
                    destination: bytes([
                        load!("u64", data, V6Header, destination),
                        load!("u64", data, V6Header, destination, 8),
                    ]),
                    ports: (data + size_of::<V6Header>() + PORTS <= end)
                        .then(|| load!("u32", data, V6Header, destination, 16) as u32),
                })
            }
            _ => None,
        }
    }

    /// Source and destination.
    #[inline(always)]
    fn ports(self, header: &Header) -> Option<[u16; 2]> {
        let ports = if let Some(ports) = header.ports {
            ports
        } else {
            let mut ports = 0_u32;
            // SAFETY: memory of that size.
            let read = unsafe { bpf_skb_load_bytes(self.0.cast(), header.length, (&raw mut ports).cast(), 4) };
            if read != 0 {
                return None;
            }
            ports
        };
        let swapped = u32::from_be(ports);
        Some([(swapped >> 16) as u16, swapped as u16])
    }

    /// The socket that sent it or that it has come to. It may be a raw one that sees everything.
    #[inline(always)]
    fn socket(self) -> Option<Socket> {
        // SAFETY: the context's own field, a pointer in a union that makes it 64 bits wide everywhere.
        let socket = unsafe { Self::read((&raw const (*self.0).__bindgen_anon_2).cast::<u64>()) };
        if socket == 0 { None } else { Some(Socket(socket as *const bpf_sock)) }
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the program's own context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// The id of the cgroup in which the socket was made.
    #[inline(always)]
    fn cgroup(self) -> u64 {
        // SAFETY: the program's own context.
        unsafe { bpf_skb_cgroup_id(self.0) }
    }

    /// Returns whether conntrack, and thus any NAT, knows it.
    #[inline(always)]
    fn is_tracked(self) -> bool {
        is_tracked(self.0)
    }
}

/// A socket, as far as all have the same fields.
#[derive(Clone, Copy)]
struct Socket(*const bpf_sock);

impl Socket {
    /// Returns whether it is a full socket of UDP: no raw one that sees everything.
    #[inline(always)]
    fn is_of_datagrams(self) -> bool {
        // SAFETY: a socket that is not null.
        let full = unsafe { bpf_sk_fullsock(self.0.cast_mut()) };
        !full.is_null()
            && load!("u32", full, bpf_sock, type_) as u32 == SOCK_DGRAM
            && load!("u32", full, bpf_sock, protocol) as u32 == u32::from(UDP)
    }

    #[inline(always)]
    fn is_connected(self) -> bool {
        load!("u16", self.0, bpf_sock, dst_port) != 0
    }

    #[inline(always)]
    fn connected_to(self, family: Family) -> Option<End> {
        let port = load!("u16", self.0, bpf_sock, dst_port) as u16;
        if port == 0 {
            return None;
        }
        let address = match family {
            Family::V4 => mapped(load!("u32", self.0, bpf_sock, dst_ip4) as u32),
            Family::V6 => joined([
                load!("u32", self.0, bpf_sock, dst_ip6),
                load!("u32", self.0, bpf_sock, dst_ip6, 4),
                load!("u32", self.0, bpf_sock, dst_ip6, 8),
                load!("u32", self.0, bpf_sock, dst_ip6, 12),
            ]),
        };
        Some(End::of(address, u16::from_be(port)))
    }

    /// `None` for any address.
    #[inline(always)]
    fn bound_to(self, family: Family) -> Option<[u8; 16]> {
        let address = match family {
            Family::V4 => mapped(load!("u32", self.0, bpf_sock, src_ip4) as u32),
            Family::V6 => joined([
                load!("u32", self.0, bpf_sock, src_ip6),
                load!("u32", self.0, bpf_sock, src_ip6, 4),
                load!("u32", self.0, bpf_sock, src_ip6, 8),
                load!("u32", self.0, bpf_sock, src_ip6, 12),
            ]),
        };
        is_one(&address).then_some(address)
    }
}

/// The inode number of a socket's network namespace; 0 where the kernel does not let it be read. A function of its own, so
/// that the stack suffices.
#[inline(never)]
fn netns(socket: *const bpf_sock) -> u32 {
    let net = beginning_of::<8>(socket.cast(), offset!(sock_net));
    Pointer::<Probing>::new(net).map_or(0, |net| net.load(offset!(net_inum)))
}

/// See [`Packet::is_tracked`]. As [`netns`].
#[inline(never)]
fn is_tracked(packet: *const __sk_buff) -> bool {
    // The lowest three bits are what connection tracking thinks of the packet, not of what.
    beginning_of::<16>(packet.cast(), offset!(skb_nfct)) > 7
}

/// Returns the word at an offset within the first `WORDS` words of a kernel structure; 0 if it cannot be read. Copies
/// all of them first, since the verifier allows no address within the structure.
#[inline(always)]
pub fn beginning_of<const WORDS: usize>(structure: *const c_void, offset: usize) -> u64 {
    if offset == 0 || offset % 8 != 0 || offset / 8 >= WORDS {
        return 0;
    }
    let mut words = [0_u64; WORDS];
    // SAFETY: memory of that size; the helper checks the kernel's address.
    let read = unsafe { bpf_probe_read_kernel((&raw mut words).cast(), size_of_val(&words) as u32, structure) };
    if read != 0 {
        return 0;
    }
    // SAFETY: within the array, by the comparison above. Volatile, for the offset is a constant to the verifier only.
    unsafe { core::ptr::read_volatile((&raw const words).cast::<u64>().add(offset / 8)) }
}
