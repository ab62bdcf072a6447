//! Everybody has a name: the outside, the API server, the node's own services, owners that others have made, and every
//! kind of container, however short it lived. With the programs' own counts.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod outside;
mod parts;
mod resolved;
mod shown;

use scopeprobe_tests::{Cluster, Result};

/// The ranges that nodes and pods are in are in a group, too: it must not name them.
const SPEC: &str = "{topology: {counterInterval: 1s, maxExternalPeers: 2, externalGroups: [
  {name: inside, cidrs: [10.0.0.0/8]}, {name: partner, cidrs: [198.18.5.1/32]}]}}";

#[tokio::test]
async fn the_outside_and_the_clusters_own_services_have_their_names() -> Result<()> {
    let cluster = Cluster::shared().await?;
    probe(&cluster, SPEC).await?;
    outside::test(&cluster).await
}

#[tokio::test]
async fn every_container_and_every_owner_has_its_name() -> Result<()> {
    let cluster = Cluster::shared().await?;
    probe(&cluster, SPEC).await?;
    parts::test(&cluster).await
}

#[tokio::test]
async fn the_outside_is_called_by_the_name_that_led_there_unless_names_are_not_to_be_read() -> Result<()> {
    let cluster = Cluster::shared().await?;
    for (namespace, port, names_are_read) in [("resolved", 9001, true), ("unresolved", 9002, false)] {
        let spec = format!(
            "{{topology: {{counterInterval: 1s, dnsNames: {names_are_read}, externalGroups: [
              {{name: partner, cidrs: [198.18.5.1/32]}}]}}}}"
        );
        probe(&cluster, &spec).await?;
        resolved::test(&cluster, namespace, port, names_are_read).await?;
    }
    Ok(())
}

async fn probe(cluster: &Cluster, spec: &str) -> Result<()> {
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    cluster.probe(spec).await
}
