//! The chart as other tools than Helm see it: rendered, read strictly, and built by kustomize. Nothing in a rendering
//! removes anything.
#![forbid(unsafe_code)]

mod api_server;
mod helm;
mod monitoring;
mod rights;
mod values;

use std::{collections::BTreeSet, fs, path::Path};

use clap::Parser as _;
use operator::settings::Cli;
use scopeprobe_tests::{Error, Result, chart, place};
use serde_yaml::Value;

use crate::helm::{all, documents, helm_is_there, rendered, text};

/// Kinds that a rendering may contain. A Job would run at once where Helm's hooks are applied as ordinary objects.
const KINDS: [&str; 16] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "CustomResourceDefinition",
    "Deployment",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PodMonitor",
    "PrometheusRule",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
    "ServiceMonitor",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

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
    for rendering in all().await? {
        assert_harmless(&rendering.command, &documents(&rendering.yaml)?);
        assert_kustomize_builds(&rendering.command, &rendering.yaml).await?;
    }
    Ok(())
}

/// The manifest begins with its namespace. Each tool that follows a repository has an example.
#[test]
fn files_for_other_tools_are_strict_yaml() -> Result<()> {
    let repository = place::repository();
    let read = |path: &str| fs::read_to_string(repository.join(path)).map_err(Error::io(format!("read {path}")));
    let manifest = documents(&read("deploy/scopeprobe.yaml")?)?;
    assert_eq!(text(&manifest[0], &["kind"]), "Namespace");
    assert_harmless("deploy/scopeprobe.yaml", &manifest[1..]);
    // As patches of kustomize replace it.
    let policies = manifest.iter().filter(|object| text(object, &["kind"]) == "ValidatingAdmissionPolicy");
    let images: Vec<_> = policies.filter_map(|policy| policy["spec"]["variables"].get(0)).collect();
    let image = images.iter().find(|variable| text(variable, &["name"]) == "image").map(|it| text(it, &["expression"]));
    assert_eq!(image, Some(format!("'localhost/scopeprobe/agent:{}'", env!("CARGO_PKG_VERSION")).as_str()));
    for (path, kinds) in [
        ("examples/flux-helm.yaml", &["GitRepository", "HelmRelease"][..]),
        ("examples/flux-kustomize.yaml", &["GitRepository", "Kustomization"]),
        ("examples/argo-cd.yaml", &["Application"]),
    ] {
        let read = documents(&read(path)?)?;
        assert_eq!(read.iter().map(|object| text(object, &["kind"])).collect::<Vec<_>>(), kinds, "{path}");
    }
    Ok(())
}

/// Images of a rendering: that of the operator, and that of the agents.
fn images(documents: &[Value]) -> Vec<String> {
    let deployment = documents.iter().find(|document| text(document, &["kind"]) == "Deployment");
    let container = deployment.map(|it| it["spec"]["template"]["spec"]["containers"][0].clone()).unwrap_or_default();
    let environment = container["env"].as_sequence().cloned().unwrap_or_default();
    let agent = environment.iter().find(|variable| text(variable, &["name"]) == "SCOPEPROBE_AGENT_IMAGE");
    vec![text(&container, &["image"]).to_owned(), agent.map(|it| text(it, &["value"]).to_owned()).unwrap_or_default()]
}

#[tokio::test]
async fn one_registry_is_that_of_both_images() -> Result<()> {
    helm_is_there().await?;
    let version = env!("CARGO_PKG_VERSION");
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let of_digest = format!("image.digest={digest}");
    for (values, operator, agent) in [
        // Without a registry, a name would be that of the first public registry that a node asks.
        (&[][..], format!("localhost/scopeprobe/operator:{version}"), format!("localhost/scopeprobe/agent:{version}")),
        (
            &["image.registry=r.example:5000/a", "agent.image.tag=v9"],
            format!("r.example:5000/a/scopeprobe/operator:{version}"),
            "r.example:5000/a/scopeprobe/agent:v9".to_owned(),
        ),
        (
            &["global.imageRegistry=g.example", "image.registry=r.example", "agent.image.repository=o.example/agent"],
            format!("g.example/scopeprobe/operator:{version}"),
            format!("o.example/agent:{version}"),
        ),
        (
            &[&of_digest, "image.tag=ignored"],
            format!("localhost/scopeprobe/operator@{digest}"),
            format!("localhost/scopeprobe/agent:{version}"),
        ),
    ] {
        let rendering = rendered(chart::RELEASE, values, &[]).await?;
        assert_eq!(images(&documents(&rendering.yaml)?), [operator, agent], "{values:?}");
    }
    Ok(())
}

/// The schema refuses what the operator would refuse, before anything is installed.
#[tokio::test]
async fn the_schema_has_the_bounds_of_the_operator() -> Result<()> {
    helm_is_there().await?;
    let run = ["scopeprobe-operator", "run", "--namespace=n", "--identity=i"];
    let durations = [
        "1h",
        "1m",
        "60s",
        "90s",
        "24h",
        "1440m",
        "86400s",
        "23h59m59s",
        "1h30m",
        "100m",
        "5m30s",
        "0s",
        "59s",
        "25h",
        "24h1s",
        "1441m",
        "86401s",
        "-1h",
        "soon",
        "10",
        "1d",
        "0h",
        "0m",
    ];
    for duration in durations {
        let flag = format!("--ebpf-retry={duration}");
        let by_operator = Cli::try_parse_from(run.iter().copied().chain([flag.as_str()])).is_ok();
        let by_schema = rendered(chart::RELEASE, &[&format!("agent.ebpfRetry={duration}")], &[]).await.is_ok();
        assert_eq!(by_schema, by_operator, "{duration}");
    }
    for wrong in [
        "unknown=1",
        "operator.unknown=1",
        "image.digest=sha256:12",
        "image.pullPolicy=Sometimes",
        "operator.replicas=-1",
        "operator.podLabels.a=not a label",
        "networkPolicy.apiServer.ports={0}",
        "operator.extraEnv[0].name=SCOPEPROBE_NAMESPACE",
    ] {
        let refused = rendered(chart::RELEASE, &[wrong], &[]).await;
        assert!(refused.is_err(), "{wrong}");
    }
    Ok(())
}

/// Only Helm's renderings for a cluster contain the Job that Helm runs after an uninstallation.
#[test]
fn what_is_for_helm_alone_is_rendered_only_where_helm_has_a_cluster() {
    let folder = place::repository().join("charts/scopeprobe/templates");
    let hooks: Vec<_> = files_with(&folder, "helm.sh/hook:");
    assert_eq!(hooks, ["_helpers.tpl", "prune.yaml", "test.yaml"]);
    for name in ["prune.yaml", "test.yaml"] {
        let template = fs::read_to_string(folder.join(name)).unwrap_or_default();
        let guard = template.lines().find(|line| line.starts_with("{{- if")).unwrap_or_default();
        assert!(guard.contains(r#"include "scopeprobe.isHelm" ."#), "{guard}");
    }
}

fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let with = entries.filter(|file| fs::read_to_string(file.path()).is_ok_and(|content| content.contains(text)));
    let mut names: Vec<_> = with.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
