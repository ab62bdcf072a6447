//! Images of the static programs, as archives that `docker load`, `ctr images import`, `kind load image-archive` and
//! `minikube image load` read. The same programs give the same bytes.

mod archive;
mod bill;
mod elf;
mod layer;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::ValueEnum;

use self::bill::Bill;
use crate::workspace::{self, Workspace};

/// Arguments of `cargo xtask images`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Images to write: pause, which only our own cluster needs, into the cache; the others into dist/.
    #[arg(value_enum, default_values_t = [Image::Operator, Image::Agent, Image::Traffic])]
    images: Vec<Image>,
    /// Cargo's profile of the programs. `dev` takes the programs that the tests compile anyway.
    #[arg(long, env = "IMAGE_PROFILE", default_value = RELEASE)]
    profile: String,
}

/// The profile unless one is given.
const RELEASE: &str = "release";
/// Version of the programs, which is the workspace's.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An image: one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Image {
    Operator,
    Agent,
    Traffic,
    Pause,
}

impl Image {
    const fn package(self) -> &'static str {
        match self {
            Self::Operator => "scopeprobe-operator",
            Self::Agent => "scopeprobe-agent",
            Self::Traffic => "scopeprobe-traffic",
            Self::Pause => "scopeprobe-pause",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Operator => "scopeprobe-operator",
            Self::Agent => "scopeprobe-agent",
            Self::Traffic => "traffic",
            Self::Pause => "pause",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Agent => "agent",
            Self::Traffic => "traffic",
            Self::Pause => "pause",
        }
    }

    /// Returns the names with their tags. Images for tests have no version. In the registry `localhost` no other party can
    /// publish an image.
    fn names(self) -> Vec<String> {
        match self {
            Self::Operator | Self::Agent => vec![format!("localhost/scopeprobe/{}:{VERSION}", self.title())],
            Self::Traffic => ["localhost/scopeprobe", "scopeprobe"].map(|it| format!("{it}/traffic:dev")).to_vec(),
            Self::Pause => vec!["scopeprobe/pause:dev".to_owned()],
        }
    }

    /// Returns whether users get it.
    const fn is_released(self) -> bool {
        matches!(self, Self::Operator | Self::Agent)
    }

    /// Returns user and group. The agent is root: its capabilities count for root alone. Tests' programs listen at any port.
    const fn user(self) -> &'static str {
        match self {
            Self::Operator => "65532:65532",
            Self::Agent | Self::Traffic | Self::Pause => "0:0",
        }
    }

    /// Returns the annotations of the Open Container Initiative. They have no time, so that equal programs make equal images.
    fn labels(self) -> BTreeMap<String, String> {
        let annotations = [
            ("title", format!("scopeprobe-{}", self.title())),
            ("version", VERSION.to_owned()),
            ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ];
        annotations.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value)).into()
    }

    /// Returns the path of the archive; a relative one counts from the root.
    fn archive(self, workspace: &Workspace) -> anyhow::Result<PathBuf> {
        Ok(match self {
            Self::Pause => workspace.cache()?.join("images/pause.tar"),
            _ => PathBuf::from(format!("dist/scopeprobe-{}.tar", self.title())),
        })
    }
}

/// Builds the programs and writes their images.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    let profile = if arguments.profile.is_empty() { RELEASE } else { &arguments.profile };
    build(workspace, profile, &arguments.images)?;
    let programs = workspace.programs(profile)?;
    for &image in &arguments.images {
        write(workspace, &programs, image)?;
    }
    Ok(())
}

/// Builds all programs with one call of cargo, so that no library is built twice with other features.
fn build(workspace: &Workspace, profile: &str, images: &[Image]) -> anyhow::Result<()> {
    let mut cargo = workspace.command("cargo");
    cargo.args(["build", "--locked", "--profile", profile]);
    if profile == "dev" {
        cargo.args(["--workspace", "--lib", "--bins", "--tests", "--features", workspace::test_features()?]);
    } else {
        for image in images {
            cargo.args(["--package", image.package(), "--bin", image.program()]);
        }
    }
    workspace::run(&mut cargo)
}

fn write(workspace: &Workspace, programs: &Path, image: Image) -> anyhow::Result<()> {
    let program = programs.join(image.program());
    let archive = image.archive(workspace)?;
    let bill = image.is_released().then(|| Bill::of(workspace, image.package())).transpose()?;
    let names = image.names();
    let bytes = archive::write(&archive::Image {
        names: &names,
        entrypoint: &format!("/{}", image.program()),
        user: image.user(),
        labels: &image.labels(),
        layer: &layer(&program, image, bill.as_ref())?,
    })?;
    let path = workspace.path(&archive);
    replace(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    if let Some(bill) = bill {
        let path = workspace.path(archive.with_extension("cdx.json"));
        replace(&path, bill.cyclone_dx().as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{}: {} ({})", image.title(), archive.display(), names.join(", "));
    Ok(())
}

/// Returns the layer, which holds nothing but the program: one that needs a loader or a library would not start.
fn layer(program: &Path, image: Image, bill: Option<&Bill>) -> anyhow::Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let is_static = elf::is_static(&read(program)?).with_context(|| format!("{} is no program", program.display()))?;
    ensure!(
        is_static,
        "{} is not static; is .cargo/config.toml in use, or does RUSTFLAGS override it?",
        program.display()
    );
    let stripped = tempfile::NamedTempFile::new()?;
    workspace::run(std::process::Command::new("strip").arg("-o").args([stripped.path(), program]))?;
    if let Some(bill) = bill {
        add_section(stripped.path(), &bill.section())?;
    }
    Ok(layer::write(&BTreeMap::from([(image.program().to_owned(), read(stripped.path())?)]))?)
}

/// Adds the crates to a program, in the section that scanners read.
fn add_section(program: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(contents)?;
    let mut added = std::ffi::OsString::from(".dep-v0=");
    added.push(file.path());
    let mut objcopy = std::process::Command::new("objcopy");
    objcopy.arg("--add-section").arg(added).args(["--set-section-flags", ".dep-v0=noload,readonly"]).arg(program);
    workspace::run(&mut objcopy)
}

/// Replaces a file at once. A file with the same content keeps its time: its readers need not load it again.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = path.parent().context("the path has no folder")?;
    fs::create_dir_all(folder)?;
    // As for any new file, the user's mask applies.
    let mut new = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    new.write_all(bytes)?;
    new.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_with_same_content_keeps_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dist/a.tar");
        replace(&path, b"one").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        replace(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), old);
        replace(&path, b"two").unwrap();
        assert_ne!(fs::metadata(&path).unwrap().modified().unwrap(), old);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no other file is left");
    }

    #[test]
    fn names_of_released_images_have_the_version() {
        assert_eq!(Image::Agent.names(), [format!("localhost/scopeprobe/agent:{VERSION}")]);
        assert_eq!(Image::Traffic.names()[0], "localhost/scopeprobe/traffic:dev");
    }
}
