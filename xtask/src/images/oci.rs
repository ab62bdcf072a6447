//! The OCI image layout: one index for the images of all platforms, and their blobs, in a tar.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use tar::{Builder, EntryType};

use super::{
    archive::{Image, configuration, sha256},
    layer::append,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layout, and the digest of its index: registries keep both as they are.
pub struct Layout {
    pub archive: Vec<u8>,
    pub digest: String,
}

/// Content by its digest.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds a blob, and returns its descriptor.
    fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = sha256(&content);
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()});
        self.0.insert(digest, content);
        descriptor
    }
}

/// Returns the layout of the images of one program, one image for each platform. The first image has the names.
pub fn write(images: &[Image<'_>]) -> io::Result<Layout> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    for image in images {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blobs.add(CONFIGURATION, configuration(image).into_bytes()),
            "layers": [blobs.add(LAYER, gzip(image.layer)?)],
            "annotations": image.labels,
        });
        let mut descriptor = blobs.add(MANIFEST, manifest.to_string().into_bytes());
        descriptor["platform"] = json!({"architecture": image.platform.architecture(), "os": "linux"});
        manifests.push(descriptor);
    }
    let first = images.first();
    let labels = first.map(|image| image.labels);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests, "annotations": labels});
    let index = blobs.add(INDEX, index.to_string().into_bytes());
    let digest = index["digest"].as_str().unwrap_or_default().to_owned();
    let named = first.into_iter().flat_map(|image| image.names).map(|name| {
        let mut named = index.clone();
        let tag = name.rsplit_once(':').map(|(_, tag)| tag);
        // By these, containerd and other tools name what they import.
        named["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        named
    });
    let entry = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": named.collect::<Vec<_>>()});

    let mut tar = Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| append(&mut tar, path, EntryType::Regular, 0o644, content);
    add("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    add("index.json", entry.to_string().as_bytes())?;
    for (digest, content) in &blobs.0 {
        add(&format!("blobs/sha256/{digest}"), content)?;
    }
    Ok(Layout { archive: tar.into_inner()?, digest })
}

/// Compresses a layer as registries store it, without a time.
fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    gzip.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::{
        images::{archive::tests::files_of, layer},
        platform::Platform,
    };

    fn example() -> Layout {
        let names = ["example/program:1".to_owned(), "other/program:1".to_owned()];
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let layers = ["one", "two"]
            .map(|content| layer::write(&BTreeMap::from([("program".to_owned(), content.into())])).unwrap());
        let platforms = [Platform::Amd64, Platform::Arm64];
        let images = [0, 1].map(|number| Image {
            platform: platforms[number],
            names: &names,
            entrypoint: "/program",
            user: "1:1",
            labels: &labels,
            layer: &layers[number],
        });
        write(&images).unwrap()
    }

    #[test]
    fn index_leads_to_the_program_of_each_platform() {
        let Layout { archive, digest } = example();
        let entries = files_of(&archive);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let content = &entries[&format!("blobs/{}", digest.replace(':', "/"))];
            assert_eq!(descriptor["size"], content.len());
            assert_eq!(digest, format!("sha256:{}", sha256(content)));
            content.as_slice()
        };
        let parse = |content: &[u8]| serde_json::from_slice::<Value>(content).unwrap();
        let entry = parse(&entries["index.json"]);
        assert_eq!(entry["manifests"][0]["annotations"]["io.containerd.image.name"], "example/program:1");
        assert_eq!(entry["manifests"][1]["annotations"]["io.containerd.image.name"], "other/program:1");
        assert_eq!(entry["manifests"][1]["digest"], digest);
        let index = parse(blob(&entry["manifests"][0]));
        for (number, (architecture, content)) in [("amd64", "one"), ("arm64", "two")].into_iter().enumerate() {
            let described = &index["manifests"][number];
            assert_eq!(described["platform"], json!({"architecture": architecture, "os": "linux"}));
            let manifest = parse(blob(described));
            let configuration = parse(blob(&manifest["config"]));
            assert_eq!(configuration["architecture"], architecture);
            let mut layer = Vec::new();
            flate2::read::GzDecoder::new(blob(&manifest["layers"][0])).read_to_end(&mut layer).unwrap();
            assert_eq!(configuration["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&layer)));
            assert_eq!(files_of(&layer)["program"], content.as_bytes());
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert_eq!(example().archive, example().archive);
    }
}
