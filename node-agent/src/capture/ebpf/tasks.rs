//! In which network namespace each process is, as the kernel's iterator lists it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use node_agent_common::TaskRecord;

/// The inode number of the initial pid namespace (`PROC_PID_INIT_INO`): there `/proc` numbers processes as the kernel's
/// programs do.
const INITIAL: u64 = 0xefff_fffc;

/// Returns whether this process, with this `/proc`, uses the process IDs that the iterator lists.
pub(super) fn are_known_by_number(proc: &Path) -> bool {
    fs::metadata(proc.join("self/ns/pid")).is_ok_and(|namespace| namespace.ino() == INITIAL)
}

/// Reads a listing to its end: network namespaces by process.
pub(super) fn read(mut from: File) -> io::Result<HashMap<u32, u32>> {
    const RECORD: usize = size_of::<TaskRecord>();
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    let records = bytes.as_chunks::<RECORD>().0.iter().map(record);
    Ok(records.filter(|record| record.netns != 0).map(|record| (record.pid, record.netns)).collect())
}

#[expect(unsafe_code, reason = "the kernel's record as it comes")]
fn record(bytes: &[u8; size_of::<TaskRecord>()]) -> TaskRecord {
    // SAFETY: plain data of exactly this size, for which any bytes are a value; read without asking for alignment.
    unsafe { bytes.as_ptr().cast::<TaskRecord>().read_unaligned() }
}
