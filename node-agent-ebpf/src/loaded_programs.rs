//! Lists the programs in the kernel. By their IDs, only a process with `SYS_ADMIN` could read them.

use aya_ebpf::{bindings::seq_file, cty::c_void, helpers::generated::bpf_seq_write};
use node_agent_common::ProgramRecord;

use crate::{offsets::offset, socket::KernelPointer};

/// `struct bpf_iter__bpf_prog`.
#[repr(C)]
struct Program {
    meta: u64,
    program: u64,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_prog")]
extern "C" fn loaded_programs(context: *const Program) -> i32 {
    let _ = show(context);
    0
}

#[inline(always)]
fn show(context: *const Program) -> Option<()> {
    // SAFETY: the program's own context; the second one is null at the end of the walk.
    let (meta, program) = unsafe {
        use core::ptr::read_volatile;
        (read_volatile(&raw const (*context).meta), read_volatile(&raw const (*context).program))
    };
    let (meta, program) = (KernelPointer::new(meta)?, KernelPointer::new(program)?);
    let aux = program.follow(offset!(prog_aux));
    let name = offset!(prog_aux_name);
    let record = ProgramRecord {
        id: aux.load(offset!(prog_aux_id)),
        kind: program.load(offset!(prog_type)),
        name: [aux.load(name), aux.load(name + size_of::<u64>())],
    };
    let sequence: u64 = meta.load(0);
    // SAFETY: the walk's own output and a record of that size. Where the buffer is full the kernel calls again.
    unsafe {
        bpf_seq_write(
            sequence as *mut seq_file,
            (&raw const record).cast::<c_void>().cast_mut(),
            size_of::<ProgramRecord>() as u32,
        );
    }
    Some(())
}
