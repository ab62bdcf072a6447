//! Files that are generated from the types are as committed. `make crds` makes these tests write them.

use std::{collections::BTreeSet, env, fs, io, path::Path};

use scopeprobe_crds::{manifests, reference};

/// Variable that makes the tests write the files.
const WRITE: &str = "SCOPEPROBE_WRITE_GENERATED";

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn compare(path: &Path, generated: &str) -> io::Result<()> {
    if env::var_os(WRITE).is_some() {
        return fs::write(path, generated);
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert!(committed == generated, "{} is stale: run `make crds` and commit the files", path.display());
    Ok(())
}

#[test]
fn manifests_are_up_to_date() {
    let directory = root().join(manifests::DIRECTORY);
    let generated = manifests::files().unwrap();
    for (name, contents) in &generated {
        compare(&directory.join(name), contents).unwrap();
    }
    let names: BTreeSet<_> = generated.into_iter().map(|(name, _)| name).collect();
    let files: BTreeSet<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, files, "the directory holds the manifests of today's kinds and nothing else");
}

#[test]
fn the_reference_is_up_to_date() {
    compare(&root().join(reference::PATH), &reference::markdown().unwrap()).unwrap();
}
