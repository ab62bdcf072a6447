//! Tests the ways to install: by kubectl, with several operators, and twice in one cluster.
#![forbid(unsafe_code)]

use std::{fs, path::Path};

use crds::{NodeProbe, ScopeProbe};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    batch::v1::Job,
    core::v1::{Namespace, Pod},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use scopeprobe_tests::{Cluster, Error, Result, chart, eventually, place, scope_probe};

const SECOND: &str = "second";

/// Removes what is installed, with its namespace.
async fn start_anew(cluster: &Cluster) -> Result<()> {
    cluster.uninstall_chart().await?;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    for name in [chart::NAMESPACE, SECOND] {
        cluster.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--wait"]).await?;
        assert_eq!(namespaces.get_opt(name).await.map_err(Error::api("read a namespace"))?, None);
    }
    Ok(())
}

async fn pods(cluster: &Cluster, namespace: &str) -> Result<Vec<Pod>> {
    let operators = ListParams::default().labels("app.kubernetes.io/name=scopeprobe-operator");
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace).list(&operators).await;
    Ok(pods.map_err(Error::api("list the operators"))?.items)
}

async fn operator_is_available(cluster: &Cluster) -> Result<()> {
    let deployment = format!("deployment/{}-operator", chart::RELEASE);
    let namespace = format!("--namespace={}", chart::NAMESPACE);
    cluster.kubectl(&["rollout", "status", &deployment, &namespace, "--timeout=180s"]).await.map(|_| ())
}

/// `helm template | kubectl apply --server-side`, and the manifest of the repository: the operator runs, and nothing that
/// removes anything exists.
#[tokio::test]
async fn kubectl_installs_a_rendering_and_the_manifest() -> Result<()> {
    let cluster = Cluster::shared().await?;
    start_anew(&cluster).await?;
    let folder = tempfile::tempdir().map_err(Error::io("make a folder for a rendering"))?;
    let rendering = folder.path().join("rendered.yaml");
    let path = place::repository().join("charts/scopeprobe");
    let arguments = ["template", chart::RELEASE, &path.to_string_lossy(), "--namespace", chart::NAMESPACE];
    let rendered = place::run(&place::tool("helm"), arguments, &[]).await?;
    fs::write(&rendering, rendered).map_err(Error::io("write a rendering"))?;
    cluster.kubectl(&["create", "namespace", chart::NAMESPACE]).await?;
    works_with(&cluster, &rendering).await?;
    works_with(&cluster, &place::repository().join("deploy/scopeprobe.yaml")).await
}

/// Installs a file, uses it, and removes it as docs/uninstall.md says.
async fn works_with(cluster: &Cluster, file: &Path) -> Result<()> {
    let file = file.to_string_lossy();
    cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", &file]).await?;
    operator_is_available(cluster).await?;
    cluster.probe("{}").await?;
    let jobs = Api::<Job>::all(cluster.client.clone()).list(&ListParams::default()).await;
    let jobs = jobs.map_err(Error::api("list Jobs"))?.items;
    assert!(jobs.iter().all(|job| job.namespace().as_deref() != Some(chart::NAMESPACE)), "{jobs:?}");
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let operator = deployments.get("scopeprobe-operator").await.map_err(Error::api("read the operator"))?;
    assert_eq!(operator.spec.and_then(|spec| spec.replicas), Some(1));

    cluster.unprobe().await?;
    cluster.kubectl(&["delete", "--ignore-not-found", "--wait", "--filename", &file]).await?;
    let lease = ["delete", "lease", "scopeprobe-cluster", "--namespace=kube-system", "--ignore-not-found"];
    cluster.kubectl(&lease).await.map(|_| ())
}

/// Returns the addresses to which the collector's Service leads.
async fn collector(cluster: &Cluster) -> Result<Vec<String>, String> {
    let of = ListParams::default().labels(&format!("kubernetes.io/service-name={}-collector", chart::RELEASE));
    let slices = Api::<EndpointSlice>::namespaced(cluster.client.clone(), chart::NAMESPACE).list(&of).await;
    let slices = slices.map_err(|error| error.to_string())?.items;
    let v4 = slices.into_iter().filter(|slice| slice.address_type == "IPv4");
    Ok(v4.flat_map(|slice| slice.endpoints).flat_map(|endpoint| endpoint.addresses).collect())
}

fn address(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default()
}

#[tokio::test]
async fn all_operators_are_ready_and_agents_reach_the_one_that_works() -> Result<()> {
    let cluster = Cluster::shared().await?;
    start_anew(&cluster).await?;
    cluster.install_chart(&["operator.replicas=2", "operator.podDisruptionBudget.enabled=true"]).await?;
    cluster.probe("{}").await?;
    let both = pods(&cluster, chart::NAMESPACE).await?;
    assert_eq!(both.len(), 2);
    let [leader] = &collector(&cluster).await.map_err(Error::Unexpected)?[..] else {
        return Err(Error::Unexpected("the Service leads to several operators".to_owned()));
    };
    let leading = both.iter().find(|pod| address(pod) == *leader);
    let leading = leading.ok_or_else(|| Error::Unexpected(format!("{leader} is no operator's")))?;
    cluster.helm(&["test", chart::RELEASE, "--namespace", chart::NAMESPACE, "--timeout", "180s"]).await?;

    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    api.delete(&leading.name_any(), &DeleteParams::default()).await.map_err(Error::api("delete the leader"))?;
    // The standby or the replacement of the deleted one.
    eventually("the Service to lead to another operator", async || {
        let leads_to = collector(&cluster).await?;
        if leads_to.len() == 1 && leads_to[0] != *leader { Ok(()) } else { Err(format!("{leads_to:?}")) }
    })
    .await?;
    cluster.ready_probe().await?;
    operator_is_available(&cluster).await?;
    start_anew(&cluster).await
}

async fn uids(cluster: &Cluster) -> Result<Vec<Option<String>>> {
    let probes = Api::<NodeProbe>::all(cluster.client.clone()).list(&ListParams::default()).await;
    Ok(probes.map_err(Error::api("list NodeProbes"))?.items.iter().map(kube::ResourceExt::uid).collect())
}

#[tokio::test]
async fn second_release_does_nothing_and_its_removal_harms_nothing() -> Result<()> {
    let cluster = Cluster::shared().await?;
    start_anew(&cluster).await?;
    cluster.install_chart(&[]).await?;
    cluster.probe("{}").await?;
    let before = uids(&cluster).await?;

    let path = place::repository().join("charts/scopeprobe");
    let install = ["install", SECOND, &path.to_string_lossy(), "--namespace", SECOND, "--create-namespace"];
    let flags = ["--set", "crds.enabled=false", "--wait", "--timeout", "180s"];
    let notes = cluster.helm(&[&install[..], &flags].concat()).await?;
    let first = format!("{}/{}-operator", chart::NAMESPACE, chart::RELEASE);
    assert!(notes.contains(&first), "{notes}");
    let log = cluster.kubectl(&["logs", "--namespace", SECOND, "deployment/second-scopeprobe-operator"]).await?;
    assert!(log.contains(&format!("Deployment {first} has this cluster")), "{log}");
    let sets = Api::<DaemonSet>::namespaced(cluster.client.clone(), SECOND).list(&ListParams::default()).await;
    assert!(sets.map_err(Error::api("list DaemonSets"))?.items.is_empty());

    cluster.helm(&["uninstall", SECOND, "--namespace", SECOND, "--wait"]).await?;
    assert_eq!(uids(&cluster).await?, before);
    cluster.ready_probe().await?;

    // Uninstalled, the first leaves the cluster to the second, with all that the first has written.
    cluster.helm(&[&install[..], &flags].concat()).await?;
    cluster.uninstall_chart().await?;
    eventually("the second operator to roll out agents", async || {
        let sets = Api::<DaemonSet>::namespaced(cluster.client.clone(), SECOND).list(&ListParams::default()).await;
        let sets = sets.map_err(|error| error.to_string())?.items;
        if sets.is_empty() { Err("no DaemonSet".to_owned()) } else { Ok(()) }
    })
    .await?;
    cluster.ready_probe().await?;
    let probes = Api::<ScopeProbe>::all(cluster.client.clone());
    probes.delete(scope_probe::NAME, &DeleteParams::default()).await.map_err(Error::api("delete the ScopeProbe"))?;
    cluster.helm(&["uninstall", SECOND, "--namespace", SECOND, "--wait"]).await?;
    start_anew(&cluster).await
}
