//! Tasks, as the iterator over them lists them.

use crate::plain_data;

/// One task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TaskRecord {
    /// The process, as the initial pid namespace numbers it.
    pub pid: u32,
    /// The inode number of its network namespace; 0 for one that exits.
    pub netns: u32,
}
const _: () = assert!(size_of::<TaskRecord>() == 2 * 4);
plain_data!(TaskRecord);
