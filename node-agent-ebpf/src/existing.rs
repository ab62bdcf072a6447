//! Which open sockets have been counted when the agent looks at them for the first time.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap},
};
use node_agent_common::{FlowKey, Loss};

use crate::flows::lose;

/// 1 while the agent looks for the first time.
#[map(name = "LOOKING")]
static LOOKING: Array<u32> = Array::with_max_entries(1, 0);
/// Cookies of sockets that are accounted for: their opening was counted during the first look, or the agent has listed
/// them as older.
#[map(name = "RECENT")]
static RECENT: HashMap<u64, u32> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);
/// Cookies of connections that are older than any agent, hence without callbacks, and their flows. Written by the
/// agent. Who removes an entry counts the connection's end, so that it is counted once.
#[map(name = "SEEDS")]
static SEEDS: HashMap<u64, FlowKey> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[inline(always)]
pub fn is_first_look() -> bool {
    // SAFETY: an array's value.
    LOOKING.get_ptr(0).is_some_and(|looking| unsafe { core::ptr::read_volatile(looking) } != 0)
}

/// Notes that this socket's opening has been counted.
#[inline(always)]
pub fn note_counted(cookie: u64) {
    if RECENT.insert(cookie, 1, 0).is_err() {
        lose(Loss::Recent);
    }
}

/// Whether this socket, which ends now, has been noted.
#[inline(always)]
pub fn was_counted(cookie: u64) -> bool {
    RECENT.remove(cookie).is_ok()
}

/// The flow of an old connection, for the one who counts its end.
#[inline(always)]
pub fn take_seed(cookie: u64) -> Option<FlowKey> {
    // SAFETY: seeds are written once; a copy of one that is removed meanwhile is not used.
    let key = SEEDS.get_ptr(cookie).map(|key| unsafe { *key })?;
    SEEDS.remove(cookie).is_ok().then_some(key)
}
