//! Original destinations of datagrams from unconnected sockets. Packets show only the translated address.
//!
//! The kernel calls these programs when a task sends UDP with an address, just before the packet passes `datagrams`.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_sock_addr, map},
    maps::LruHashMap,
    programs::SockAddrContext,
};
use node_agent_common::Loss;

use crate::{flows::lose, memory::load, socket::mapped};

/// An address, IPv4 ones as IPv4-mapped, and a port.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
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
}

/// Last original destination of each socket, by its cookie.
#[map(name = "ORIGINAL_DESTS")]
static ORIGINAL_DESTS: LruHashMap<u64, End> = LruHashMap::with_max_entries(4096, 0);

const PASS: i32 = 1;

#[cgroup_sock_addr(sendmsg4)]
pub fn original_dest_v4(context: SockAddrContext) -> i32 {
    let call = context.sock_addr;
    note(call, mapped(load!("u32", call, bpf_sock_addr, user_ip4) as u32));
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
    note(call, crate::socket::joined(words));
    PASS
}

#[inline(always)]
fn note(call: *mut bpf_sock_addr, address: [u8; 16]) {
    let port = u16::from_be(load!("u32", call, bpf_sock_addr, user_port) as u16);
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(call.cast()) };
    // Where there is no memory, the address is the packet's.
    if ORIGINAL_DESTS.insert(cookie, End::of(address, port), 0).is_err() {
        lose(Loss::OriginalDestination);
    }
}

/// Returns the destination of the last datagram that the socket sent with an address.
#[inline(always)]
pub fn of(cookie: u64) -> Option<End> {
    // By words: a structure would be read byte by byte.
    // SAFETY: a value of the map, which stays readable while the program runs; it consists of three words.
    ORIGINAL_DESTS
        .get_ptr(cookie)
        .map(|end| unsafe { core::mem::transmute::<[u64; 3], End>(core::ptr::read_volatile(end.cast::<[u64; 3]>())) })
}
