//! The committed object of node-agent-ebpf, and the note beside it that names its sources and toolchain.

mod btf;
mod note;
mod strip;

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use anyhow::{Context, bail};
use prerequisites::Prerequisite;

use self::{note::Note, strip::stripped};
use crate::{
    ebpf_sources::{ebpf_sources, hash_of_ebpf_sources},
    workspace::{self, Workspace},
};

/// Arguments of `cargo xtask ebpf-object`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Builds elsewhere and compares byte for byte. Skips that if the toolchain is missing or is another one than that of
    /// the committed object, unless `SCOPEPROBE_REQUIRE` forbids it.
    #[arg(long)]
    check: bool,
}

const OBJECT: &str = "node-agent/ebpf-object/scopeprobe.o";
const NOTE: &str = "node-agent/ebpf-object/scopeprobe.txt";
const AGAIN: &str = "run `cargo xtask ebpf-object` and commit the files that it writes";
/// Folder of every build: the names of functions in the object depend on the path of the sources.
const PLACE: &str = "/tmp/scopeprobe-ebpf-object";
/// Variables that set up the surrounding build for the host, not for the kernel.
const OF_THE_HOST: [&str; 6] =
    ["CARGO_ENCODED_RUSTFLAGS", "LD_LIBRARY_PATH", "RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"];

/// Rebuilds or compares the object.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    let has_toolchain = workspace.command("scripts/ebpf-toolchain.sh").arg("--check").status()?.success();
    match (arguments.check, has_toolchain) {
        (true, true) => check(workspace),
        (true, false) => skip("the committed object is not compared with its sources: scripts/ebpf-toolchain.sh"),
        (false, true) => write(workspace),
        (false, false) => bail!("the toolchain is missing: run scripts/ebpf-toolchain.sh"),
    }
}

fn write(workspace: &Workspace) -> anyhow::Result<()> {
    let note = current_note(workspace)?;
    let built = build(workspace, &workspace.path("node-agent-ebpf/target"))?;
    fs::write(workspace.path(OBJECT), built).with_context(|| format!("cannot write {OBJECT}"))?;
    fs::write(workspace.path(NOTE), note.to_string()).with_context(|| format!("cannot write {NOTE}"))?;
    eprintln!("ebpf-object: wrote {OBJECT}");
    Ok(())
}

fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let noted = fs::read_to_string(workspace.path(NOTE)).with_context(|| format!("cannot read {NOTE}"))?;
    let noted: Note = noted.parse().with_context(|| format!("{NOTE} is malformed: {AGAIN}"))?;
    let current = current_note(workspace)?;
    if noted.sources != current.sources {
        bail!("{OBJECT} is older than its sources: {AGAIN}");
    }
    if noted.toolchain != current.toolchain {
        eprintln!("ebpf-object: built by\n{}\nbut this machine has\n{}", noted.toolchain, current.toolchain);
        return skip("another toolchain than this machine's built the committed object");
    }
    let scratch = tempfile::tempdir()?;
    let built = build(workspace, scratch.path())?;
    if built != fs::read(workspace.path(OBJECT))? {
        bail!("{OBJECT} differs from the object that its sources make: {AGAIN}");
    }
    eprintln!("ebpf-object: the committed object is what its sources make");
    Ok(())
}

fn skip(reason: &str) -> anyhow::Result<()> {
    Ok(prerequisites::record_skipped("ebpf-object", Prerequisite::EbpfToolchain, reason)?)
}

/// Returns the note on an object that is built now.
fn current_note(workspace: &Workspace) -> anyhow::Result<Note> {
    let compiler = workspace::output(workspace.command("rustup").args(["run", "nightly", "rustc", "--version"]))?;
    let linker = workspace::output(workspace.command("bpf-linker").arg("--version"))?;
    let sources = hash_of_ebpf_sources(workspace.root()).context("cannot read the sources of node-agent-ebpf")?;
    Ok(Note { sources, toolchain: format!("{compiler}\n{linker}") })
}

/// Builds into a target folder and returns the object. One build at a time on a machine uses [`PLACE`].
fn build(workspace: &Workspace, target: &Path) -> anyhow::Result<Vec<u8>> {
    let lock = File::create(format!("{PLACE}.lock")).context("cannot lock the place of the build")?;
    lock.lock().context("cannot lock the place of the build")?;
    let place = Path::new(PLACE);
    remove(place).and_then(|()| copy_sources(workspace, place)).with_context(|| format!("cannot write {PLACE}"))?;
    let mut cargo = workspace.command("rustup");
    cargo.args(["run", "nightly", "cargo", "build", "--release", "--locked", "--quiet"]);
    cargo.current_dir(place.join("node-agent-ebpf")).env("CARGO_TARGET_DIR", target);
    for variable in OF_THE_HOST {
        cargo.env_remove(variable);
    }
    workspace::run(&mut cargo)?;
    remove(place)?;
    stripped(&fs::read(target.join("bpfel-unknown-none/release/scopeprobe"))?)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies the sources, and the workspace's manifest, from which node-agent-common inherits.
fn copy_sources(workspace: &Workspace, place: &Path) -> io::Result<()> {
    fs::create_dir(place)?;
    let mut files = ebpf_sources(workspace.root())?;
    files.push("Cargo.toml".into());
    for file in files {
        let copy = place.join(&file);
        if let Some(folder) = copy.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(workspace.path(&file), copy)?;
    }
    Ok(())
}
