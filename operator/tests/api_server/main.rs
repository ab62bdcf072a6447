//! The operator as a process, and an API server that goes away and comes back: it waits, says what for, and goes on. Of two
//! operators one writes, and of two installations one works.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod agent;
mod endpoints;
mod faults;
mod installations;
mod process;
mod proxy;
mod takeover;

use agent::report;
use crds::{NodeProbe, Topology};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{Api, ResourceExt as _, api::ListParams};
use process::{NAMESPACE, Operator};
use scopeprobe_tests::{ControlPlane, Error, Result, eventually, manifest};

/// A node with a pod, and what asks for the topology.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: scopeprobe-system}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {kubernetes.io/os: linux}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}, spec: {nodeName: node-1, containers: [{name: main, image: none}]}}
---
{apiVersion: scopeprobe.io/v1alpha1, kind: ScopeProbe, metadata: {name: cluster}, spec: {topology: {counterInterval: 1s}}}
";

async fn control_plane() -> Result<ControlPlane> {
    let control_plane = ControlPlane::start().await?;
    control_plane.install_kinds().await?;
    let client = &control_plane.client;
    eventually("the API server to know the kinds", async || {
        let topologies = Api::<Topology>::all(client.clone()).list(&ListParams::default()).await;
        topologies.map_err(|error| error.to_string())?;
        let applied = manifest::apply(client, "", CLUSTER).await;
        applied.map(|_| ()).map_err(|error| error.to_string())
    })
    .await?;
    Ok(control_plane)
}

async fn pod_uid(control_plane: &ControlPlane) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(control_plane.client.clone(), "shop");
    Ok(pods.get("web").await.map_err(Error::api("read the pod"))?.uid().unwrap_or_default())
}

/// Waits until the pod's Topology shows this many connections.
async fn shows(control_plane: &ControlPlane, opened: u64) -> Result<()> {
    let topologies: Api<Topology> = Api::namespaced(control_plane.client.clone(), "shop");
    eventually(&format!("the Topology to show {opened} connections"), async || {
        let topology = topologies.get("pod-web").await.map_err(|error| error.to_string())?;
        let shown = topology.status.unwrap_or_default().totals.opened;
        if shown == opened { Ok(()) } else { Err(shown.to_string()) }
    })
    .await
}

async fn holder(control_plane: &ControlPlane) -> Result<Option<String>> {
    let leases: Api<Lease> = Api::namespaced(control_plane.client.clone(), NAMESPACE);
    let lease = leases.get_opt("scopeprobe-operator").await.map_err(Error::api("read the lease"))?;
    Ok(lease.and_then(|lease| lease.spec?.holder_identity))
}

#[tokio::test]
async fn operator_waits_for_absent_api_server_and_goes_on_after_it() -> Result<()> {
    let mut control_plane = control_plane().await?;
    let uid = pod_uid(&control_plane).await?;

    // At its start.
    control_plane.stop();
    let mut operator = Operator::start(&control_plane, "operator-1")?;
    operator.waits_for("cannot read Lease scopeprobe-system/scopeprobe-operator").await?;
    control_plane.start_again().await?;
    operator.is_ready().await?;
    report(operator.collector(), &uid, 3).await?;
    shows(&control_plane, 3).await?;

    // For longer than its lease: after a while in which a standby would take over, reports are taken in again.
    control_plane.stop();
    operator.waits_for("lease").await?;
    report(operator.collector(), &uid, 8).await?;
    operator.runs()?;
    control_plane.start_again().await?;
    operator.is_ready().await?;
    shows(&control_plane, 8).await?;
    report(operator.collector(), &uid, 9).await?;
    shows(&control_plane, 9).await?;
    assert_eq!(holder(&control_plane).await?.as_deref(), Some("operator-1"));
    let probes: Api<NodeProbe> = Api::all(control_plane.client.clone());
    let probe = probes.get("node-1").await.map_err(Error::api("read the NodeProbe"))?;
    assert_eq!(probe.status.unwrap_or_default().unobserved.intervals, 0, "the same operator knows of no gap");
    operator.runs()
}
