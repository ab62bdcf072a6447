//! The repository's folders, and programs that run in it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

/// Shell file with the features that enable every test: scripts use it too, so that nothing is compiled twice.
const FEATURES: &str = include_str!("../../tests/features.sh");

/// The repository. Relative paths count from its root, wherever the user is.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Returns the workspace that cargo runs this program for.
    pub fn find() -> anyhow::Result<Self> {
        // Cargo's variable first: a target folder may come from another checkout.
        let package =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package.parent().with_context(|| format!("{} has no parent folder", package.display()))?;
        ensure!(root.join("Cargo.lock").exists(), "{} is no workspace: run `cargo xtask`", root.display());
        Ok(Self { root: root.to_owned() })
    }

    /// Returns the root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns a path below the root; an absolute path stays as it is.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// Returns the folder of tools and archives that outlive the target folder (`SCOPEPROBE_CACHE`).
    pub fn cache(&self) -> anyhow::Result<PathBuf> {
        if let Some(cache) = set("SCOPEPROBE_CACHE") {
            return Ok(self.path(cache));
        }
        let home = set("HOME").context("neither SCOPEPROBE_CACHE nor HOME is set")?;
        Ok(Path::new(&home).join(".cache/scopeprobe"))
    }

    /// Returns the folder of the programs that cargo builds for a target with a profile.
    pub fn programs(&self, target: &str, profile: &str) -> PathBuf {
        self.target().join(target).join(if profile == "dev" { "debug" } else { profile })
    }

    /// Returns the target of programs for this machine.
    pub fn host(&self) -> anyhow::Result<String> {
        let version = output(self.command("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
        Ok(host.to_owned())
    }

    /// Returns the folder of all that cargo builds.
    pub fn target(&self) -> PathBuf {
        self.path(set("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
    }

    /// Returns a command that runs in the root, without the variables of this package. Build scripts ask for them (ring's
    /// does): their crates, and all that use these, would be compiled again.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        for (variable, _) in env::vars_os().filter(|(variable, _)| is_of_package(variable)) {
            command.env_remove(variable);
        }
        command
    }
}

/// Returns the features that enable every test, separated by commas.
pub fn test_features() -> anyhow::Result<&'static str> {
    FEATURES.lines().find_map(|line| line.strip_prefix("TEST_FEATURES=")).context("tests/features.sh names no features")
}

/// Runs a command. A failure of the command is an error.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", program(command)))?;
    ensure!(status.success(), "{} failed ({status}); its output is above", program(command));
    Ok(())
}

/// Runs a command and returns its standard output, without white space at the end.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", program(command)))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed ({}): {}", program(command), output.status, error.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Returns whether cargo sets this variable for the package that it builds or runs.
fn is_of_package(variable: &std::ffi::OsStr) -> bool {
    let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_PACKAGE"];
    variable.to_str().is_some_and(|variable| of_package.iter().any(|prefix| variable.starts_with(prefix)))
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Returns a variable of the environment unless it is empty, as `${VARIABLE:-}` does.
pub fn set(variable: &str) -> Option<std::ffi::OsString> {
    env::var_os(variable).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_tests_are_one_list() {
        let features = test_features().unwrap();
        assert!(features.split(',').all(|feature| feature.contains('/')), "{features}");
        assert!(!features.contains([' ', '"', '$']), "{features}");
    }

    #[test]
    fn commands_do_not_know_of_the_package() {
        let workspace = Workspace { root: "/".into() };
        let known = output(&mut workspace.command("env")).unwrap();
        assert!(env::var_os("CARGO_PKG_NAME").is_some(), "cargo runs tests with its variables");
        assert!(!known.contains("CARGO_PKG_") && !known.contains("CARGO_MANIFEST_"), "{known}");
    }

    #[test]
    fn paths_count_from_the_root() {
        let workspace = Workspace { root: "/repository".into() };
        assert_eq!(workspace.path("dist/a.tar"), Path::new("/repository/dist/a.tar"));
        assert_eq!(workspace.path("/cache/a.tar"), Path::new("/cache/a.tar"));
    }
}
