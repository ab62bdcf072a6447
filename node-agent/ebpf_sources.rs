// What the programs for the kernel are built from, and its hash: included by build.rs and by the test that compares it
// with what the committed object was built from.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Relative to the workspace, sorted. The same as in scripts/ebpf-object.sh.
fn ebpf_sources(workspace: &Path) -> io::Result<Vec<PathBuf>> {
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
        for entry in fs::read_dir(workspace.join(directory))? {
            files.push(Path::new(directory).join(entry?.file_name()));
        }
    }
    files.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(files)
}

/// The hash over names and contents.
fn hash_of_ebpf_sources(workspace: &Path) -> io::Result<String> {
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
