//! Called by TCP for the sockets of the node's cgroups at the milestones of each connection.
//!
//! Which end a socket is has to be known when it closes. It lives in the socket's own callback flags, which die with
//! it: a server's has STATE, a client's STATE and RETRANSMISSION; one whose end was counted has TIMEOUT and no STATE.
//! While a connection lives, flags are only added, for others may use them too: this very program may be attached twice,
//! for a node and for the machine that it runs on. `reply` is never written: it would steer TCP.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use node_agent_common::{Loss, Role, callback, state};

use crate::{
    existing,
    flows::{Event, count, lose},
    socket::{KernelPointer, TcpSocket},
};

#[sock_ops]
pub fn connections(context: SockOpsContext) -> u32 {
    let call = Call(context.ops);
    match call.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => call.add_flags(callback::STATE),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => opened(call, Role::Client),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => opened(call, Role::Server),
        BPF_SOCK_OPS_STATE_CB if call.new_state() == state::CLOSE => ended(call),
        _ => {}
    }
    1
}

#[inline(always)]
fn opened(call: Call, role: Role) {
    // Noted before anything else shows that the connection is established, so that a look never takes it for an old one.
    if existing::is_first_look() {
        existing::note_counted(call.cookie());
    }
    call.add_flags(match role {
        Role::Client => callback::STATE | callback::RETRANSMISSION,
        Role::Server => callback::STATE,
    });
    let Some(socket) = call.socket() else { return lose(Loss::Unreadable) };
    count(&socket.flow(role), Event::Opened);
}

#[inline(always)]
fn ended(call: Call) {
    let before = call.old_state();
    if before == state::LISTEN || before == state::CLOSE {
        return;
    }
    let Some(socket) = call.socket() else { return lose(Loss::Unreadable) };
    let role = if call.flags() & u32::from(callback::RETRANSMISSION) != 0 { Role::Client } else { Role::Server };
    // Marked before it is counted, so that a look never adds the bytes of an open socket to those of its end.
    call.mark_counted();
    if before == state::SYN_SENT {
        return count(&socket.flow(Role::Client), Event::Failed);
    }
    let cookie = socket.cookie();
    if cookie != 0 {
        // Somebody else has asked for the callbacks of a connection that is older than any agent.
        if let Some(key) = existing::take_seed(cookie) {
            return count(&key, Event::closed(socket, false));
        }
    }
    let older = existing::is_first_look() && !existing::was_counted(cookie);
    count(&socket.flow(role), Event::closed(socket, older));
}

/// One call of the program.
#[derive(Clone, Copy)]
struct Call(*mut bpf_sock_ops);

impl Call {
    /// # Safety
    /// `field` has to belong to this call's context.
    #[inline(always)]
    unsafe fn read<T: Copy>(field: *const T) -> T {
        // SAFETY: the caller's promise. Volatile, for the kernel rewrites each access on its own: none may be merged.
        unsafe { core::ptr::read_volatile(field) }
    }

    #[inline(always)]
    fn op(self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { Self::read(&raw const (*self.0).op) }
    }

    #[inline(always)]
    fn flags(self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { Self::read(&raw const (*self.0).bpf_sock_ops_cb_flags) }
    }

    #[inline(always)]
    fn old_state(self) -> u8 {
        // SAFETY: the context's own field, in use at changes of state.
        unsafe { Self::read(&raw const (*self.0).__bindgen_anon_1.args[0]) as u8 }
    }

    #[inline(always)]
    fn new_state(self) -> u8 {
        // SAFETY: as above.
        unsafe { Self::read(&raw const (*self.0).__bindgen_anon_1.args[1]) as u8 }
    }

    #[inline(always)]
    fn add_flags(self, flags: u8) {
        self.set_flags(self.flags() | u32::from(flags));
    }

    /// See the module's description.
    #[inline(always)]
    fn mark_counted(self) {
        self.set_flags(self.flags() & !u32::from(callback::STATE) | u32::from(callback::TIMEOUT));
    }

    #[inline(always)]
    fn set_flags(self, flags: u32) {
        // SAFETY: the program's own context.
        unsafe { bpf_sock_ops_cb_flags_set(self.0, flags as i32) };
    }

    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: the program's own context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn socket(self) -> Option<TcpSocket> {
        // SAFETY: the context's field `sk`, a pointer in a union that makes it 64 bits wide everywhere.
        let sock = unsafe { Self::read((&raw const (*self.0).__bindgen_anon_2).cast::<u64>()) };
        TcpSocket::from_sock(KernelPointer::new(sock)?)
    }
}
