//! Records of the iterator over tasks.

use crate::plain_data;

/// One task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TaskRecord {
    /// Process ID in the initial PID namespace.
    pub pid: u32,
    /// Inode number of its network namespace; 0 for a task that exits.
    pub netns: u32,
}
const _: () = assert!(size_of::<TaskRecord>() == 2 * 4);
plain_data!(TaskRecord);
