//! Called by TCP for the sockets of the node's cgroups at the milestones of each connection.
//!
//! A program needs the role of a socket when it closes, possibly under another agent than the one that observed its
//! start. The role is stored in the socket's callback flags, which exist as long as the socket: see [`callback`]. A
//! client is marked from `connect()` on, because its handshake may complete while no agent runs.
//!
//! While a connection is open, the program only adds flags, since other programs may use them too: this program may be
//! attached twice, for a node and for the machine on which it runs. It never writes `reply`, which would change TCP.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RETRANS_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use node_agent_common::{FlowKey, Loss, Role, callback, state};

use crate::{
    balanced_sockets, existing,
    flows::{Event, count, lose},
    handover, pending_attempts,
    socket::{KernelPointer, TcpSocket},
    sockmaps,
};

#[sock_ops]
pub fn connections(context: SockOpsContext) -> u32 {
    see(Call(context.ops), false)
}

/// The same program: see [`handover`].
#[sock_ops]
pub fn connections_twin(context: SockOpsContext) -> u32 {
    see(Call(context.ops), true)
}

#[inline(always)]
fn see(call: Call, is_twin: bool) -> u32 {
    let op = call.op();
    let counts = || handover::counts(is_twin, || [call.cookie(), u64::from(op)]);
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => begun(call),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            let role = if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB { Role::Client } else { Role::Server };
            if counts() {
                opened(call, role)
            } else {
                call.add_flags(callback::of(role))
            }
            look_for_sockmap(call);
        }
        BPF_SOCK_OPS_STATE_CB if call.new_state() == state::CLOSE && counts() => ended(call),
        BPF_SOCK_OPS_RETRANS_CB if call.state() == state::SYN_SENT => {
            call.add_flags(callback::of(Role::Client));
            if counts() {
                unanswered(call);
            }
        }
        _ => {
            if op == BPF_SOCK_OPS_STATE_CB && call.new_state() == state::CLOSE_WAIT {
                look_for_sockmap(call);
            }
            if call.flags() as u8 & callback::STATE == 0 {
                restore_flags(call);
            }
        }
    }
    1
}

#[inline(always)]
fn begun(call: Call) {
    call.add_flags(callback::of(Role::Client));
    if balanced_sockets::may_be()
        && let Some(socket) = call.socket()
    {
        balanced_sockets::decide(call.bpf_socket(), &socket.remote_end());
    }
}

#[inline(always)]
fn look_for_sockmap(call: Call) {
    if let Some(socket) = call.socket() {
        sockmaps::look(socket, || call.cookie());
    }
}

/// Restores the flags of an open connection: a program that was called just before this one has taken them.
#[inline(always)]
fn restore_flags(call: Call) {
    let is_open = match call.state() {
        state::ESTABLISHED | state::FIN_WAIT1 | state::FIN_WAIT2 => true,
        state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING => true,
        // A server's, which has just been counted as established.
        state::SYN_RECV => call.op() == BPF_SOCK_OPS_STATE_CB,
        _ => false,
    };
    if !is_open {
        return;
    }
    if let Some(socket) = call.socket() {
        let shown = Role::shown(call.flags() as u8, socket.origin());
        call.add_flags(shown.map_or(callback::STATE, callback::of));
    }
}

/// A lost one is not pending, and counts when it opens or fails.
#[inline(always)]
fn unanswered(call: Call) {
    if let Some(socket) = call.socket() {
        pending_attempts::note(&call.flow(socket, Role::Client), call.cookie());
    }
}

/// To be called before an attempt counts as opened or failed.
#[inline(always)]
fn begin_answer(call: Call) {
    if call.total_retransmits() != 0 {
        pending_attempts::begin_answer(call.cookie());
    }
}

/// To be called after that.
#[inline(always)]
fn end_answer(call: Call, was_unseen: bool) {
    if was_unseen || call.total_retransmits() != 0 {
        pending_attempts::end_answer(call.cookie());
    }
}

#[inline(always)]
fn opened(call: Call, role: Role) {
    // Noted before anything else shows that the connection is established, so that a scan never takes it for an old one.
    if existing::is_first_look() {
        existing::note_opening(call.cookie());
    }
    begin_answer(call);
    let before = call.flags() as u8;
    call.add_flags(callback::of(role));
    let mut was_unseen = false;
    if let Some(socket) = call.socket() {
        if before & callback::STATE == 0 && matches!(role, Role::Client) {
            // It was under way before the capture began: its failure need not be watched for any more.
            was_unseen = existing::take_attempt(socket.cookie()).is_some();
        }
        count(&call.flow(socket, role), Event::Opened);
    } else {
        lose(Loss::Unreadable);
    }
    end_answer(call, was_unseen);
}

#[inline(always)]
fn ended(call: Call) {
    let before = call.old_state();
    if before == state::LISTEN || before == state::CLOSE {
        return;
    }
    let Some(socket) = call.socket() else { return lose(Loss::Unreadable) };
    // Another program that was called just before this one may have marked it as counted.
    let flags = call.flags() as u8 | callback::STATE;
    let shown = Role::shown(flags, socket.origin());
    let role = shown.unwrap_or(Role::guessed(flags));
    if before == state::SYN_SENT || before == state::SYN_RECV && matches!(role, Role::Client) {
        begin_answer(call);
        // Another program may have requested callbacks for an attempt from before the capture.
        let was_unseen = existing::take_attempt(socket.cookie()).is_some();
        // The flags stay: the socket may dial again while no agent is there.
        call.count_last(socket, Role::Client, Event::Failed);
        return end_answer(call, was_unseen);
    }
    // Marked before it is counted, so that a scan never adds the bytes of an open socket to those of its end.
    call.set_flags(u32::from(callback::counted(flags)));
    let cookie = socket.cookie();
    if cookie != 0 {
        // Another program requested callbacks for a connection that is older than any agent.
        if let Some(key) = existing::take_seed(cookie) {
            return count(&key, Event::closed(socket));
        }
    }
    call.count_last(socket, role, Event::closed_after(socket, existing::is_older(cookie), shown.is_none()));
}

/// One call of the program.
#[derive(Clone, Copy)]
pub struct Call(pub *mut bpf_sock_ops);

impl Call {
    /// # Safety
    /// `field` has to belong to this call's context.
    #[inline(always)]
    unsafe fn read<T: Copy>(field: *const T) -> T {
        // SAFETY: the caller's promise. Volatile, for the kernel rewrites each access on its own: none may be merged.
        unsafe { core::ptr::read_volatile(field) }
    }

    #[inline(always)]
    pub fn op(self) -> u32 {
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
    fn state(self) -> u8 {
        // SAFETY: the context's own field.
        unsafe { Self::read(&raw const (*self.0).state) as u8 }
    }

    /// Returns the number of retransmitted segments, SYNs included.
    #[inline(always)]
    fn total_retransmits(self) -> u32 {
        // SAFETY: the context's own field.
        unsafe { Self::read(&raw const (*self.0).total_retrans) }
    }

    #[inline(always)]
    pub fn add_flags(self, flags: u8) {
        let (before, flags) = (self.flags(), u32::from(flags));
        if before & flags != flags {
            self.set_flags(before | flags);
        }
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

    /// The context's field `sk`; null if it is not a full socket.
    #[inline(always)]
    fn bpf_socket(self) -> *mut bpf_sock {
        // SAFETY: the context's own field, a pointer in a union that makes it 64 bits wide everywhere.
        unsafe { Self::read((&raw const (*self.0).__bindgen_anon_2).cast::<u64>()) as *mut bpf_sock }
    }

    #[inline(always)]
    fn socket(self) -> Option<TcpSocket> {
        TcpSocket::from_sock(KernelPointer::new(self.bpf_socket() as u64)?)
    }

    /// Returns the flow that the socket belongs to, as the end of this role; a client's with its original destination.
    #[inline(always)]
    fn flow(self, socket: TcpSocket, role: Role) -> FlowKey {
        if matches!(role, Role::Client)
            && balanced_sockets::may_be()
            && let Some(destination) = balanced_sockets::destination(self.bpf_socket())
        {
            return socket.flow_to(&destination);
        }
        socket.flow(role)
    }

    /// Counts the last event of the socket's connection.
    #[inline(always)]
    fn count_last(self, socket: TcpSocket, role: Role, event: Event) {
        count(&self.flow(socket, role), event);
        if balanced_sockets::may_be() {
            balanced_sockets::forget(self.bpf_socket());
        }
    }
}
