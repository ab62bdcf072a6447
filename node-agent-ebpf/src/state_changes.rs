//! Second choice, where `sock_ops` cannot be attached: the tracepoint `inet_sock_set_state`, which reports every state
//! change of every socket of the machine.
//!
//! A tracepoint's program is skipped while it runs on the same CPU, which happens when a softirq interrupts it. The
//! kernel counts how often (not everywhere). A second copy of the program catches most of what the first one misses:
//! both do the same to the same entry, so that what both see counts once. What both miss is lost.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::bpf_ktime_get_ns,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use node_agent_common::{FlowKey, Loss, Role, TrackedSocket, state};

use crate::{
    existing,
    flows::{Event, count, lose},
    memory::{Access, Pointer, Probing},
    scope::is_own,
    socket::{KernelPointer, TcpSocket},
    tracked_sockets,
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state_changes(context: BtfTracePointContext) -> i32 {
    let _ = by_btf(&context, Copy::First);
    0
}

/// To be attached after the first one.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state_changes_again(context: BtfTracePointContext) -> i32 {
    let _ = by_btf(&context, Copy::Second);
    0
}

/// Third choice: the classic tracepoint, whose pointers the verifier does not know.
#[tracepoint]
pub fn state_changes_classic(context: TracePointContext) -> u32 {
    let _ = by_classic(&context);
    0
}

#[derive(Clone, core::marker::Copy, PartialEq, Eq)]
enum Copy {
    First,
    Second,
}

/// Meaning of a state change.
#[derive(Clone, core::marker::Copy)]
enum Change {
    Dials,
    Opens(Role),
    Fails,
    Ends,
}

impl Change {
    #[inline(always)]
    fn of(before: i32, after: i32) -> Option<Self> {
        const ESTABLISHED: i32 = state::ESTABLISHED as i32;
        const SYN_SENT: i32 = state::SYN_SENT as i32;
        const SYN_RECV: i32 = state::SYN_RECV as i32;
        const FIN_WAIT1: i32 = state::FIN_WAIT1 as i32;
        const CLOSE: i32 = state::CLOSE as i32;
        const LISTEN: i32 = state::LISTEN as i32;
        match (before, after) {
            (_, SYN_SENT) => Some(Self::Dials),
            (SYN_SENT, ESTABLISHED) => Some(Self::Opens(Role::Client)),
            // Closed at once after fast open.
            (SYN_RECV, ESTABLISHED | FIN_WAIT1) => Some(Self::Opens(Role::Server)),
            (SYN_SENT, CLOSE) => Some(Self::Fails),
            // The last: it came out of a listening socket, and to nothing.
            (LISTEN | CLOSE | SYN_RECV, CLOSE) => None,
            (_, CLOSE) => Some(Self::Ends),
            _ => None,
        }
    }
}

#[inline(always)]
fn by_btf(context: &BtfTracePointContext, copy: Copy) -> Option<()> {
    let change = Change::of(context.arg(1), context.arg(2))?;
    let socket = TcpSocket::from_sock(KernelPointer::new(context.arg(0))?)?;
    follow(socket, change, copy);
    Some(())
}

#[inline(always)]
fn by_classic(context: &TracePointContext) -> Option<()> {
    /// `struct trace_event_raw_inet_sock_set_state`; the agent has compared it with the format that tracefs shows.
    #[repr(C)]
    struct Record {
        common: u64,
        socket: u64,
        before: i32,
        after: i32,
        ports: u32,
        family: u16,
        protocol: u16,
    }
    const TCP: u16 = 6;
    let record = context.as_ptr().cast::<Record>();
    // SAFETY: the program's own context, which is as long.
    let (socket, before, after, protocol) = unsafe {
        use core::ptr::read_volatile;
        (
            read_volatile(&raw const (*record).socket),
            read_volatile(&raw const (*record).before),
            read_volatile(&raw const (*record).after),
            read_volatile(&raw const (*record).protocol),
        )
    };
    let change = Change::of(before, after)?;
    if protocol == TCP {
        follow(TcpSocket::assumed(Pointer::<Probing>::new(socket)?), change, Copy::First);
    }
    Some(())
}

#[inline(always)]
fn follow<A: Access>(socket: TcpSocket<A>, change: Change, copy: Copy) {
    match change {
        Change::Dials => dials(socket),
        Change::Opens(role) => opens(socket, role, copy),
        Change::Fails => fails(socket, copy),
        Change::Ends => ends(socket),
    }
}

/// Noted for the second copy alone: so it can tell whether the first one has counted a failure.
#[inline(always)]
fn dials<A: Access>(socket: TcpSocket<A>) {
    let entry = tracked_sockets::get(socket.address());
    if let Some(entry) = entry {
        missed_end(&entry);
    }
    if is_own(socket.cgroup()) {
        tracked_sockets::set(socket.address(), &note(FlowKey::NONE, 0, 0));
    } else if entry.is_some() {
        tracked_sockets::remove(socket.address());
    }
}

#[inline(always)]
fn fails<A: Access>(socket: TcpSocket<A>, copy: Copy) {
    match tracked_sockets::get(socket.address()) {
        Some(entry) => {
            tracked_sockets::remove(socket.address());
            missed_end(&entry);
        }
        None if copy == Copy::Second => return,
        None => {}
    }
    if is_own(socket.cgroup()) {
        count(&socket.flow(Role::Client), Event::Failed);
    }
}

#[inline(always)]
fn opens<A: Access>(socket: TcpSocket<A>, role: Role, copy: Copy) {
    let flow = socket.flow(role);
    let client_port = match role {
        Role::Client => socket.local_port(),
        Role::Server => socket.remote_port(),
    };
    let entry = tracked_sockets::get(socket.address());
    if let Some(entry) = entry {
        // The first copy has just counted it; or that one missed it, as both had missed the end of another connection
        // in the same memory.
        if copy == Copy::Second && entry.established == 1 && is_of(&entry, socket) {
            return;
        }
        missed_end(&entry);
    }
    if !is_own(socket.cgroup()) {
        if entry.is_some() {
            tracked_sockets::remove(socket.address());
        }
        return;
    }
    if tracked_sockets::set(socket.address(), &note(flow, client_port, 1)) {
        count(&flow, Event::Opened);
    } else if copy == Copy::First {
        // No entry will identify it when it ends.
        lose(Loss::Opened);
        lose(Loss::Closed);
    }
}

#[inline(always)]
fn ends<A: Access>(socket: TcpSocket<A>) {
    let entry = tracked_sockets::get(socket.address());
    if let Some(entry) = entry {
        if !tracked_sockets::remove(socket.address()) {
            return;
        }
        if entry.established == 1 {
            let event = if is_of(&entry, socket) { Event::closed(socket) } else { Event::Gone };
            return count(&entry.flow, event);
        }
    }
    // Older than this capture, or its opening was missed.
    let cookie = socket.cookie();
    if cookie != 0
        && let Some(flow) = existing::take_seed(cookie)
    {
        return count(&flow, Event::closed(socket));
    }
    if entry.is_some() && is_own(socket.cgroup()) {
        // It called and came to be established, which was missed.
        let flow = socket.flow(Role::Client);
        count(&flow, Event::Opened);
        count(&flow, Event::closed(socket));
    }
}

/// The memory of a connection is in use again, and its end was not seen.
#[inline(always)]
fn missed_end(entry: &TrackedSocket) {
    if entry.established == 1 {
        count(&entry.flow, Event::Gone);
    }
}

/// Returns whether an entry is this socket's own, and not that of an earlier socket at the same address. Compares what
/// a socket still has when it ends: its local port may be released by then.
#[inline(always)]
fn is_of<A: Access>(entry: &TrackedSocket, socket: TcpSocket<A>) -> bool {
    let remote_port = match entry.flow.role() {
        Some(Role::Client) => entry.flow.port(),
        _ => entry.client_port,
    };
    socket.remote_port() == remote_port && socket.cgroup_id() == entry.flow.cgroup()
}

#[inline(always)]
fn note(flow: FlowKey, client_port: u16, established: u16) -> TrackedSocket {
    // SAFETY: the helper has no arguments.
    let since = unsafe { bpf_ktime_get_ns() };
    TrackedSocket { flow, since, client_port, established, reserved: 0 }
}
