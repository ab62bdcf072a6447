//! Builds the programs of images.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;

use super::{DEV, kind::Image};
use crate::{
    platform::Platform,
    workspace::{self, Workspace},
};

/// Builds the programs for a platform with one call of cargo, so that no library is built twice with other features. Returns
/// their folder.
pub fn build(workspace: &Workspace, profile: &str, platform: Platform, images: &[Image]) -> anyhow::Result<PathBuf> {
    let mut build = platform.cargo(workspace, "build")?;
    build.args(["--locked", "--profile", profile]);
    if profile == DEV {
        build.args(["--workspace", "--lib", "--bins", "--tests", "--features", workspace::test_features()?]);
    } else {
        // Before their paths can be replaced, the sources have to be there.
        workspace::run(platform.cargo(workspace, "fetch")?.arg("--locked"))?;
        build.arg("--config").arg(release_settings(workspace, platform)?);
        // Otherwise, the allocator's build asks this machine's processor and kernel. Programs get no addresses of more bits
        // unless they ask for them (Linux 4.14, Documentation/arch/x86/x86_64/5level-paging.rst).
        build.env("JEMALLOC_SYS_WITH_LG_VADDR", "48").env("JEMALLOC_SYS_WITH_LG_HUGEPAGE", "21");
        for image in images {
            build.args(["--package", image.package(), "--bin", image.program()]);
        }
    }
    workspace::run(&mut build)?;
    Ok(workspace.programs(&platform.target(), profile))
}

/// Packs the addresses that a program at a random place in memory corrects when it starts. It needs glibc 2.36 or newer.
/// Linkers ignore it for platforms on which they do not support it.
const PACKED_RELOCATIONS: &str = "-Clink-arg=-Wl,-z,pack-relative-relocs";

/// Returns the setting of cargo that replaces this machine's paths in programs, so that equal sources make equal programs, and
/// packs them.
fn release_settings(workspace: &Workspace, platform: Platform) -> anyhow::Result<String> {
    let compiler = platform.compiler(workspace)?.unwrap_or_else(|| "rustc".into());
    let rustc =
        |arguments: &[&str]| workspace::output(Command::new(&compiler).current_dir(workspace.root()).args(arguments));
    let version = rustc(&["-vV"])?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")).context("rustc has no commit")?;
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    let mut paths = vec![
        (workspace.root().to_owned(), "/source".to_owned()),
        (workspace.target(), "/target".to_owned()),
        (sysroot.join("lib/rustlib/src/rust"), format!("/rustc/{commit}")),
    ];
    // A folder for each registry. Its name depends on the registry's address, which may be a mirror's.
    let registries = cargo_home()?.join("registry/src");
    for registry in fs::read_dir(&registries).into_iter().flatten() {
        paths.push((registry?.path(), "/crates".to_owned()));
    }
    Ok(setting(&paths))
}

/// Returns Cargo's home.
pub fn cargo_home() -> anyhow::Result<PathBuf> {
    if let Some(home) = workspace::set("CARGO_HOME") {
        return Ok(home.into());
    }
    Ok(Path::new(&workspace::set("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"))
}

/// Returns the setting as TOML. Cargo adds it to the flags of `.cargo/config.toml`.
fn setting(paths: &[(PathBuf, String)]) -> String {
    let replace =
        |(path, replacement): &(PathBuf, String)| format!("--remap-path-prefix={}={replacement}", path.display());
    let flags: Vec<_> = paths.iter().map(replace).chain([PACKED_RELOCATIONS.to_owned()]).collect();
    format!("target.'cfg(all())'.rustflags={flags:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_one_setting() {
        let paths = [("/a b".into(), "/source".to_owned()), ("/c".into(), "/crates".to_owned())];
        assert_eq!(
            setting(&paths),
            r#"target.'cfg(all())'.rustflags=["--remap-path-prefix=/a b=/source", "--remap-path-prefix=/c=/crates", "-Clink-arg=-Wl,-z,pack-relative-relocs"]"#
        );
    }
}
