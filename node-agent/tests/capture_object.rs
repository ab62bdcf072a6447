//! The committed object of the programs for the kernel is that of the committed sources.

#[path = "../ebpf_sources.rs"]
mod ebpf_sources;

use std::{fs, path::Path};

use ebpf_sources::hash_of_ebpf_sources;

#[test]
fn the_committed_object_is_as_new_as_its_sources() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let note = fs::read_to_string(package.join("ebpf-object/scopeprobe.txt")).unwrap();
    let noted = note.lines().find_map(|line| line.strip_prefix("sources ")).unwrap();
    let current = hash_of_ebpf_sources(&package.join("..")).unwrap();
    assert_eq!(noted, current, "run `cargo xtask ebpf-object` and commit the files that it writes");
}

/// Nothing of the machine that built it: only so can another one build the same.
#[test]
fn the_committed_object_names_no_path() {
    let object = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("ebpf-object/scopeprobe.o")).unwrap();
    let home = std::env::var("HOME").unwrap_or_default();
    for path in ["/.cargo/", "/rustc/", "/src/", home.as_str()].iter().filter(|path| path.len() > 1) {
        assert!(!object.windows(path.len()).any(|window| window == path.as_bytes()), "it names {path}");
    }
}
