//! Lists the network namespace of each task of the reader's PID namespace. `/proc/<pid>/ns/net` has it as well, but
//! only for processes that may trace the task.

use aya_ebpf::{bindings::seq_file, cty::c_void, helpers::generated::bpf_seq_write};
use node_agent_common::TaskRecord;

use crate::{offsets::offset, socket::KernelPointer};

/// `struct bpf_iter__task`.
#[repr(C)]
struct Task {
    meta: u64,
    task: u64,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
extern "C" fn namespaces(context: *const Task) -> i32 {
    let _ = show(context);
    0
}

#[inline(always)]
fn show(context: *const Task) -> Option<()> {
    // SAFETY: the program's own context; each is null at the end of the walk.
    let (meta, task) = unsafe {
        use core::ptr::read_volatile;
        (read_volatile(&raw const (*context).meta), read_volatile(&raw const (*context).task))
    };
    let (meta, task) = (KernelPointer::new(meta)?, KernelPointer::new(task)?);
    // A task that exits has none any more: that reads as 0.
    let netns = task.follow(offset!(task_nsproxy)).follow(offset!(nsproxy_net)).load(offset!(net_inum));
    let record = TaskRecord { pid: task.load(offset!(task_tgid)), netns };
    let sequence: u64 = meta.load(0);
    // SAFETY: the walk's own output and a record of that size. Where the buffer is full the kernel calls again.
    unsafe {
        bpf_seq_write(
            sequence as *mut seq_file,
            (&raw const record).cast::<c_void>().cast_mut(),
            size_of::<TaskRecord>() as u32,
        );
    }
    Some(())
}
