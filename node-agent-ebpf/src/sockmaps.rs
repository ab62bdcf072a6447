//! Sockets in maps of sockets (sockmap), of which other owners' programs redirect the payload. TCP does not count it.
//!
//! A socket leaves its maps before it closes. So it is marked when it is seen in one: when it is established (programs of other
//! owners that add it there are called before), when the peer has closed, and in listings.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap},
};
use node_agent_common::sockmap;

use crate::{memory::Access, socket::TcpSocket};

/// Cookies of marked sockets. Their end removes them.
#[map(name = "IN_SOCKMAP")]
static IN_SOCKMAP: HashMap<u64, u32> = HashMap::with_max_entries(sockmap::MARKS, BPF_F_NO_PREALLOC);
/// Facts by which nodes without such maps look nothing up: see [`sockmap`].
#[map(name = "SOCKMAPS")]
static SOCKMAPS: Array<u32> = Array::with_max_entries(sockmap::FACTS, 0);

/// Marks a socket if it is in a map. `cookie` returns its cookie.
#[inline(always)]
pub fn look<A: Access>(socket: TcpSocket<A>, cookie: impl FnOnce() -> u64) {
    if !socket.is_in_sockmap() {
        return;
    }
    let _ = IN_SOCKMAP.insert(cookie(), 1, 0);
    if let Some(has) = SOCKMAPS.get_ptr_mut(sockmap::HAS_MARKS) {
        // SAFETY: an array's value.
        unsafe { core::ptr::write_volatile(has, 1) }
    }
}

/// Returns whether the payload of a socket that ends now may have gone past TCP, of which TCP has counted `payload` bytes.
#[inline(always)]
pub fn end<A: Access>(socket: TcpSocket<A>, payload: u64) -> bool {
    // SAFETY: an array's value.
    let has = |fact| SOCKMAPS.get_ptr(fact).is_some_and(|has| unsafe { core::ptr::read_volatile(has) } != 0);
    let was_marked = has(sockmap::HAS_MARKS) && IN_SOCKMAP.remove(socket.cookie()).is_ok();
    was_marked || socket.is_in_sockmap() || payload == 0 && has(sockmap::HAS_PROGRAMS)
}
