//! Original destinations of datagrams from unconnected sockets, before NAT. Packets show only the translated address.
//!
//! The kernel calls these programs when a task sends UDP with an address, just before the packet passes `datagrams`. They
//! run after those of a load balancer at the sockets, whose own original destinations are in [`balanced_sockets`].

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::bpf_get_socket_cookie,
    macros::{cgroup_sock_addr, map},
    maps::LruHashMap,
    programs::SockAddrContext,
};
use node_agent_common::Loss;

use crate::{
    balanced_sockets,
    destination::{End, destination_v4, destination_v6, socket_of},
    flows::lose,
    stored_conversations::{self, Stored},
};

/// Last original destination of each socket, by its cookie. For a socket with a stored conversation, the storage says
/// whether it was that conversation's remote.
#[map(name = "ORIGINAL_DESTS")]
static ORIGINAL_DESTS: LruHashMap<u64, End> = LruHashMap::with_max_entries(4096, 0);

const PASS: i32 = 1;

#[cgroup_sock_addr(sendmsg4)]
pub fn original_dest_v4(context: SockAddrContext) -> i32 {
    see(context.sock_addr, &destination_v4(context.sock_addr));
    PASS
}

#[cgroup_sock_addr(sendmsg6)]
pub fn original_dest_v6(context: SockAddrContext) -> i32 {
    see(context.sock_addr, &destination_v6(context.sock_addr));
    PASS
}

#[inline(always)]
fn see(call: *mut bpf_sock_addr, end: &End) {
    // SAFETY: the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(call.cast()) };
    let Some(socket) = socket_of(call) else { return note(cookie, end) };
    balanced_sockets::record_sent(socket, cookie, end);
    let stored = stored_conversations::of(socket);
    if let Some(stored) = stored
        && stored.remote() == end
    {
        return stored.set_destination(true);
    }
    note(cookie, end);
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
