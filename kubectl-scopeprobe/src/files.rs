//! Reads files, folders and standard input.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use view::{Map, inventory::Inventory, read};

/// Text of a file.
pub struct Content {
    /// Name of the file, for errors.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Returns whether a file of a folder is read: its name ends with `.yaml`, `.yml` or `.json`.
pub fn is_read(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|it| matches!(it, "yaml" | "yml" | "json"))
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
    let (mut edges, mut caveats) = (Vec::new(), Vec::new());
    for Content { name, text } in contents {
        let map = read::text(text).with_context(|| name.clone())?;
        edges.extend(map.edges);
        caveats.extend(map.caveats);
    }
    Ok(Map::joined(edges, caveats))
}

/// Returns the map of files of one cluster, and the other objects in them.
///
/// # Errors
/// Returns an error with the file's name if it has no object.
pub fn map_with_inventory(contents: &[Content]) -> Result<(Map, Inventory)> {
    let (mut edges, mut caveats, mut inventory) = (Vec::new(), Vec::new(), Inventory::default());
    for Content { name, text } in contents {
        let (map, other) = read::with_inventory(text).with_context(|| name.clone())?;
        edges.extend(map.edges);
        caveats.extend(map.caveats);
        inventory.append(other);
    }
    Ok((Map::joined(edges, caveats), inventory))
}

/// Returns the files of a folder and of the folders in it, without hidden ones.
fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![path.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            // A link to a folder could lead back.
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if is_read(&path) && path.is_file() {
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
