//! Attempts without an answer, from the first retransmission of their SYN on, which TCP sends after a second.
//!
//! A client's mark makes the kernel call `sock_ops` at retransmissions ([`node_agent_common::callback::CLIENT`]), so that an
//! answered SYN costs nothing here. The agent reads the table and ignores what is young.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::HashMap,
};
use node_agent_common::{FlowKey, PendingAttempt};

/// Pending attempts by cookie. Further ones are not pending: they count when they open or fail.
#[map(name = "PENDING")]
static PENDING: HashMap<u64, PendingAttempt> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Records that the SYN of a socket with this flow was retransmitted. A function of its own, so that its stack is free while
/// others run.
#[inline(never)]
pub fn note(flow: &FlowKey, cookie: u64) {
    if let Some(known) = PENDING.get_ptr_mut(cookie) {
        // SAFETY: a map's value. Callbacks of one socket do not run at the same time.
        unsafe { (*known).retransmits += 1 };
        return;
    }
    let attempt = PendingAttempt { flow: *flow, retransmits: 1, is_answered: 0 };
    let _ = PENDING.insert(cookie, attempt, u64::from(BPF_NOEXIST));
}

/// Marks an attempt that has its answer now. To be called before that is counted, so that it never counts as both. Returns
/// whether the attempt has an entry.
#[inline(always)]
pub fn begin_answer(cookie: u64) -> bool {
    let Some(known) = PENDING.get_ptr_mut(cookie) else { return false };
    // SAFETY: a map's value. Callbacks of one socket do not run at the same time.
    unsafe { core::ptr::write_volatile(&raw mut (*known).is_answered, 1) };
    true
}

/// The same for an attempt whose beginning no agent observed. Its flow is in its seed. A function of its own: see [`note`].
#[inline(never)]
pub fn begin_unseen_answer(cookie: u64) {
    if !begin_answer(cookie) {
        let attempt = PendingAttempt { flow: FlowKey::NONE, retransmits: 0, is_answered: 1 };
        let _ = PENDING.insert(cookie, attempt, u64::from(BPF_NOEXIST));
    }
}

/// Removes an attempt whose answer is counted. To be called after that, so that it never counts as neither.
#[inline(always)]
pub fn end_answer(cookie: u64) {
    let _ = PENDING.remove(cookie);
}
