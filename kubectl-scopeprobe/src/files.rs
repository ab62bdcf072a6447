//! Reads files, folders and standard input.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use view::{Map, inventory::Inventory, read::Objects};

/// Text of a file.
pub struct Content {
    /// Name of the file, for errors.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Returns whether a file of a folder is read, by its path from there: its name ends with `.yaml`, `.yml` or `.json`, and no
/// part of the path is hidden.
pub fn is_read(path: &Path) -> bool {
    let is_hidden = |part: &OsStr| part.to_string_lossy().starts_with('.');
    path.extension().and_then(OsStr::to_str).is_some_and(|it| matches!(it, "yaml" | "yml" | "json"))
        && !path.components().any(|part| matches!(part, Component::Normal(part) if is_hidden(part)))
}

/// Returns the texts of files, of all files of folders, and of standard input for `-`.
///
/// # Errors
/// Returns an error with the file's name if it cannot be read.
pub fn contents(paths: &[PathBuf]) -> Result<Vec<Content>> {
    let mut contents = Vec::new();
    for path in paths {
        if path.is_dir() {
            let files = folder(path)?;
            if files.is_empty() {
                bail!("{}: no file of the folder ends with .yaml, .yml or .json", path.display());
            }
            for file in files {
                contents.push(content(&file)?);
            }
        } else {
            contents.push(content(path)?);
        }
    }
    Ok(contents)
}

/// Returns the map of files of one cluster.
///
/// # Errors
/// Returns an error with the file's name if it is no map.
pub fn map(contents: &[Content]) -> Result<Map> {
    let mut objects = Objects::default();
    for Content { name, text } in contents {
        objects.add(text).with_context(|| name.clone())?;
    }
    Ok(objects.map())
}

/// Returns the map of files of one cluster, and the other objects in them.
///
/// # Errors
/// Returns an error with the file's name if it has no object.
pub fn map_with_inventory(contents: &[Content]) -> Result<(Map, Inventory)> {
    let mut objects = Objects::default();
    for Content { name, text } in contents {
        objects.add_with_inventory(text).with_context(|| name.clone())?;
    }
    Ok(objects.map_and_inventory())
}

/// Returns the files of a folder and of the folders in it, without hidden ones, links and other repositories. A commit has the
/// same ones.
fn folder(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let from_root = path.strip_prefix(root).unwrap_or(&path);
            if kind.is_dir() && !path.join(".git").exists() {
                folders.push(path);
            } else if kind.is_file() && is_read(from_root) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn content(path: &Path) -> Result<Content> {
    let is_input = path == Path::new("-");
    let name = if is_input { "standard input".to_owned() } else { path.display().to_string() };
    let text = if is_input {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    Ok(Content { text: text.with_context(|| name.clone())?, name })
}
