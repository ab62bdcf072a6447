//! Tracked sockets: an entry per socket where callbacks are unavailable.
//!
//! A program adds an entry when a socket begins to connect or is established. The one that removes it counts the socket's
//! end. A missed end leaves an entry behind; a program finds it when the memory is used again, or the agent does.

use aya_ebpf::{macros::map, maps::HashMap};
use node_agent_common::{Origin, Role, TrackedSocket, callback};

use crate::socket::TcpSocket;

/// By the kernel's address. The agent sets the size: 1 where nothing is tracked. Allocated beforehand: quicker, and
/// safe in any context that the tracepoint interrupts.
#[map(name = "TRACKED_SOCKETS")]
static TRACKED_SOCKETS: HashMap<u64, TrackedSocket> = HashMap::with_max_entries(65_536, 0);

/// A socket's address as a key, in a place of its own: where a helper has been shown the pointer itself, older verifiers
/// take it for a number afterwards.
#[inline(always)]
fn key(address: u64) -> u64 {
    let mut key = core::mem::MaybeUninit::<u64>::uninit();
    // SAFETY: written right here, before it is read.
    unsafe {
        core::ptr::write_volatile(key.as_mut_ptr(), address);
        core::ptr::read_volatile(key.as_ptr())
    }
}

#[inline(always)]
pub fn get(address: u64) -> Option<TrackedSocket> {
    // SAFETY: a map's value. Entries are changed as a whole, by the CPU on which the socket changes its state.
    TRACKED_SOCKETS.get_ptr(key(address)).map(|entry| unsafe { *entry })
}

/// Stores an entry. Returns false if there was no room.
#[inline(always)]
pub fn set(address: u64, entry: &TrackedSocket) -> bool {
    TRACKED_SOCKETS.insert(key(address), entry, 0).is_ok()
}

/// Removes an entry. Returns false if there was none.
#[inline(always)]
pub fn remove(address: u64) -> bool {
    TRACKED_SOCKETS.remove(key(address)).is_ok()
}

/// The callbacks and the origin of a socket, as if it had callbacks: of a tracked one, by what was seen of it; of
/// another, what an earlier agent and the kernel know.
#[inline(always)]
pub fn as_callbacks(socket: TcpSocket) -> (u8, Origin) {
    let origin = socket.origin();
    match get(socket.address()) {
        Some(entry) if entry.established == 1 => {
            let role = entry.flow.role().unwrap_or(Role::Server);
            (callback::of(role), Origin::of_role(role))
        }
        // It called, and what came of that was missed.
        Some(_) if origin == Origin::Unknown => (0, Origin::Connect),
        _ => (0, Role::shown(socket.callbacks(), origin).map_or(origin, Origin::of_role)),
    }
}
