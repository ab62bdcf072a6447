//! Reads files of a commit with the program `git`, which has the rights and settings of the user's repositories.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::files::{Content, is_read};

/// File of a commit.
#[derive(Debug, PartialEq, Eq)]
struct Blob {
    /// Identifier of the content.
    id: String,
    /// Path from the current directory.
    path: PathBuf,
}

/// Returns the texts of files, and of all files of folders, as a commit has them.
///
/// # Errors
/// Returns an error if there is no such commit or file, or no repository.
pub fn contents(reference: &str, paths: &[PathBuf]) -> Result<Vec<Content>> {
    let tree = tree(reference)?;
    let mut contents = Vec::new();
    for path in paths {
        let listed = run([OsStr::new("ls-tree"), "-rz".as_ref(), tree.as_ref(), "--".as_ref(), path.as_ref()])?;
        let blobs = selected(blobs(&listed), path);
        if blobs.is_empty() {
            bail!("{reference} has no file {}, and no .yaml, .yml or .json file in such a folder", path.display());
        }
        for Blob { id, path } in blobs {
            let name = format!("{reference}:{}", path.display());
            let text = run(["cat-file", "blob", &id].map(OsStr::new)).with_context(|| name.clone())?;
            contents.push(Content { text: String::from_utf8(text).with_context(|| name.clone())?, name });
        }
    }
    Ok(contents)
}

/// Returns the identifier of a commit's files.
fn tree(reference: &str) -> Result<String> {
    // An option in place of a commit is an error.
    let arguments = ["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{reference}^{{tree}}")];
    let output = match output(&arguments.map(OsStr::new))? {
        Ok(output) => output,
        // With --quiet, it says nothing about a name that it does not know.
        Err(message) if message.is_empty() => bail!("the repository has no commit, branch or tag {reference}"),
        Err(message) => bail!("git rev-parse: {message}"),
    };
    Ok(String::from_utf8(output).context("git rev-parse")?.trim().to_owned())
}

/// Returns the output of `git`.
fn run<'a>(arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<Vec<u8>> {
    let arguments: Vec<&OsStr> = arguments.into_iter().collect();
    let command = arguments.first().map(|command| command.to_string_lossy().into_owned()).unwrap_or_default();
    output(&arguments)?.map_err(|message| anyhow!("git {command} failed: {message}"))
}

/// Runs `git` in the current directory. Returns its output, or what it says about a failure.
///
/// A repository may be a stranger's: what it lacks is not fetched, which could run the programs that its configuration names.
fn output(arguments: &[&OsStr]) -> Result<Result<Vec<u8>, String>> {
    let mut git = Command::new("git");
    git.args(["--literal-pathspecs", "--no-replace-objects"]).args(arguments).stdin(Stdio::null());
    git.envs([("GIT_ALLOW_PROTOCOL", "none"), ("GIT_NO_LAZY_FETCH", "1"), ("GIT_TERMINAL_PROMPT", "0")]);
    let output = git.output().context("cannot run git, which --ref needs; install it")?;
    if output.status.success() {
        return Ok(Ok(output.stdout));
    }
    Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Returns the files in the output of `git ls-tree -z`, without links and submodules.
fn blobs(listed: &[u8]) -> Vec<Blob> {
    let blob = |entry: &[u8]| {
        let tab = entry.iter().position(|byte| *byte == b'\t')?;
        let head = std::str::from_utf8(&entry[..tab]).ok()?;
        let mut fields = head.split(' ');
        let (mode, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        let path = PathBuf::from(OsStr::from_bytes(&entry[tab + 1..]));
        mode.starts_with("100").then(|| Blob { id: id.to_owned(), path })
    };
    listed.split(|byte| *byte == 0).filter_map(blob).collect()
}

/// Returns the named file, or those of the named folder that have objects by their names.
fn selected(mut blobs: Vec<Blob>, path: &Path) -> Vec<Blob> {
    let is_file = blobs.len() == 1 && blobs[0].path.file_name() == path.file_name();
    if !is_file {
        let folder: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        blobs.retain(|blob| is_read(blob.path.strip_prefix(&folder).unwrap_or(&blob.path)));
    }
    blobs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_without_links_and_other_types() {
        let listed = b"100644 blob aa\tt/a.yaml\x00120000 blob bb\tt/link.yaml\x00160000 commit cc\tt/module\x00\
            100755 blob dd\tt/tab\there.json\x00100644 blob ee\tt/README.md\x00100644 blob ff\tt/.ci/f.yml\x00";
        let blob = |id: &str, path: &str| Blob { id: id.to_owned(), path: path.into() };
        assert_eq!(selected(blobs(listed), Path::new("t")), [blob("aa", "t/a.yaml"), blob("dd", "t/tab\there.json")]);
        let one = || vec![blob("aa", "t/objects")];
        assert_eq!(selected(one(), Path::new("t/objects")), one(), "a named file is read regardless of its name");
        assert_eq!(selected(one(), Path::new("t")), []);
    }
}
