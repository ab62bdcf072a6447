//! Lists the TCP sockets of all tasks of the reader's pid namespace, in all network namespaces, and the other listening
//! sockets of the internet protocols. The first listing records the sockets of UDP.

use aya_ebpf::{
    bindings::{bpf_sock, seq_file},
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write, bpf_sock_from_file},
};
use node_agent_common::{Origin, SocketRecord, state};

use crate::{
    balanced_sockets,
    destination::End,
    existing::is_first_look,
    offsets::offset,
    roles,
    scope::is_own,
    socket::{KernelPointer, TcpSocket},
    tracked_sockets,
};

const UDP: u16 = 17;

/// `struct bpf_iter__task_file`.
#[repr(C)]
struct TaskFile {
    meta: u64,
    task: u64,
    fd: u32,
    _padding: u32,
    file: u64,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn open_sockets(context: *const TaskFile) -> i32 {
    let _ = show(context);
    0
}

#[inline(always)]
fn show(context: *const TaskFile) -> Option<()> {
    // SAFETY: the program's own context; each is null at the end of the walk.
    let (meta, task, file) = unsafe {
        use core::ptr::read_volatile;
        (
            read_volatile(&raw const (*context).meta),
            read_volatile(&raw const (*context).task),
            read_volatile(&raw const (*context).file),
        )
    };
    let (meta, task, _) = (KernelPointer::new(meta)?, KernelPointer::new(task)?, KernelPointer::new(file)?);
    // SAFETY: the walk's current file; null where it is not a socket.
    let socket = KernelPointer::new(unsafe { bpf_sock_from_file(file as *mut c_void as *mut _) } as u64)?;
    let sock = KernelPointer::new(socket.load(offset!(socket_sk)))?;
    let family: u16 = sock.load(offset!(sock_family));
    if family != 2 && family != 10 {
        return None;
    }
    let any = TcpSocket::unchecked(sock);
    let (sent, received, retransmits, srtt, (callbacks, origin)) = match TcpSocket::from_sock(sock) {
        Some(tcp) => (tcp.sent(), tcp.received(), tcp.retransmits(), tcp.srtt(), callbacks(tcp)),
        // A socket of MPTCP, as Go's servers have it, listens for plain TCP too: it is shown for its port.
        None if any.state() == state::LISTEN => {
            let origin = if any.has_room_for_waiting() { Origin::Listener } else { Origin::Unknown };
            (0, 0, 0, 0, (0, origin))
        }
        None => {
            if any.protocol() == UDP && is_first_look() {
                roles::note_preexisting(cookie(sock));
            }
            return None;
        }
    };
    let End { address: remote, port: remote_port, .. } = destination(sock).unwrap_or_else(|| any.remote_end());
    let record = SocketRecord {
        cgroup: any.cgroup_id(),
        cookie: cookie(sock),
        sent,
        received,
        retransmits,
        srtt,
        netns: any.netns(),
        pid: task.load(offset!(task_tgid)),
        local_port: any.local_port(),
        remote_port,
        state: any.state(),
        callbacks,
        own: u8::from(is_own(any.cgroup())),
        origin: origin as u8,
        address: sock.address(),
        local: any.local(),
        remote,
        in_sockmap: any.is_in_sockmap().into(),
    };
    let sequence: u64 = meta.load(0);
    // SAFETY: the walk's own output and a record of that size. Where the buffer is full the kernel calls again.
    unsafe {
        bpf_seq_write(sequence as *mut seq_file, (&raw const record).cast(), size_of::<SocketRecord>() as u32);
    }
    Some(())
}

/// Returns the original destination of a connection, if it is counted there: not by a tracepoint.
#[inline(always)]
fn destination(sock: KernelPointer) -> Option<End> {
    if offset!(tracks_sockets) != 0 || !balanced_sockets::may_be() {
        return None;
    }
    balanced_sockets::destination(sock.address() as *mut bpf_sock)
}

/// Returns the callbacks that will see the socket's end, and its origin. If sockets are tracked from outside,
/// the note of the socket counts as such a callback.
#[inline(always)]
fn callbacks(socket: TcpSocket) -> (u8, Origin) {
    if offset!(tracks_sockets) == 0 {
        (socket.callbacks(), socket.origin())
    } else {
        tracked_sockets::as_callbacks(socket)
    }
}

/// The cookie of a socket, drawn now if it had none: what a socket is known by as long as it lives.
#[inline(always)]
fn cookie(sock: KernelPointer) -> u64 {
    // SAFETY: a socket that an open file holds.
    unsafe { bpf_get_socket_cookie(sock.address() as *mut c_void) }
}
