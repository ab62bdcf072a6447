//! The one layer of an image: its files and the few directories that programs expect.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use tar::{Builder, EntryType, Header};

/// Makes the layer's tar of the files (path without a leading slash → content). Owner, time and order are fixed.
pub fn write(files: &BTreeMap<String, Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for directory in directories(files.keys()) {
        let mode = if directory == "tmp" { 0o1777 } else { 0o755 };
        append(&mut tar, &format!("{directory}/"), EntryType::Directory, mode, &[])?;
    }
    for (path, content) in files {
        append(&mut tar, path, EntryType::Regular, 0o755, content)?;
    }
    tar.into_inner()
}

/// `/tmp`, and every directory above a file, parents first.
fn directories<'a>(files: impl Iterator<Item = &'a String>) -> BTreeSet<&'a str> {
    let mut directories = BTreeSet::from(["tmp"]);
    for file in files {
        directories.extend(file.match_indices('/').map(|(end, _)| &file[..end]));
    }
    directories
}

/// Appends one entry of root's, from 1970.
pub fn append(tar: &mut Builder<Vec<u8>>, path: &str, kind: EntryType, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_their_files() {
        let files = BTreeMap::from([("usr/bin/a".to_owned(), b"A".to_vec()), ("b".to_owned(), b"B".to_vec())]);
        let layer = write(&files).unwrap();
        let paths: Vec<_> = tar::Archive::new(layer.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(paths, ["tmp/", "usr/", "usr/bin/", "b", "usr/bin/a"]);
    }
}
