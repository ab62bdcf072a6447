//! Bill of materials of a program: the crates that are compiled into it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
};

use anyhow::{Context, ensure};
use flate2::{Compression, write::ZlibEncoder};
use serde_json::{Value, json};

use crate::{platform::Platform, workspace::Workspace};

/// A crate of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Crate {
    name: String,
    version: String,
    license: Option<String>,
    is_published: bool,
    /// Numbers of the crates on which it depends.
    dependencies: Vec<usize>,
}

/// The crates of one program, by name and version.
#[derive(Debug)]
pub struct Bill {
    crates: Vec<Crate>,
    root: usize,
}

impl Bill {
    /// Asks Cargo for the crates of a package on a platform, without build scripts and macros.
    pub fn of(workspace: &Workspace, package: &str, platform: Platform) -> anyhow::Result<Self> {
        let output = |arguments: &[&str]| -> anyhow::Result<String> {
            let output = workspace.command("cargo").args(arguments).output()?;
            ensure!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8(output.stdout)?)
        };
        let edges = ["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"];
        let tree = output(&[&edges[..], &["--package", package, "--target", &platform.target()]].concat())?;
        let metadata = output(&["metadata", "--locked", "--format-version", "1"])?;
        Self::read(&tree, &serde_json::from_str(&metadata)?, package)
    }

    /// `tree` has a line `NAME vVERSION …` for each crate of the program, and `metadata` describes the whole workspace.
    fn read(tree: &str, metadata: &Value, package: &str) -> anyhow::Result<Self> {
        let used: BTreeSet<(&str, &str)> = tree.lines().filter_map(name_and_version).collect();
        let mut found = BTreeMap::new();
        for package in list(&metadata["packages"]) {
            let key = (text(&package["name"]), text(&package["version"]));
            if used.contains(&key) {
                found.insert(key, package);
            }
        }
        ensure!(found.len() == used.len(), "cargo metadata and cargo tree differ: {} and {}", found.len(), used.len());
        let numbers: BTreeMap<_, _> =
            found.values().enumerate().map(|(number, package)| (text(&package["id"]), number)).collect();
        let graph: BTreeMap<_, _> =
            list(&metadata["resolve"]["nodes"]).map(|node| (text(&node["id"]), &node["deps"])).collect();
        let describe = |(&(name, version), package): (&(&str, &str), &&Value)| {
            let dependencies = graph.get(text(&package["id"])).into_iter().flat_map(|dependencies| list(dependencies));
            let dependencies = dependencies.filter(|dependency| is_compiled_in(dependency));
            let numbers: BTreeSet<_> =
                dependencies.filter_map(|dependency| numbers.get(text(&dependency["pkg"])).copied()).collect();
            Crate {
                name: name.to_owned(),
                version: version.to_owned(),
                license: package["license"].as_str().map(str::to_owned),
                is_published: package["source"].as_str().is_some_and(|source| source.starts_with("registry+")),
                dependencies: numbers.into_iter().collect(),
            }
        };
        let crates: Vec<_> = found.iter().map(describe).collect();
        let root = crates.iter().position(|it| it.name == package).context("the program is not among its crates")?;
        Ok(Self { crates, root })
    }

    /// Returns the contents of the section `.dep-v0`, which scanners read: JSON in a zlib stream, as cargo-auditable writes it.
    pub fn section(&self) -> io::Result<Vec<u8>> {
        let packages = self.crates.iter().enumerate().map(|(number, it)| {
            let mut package = json!({
                "name": it.name,
                "version": it.version,
                "source": if it.is_published { "crates.io" } else { "local" },
            });
            if !it.dependencies.is_empty() {
                package["dependencies"] = json!(it.dependencies);
            }
            if number == self.root {
                package["root"] = json!(true);
            }
            package
        });
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
        zlib.write_all(json!({"packages": packages.collect::<Vec<_>>()}).to_string().as_bytes())?;
        zlib.finish()
    }

    /// Returns the bill in `CycloneDX` 1.5. It has no time and no serial number: equal programs have equal bills.
    pub fn cyclone_dx(&self) -> String {
        let component = |it: &Crate, kind: &str| {
            let mut component = json!({
                "type": kind,
                "bom-ref": reference(it),
                "name": it.name,
                "version": it.version,
                "purl": reference(it),
            });
            if let Some(license) = &it.license {
                component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
            }
            component
        };
        let others = self.crates.iter().enumerate().filter(|(number, _)| *number != self.root);
        let dependencies = self.crates.iter().map(|it| {
            let on = it.dependencies.iter().filter_map(|number| self.crates.get(*number)).map(reference);
            json!({"ref": reference(it), "dependsOn": on.collect::<Vec<_>>()})
        });
        let bill = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": self.crates.get(self.root).map(|it| component(it, "application"))},
            "components": others.map(|(_, it)| component(it, "library")).collect::<Vec<_>>(),
            "dependencies": dependencies.collect::<Vec<_>>(),
        });
        format!("{bill:#}\n")
    }
}

fn reference(it: &Crate) -> String {
    format!("pkg:cargo/{}@{}", it.name, it.version)
}

fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

/// Returns whether the program contains a dependency; those of build scripts and tests run elsewhere.
fn is_compiled_in(dependency: &Value) -> bool {
    list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill() -> Bill {
        let package = |name: &str, source: Value| json!({"name": name, "version": "1.0.0", "id": name, "license": "MIT/Apache-2.0", "source": source});
        let registry = json!("registry+https://github.com/rust-lang/crates.io-index");
        let depends = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("b", registry.clone()), package("program", Value::Null), package("a", registry.clone()),
                package("unused", registry),
            ],
            "resolve": {"nodes": [
                {"id": "program", "deps": [
                    depends("b", Value::Null), depends("a", json!("build")), depends("unused", Value::Null),
                ]},
                {"id": "b", "deps": [depends("a", Value::Null)]},
                {"id": "a", "deps": []},
            ]},
        });
        Bill::read("program v1.0.0 (/source)\nb v1.0.0\na v1.0.0\na v1.0.0 (*)\n", &metadata, "program").unwrap()
    }

    #[test]
    fn bill_has_the_crates_of_the_program_and_no_others() {
        let bill: Value = serde_json::from_str(&bill().cyclone_dx()).unwrap();
        let names: Vec<_> = list(&bill["components"]).map(|it| text(&it["purl"])).collect();
        assert_eq!(names, ["pkg:cargo/a@1.0.0", "pkg:cargo/b@1.0.0"]);
        assert_eq!(bill["metadata"]["component"]["name"], "program");
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(
            bill["dependencies"][2],
            json!({"ref": "pkg:cargo/program@1.0.0", "dependsOn": ["pkg:cargo/b@1.0.0"]})
        );
    }

    #[test]
    fn section_has_the_form_of_scanners() {
        let section = bill().section().unwrap();
        let packages: Value = serde_json::from_reader(flate2::read::ZlibDecoder::new(section.as_slice())).unwrap();
        let expected = json!([
            {"name": "a", "version": "1.0.0", "source": "crates.io"},
            {"name": "b", "version": "1.0.0", "source": "crates.io", "dependencies": [0]},
            {"name": "program", "version": "1.0.0", "source": "local", "dependencies": [1], "root": true},
        ]);
        assert_eq!(packages["packages"], expected);
    }

    #[test]
    fn crate_that_metadata_lacks_is_an_error() {
        assert!(Bill::read("program v1.0.0\n", &json!({"packages": []}), "program").is_err());
    }
}
