//! Puts the compiled programs for the kernel where the agent includes them.

use std::{env, fs, path::PathBuf};

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    println!("cargo::rerun-if-changed=ebpf-object/scopeprobe.o");
    fs::copy(here.join("ebpf-object/scopeprobe.o"), out.join("scopeprobe.o")).unwrap();
}
