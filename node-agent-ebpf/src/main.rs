//! ScopeProbe's programs for the kernel: they count TCP connections and conversations over UDP by flow, and list the open
//! sockets.
//!
//! The kernel calls [`sock_ops`] when a connection of the node starts, opens or ends; it counts into [`flows`]. Where
//! it cannot be attached, [`state_changes`] counts from a tracepoint. [`pending_attempts`] has the attempts without an
//! answer. While the table of flows is nearly full, [`folding`]
//! selects the flows that share rows. [`datagrams`] runs for each packet and counts UDP [`conversations`], the busy ones of
//! which are [`stored_conversations`]. [`roles`] has the direction of new ones. [`original_destinations`] records the
//! original destinations of datagrams before NAT, and [`balanced_sockets`] those that a load balancer at the sockets
//! replaces. [`answers`] passes DNS responses
//! to the agent. The iterator [`open_sockets`] lists preexisting connections, and [`namespaces`] lists the network
//! namespaces of tasks, and [`loaded_programs`] the kernel's programs. [`old_closes`] counts the end of preexisting connections. [`socket`] reads fields of the
//! kernel's structures at the [`offsets`] of the running kernel. The agent chooses the programs to load; the others
//! cost nothing.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "atomic_xadd: AtomicU64 has no fetch_add for this target")]

mod answers;
mod balanced_sockets;
mod conversations;
mod datagrams;
mod destination;
mod existing;
mod floor;
mod flows;
mod folding;
mod handover;
mod loaded_programs;
mod memory;
mod namespaces;
mod offsets;
mod old_closes;
mod open_sockets;
mod original_destinations;
mod pending_attempts;
mod roles;
mod scope;
mod sock_ops;
mod socket;
mod sockmaps;
mod state_changes;
mod stored_conversations;
mod tracked_sockets;

/// The kernel's helpers for reading sockets ask for a licence compatible with its own.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier admits no program that could come here.
    loop {}
}
