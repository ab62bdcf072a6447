//! Preexisting connections: notes of the first listing, and flows of connections without callbacks.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap},
};
use node_agent_common::{FlowKey, Loss, listing_phase};

use crate::{flows::lose, pending_attempts};

/// See [`listing_phase`].
#[map(name = "LISTING_PHASE")]
static LISTING_PHASE: Array<u32> = Array::with_max_entries(1, 0);
/// Cookies of sockets whose opening or end was counted during the first listing. The agent sets the size.
#[map(name = "RECENT")]
static RECENT: HashMap<u64, u32> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
/// Cookies of connections that are older than any agent, hence without callbacks, and their flows. Written by the
/// agent, which sets the size, too. Who removes an entry counts the connection's end, so that it is counted once.
#[map(name = "SEEDS")]
static SEEDS: HashMap<u64, FlowKey> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[inline(always)]
fn phase() -> u32 {
    // SAFETY: an array's value.
    LISTING_PHASE.get_ptr(0).map_or(listing_phase::OVER, |phase| unsafe { core::ptr::read_volatile(phase) })
}

#[inline(always)]
pub fn is_first_look() -> bool {
    phase() != listing_phase::OVER
}

/// Notes that this socket's opening has been counted.
#[inline(always)]
pub fn note_opening(cookie: u64) {
    if RECENT.insert(cookie, 1, 0).is_err() {
        lack_note();
    }
}

/// Returns whether the opening of this socket, which ends now, must be counted with its end: it ended during the first
/// listing, before it was counted. Notes it, so that the agent does not count it as well.
#[inline(always)]
pub fn is_older(cookie: u64) -> bool {
    if phase() != listing_phase::NOTES_ALL {
        return false;
    }
    // Without a cookie no listing has shown it.
    if cookie == 0 || RECENT.insert(cookie, 1, u64::from(BPF_NOEXIST)).is_ok() {
        return true;
    }
    if RECENT.get_ptr(cookie).is_none() {
        lack_note();
    }
    false
}

#[inline(always)]
fn lack_note() {
    lose(Loss::Recent);
    if let Some(phase) = LISTING_PHASE.get_ptr_mut(0)
        && is_first_look()
    {
        // SAFETY: an array's value.
        unsafe { core::ptr::write_volatile(phase, listing_phase::LACKS_NOTES) };
    }
}

/// Removes and returns the flow of an attempt that was under way before the capture began. The caller counts the answer, and
/// then calls [`pending_attempts::end_answer`].
#[inline(always)]
pub fn take_attempt(cookie: u64) -> Option<FlowKey> {
    SEEDS.get_ptr(cookie)?;
    pending_attempts::begin_unseen_answer(cookie);
    let flow = take_seed(cookie);
    if flow.is_none() {
        pending_attempts::end_answer(cookie);
    }
    flow
}

/// Removes and returns the flow of a preexisting connection. The caller counts its end.
#[inline(always)]
pub fn take_seed(cookie: u64) -> Option<FlowKey> {
    // SAFETY: seeds are written once; a copy of one that is removed meanwhile is not used.
    let key = SEEDS.get_ptr(cookie).map(|key| unsafe { *key })?;
    SEEDS.remove(cookie).is_ok().then_some(key)
}
