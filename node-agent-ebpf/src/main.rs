//! ScopeProbe's programs for the kernel: they count TCP connections and conversations over UDP by flow, and list the open
//! sockets.
//!
//! [`sock_ops`] is called at the milestones of each connection of the node and counts into [`flows`]; where it cannot
//! be attached, [`state_changes`] does what can be done from a tracepoint. [`datagrams`] is called for each packet and counts UDP by [`conversations`];
//! [`dialled`] knows whom they
//! were sent to; [`answers`] passes on what name servers say. The iterator [`open_sockets`] shows what was
//! there before, [`namespaces`] who is in which network namespace; [`old_closes`] sees the end of connections that are
//! older than any agent. Fields of the kernel's structures are read by [`socket`] at the [`offsets`] of the running
//! kernel. Which programs are loaded is the agent's choice: what is in the object and is not loaded costs nothing.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "atomic_xadd: AtomicU64 has no fetch_add for this target")]

mod answers;
mod conversations;
mod datagrams;
mod dialled;
mod existing;
mod flows;
mod followed;
mod memory;
mod namespaces;
mod offsets;
mod old_closes;
mod open_sockets;
mod scope;
mod sock_ops;
mod socket;
mod state_changes;

/// The kernel's helpers for reading sockets ask for a licence compatible with its own.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier admits no program that could come here.
    loop {}
}
