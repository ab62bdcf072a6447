//! `scopeprobe-operator prune` removes what no operator maintains, and nothing where one is installed.
#![forbid(unsafe_code)]

use crds::{MODE_LABEL, NodeProbe, PROBE_LABEL, Topology};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    coordination::v1::Lease,
    core::v1::Node,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use operator::cleanup::prune::{self, Pruned};
use scopeprobe_tests::{ControlPlane, Error, Result, chart, eventually, manifest};

/// Objects that an operator leaves behind, and a Topology to which a user wrote.
const LEFT: &str = "
{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {scopeprobe.io/probe: p, scopeprobe.io/mode: ebpf, zone: a}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: scopeprobe.io/v1alpha1, kind: NodeProbe, metadata: {name: node-1}, spec: {}}
---
{apiVersion: scopeprobe.io/v1alpha1, kind: Topology, metadata: {name: deployment-web, namespace: shop}, spec: {}}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: scopeprobe-cluster, namespace: kube-system}}
";

/// That the garbage collector has not removed yet.
const AGENTS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agents, namespace: elsewhere, labels: {app.kubernetes.io/name: scopeprobe-agent}}
spec:
  selector: {matchLabels: {a: b}}
  template: {metadata: {labels: {a: b}}, spec: {containers: [{name: agent, image: none}]}}
";

async fn control_plane_with_leftovers() -> Result<ControlPlane> {
    let control_plane = ControlPlane::start().await?;
    control_plane.install_kinds().await?;
    let topologies: Api<Topology> = Api::all(control_plane.client.clone());
    let node_probes: Api<NodeProbe> = Api::all(control_plane.client.clone());
    eventually("the API server to know the kinds", async || {
        topologies.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        node_probes.list(&ListParams::default()).await.map_err(|error| error.to_string())
    })
    .await?;
    manifest::apply(&control_plane.client, "", LEFT).await?;
    Ok(control_plane)
}

/// The node's labels of ours, the number of NodeProbes, and whether the cluster's Lease is there.
async fn left(control_plane: &ControlPlane) -> Result<(Vec<String>, usize, bool)> {
    let client = &control_plane.client;
    let node = Api::<Node>::all(client.clone()).get("node-1").await.map_err(Error::api("read the node"))?;
    let ours = [PROBE_LABEL, MODE_LABEL].into_iter().filter(|label| node.labels().contains_key(*label));
    assert_eq!(node.labels().get("zone").map(String::as_str), Some("a"), "labels of others stay");
    let probes = Api::<NodeProbe>::all(client.clone()).list(&ListParams::default()).await;
    let probes = probes.map_err(Error::api("list NodeProbes"))?;
    let lease = Api::<Lease>::namespaced(client.clone(), "kube-system").get_opt("scopeprobe-cluster").await;
    let has_lease = lease.map_err(Error::api("read the cluster's Lease"))?.is_some();
    Ok((ours.map(str::to_owned).collect(), probes.items.len(), has_lease))
}

#[tokio::test]
async fn nothing_is_pruned_while_an_operator_is_installed_or_agents_run() -> Result<()> {
    let control_plane = control_plane_with_leftovers().await?;
    let client = &control_plane.client;
    manifest::apply(client, "", chart::OTHER_OPERATOR).await?;
    let before = left(&control_plane).await?;
    assert_eq!(before, (vec![PROBE_LABEL.to_owned(), MODE_LABEL.to_owned()], 1, true));
    let pruned = prune::run(client).await.map_err(|error| Error::Unexpected(error.to_string()))?;
    assert_eq!(pruned, Pruned::Nothing { operators: vec!["elsewhere/another".to_owned()] });
    assert_eq!(left(&control_plane).await?, before);

    // Without the operator, but with its agents: not before the garbage collector has removed these.
    manifest::apply(client, "", AGENTS).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "elsewhere");
    deployments.delete("another", &DeleteParams::default()).await.map_err(Error::api("delete the operator"))?;
    let pruning = tokio::spawn({
        let client = client.clone();
        async move { prune::run(&client).await }
    });
    // It has begun when it waits; a list of DaemonSets takes less than the other requests here.
    for _ in 0..20 {
        assert_eq!(left(&control_plane).await?, before);
    }
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), "elsewhere");
    sets.delete("agents", &DeleteParams::default()).await.map_err(Error::api("delete the agents"))?;
    let pruned = pruning.await.map_err(|error| Error::Unexpected(error.to_string()))?;
    assert_eq!(pruned.map_err(|error| Error::Unexpected(error.to_string()))?, Pruned::Everything);
    assert_eq!(left(&control_plane).await?, (Vec::new(), 0, false));
    let topologies: Api<Topology> = Api::namespaced(client.clone(), "shop");
    let theirs = topologies.get("deployment-web").await.map_err(Error::api("read what people wrote"))?;
    assert_eq!(theirs.status, None);
    Ok(())
}

#[tokio::test]
async fn pruning_without_the_kinds_is_no_error() -> Result<()> {
    let control_plane = ControlPlane::start().await?;
    let pruned = prune::run(&control_plane.client).await.map_err(|error| Error::Unexpected(error.to_string()))?;
    assert_eq!(pruned, Pruned::Everything);
    Ok(())
}
