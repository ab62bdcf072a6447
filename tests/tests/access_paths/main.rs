//! Tests every access path: directly, through each kind of Service and policy, from pods and from nodes, to pods and to
//! nodes, in both address families. Each conversation is one edge, with the right names at both ends and the right
//! counts. If one node has no agent, the edges that the other agent observes are published with one observed end.
//!
//! kube-proxy uses nftables on the shared cluster; other clusters test the same paths with iptables and IPVS.
#![forbid(unsafe_code)]

mod one_agent;
mod paths;
mod table;
mod testbed;

use std::time::Duration;

use crds::Mode;
use one_agent::Tracking;
use scopeprobe_tests::{Cluster, Result, cluster::Shape, eventually, oracle::observed};
use testbed::Testbed;

const SPEC: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";
/// Duration of connections that scans every two seconds must observe.
const LOOKED_AT: Duration = Duration::from_secs(10);
const MIXED: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}, capture: {fallback: {cpuBudget: 500m}},
  modeOverrides: [{nodeSelector: {kubernetes.io/hostname: node-1}, mode: Fallback}]}";

#[tokio::test]
async fn each_access_path_is_one_edge_with_the_right_names_and_counts() -> Result<()> {
    every_path(Cluster::shared().await?, "paths", SPEC, Duration::ZERO, |_| Mode::Ebpf).await
}

#[tokio::test]
async fn each_access_path_is_one_edge_with_iptables() -> Result<()> {
    every_path(Cluster::of(Shape::FewAddresses).await?, "iptables-paths", SPEC, Duration::ZERO, |_| Mode::Ebpf).await
}

#[tokio::test]
#[ignore = "needs a cluster of virtual machines: scripts/access-paths ipvs"]
async fn each_access_path_is_one_edge_with_ipvs() -> Result<()> {
    every_path(Cluster::of(Shape::Ipvs).await?, "ipvs-paths", SPEC, Duration::ZERO, |_| Mode::Ebpf).await
}

#[tokio::test]
async fn each_access_path_is_one_edge_where_one_node_has_no_ebpf() -> Result<()> {
    let mode = |node: &str| if node == "node-1" { Mode::Fallback } else { Mode::Ebpf };
    every_path(Cluster::shared().await?, "mixed-paths", MIXED, LOOKED_AT, mode).await
}

async fn every_path(
    cluster: Cluster,
    what: &str,
    spec: &str,
    lasting: Duration,
    mode: impl Fn(&str) -> Mode,
) -> Result<()> {
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    cluster.probe_as(spec, mode).await?;
    let testbed = Testbed::new(cluster.namespace(what).await?, paths::ALL).await?;
    let cases = paths::cases(paths::ALL);
    testbed.connect_all(&cases, lasting).await?;
    let happened = testbed.happened(&cases).await?;
    let table = eventually("each access path to be shown as it was used", async || {
        let shown = observed::edges(&testbed.namespace).await.map_err(|error| error.to_string())?;
        let table = table::Table::of(&happened, &testbed.leads(), &shown);
        if table.is_perfect() { Ok(table) } else { Err(table.to_string()) }
    })
    .await?;
    println!("{what}\n{table}");
    testbed.tear_down().await
}

#[tokio::test]
async fn edges_of_the_other_agent_are_published_if_one_agent_is_missing() -> Result<()> {
    with_one_agent_missing("one-agent", Tracking::Unheard, Mode::Ebpf, Duration::ZERO).await
}

#[tokio::test]
async fn connection_tracking_names_the_servers_if_one_agent_is_missing() -> Result<()> {
    with_one_agent_missing("one-tracking-agent", Tracking::Heard, Mode::Fallback, LOOKED_AT).await
}

async fn with_one_agent_missing(what: &str, tracking: Tracking, mode: Mode, lasting: Duration) -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    // Both have an agent first: what is missing later was there.
    cluster.probe(SPEC).await?;
    cluster.probe_some(&one_agent::spec(tracking), &[one_agent::NODE], mode).await?;
    let testbed = Testbed::new(cluster.namespace(what).await?, paths::OF_ONE_AGENT).await?;
    let cases = paths::cases(paths::OF_ONE_AGENT);
    testbed.connect_all(&cases, lasting).await?;
    let expected = one_agent::visible(&testbed.happened(&cases).await?, tracking);
    eventually("all that one agent sees to be shown", async || {
        let (shown, known) = one_agent::shown(&testbed).await.map_err(|error| error.to_string())?;
        // The agent has seen the other backend.
        let is_known = known.contains("backend-2") == (tracking == Tracking::Heard) && !known.contains("backend-1");
        if shown == expected && is_known {
            Ok(())
        } else {
            Err(format!("expected {expected:#?}\nshown {shown:#?}\nby conntrack {known:?}"))
        }
    })
    .await
}
