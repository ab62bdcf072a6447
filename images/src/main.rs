//! Writes a container image of static programs without a container engine: `write-image OUT.tar NAME:TAG ENTRYPOINT
//! PATH=FILE…`. The same input gives the same bytes.
#![forbid(unsafe_code)]

mod archive;
mod layer;

use std::{fs, path::PathBuf, str::FromStr};

use anyhow::{Context, bail};
use clap::Parser;

/// Writes a docker-archive of one layer, as `docker load`, `ctr images import`, `kind load image-archive` and
/// `minikube image load` read it.
#[derive(Parser)]
#[command(name = "write-image", version)]
struct Arguments {
    /// The archive to write.
    output: PathBuf,
    /// The image's name with its tag, such as scopeprobe/agent:0.1.0.
    name: String,
    /// The absolute path of the program that the image starts.
    entrypoint: String,
    /// Content of the image: an absolute path in the image, `=`, a local file. All files get mode 0755.
    #[arg(required = true, value_name = "PATH=FILE")]
    files: Vec<Content>,
}

/// One file of the image, and the local file that it is copied from.
#[derive(Clone)]
struct Content {
    path: String,
    source: PathBuf,
}

impl FromStr for Content {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((path, source)) if path.starts_with('/') && path.len() > 1 && !source.is_empty() => {
                Ok(Self { path: path.to_owned(), source: source.into() })
            }
            _ => Err("expected /absolute/path/in/the/image=file".to_owned()),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Some((_, tag)) = arguments.name.rsplit_once(':') else {
        bail!("the image name {:?} has no tag: write NAME:TAG", arguments.name);
    };
    if tag.is_empty() || tag.contains('/') {
        bail!("the image name {:?} has no tag: write NAME:TAG", arguments.name);
    }
    if !arguments.files.iter().any(|file| file.path == arguments.entrypoint) {
        bail!("the entry point {} is none of the image's files", arguments.entrypoint);
    }
    let files = arguments
        .files
        .iter()
        .map(|file| {
            let bytes = fs::read(&file.source)
                .with_context(|| format!("cannot read {} for the image's {}", file.source.display(), file.path))?;
            Ok((file.path.trim_start_matches('/').to_owned(), bytes))
        })
        .collect::<anyhow::Result<_>>()?;
    let archive = archive::write(&arguments.name, &arguments.entrypoint, &layer::write(&files)?)?;
    fs::write(&arguments.output, archive).with_context(|| format!("cannot write {}", arguments.output.display()))
}
