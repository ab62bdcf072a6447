//! Roles of sockets in UDP conversations of which the table remembers nothing: see [`node_agent_common::direction`].
//!
//! Most new conversations need one look-up here: of a client that was never called, and of a server that was called before.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC},
    macros::map,
    maps::HashMap,
};
use node_agent_common::{
    conversation,
    direction::{FirstDatagram, JudgedRole, history},
};

use crate::{
    conversations::{has_histories, is_complete, lack_histories},
    datagrams::beginning_of,
    memory::{Pointer, Probing},
    offsets::offset,
};

/// Socket histories by cookie: see [`history`]. Sockets without an entry are younger than the capture, and only clients. The
/// kernel reuses no cookie, so entries of closed sockets only take room.
#[map(name = "HISTORIES")]
static HISTORIES: HashMap<u64, u32> = HashMap::with_max_entries(conversation::HISTORIES, BPF_F_NO_PREALLOC);

/// Records that a socket is older than the capture.
#[inline(always)]
pub fn note_preexisting(cookie: u64) {
    add(cookie, history::PREEXISTING);
}

/// Returns the role of the socket that this datagram left or reached. A function of its own, so that the stack suffices.
#[inline(never)]
pub fn judge(packet: *const __sk_buff, cookie: u64, first: FirstDatagram) -> JudgedRole {
    // SAFETY: a value of the map; one word.
    let known = HISTORIES.get_ptr(cookie).map_or(0, |history| unsafe { core::ptr::read_volatile(history) });
    let history = if has_histories() { known } else { known | history::PREEXISTING };
    let is_complete = is_complete();
    if let Some(role) = first.role_by_history(history, is_complete) {
        return JudgedRole { role, is_guess: false };
    }
    let (judged, fact) = first.judge(history, is_complete, has_named_port(packet));
    if fact & !known != 0 {
        add(cookie, known | fact);
    }
    judged
}

#[inline(always)]
fn add(cookie: u64, history: u32) {
    if HISTORIES.insert(cookie, history, 0).is_err() {
        lack_histories();
    }
}

/// Returns whether a process chose the port of the packet's socket: true where this kernel does not show it.
#[inline(always)]
fn has_named_port(packet: *const __sk_buff) -> bool {
    let socket = beginning_of::<4>(packet.cast(), offset!(skb_sk));
    let bit = offset!(sock_named_port_bit);
    Pointer::<Probing>::new(socket).is_none_or(|socket| socket.load::<u8>(bit / 8) >> (bit & 7) & 1 != 0)
}
