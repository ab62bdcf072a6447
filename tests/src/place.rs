//! Paths of the repository, the cache and their programs; runs these programs.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::{Error, Result};

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Returns the directory of tools and clusters, as the scripts define it.
#[must_use]
pub fn cache() -> PathBuf {
    env::var_os("SCOPEPROBE_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache/scopeprobe"),
        PathBuf::from,
    )
}

/// A program of the cache (kubectl, helm, …) where it is there, otherwise by its name from the path.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let cached = cache().join("bin").join(name);
    if cached.exists() { cached } else { name.into() }
}

/// A script of the repository.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    repository().join("scripts").join(name)
}

/// Runs a program to its end and returns what it printed to standard output.
///
/// # Errors
/// Returns an error if it cannot be started or its exit code is not 0.
pub async fn run(
    program: &Path,
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
    variables: &[(&str, &Path)],
) -> Result<String> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let command = format!("{} {}", program.display(), arguments.join(" ".as_ref()).display());
    let output = Command::new(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(Error::io(format!("start `{command}`")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let output_text = text + &String::from_utf8_lossy(&output.stderr);
    Err(Error::Program { command, status: output.status.to_string(), output: output_text })
}
