//! The operator as a process, and an API server that goes away and comes back: it waits, says what for, and goes on. Of two
//! operators one writes, and of two installations one works.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod agent;
mod endpoints;
mod installations;
mod process;

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
{apiVersion: scopeprobe.io/v1alpha1, kind: ScopeProbe, metadata: {name: cluster}, spec: {}}
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

    // For longer than its lease: reports are taken in all the time, and nothing of them is lost.
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

#[tokio::test]
async fn of_two_operators_one_writes() -> Result<()> {
    let control_plane = control_plane().await?;
    let mut first = Operator::start(&control_plane, "operator-1")?;
    first.is_ready().await?;
    let mut second = Operator::start(&control_plane, "operator-2")?;
    second.stands_by("operator operator-1 holds the lease").await?;

    // It does not run for longer than its lease; the other takes that.
    first.signal("STOP").await?;
    second.is_ready().await?;
    assert_eq!(holder(&control_plane).await?.as_deref(), Some("operator-2"));
    first.signal("CONT").await?;
    assert!(!first.end().await?, "an operator that lost its lease to another ends with an error");
    second.runs()?;

    // Told to stop, it gives the lease back at once.
    let mut third = Operator::start(&control_plane, "operator-3")?;
    third.stands_by("operator operator-2 holds the lease").await?;
    second.signal("TERM").await?;
    assert!(second.end().await?, "it ends as it was told to");
    assert_ne!(holder(&control_plane).await?.as_deref(), Some("operator-2"));
    third.is_ready().await
}
