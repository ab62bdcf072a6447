//! Renderings of the chart, and a strict reader of them.

use std::path::Path;

use scopeprobe_tests::{Error, Result, chart, place};
use serde::Deserialize as _;
use serde_yaml::Value;

use crate::values::{ALONE, OTHER_RELEASES, combinations};

/// A rendering, with the command that made it.
pub struct Rendering {
    pub command: String,
    pub yaml: String,
}

/// Builds Helm where it is missing.
pub async fn helm_is_there() -> Result<()> {
    if !place::tool("helm").exists() {
        place::run(&place::script("setup"), ["helm"], &[]).await?;
    }
    Ok(())
}

/// Runs Helm with the chart. `variables` are those of the environment.
pub async fn helm(
    command: &str,
    release: &str,
    values: &[String],
    flags: &[&str],
    variables: &[(&str, &Path)],
) -> Result<String> {
    let chart = place::repository().join("charts/scopeprobe");
    let chart = chart.to_string_lossy();
    let mut arguments = vec![command, release, &chart, "--namespace", chart::NAMESPACE];
    arguments.extend(flags);
    for value in values {
        arguments.extend(["--set", value]);
    }
    place::run(&place::tool("helm"), arguments, variables).await
}

/// `helm template`, with its flags.
pub async fn rendered(release: &str, values: &[&str], flags: &[&str]) -> Result<Rendering> {
    let values: Vec<_> = values.iter().map(|value| (*value).to_owned()).collect();
    let yaml = helm("template", release, &values, flags, &[]).await?;
    Ok(Rendering { command: format!("helm template {release} {flags:?} {values:?}"), yaml })
}

/// Renderings with every value alone, with combinations of them, for other releases, and as other tools ask for it.
pub async fn all() -> Result<Vec<Rendering>> {
    helm_is_there().await?;
    let mut all = Vec::new();
    for values in ALONE.iter().copied() {
        all.push(rendered(chart::RELEASE, values, &[]).await?);
    }
    for values in combinations() {
        all.push(rendered(chart::RELEASE, &values, &[]).await?);
    }
    for release in OTHER_RELEASES {
        all.push(rendered(release, &[], &[]).await?);
    }
    // As an upgrade, and as Argo CD asks for it.
    for flags in [
        &["--is-upgrade"][..],
        &["--include-crds", "--api-versions", "scopeprobe.io/v1alpha1", "--kube-version", "1.37.0"],
        &["--no-hooks"],
        &["--api-versions", "security.openshift.io/v1"],
    ] {
        all.push(rendered(chart::RELEASE, &[], flags).await?);
    }
    Ok(all)
}

/// The documents of a text, by a reader that refuses a key that stands twice in a mapping.
pub fn documents(yaml: &str) -> Result<Vec<Value>> {
    let read = serde_yaml::Deserializer::from_str(yaml).map(Value::deserialize).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|error| Error::Unexpected(format!("not strict YAML: {error}")))?;
    Ok(read.into_iter().filter(|document| !document.is_null()).collect())
}

/// The text at a path of keys; empty where there is none.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().try_fold(value, |value, key| value.get(key)).and_then(Value::as_str).unwrap_or_default()
}
