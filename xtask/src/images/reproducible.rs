//! Comparison of two builds in different folders.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use super::{archive::sha256, build::cargo_home};
use crate::workspace::{self, Workspace};

/// Builds the images again with the same arguments, from a copy of the sources and of Cargo's home at other paths, and
/// compares what both builds wrote.
pub fn compare(workspace: &Workspace, arguments: &[String], files: &[PathBuf]) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("another-folder").tempdir()?;
    let copy = folder.path().join("sources");
    copy_sources(workspace, &copy)?;
    let home = folder.path().join("cargo");
    fs::create_dir(&home)?;
    // The settings may name a mirror of the registry.
    for name in ["registry", "config.toml"] {
        let known = cargo_home()?.join(name);
        if known.exists() {
            symlink(known, home.join(name))?;
        }
    }
    let mut again = workspace.command(env::current_exe()?.to_str().context("the path of xtask is no text")?);
    again.args(arguments).current_dir(&copy).env("CARGO_HOME", home).env("CARGO_MANIFEST_DIR", copy.join("xtask"));
    again.env("CARGO_TARGET_DIR", folder.path().join("programs"));
    workspace::run(&mut again)?;
    for file in files {
        let digests = [workspace.path(file), copy.join(file)].map(|path| -> anyhow::Result<String> {
            Ok(sha256(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?))
        });
        let [first, second] = digests;
        let (first, second) = (first?, second?);
        ensure!(first == second, "{} differs between two builds: sha256:{first}, sha256:{second}", file.display());
        println!("{}: two builds, sha256:{first}", file.display());
    }
    Ok(())
}

/// Copies all files that git knows or would add.
fn copy_sources(workspace: &Workspace, copy: &Path) -> anyhow::Result<()> {
    let mut git = workspace.command("git");
    let names = workspace::output(git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    for name in names.split_terminator('\0') {
        let (from, to) = (workspace.path(name), copy.join(name));
        // A file that was deleted and not yet committed so.
        if !from.exists() {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}
