//! Puts the programs for the kernel where the agent includes them: built from source where the toolchain is, the
//! committed object elsewhere. `SCOPEPROBE_EBPF` decides otherwise: `source`, `committed`, or `auto` (the default).

mod ebpf_sources;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ebpf_sources::{ebpf_sources, hash_of_ebpf_sources};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    println!("cargo::rerun-if-env-changed=SCOPEPROBE_EBPF");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=ebpf_sources.rs");
    println!("cargo::rerun-if-changed=ebpf-object");
    let package = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = package.join("..");
    for source in ebpf_sources(&workspace)? {
        println!("cargo::rerun-if-changed=../{}", source.display());
    }
    let committed = package.join("ebpf-object/scopeprobe.o");
    let object = match env::var("SCOPEPROBE_EBPF").as_deref().unwrap_or("auto") {
        "source" => build(&workspace)?,
        // Nothing to gain from building what is committed.
        "auto" if !is_current(&package)? && has_toolchain() => build(&workspace)?,
        "auto" | "committed" => committed,
        other => return Err(format!("SCOPEPROBE_EBPF={other}: it is auto, source or committed").into()),
    };
    let out = PathBuf::from(env::var("OUT_DIR")?).join("scopeprobe.o");
    fs::copy(&object, out).map_err(|error| format!("copying {}: {error}", object.display()))?;
    Ok(())
}

/// Returns whether the committed object was built from the current sources.
fn is_current(package: &Path) -> Outcome<bool> {
    let note = fs::read_to_string(package.join("ebpf-object/scopeprobe.txt"))?;
    let noted = note.lines().find_map(|line| line.strip_prefix("sources "));
    let current = noted == Some(&hash_of_ebpf_sources(&package.join(".."))?);
    if !current {
        println!("cargo::warning=the committed eBPF object is older than its sources: run `cargo xtask ebpf-object`");
    }
    Ok(current)
}

fn has_toolchain() -> bool {
    let runs = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let sysroot = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
    let has_core = sysroot.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    });
    has_core && runs("bpf-linker", &["--version"])
}

/// Builds with the settings of node-agent-ebpf/.cargo/config.toml, regardless of the host's settings.
fn build(workspace: &Path) -> Outcome<PathBuf> {
    let target = PathBuf::from(env::var("OUT_DIR")?).join("ebpf");
    let status = Command::new("rustup")
        .args(["run", "nightly", "cargo", "build", "--release", "--locked"])
        .current_dir(workspace.join("node-agent-ebpf"))
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTUP_TOOLCHAIN")
        .status()
        .map_err(|error| format!("running rustup: {error}; see scripts/ebpf-toolchain.sh"))?;
    if !status.success() {
        return Err("building node-agent-ebpf failed: see above, and scripts/ebpf-toolchain.sh".into());
    }
    Ok(target.join("bpfel-unknown-none/release/scopeprobe"))
}
