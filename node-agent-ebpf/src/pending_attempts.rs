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
    let attempt = PendingAttempt { flow: *flow, retransmits: 1 };
    let _ = PENDING.insert(cookie, attempt, u64::from(BPF_NOEXIST));
}

/// Removes an attempt that has its answer now. To be called before that is counted, so that it never counts as both.
#[inline(always)]
pub fn end(cookie: u64) {
    let _ = PENDING.remove(cookie);
}
