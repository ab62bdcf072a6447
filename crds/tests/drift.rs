//! What is generated from the types is what is committed.

use std::{collections::BTreeSet, fs, path::Path};

use scopeprobe_crds::{manifests, reference};

const HOW: &str = "is stale: run `cargo run -p scopeprobe-crds --bin crdgen` and commit what it writes";

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn manifests_are_up_to_date() {
    let directory = root().join(manifests::DIRECTORY);
    let generated = manifests::files().unwrap();
    for (name, contents) in &generated {
        let path = directory.join(name);
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == *contents, "{} {HOW}", path.display());
    }
    let names: BTreeSet<_> = generated.into_iter().map(|(name, _)| name).collect();
    let files: BTreeSet<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, files, "the directory holds the manifests of today's kinds and nothing else");
}

#[test]
fn the_reference_is_up_to_date() {
    let committed = fs::read_to_string(root().join(reference::PATH)).unwrap_or_default();
    assert!(committed == reference::markdown().unwrap(), "{} {HOW}", reference::PATH);
}
