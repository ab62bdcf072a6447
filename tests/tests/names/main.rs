//! Everybody has a name: the outside, the API server, the node's own services, owners that others have made, and every
//! kind of container, however short it lived. With the programs' own counts.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod outside;
mod parts;
mod shown;

use scopeprobe_tests::{Cluster, Result};

/// The ranges that nodes and pods are in are in a group, too: it must not name them.
const SPEC: &str = "{topology: {counterInterval: 1s, maxExternalPeers: 2, externalGroups: [
  {name: inside, cidrs: [10.0.0.0/8]}, {name: partner, cidrs: [198.18.5.1/32]}]}}";

#[tokio::test]
async fn the_outside_and_the_clusters_own_services_have_their_names() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let _probe = cluster.lock("probe").await?;
    probe(&cluster).await?;
    outside::test(&cluster).await
}

#[tokio::test]
async fn every_container_and_every_owner_has_its_name() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let _probe = cluster.lock("probe").await?;
    probe(&cluster).await?;
    parts::test(&cluster).await
}

async fn probe(cluster: &Cluster) -> Result<()> {
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    cluster.probe(SPEC).await
}
