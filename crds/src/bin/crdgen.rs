//! Writes the manifests of the kinds and the reference of their fields into the repository.
#![forbid(unsafe_code)]

use std::{error::Error, fs, path::Path};

use scopeprobe_crds::{manifests, reference};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let directory = root.join(manifests::DIRECTORY);
    fs::create_dir_all(&directory)?;
    for (name, contents) in manifests::files()? {
        fs::write(directory.join(name), contents)?;
    }
    fs::write(root.join(reference::PATH), reference::markdown()?)?;
    Ok(())
}
