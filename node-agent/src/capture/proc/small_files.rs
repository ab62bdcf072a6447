//! Reads small files at most once.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// Returns the first `most` bytes of a file.
pub(in crate::capture) fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
