//! Lists the TCP sockets of all tasks of the reader's pid namespace, whatever their network namespace, and what else
//! listens on the internet protocols.

use aya_ebpf::{
    bindings::seq_file,
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write, bpf_sock_from_file},
};
use node_agent_common::{SocketRecord, state};

use crate::{
    offsets::offset,
    socket::{KernelPointer, TcpSocket},
};

/// The id of the cgroup at the root of the node's. Written by the agent before the program is loaded.
#[unsafe(no_mangle)]
static ROOT: u64 = 0;

/// Deeper cgroups are not recognised as the node's own. Kubernetes nests six deep.
const DEPTH: u32 = 24;

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
    let (sent, received, callbacks) = match TcpSocket::from_sock(sock) {
        Some(tcp) => (tcp.sent(), tcp.received(), tcp.callbacks()),
        // A socket of MPTCP, as Go's servers have it, listens for plain TCP too: it is shown for its port.
        None if any.state() == state::LISTEN => (0, 0, 0),
        None => return None,
    };
    let record = SocketRecord {
        cgroup: any.cgroup_id(),
        cookie: sock.cookie(),
        sent,
        received,
        netns: any.netns(),
        pid: task.load(offset!(task_tgid)),
        local_port: any.local_port(),
        remote_port: any.remote_port(),
        state: any.state(),
        callbacks,
        own: u8::from(is_own(any.cgroup())),
        reserved: 0,
        local: any.local(),
        remote: any.remote(),
    };
    let sequence: u64 = meta.load(0);
    // SAFETY: the walk's own output and a record of that size. Where the buffer is full the kernel calls again.
    unsafe {
        bpf_seq_write(sequence as *mut seq_file, (&raw const record).cast(), size_of::<SocketRecord>() as u32);
    }
    Some(())
}

/// Whether a cgroup is the node's root or below it.
#[inline(always)]
fn is_own(mut cgroup: KernelPointer) -> bool {
    if offset!(scoped) == 0 {
        return true;
    }
    // SAFETY: a static that is frozen before the program is loaded.
    let root = unsafe { core::ptr::read_volatile(&raw const ROOT) };
    for _ in 0..DEPTH {
        if cgroup.follow(offset!(cgroup_kn)).load::<u64>(offset!(kernfs_id)) == root {
            return true;
        }
        let Some(parent) = KernelPointer::new(cgroup.load(offset!(cgroup_self) + offset!(css_parent))) else {
            return false;
        };
        let Some(above) = KernelPointer::new(parent.load(offset!(css_cgroup))) else { return false };
        cgroup = above;
    }
    false
}

impl KernelPointer {
    /// The cookie of a socket, drawn now if it had none: what a socket is known by as long as it lives.
    #[inline(always)]
    fn cookie(self) -> u64 {
        // SAFETY: a socket that an open file holds.
        unsafe { bpf_get_socket_cookie(self.address() as *mut c_void) }
    }
}
