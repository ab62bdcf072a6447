//! Images of the static programs, as archives that `docker load`, `ctr images import`, `kind load image-archive` and
//! `minikube image load` read. The same sources give the same bytes.

mod archive;
mod bill;
mod build;
mod elf;
mod kind;
mod layer;
mod oci;
mod reproducible;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

use self::{bill::Bill, kind::Image};
use crate::{
    platform::Platform,
    workspace::{self, Workspace},
};

/// Arguments of `cargo xtask images`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Images to write: pause, which only our own cluster needs, into the cache; the others into dist/.
    #[arg(value_enum, default_values_t = [Image::Operator, Image::Agent, Image::Traffic])]
    images: Vec<Image>,
    /// Cargo's profile of the programs. `dev` takes the programs that the tests compile anyway.
    #[arg(long, env = "IMAGE_PROFILE", default_value = RELEASE)]
    profile: String,
    /// Platforms, separated by commas; this machine's if absent. For several, one OCI archive with an index is written
    /// besides, into dist/oci/.
    #[arg(long, value_enum, value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Builds everything again in another folder, and fails if any archive differs.
    #[arg(long)]
    reproducible: bool,
}

/// The profile unless one is given.
const RELEASE: &str = "release";
/// The profile of tests.
const DEV: &str = "dev";

/// Builds the programs and writes their images.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    let profile = if arguments.profile.is_empty() { RELEASE } else { &arguments.profile };
    ensure!(profile != DEV || !arguments.reproducible, "only builds without paths of this machine are reproducible");
    let mut platforms: BTreeSet<_> = arguments.platform.iter().copied().collect();
    if platforms.is_empty() {
        platforms.insert(Platform::host().context("choose a --platform: there are no images for this machine's")?);
    }
    let mut programs = Vec::new();
    for &platform in &platforms {
        programs.push((platform, build::build(workspace, profile, platform, &arguments.images)?));
    }
    let mut files = Vec::new();
    for &image in &arguments.images {
        let maximum = image.maximum().filter(|_| profile != DEV);
        files.extend(write(workspace, &programs, image, maximum)?);
    }
    if arguments.reproducible {
        let names: Vec<_> = platforms.iter().map(|platform| platform.name()).collect();
        let again = ["images".to_owned(), format!("--profile={profile}"), format!("--platform={}", names.join(","))];
        let images = arguments.images.iter().map(|image| image.title().to_owned());
        let again: Vec<_> = again.into_iter().chain(images).collect();
        reproducible::compare(workspace, &again, &files)?;
    }
    Ok(())
}

/// Writes an image for each platform, and their index if there are several. Returns the paths of all files.
fn write(
    workspace: &Workspace,
    programs: &[(Platform, PathBuf)],
    image: Image,
    maximum: Option<usize>,
) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut layers = Vec::new();
    for (platform, folder) in programs {
        let archive = image.archive(workspace, *platform)?;
        let bill = image.is_released().then(|| Bill::of(workspace, image.package(), *platform)).transpose()?;
        let path = folder.join(image.program());
        if image.is_released() && Platform::host() == Some(*platform) {
            // A C library that is too old for the linker's work makes a program that does not start.
            workspace::output(Command::new(&path).arg("--version"))?;
        }
        let program = program(&path, *platform, bill.as_ref())?;
        check_size(&program, maximum).with_context(|| format!("{} for {platform:?}", image.title()))?;
        println!("{}: {} ({})", image.title(), archive.display(), megabytes(program.len()));
        layers.push(layer::write(&BTreeMap::from([(image.program().to_owned(), program)]))?);
        if let Some(bill) = bill {
            let path = archive.with_extension("cdx.json");
            replace(&workspace.path(&path), bill.cyclone_dx().as_bytes())?;
            files.push(path);
        }
        files.push(archive);
    }
    let (names, labels, entrypoint) = (image.names(), image.labels(), format!("/{}", image.program()));
    let images: Vec<_> = programs
        .iter()
        .zip(&layers)
        .map(|((platform, _), layer)| archive::Image {
            platform: *platform,
            names: &names,
            entrypoint: &entrypoint,
            user: image.user(),
            labels: &labels,
            layer,
        })
        .collect();
    for described in &images {
        replace(&workspace.path(image.archive(workspace, described.platform)?), &archive::write(described)?)?;
    }
    if images.len() > 1 {
        let path = image.index();
        let layout = oci::write(&images)?;
        replace(&workspace.path(&path), &layout.archive)?;
        println!("{}: {} (index sha256:{})", image.title(), path.display(), layout.digest);
        files.push(path);
    }
    Ok(files)
}

/// Returns a program for an image, which holds nothing else: one that needs a loader or a library would not start.
fn program(path: &Path, platform: Platform, bill: Option<&Bill>) -> anyhow::Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let program = read(path)?;
    let (is_static, machine) = elf::is_static(&program)
        .and_then(|is_static| Ok((is_static, elf::machine(&program)?)))
        .with_context(|| format!("{} is no program", path.display()))?;
    ensure!(
        is_static,
        "{} is not static; is .cargo/config.toml in use, or does RUSTFLAGS override it?",
        path.display()
    );
    ensure!(machine == platform.machine(), "{} is for another processor than {platform:?}", path.display());
    let stripped = tempfile::NamedTempFile::new()?;
    workspace::run(Command::new(platform.tool("strip")).arg("-o").args([stripped.path(), path]))?;
    if let Some(bill) = bill {
        add_section(stripped.path(), platform, &bill.section()?)?;
    }
    read(stripped.path())
}

/// Fails if a program is larger than users may expect.
fn check_size(program: &[u8], maximum: Option<usize>) -> anyhow::Result<()> {
    let Some(maximum) = maximum else { return Ok(()) };
    let size = program.len();
    ensure!(size <= maximum, "the program has {}, more than {}", megabytes(size), megabytes(maximum));
    Ok(())
}

fn megabytes(bytes: usize) -> String {
    let tenths = bytes.div_ceil(100_000);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// Adds the crates to a program, in the section that scanners read.
fn add_section(program: &Path, platform: Platform, contents: &[u8]) -> anyhow::Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(contents)?;
    let mut added = std::ffi::OsString::from(".dep-v0=");
    added.push(file.path());
    let mut objcopy = Command::new(platform.tool("objcopy"));
    objcopy.arg("--add-section").arg(added).args(["--set-section-flags", ".dep-v0=noload,readonly"]).arg(program);
    workspace::run(&mut objcopy)
}

/// Replaces a file at once. A file with the same content keeps its time: its readers need not load it again.
fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_if_other(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn write_if_other(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
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
    fn larger_program_is_refused() {
        assert!(check_size(&[0; 100], Some(100)).is_ok());
        assert!(check_size(&[0; 101], None).is_ok());
        let error = check_size(&vec![0; 250_001], Some(200_000)).unwrap_err();
        assert_eq!(error.to_string(), "the program has 0.3 MB, more than 0.2 MB");
    }
}
