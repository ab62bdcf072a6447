//! Generated files. A test compares each with the code that it follows from, and writes it if
//! `SCOPEPROBE_WRITE_GENERATED` is set.
//!
//! So this program depends on no product crate, and cargo compiles the tests' dependencies with the features that they
//! have anyway.

use crate::workspace::{self, Workspace};

/// Variable that makes tests of generated files write them.
const WRITE: &str = "SCOPEPROBE_WRITE_GENERATED";
/// Targets and names of the tests of the custom resources' files.
const CRDS: &[&str] = &["--test", "drift"];
/// Targets and names of the tests of the files that follow from the agents' privileges.
const PRIVILEGES: &[&str] = &["--lib", "rollout::privileges::"];

/// Writes the manifests of the custom resources and their reference.
pub fn write_crds(workspace: &Workspace) -> anyhow::Result<()> {
    write(workspace, CRDS)
}

/// Writes every generated file.
pub fn write_all(workspace: &Workspace) -> anyhow::Result<()> {
    write(workspace, CRDS)?;
    write(workspace, PRIVILEGES)
}

fn write(workspace: &Workspace, tests: &[&str]) -> anyhow::Result<()> {
    let mut cargo = workspace.command("cargo");
    cargo.args(["test", "--quiet", "--workspace", "--locked", "--features", workspace::test_features()?]);
    workspace::run(cargo.args(tests).env(WRITE, "1"))
}
