//! The chart as other tools than Helm see it: rendered, read strictly, and built by kustomize. Nothing in a rendering
//! removes anything.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, fs, path::Path};

use scopeprobe_tests::{Error, Result, chart, place};
use serde::Deserialize as _;
use serde_yaml::Value;

/// Kinds that a rendering may contain. A Job would run at once where Helm's hooks are applied as ordinary objects.
const KINDS: [&str; 8] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Deployment",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
];

/// Every value of the chart that leads to other text, alone.
const VALUES: [&[&str]; 20] = [
    &[],
    &["image.tag=1.2.3", "image.pullPolicy=Never"],
    &["image.repository=registry.example:5000/scopeprobe/operator"],
    &[
        "agent.image.repository=registry.example:5000/scopeprobe/agent",
        "agent.image.tag=1.2.3",
        "agent.image.pullPolicy=Never",
    ],
    &["agent.ebpfRetry=24h"],
    &["agent.debugSignals=true"],
    &["imagePullSecrets={one,two}"],
    &["crds.enabled=false"],
    &["crds.keep=false"],
    &["operator.log=info\\,kube=debug"],
    &["operator.extraEnv[0].name=SCOPEPROBE_RESYNC_INTERVAL", "operator.extraEnv[0].value=10s"],
    &["operator.resources=null"],
    &["operator.nodeSelector.a\\.example/b=c"],
    &["operator.tolerations[0].operator=Exists"],
    &[
        "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=a,\
       operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
    ],
    &["operator.priorityClassName=system-cluster-critical"],
    &["operator.podAnnotations.a=b"],
    &["operator.podLabels.a=b"],
    &["collector.tls.secretName=a"],
    &["cleanup.enabled=false"],
];

/// Releases whose names lead to other names of objects.
const OTHER_RELEASES: [&str; 2] = ["r", "a-release-whose-name-is-as-long-as-helm-allows-it-now"];

async fn helm_is_there() -> Result<()> {
    if !place::tool("helm").exists() {
        place::run(&place::script("setup"), ["helm"], &[]).await?;
    }
    Ok(())
}

/// `helm template`, with its flags.
async fn rendered(release: &str, values: &[&str], flags: &[&str]) -> Result<String> {
    let chart = place::repository().join("charts/scopeprobe");
    let chart = chart.to_string_lossy();
    let mut arguments = vec!["template", release, &chart, "--namespace", chart::NAMESPACE];
    arguments.extend(flags);
    for value in values {
        arguments.extend(["--set", value]);
    }
    place::run(&place::tool("helm"), arguments, &[]).await
}

/// The documents of a text, by a reader that refuses a key that stands twice in a mapping.
fn documents(yaml: &str) -> Result<Vec<Value>> {
    let read = serde_yaml::Deserializer::from_str(yaml).map(Value::deserialize).collect::<Result<Vec<_>, _>>();
    let read = read.map_err(|error| Error::Unexpected(format!("not strict YAML: {error}")))?;
    Ok(read.into_iter().filter(|document| !document.is_null()).collect())
}

fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().try_fold(value, |value, key| value.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// Every program that the objects start, with its arguments.
fn commands(value: &Value) -> Vec<Vec<String>> {
    let words = |container: &Value, key: &str| -> Vec<String> {
        let words = container.get(key).and_then(Value::as_sequence).into_iter().flatten();
        words.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let own = |containers: &Value| -> Vec<Vec<String>> {
        let all = containers.as_sequence().into_iter().flatten();
        all.map(|it| [words(it, "command"), words(it, "args")].concat()).collect()
    };
    match value {
        Value::Mapping(mapping) => {
            let below = mapping.iter().flat_map(|(key, value)| {
                let is_list = key.as_str().is_some_and(|key| key == "containers" || key == "initContainers");
                if is_list { own(value) } else { commands(value) }
            });
            below.collect()
        }
        Value::Sequence(values) => values.iter().flat_map(commands).collect(),
        _ => Vec::new(),
    }
}

fn assert_harmless(what: &str, documents: &[Value]) {
    assert!(documents.len() > 8, "{what}: only {} objects", documents.len());
    let mut names = BTreeSet::new();
    for document in documents {
        let kind = text(document, &["kind"]);
        let name = format!("{kind} {}", text(document, &["metadata", "name"]));
        assert!(KINDS.contains(&kind), "{what}: {name}");
        let annotations = document.get("metadata").and_then(|metadata| metadata.get("annotations"));
        let is_hook = annotations.is_some_and(|annotations| annotations.get("helm.sh/hook").is_some());
        assert!(!is_hook, "{what}: {name} is a hook, which other tools than Helm apply at once");
        assert!(names.insert(name.clone()), "{what}: {name} twice");
        if kind != "CustomResourceDefinition" {
            for command in commands(document) {
                assert_eq!(command, ["/scopeprobe-operator", "run"], "{what}: {name}");
            }
        }
    }
    assert!(names.iter().any(|name| name.starts_with("Deployment ")), "{what}: no operator");
}

async fn assert_kustomize_builds(what: &str, yaml: &str) -> Result<()> {
    let folder = tempfile::tempdir().map_err(Error::io("make a folder for kustomize"))?;
    let write =
        |name: &str, text: &str| fs::write(folder.path().join(name), text).map_err(Error::io(format!("write {name}")));
    write("all.yaml", yaml)?;
    write("kustomization.yaml", "resources: [all.yaml]\n")?;
    let arguments = ["kustomize".as_ref(), folder.path().as_os_str()];
    let built = place::run(&place::tool("kubectl"), arguments, &[]).await?;
    let (given, built) = (documents(yaml)?, documents(&built)?);
    assert_eq!(built.len(), given.len(), "{what}: kustomize has lost objects");
    assert_harmless(&format!("{what}, by kustomize"), &built);
    Ok(())
}

#[test]
fn strict_reader_refuses_a_key_twice() {
    assert!(documents("a: 1\nb: {c: 1, c: 2}\n").is_err());
    assert!(documents("a: 1\n---\na: 2\n").is_ok());
}

#[tokio::test]
async fn every_rendering_is_strict_yaml_without_anything_destructive() -> Result<()> {
    helm_is_there().await?;
    let releases = OTHER_RELEASES.map(|release| (release, VALUES[0]));
    for (release, values) in VALUES.map(|values| (chart::RELEASE, values)).into_iter().chain(releases) {
        let what = format!("helm template {release} {values:?}");
        let yaml = rendered(release, values, &[]).await?;
        assert_harmless(&what, &documents(&yaml)?);
        assert_kustomize_builds(&what, &yaml).await?;
    }
    // As Argo CD asks for it, and as an upgrade.
    for flags in [
        &["--is-upgrade"][..],
        &["--include-crds", "--api-versions", "scopeprobe.io/v1alpha1", "--kube-version", "1.37.0"],
        &["--no-hooks"],
    ] {
        let what = format!("helm template {flags:?}");
        let yaml = rendered(chart::RELEASE, &[], flags).await?;
        assert_harmless(&what, &documents(&yaml)?);
        assert_kustomize_builds(&what, &yaml).await?;
    }
    Ok(())
}

/// So that a new value gets its rendering.
#[test]
fn every_value_of_the_chart_is_rendered() {
    let path = place::repository().join("charts/scopeprobe/values.yaml");
    let values: Value = serde_yaml::from_str(&fs::read_to_string(path).unwrap_or_default()).unwrap();
    let mut missing = Vec::new();
    leaves(&values, "", &mut missing);
    missing.retain(|leaf| !VALUES.iter().flat_map(|set| set.iter()).any(|value| value.starts_with(leaf.as_str())));
    assert!(missing.is_empty(), "no rendering sets {missing:?}: add it to VALUES");
}

/// Below this depth a value belongs to the user, not to the chart.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    let Some(mapping) = value.as_mapping().filter(|mapping| !mapping.is_empty() && path != "operator.resources") else {
        found.push(path.to_owned());
        return;
    };
    for (key, value) in mapping {
        let key = key.as_str().unwrap_or_default();
        leaves(value, &if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }, found);
    }
}

/// Only Helm's renderings for a cluster contain the Job that Helm runs after an uninstallation.
#[test]
fn what_is_for_helm_alone_is_rendered_only_where_helm_has_a_cluster() {
    let folder = place::repository().join("charts/scopeprobe/templates");
    let hooks: Vec<_> = files_with(&folder, "helm.sh/hook:");
    assert_eq!(hooks, ["_helpers.tpl", "prune.yaml"]);
    let prune = fs::read_to_string(folder.join("prune.yaml")).unwrap_or_default();
    let guard = prune.lines().find(|line| line.starts_with("{{- if")).unwrap_or_default();
    assert!(guard.contains("(lookup "), "{guard}");
}

/// Each rule of the documents as a row of docs/privileges.md begins.
fn rows_of(documents: &[Value]) -> Vec<String> {
    let words = |value: &Value, key: &str| -> Vec<String> {
        let words = value.get(key).and_then(Value::as_sequence).into_iter().flatten();
        words.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut rows = Vec::new();
    for document in documents {
        let place = match (text(document, &["kind"]), text(document, &["metadata", "namespace"])) {
            ("Role", chart::NAMESPACE) => "own namespace".to_owned(),
            ("Role", namespace) => format!("`{namespace}`"),
            _ => "cluster".to_owned(),
        };
        for rule in document.get("rules").and_then(Value::as_sequence).into_iter().flatten() {
            let group = match words(rule, "apiGroups").concat().as_str() {
                "" => "core".to_owned(),
                group => format!("`{group}`"),
            };
            let resources: Vec<_> = words(rule, "resources").iter().map(|it| format!("`{it}`")).collect();
            rows.push(format!(
                "| {group} | {} | {} | {place} |",
                resources.join(", "),
                words(rule, "verbs").join(", ")
            ));
        }
    }
    rows.sort();
    rows
}

fn documented(heading: &str) -> Vec<String> {
    let page = fs::read_to_string(place::repository().join("docs/privileges.md")).unwrap_or_default();
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| API group"));
    let mut rows: Vec<_> = rows.map(|row| row.splitn(6, '|').take(5).collect::<Vec<_>>().join("|") + "|").collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn the_docs_list_every_right_of_the_operator_and_of_the_job() -> Result<()> {
    helm_is_there().await?;
    let rendered = documents(&rendered(chart::RELEASE, &[], &[]).await?)?;
    assert_eq!(documented("Operator"), rows_of(&rendered));

    let path = place::repository().join("charts/scopeprobe/templates/prune.yaml");
    let template = fs::read_to_string(path).unwrap_or_default();
    let rules = template.split("\nrules:\n").nth(1).and_then(|rest| rest.split("\n---").next()).unwrap_or_default();
    let role = documents(&format!("kind: ClusterRole\nrules:\n{rules}\n"))?;
    assert_eq!(documented("Job after an uninstallation"), rows_of(&role));
    Ok(())
}

fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let with = entries.filter(|file| fs::read_to_string(file.path()).is_ok_and(|content| content.contains(text)));
    let mut names: Vec<_> = with.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
