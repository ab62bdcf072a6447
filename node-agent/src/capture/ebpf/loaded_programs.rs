//! Programs of other owners in the kernel, as its iterator lists them.

use std::{
    fs::File,
    io::{self, Read},
};

use node_agent_common::ProgramRecord;

/// Reads a listing to its end.
pub(super) fn read(mut from: File) -> io::Result<Vec<ProgramRecord>> {
    const RECORD: usize = size_of::<ProgramRecord>();
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Ok(bytes.as_chunks::<RECORD>().0.iter().map(record).collect())
}

#[expect(unsafe_code, reason = "the kernel's record as it comes")]
fn record(bytes: &[u8; size_of::<ProgramRecord>()]) -> ProgramRecord {
    // SAFETY: plain data of exactly this size, for which any bytes are a value; read without asking for alignment.
    unsafe { bytes.as_ptr().cast::<ProgramRecord>().read_unaligned() }
}

/// Returns whether a program redirects the payload of sockets in a map (`BPF_PROG_TYPE_SK_SKB`, `BPF_PROG_TYPE_SK_MSG`).
pub(super) fn redirects_payload(program: &ProgramRecord) -> bool {
    matches!(program.kind, 14 | 16)
}

/// Describes these programs as `bpftool` shows them.
pub(super) fn describe(ids: &[u32], loaded: &[ProgramRecord]) -> String {
    let each: Vec<_> = ids
        .iter()
        .map(|id| {
            let name = loaded.iter().find(|program| program.id == *id).map(name).unwrap_or_default();
            if name.is_empty() { format!("ID {id}") } else { format!("{name} (ID {id})") }
        })
        .collect();
    each.join(", ")
}

fn name(program: &ProgramRecord) -> String {
    let bytes: Vec<u8> =
        program.name.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_described_by_name_and_id() {
        let name = |name: &[u8; 16]| {
            let (words, _) = name.as_chunks::<8>();
            [0, 1].map(|index| u64::from_ne_bytes(words[index]))
        };
        let loaded = [
            ProgramRecord { id: 7, kind: 13, name: name(b"latency\0\0\0\0\0\0\0\0\0") },
            ProgramRecord { id: 8, kind: 13, name: [0; 2] },
        ];
        assert_eq!(describe(&[7, 8, 9], &loaded), "latency (ID 7), ID 8, ID 9");
    }
}
