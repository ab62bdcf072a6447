//! Original destinations of datagrams from unconnected sockets. Packets show only the translated address.
//!
//! The kernel calls these programs when a task sends UDP with an address, just before the packet passes `datagrams`.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_sock_addr, map},
    maps::LruHashMap,
    programs::SockAddrContext,
};
use node_agent_common::Loss;

use crate::{
    flows::lose,
    memory::load,
    socket::mapped,
    stored_conversations::{self, Stored},
};

/// An address, IPv4 ones as IPv4-mapped, and a port.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct End {
    pub address: [u8; 16],
    pub port: u16,
    reserved: [u16; 3],
}

impl End {
    #[inline(always)]
    pub fn of(address: [u8; 16], port: u16) -> Self {
        Self { address, port, reserved: [0; 3] }
    }

    #[inline(always)]
    pub fn words(&self) -> [u64; 3] {
        // SAFETY: three words, without padding.
        unsafe { core::mem::transmute::<Self, [u64; 3]>(*self) }
    }
}

impl PartialEq for End {
    /// Compares words: by fields, the addresses would be compared byte by byte.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.words(), other.words());
        ours[1] == theirs[1] && ours[2] == theirs[2] && ours[0] == theirs[0]
    }
}

/// Last original destination of each socket, by its cookie. For a socket with a stored conversation, the storage says
/// whether it was that conversation's remote.
#[map(name = "ORIGINAL_DESTS")]
static ORIGINAL_DESTS: LruHashMap<u64, End> = LruHashMap::with_max_entries(4096, 0);

const PASS: i32 = 1;

#[cgroup_sock_addr(sendmsg4)]
pub fn original_dest_v4(context: SockAddrContext) -> i32 {
    let call = context.sock_addr;
    see(call, mapped(load!("u32", call, bpf_sock_addr, user_ip4) as u32));
    PASS
}

#[cgroup_sock_addr(sendmsg6)]
pub fn original_dest_v6(context: SockAddrContext) -> i32 {
    let call = context.sock_addr;
    let words = [
        load!("u32", call, bpf_sock_addr, user_ip6),
        load!("u32", call, bpf_sock_addr, user_ip6, 4),
        load!("u32", call, bpf_sock_addr, user_ip6, 8),
        load!("u32", call, bpf_sock_addr, user_ip6, 12),
    ];
    see(call, crate::socket::joined(words));
    PASS
}

#[inline(always)]
fn see(call: *mut bpf_sock_addr, address: [u8; 16]) {
    let end = End::of(address, u16::from_be(load!("u32", call, bpf_sock_addr, user_port) as u16));
    // SAFETY: the context's own field, a pointer in a union that makes it 64 bits wide everywhere. Volatile: see
    // `datagrams`.
    let socket = unsafe { core::ptr::read_volatile((&raw const (*call).__bindgen_anon_1).cast::<u64>()) };
    let stored = if socket == 0 { None } else { stored_conversations::of(socket as *mut bpf_sock) };
    if let Some(stored) = stored
        && *stored.remote() == end
    {
        return stored.set_destination(true);
    }
    // SAFETY: the program's own context.
    note(unsafe { bpf_get_socket_cookie(call.cast()) }, &end);
    if let Some(stored) = stored {
        stored.set_destination(false);
    }
}

/// Notes the original destination of a socket.
#[inline(always)]
pub fn note(cookie: u64, end: &End) {
    // Where there is no memory, the address is the packet's.
    if ORIGINAL_DESTS.insert(cookie, end, 0).is_err() {
        lose(Loss::OriginalDestination);
    }
}

/// Returns the destination of the last datagram that the socket sent with an address.
#[inline(always)]
pub fn of(cookie: u64, stored: Option<Stored>) -> Option<End> {
    if let Some(stored) = stored
        && stored.is_destination()
    {
        return Some(*stored.remote());
    }
    // By words: a structure would be read byte by byte.
    // SAFETY: a value of the map, which stays readable while the program runs; it consists of three words.
    ORIGINAL_DESTS
        .get_ptr(cookie)
        .map(|end| unsafe { core::mem::transmute::<[u64; 3], End>(core::ptr::read_volatile(end.cast::<[u64; 3]>())) })
}
