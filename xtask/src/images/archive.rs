//! The docker-archive layout (`docker save`): a manifest, a configuration and one layer, named by their digests.

use std::{collections::BTreeMap, fmt::Write as _, io};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType};

use super::layer::append;
use crate::platform::Platform;

/// An image with one layer.
pub struct Image<'a> {
    /// Platform of its program.
    pub platform: Platform,
    /// Names with tags.
    pub names: &'a [String],
    /// Path of the program.
    pub entrypoint: &'a str,
    /// User and group by number, as `runAsNonRoot` needs it.
    pub user: &'a str,
    /// Annotations of the Open Container Initiative.
    pub labels: &'a BTreeMap<String, String>,
    /// Its files, as a tar.
    pub layer: &'a [u8],
}

/// Returns the archive of an image.
pub fn write(image: &Image<'_>) -> io::Result<Vec<u8>> {
    let Image { names, layer, .. } = image;
    let configuration = configuration(image);
    let configuration_path = format!("{}.json", sha256(configuration.as_bytes()));
    let layer_path = format!("{}/layer.tar", sha256(layer));
    let manifest = json!([{"Config": configuration_path, "RepoTags": names, "Layers": [layer_path]}]).to_string();

    let mut tar = Builder::new(Vec::new());
    append(&mut tar, &configuration_path, EntryType::Regular, 0o644, configuration.as_bytes())?;
    append(&mut tar, &layer_path, EntryType::Regular, 0o644, layer)?;
    append(&mut tar, "manifest.json", EntryType::Regular, 0o644, manifest.as_bytes())?;
    tar.into_inner()
}

/// Returns the configuration: how to run the program, and the digest of its layer.
pub fn configuration(image: &Image<'_>) -> String {
    let Image { platform, entrypoint, user, labels, layer, .. } = image;
    json!({
        "architecture": platform.architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": [entrypoint], "WorkingDir": "/", "User": user, "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(layer))]},
        "history": [{"created": "1970-01-01T00:00:00Z"}],
    })
    .to_string()
}

/// Returns a digest as a number of 64 hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
pub mod tests {
    use std::io::Read as _;

    use serde_json::Value;

    use super::*;

    fn example() -> Vec<u8> {
        let files = BTreeMap::from([("program".to_owned(), b"content".to_vec())]);
        let image = Image {
            platform: Platform::Arm64,
            names: &["example/program:1".to_owned()],
            entrypoint: "/program",
            user: "1:1",
            labels: &BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            layer: &crate::images::layer::write(&files).unwrap(),
        };
        write(&image).unwrap()
    }

    /// Returns the files of a tar.
    pub fn files_of(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(archive);
        tar.entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().to_str().unwrap().to_owned(), content)
            })
            .collect()
    }

    #[test]
    fn the_manifest_leads_to_the_configuration_and_the_layer() {
        let entries = files_of(&example());
        let manifest: Value = serde_json::from_slice(&entries["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["example/program:1"]));
        let configuration: Value = serde_json::from_slice(&entries[manifest[0]["Config"].as_str().unwrap()]).unwrap();
        let config = json!({"Entrypoint": ["/program"], "WorkingDir": "/", "User": "1:1", "Labels": {"a": "b"}});
        assert_eq!(configuration["config"], config);
        assert_eq!(configuration["architecture"], "arm64");
        let layer = &entries[manifest[0]["Layers"][0].as_str().unwrap()];
        assert_eq!(configuration["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(layer)));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(example(), example());
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
