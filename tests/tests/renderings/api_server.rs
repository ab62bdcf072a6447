//! The API server's own check of all renderings, and of what Helm alone renders. Unknown fields are refused.

use std::{collections::BTreeSet, fs, path::Path};

use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use scopeprobe_tests::{ControlPlane, Error, Result, chart, eventually, manifest, place};
use serde_json::Value as Json;

use crate::helm::{all, documents, helm, text};

/// Kinds of the Prometheus operator, which a control plane alone does not have.
const FOREIGN_KINDS: [&str; 3] = ["PodMonitor", "PrometheusRule", "ServiceMonitor"];

/// `helm install` needs these kinds of hooks; all other tools render none of them.
const HOOKS: [&str; 7] = ["ClusterRole", "ClusterRoleBinding", "Job", "Pod", "Role", "RoleBinding", "ServiceAccount"];

async fn control_plane() -> Result<ControlPlane> {
    let control_plane = ControlPlane::start().await?;
    let namespaces = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: {}}}}}\n---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: kube-system}}}}",
        chart::NAMESPACE
    );
    eventually("the API server to take namespaces", async || {
        manifest::apply(&control_plane.client, "", &namespaces).await.map_err(|error| error.to_string())
    })
    .await?;
    // The API server makes it after its start. By it, the chart recognizes a cluster.
    let roles: Api<ClusterRole> = Api::all(control_plane.client.clone());
    eventually("the ClusterRole view", async || roles.get("view").await.map_err(|error| error.to_string())).await?;
    Ok(control_plane)
}

/// Passes documents through the API server without storing them.
async fn dry_run(control_plane: &ControlPlane, documents: &BTreeSet<String>) -> Result<usize> {
    let folder = tempfile::tempdir().map_err(Error::io("make a folder for kubectl"))?;
    let file = folder.path().join("all.yaml");
    let joined = documents.iter().map(String::as_str).collect::<Vec<_>>().join("\n---\n");
    fs::write(&file, joined).map_err(Error::io("write for kubectl"))?;
    let file = file.to_string_lossy();
    let arguments =
        ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--output=name", "--filename", &file];
    let variables: [(&str, &Path); 1] = [("KUBECONFIG", control_plane.kubeconfig())];
    let printed = place::run(&place::tool("kubectl"), arguments, &variables).await?;
    Ok(printed.lines().count())
}

#[tokio::test]
async fn api_server_accepts_every_object_of_every_rendering() -> Result<()> {
    let control_plane = control_plane().await?;
    let mut different = BTreeSet::new();
    for rendering in all().await? {
        for document in rendering.yaml.split("\n---\n") {
            let [object] = &documents(document)?[..] else { continue };
            if !FOREIGN_KINDS.contains(&text(object, &["kind"])) {
                different.insert(document.trim_start_matches("---\n").to_owned());
            }
        }
    }
    assert!(different.len() > 100, "{} objects", different.len());
    assert_eq!(dry_run(&control_plane, &different).await?, different.len());

    // It refuses what is wrong: otherwise all of this would mean nothing.
    let wrong = "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: default}, spec: {portz: []}}";
    let refused = dry_run(&control_plane, &[wrong.to_owned()].into()).await.unwrap_err().to_string();
    assert!(refused.contains("portz"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn api_server_accepts_the_manifest_and_the_base_of_kustomize() -> Result<()> {
    let control_plane = control_plane().await?;
    let folder = place::repository().join("deploy");
    let written = fs::read_to_string(folder.join("scopeprobe.yaml")).map_err(Error::io("read the manifest"))?;
    let built = place::run(&place::tool("kubectl"), ["kustomize".as_ref(), folder.as_os_str()], &[]).await?;
    for yaml in [written, built] {
        let all: BTreeSet<_> = yaml.split("\n---\n").map(str::to_owned).collect();
        assert_eq!(dry_run(&control_plane, &all).await?, documents(&yaml)?.len());
    }
    Ok(())
}

/// `helm install --dry-run=server`: with hooks and notes.
async fn release(control_plane: &ControlPlane) -> Result<(BTreeSet<String>, String)> {
    let variables: [(&str, &Path); 1] = [("KUBECONFIG", control_plane.kubeconfig())];
    let flags = ["--dry-run=server", "--output=json"];
    let printed = helm("install", chart::RELEASE, &[], &flags, &variables).await?;
    let printed: Json =
        serde_json::from_str(&printed).map_err(|error| Error::Unexpected(format!("{error}: {printed}")))?;
    let hooks = printed["hooks"].as_array().cloned().unwrap_or_default();
    let hooks = hooks.iter().filter_map(|hook| hook["manifest"].as_str().map(str::to_owned)).collect();
    Ok((hooks, printed["info"]["notes"].as_str().unwrap_or_default().trim().to_owned()))
}

#[tokio::test]
async fn hooks_are_valid_and_notes_short() -> Result<()> {
    let control_plane = control_plane().await?;
    let (hooks, notes) = release(&control_plane).await?;
    let mut kinds: Vec<_> = hooks.iter().map(|hook| documents(hook)).collect::<Result<Vec<_>>>()?.concat();
    kinds.sort_by_key(|hook| text(hook, &["kind"]).to_owned());
    let kinds: BTreeSet<_> = kinds.iter().map(|hook| text(hook, &["kind"])).collect();
    assert_eq!(kinds, HOOKS.into());
    assert_eq!(dry_run(&control_plane, &hooks).await?, hooks.len());
    assert!(notes.lines().count() <= 5 && !notes.contains("elsewhere"), "{notes}");

    manifest::apply(&control_plane.client, "", chart::OTHER_OPERATOR).await?;
    let (_, notes) = release(&control_plane).await?;
    assert!(notes.lines().count() <= 5 && notes.contains("elsewhere/another"), "{notes}");
    Ok(())
}
