//! Records of the iterator over programs.

use crate::plain_data;

/// One program in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProgramRecord {
    /// ID, as `bpftool` shows it.
    pub id: u32,
    /// `enum bpf_prog_type` of `include/uapi/linux/bpf.h`.
    pub kind: u32,
    /// Up to 15 bytes of its name and zeros, as they lie in memory.
    pub name: [u64; 2],
}
const _: () = assert!(size_of::<ProgramRecord>() == 2 * 4 + 16);
plain_data!(ProgramRecord);
