//! Handover from one of two attached copies of the `sock_ops` program to the other: see [`node_agent_common::handover`].
//!
//! Each event counts once, although for a while both copies see it. A copy that does not count still sets callback flags: the
//! copy that the kernel calls last restores them for sockets from which another program took them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap},
};
use node_agent_common::handover::{CHECKS, NOTES, ROOM, TWIN};

#[map(name = "HANDOVER")]
static HANDOVER: Array<u32> = Array::with_max_entries(1, 0);
/// Events that the counting copy has counted, until the other one has seen them: a socket's cookie and the event.
#[map(name = "HANDED_OVER")]
static HANDED_OVER: HashMap<[u64; 2], u32> = HashMap::with_max_entries(ROOM, BPF_F_NO_PREALLOC);

/// Returns whether this copy counts an event. `identity` returns what identifies it.
#[inline(always)]
pub fn counts(is_twin: bool, identity: impl FnOnce() -> [u64; 2]) -> bool {
    // SAFETY: an array's value.
    let phase = HANDOVER.get_ptr(0).map_or(0, |phase| unsafe { core::ptr::read_volatile(phase) });
    let is_counting = (phase & TWIN != 0) == is_twin;
    if phase & (NOTES | CHECKS) == 0 {
        return is_counting;
    }
    if is_counting {
        let _ = HANDED_OVER.insert(identity(), 1, 0);
        return true;
    }
    let was_counted = HANDED_OVER.remove(identity()).is_ok();
    phase & CHECKS != 0 && !was_counted
}
