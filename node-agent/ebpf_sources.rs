//! The sources of the programs for the kernel, and their hash. A module of build.rs, of the test of the committed object,
//! and of `cargo xtask ebpf-object`: all three share the file by its path, and a build script needs no further crate.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Returns the sources, relative to the workspace and sorted.
pub fn ebpf_sources(workspace: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = [
        "node-agent-common/Cargo.toml",
        "node-agent-ebpf/.cargo/config.toml",
        "node-agent-ebpf/Cargo.lock",
        "node-agent-ebpf/Cargo.toml",
        "node-agent-ebpf/rust-toolchain.toml",
    ]
    .map(PathBuf::from)
    .to_vec();
    for directory in ["node-agent-common/src", "node-agent-ebpf/src"] {
        add_files(workspace, Path::new(directory), &mut files)?;
    }
    files.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(files)
}

fn add_files(workspace: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(workspace.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            add_files(workspace, &path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Returns the hash over names and contents.
pub fn hash_of_ebpf_sources(workspace: &Path) -> io::Result<String> {
    let mut all = String::new();
    for file in ebpf_sources(workspace)? {
        let hash = hex(&Sha256::digest(fs::read(workspace.join(&file))?));
        all = all + &hash + " " + &file.to_string_lossy() + "\n";
    }
    Ok(hex(&Sha256::digest(all)))
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect()
}
