//! Counts the end of preexisting connections and attempts without callback flags, which are older than any agent.
//!
//! A tracepoint misses events while a softirq interrupts it. The agent finds those ends at its next listing.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use node_agent_common::state;

use crate::{
    existing,
    flows::{Event, count},
    pending_attempts,
    socket::{KernelPointer, TcpSocket},
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn old_closes(context: BtfTracePointContext) -> i32 {
    if context.arg::<i32>(2) == i32::from(state::CLOSE) {
        let _ = ended(&context);
    }
    0
}

#[inline(always)]
fn ended(context: &BtfTracePointContext) -> Option<()> {
    let socket = TcpSocket::from_sock(KernelPointer::new(context.arg(0))?)?;
    // Only sockets that the agent has scanned have a cookie, or few others: the rest costs no look-up.
    let cookie = socket.cookie();
    if cookie == 0 {
        return None;
    }
    if context.arg::<i32>(1) == i32::from(state::SYN_SENT) {
        count(&existing::take_attempt(cookie)?, Event::Failed);
        pending_attempts::end_answer(cookie);
    } else {
        count(&existing::take_seed(cookie)?, Event::closed(socket));
    }
    Some(())
}
