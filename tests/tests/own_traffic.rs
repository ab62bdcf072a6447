//! Tests that the map leaves out ScopeProbe's own traffic, and nothing that others call, unless `includeSelf` is true.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use crds::{PeerType, ScopeProbe, Topology, TopologyEdge};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, ResourceExt as _, api::ListParams};
use scopeprobe_tests::{Cluster, Error, Result, chart, eventually, scope_probe};
use traffic::protocol::Connect;

/// Connections of a stranger to the collector's port.
const STRANGERS: u64 = 7;
const COLLECTOR: u16 = 9463;

/// The Topology of the operator, if there is one.
async fn operators(cluster: &Cluster) -> Result<Option<Topology>, String> {
    let topologies: Api<Topology> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let there = topologies.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
    let operator = format!("deployment-{}-operator", chart::RELEASE);
    Ok(there.into_iter().find(|topology| topology.name_any() == operator))
}

/// The names of all Topologies in the operator's namespace.
async fn all_names(cluster: &Cluster) -> Result<Vec<String>, String> {
    let topologies: Api<Topology> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let there = topologies.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
    Ok(there.iter().map(kube::ResourceExt::name_any).collect())
}

/// Number of edges that the map leaves out.
async fn own_edges(cluster: &Cluster) -> Result<u64, String> {
    let probes: Api<ScopeProbe> = Api::all(cluster.client.clone());
    let probe = probes.get(scope_probe::NAME).await.map_err(|error| error.to_string())?;
    Ok(probe.status.unwrap_or_default().topology.own_edges)
}

fn ingress(topology: &Topology) -> Vec<TopologyEdge> {
    topology.status.clone().unwrap_or_default().ingress
}

fn from<'a>(edges: &'a [TopologyEdge], name: &str) -> Vec<&'a TopologyEdge> {
    edges.iter().filter(|edge| edge.peer.name.as_deref() == Some(name)).collect()
}

#[tokio::test]
async fn own_traffic_is_shown_on_request_and_that_of_strangers_always() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.probe("{}").await?;
    // Agents to operator, operator to API server, and kubelets to agents on two nodes and to the operator.
    eventually("own edges that are left out", async || {
        let (edges, names) = (own_edges(&cluster).await?, all_names(&cluster).await?);
        if edges >= 5 && names.is_empty() { Ok(()) } else { Err(format!("{edges}, {names:?}")) }
    })
    .await?;

    let namespace = cluster.namespace("self").await?;
    let stranger = namespace.traffic_pod("stranger", Some("node-2"), &["main"]).await?.remove(0);
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), chart::NAMESPACE);
    let collector = services.get(&format!("{}-collector", chart::RELEASE)).await;
    let collector = collector.map_err(Error::api("read the collector's Service"))?;
    let address = collector.spec.and_then(|spec| spec.cluster_ip?.parse().ok());
    let address = address.ok_or_else(|| Error::Unexpected("the collector has no address".to_owned()))?;
    let plan = Connect { count: STRANGERS, ..Connect::to(SocketAddr::new(address, COLLECTOR)) };
    let opened = stranger.connect(plan).await?.opened;
    assert_eq!(opened, STRANGERS);
    eventually("the stranger's calls, and no others, at the operator", async || {
        let Some(operator) = operators(&cluster).await? else { return Err("no Topology".to_owned()) };
        let status = operator.status.clone().unwrap_or_default();
        let edges = ingress(&operator);
        let is_right = edges.len() == 1
            && from(&edges, "stranger").iter().map(|edge| edge.opened).sum::<u64>() == STRANGERS
            && status.egress.is_empty();
        if is_right { Ok(()) } else { Err(format!("{status:#?}")) }
    })
    .await?;

    cluster.probe("{topology: {includeSelf: true}}").await?;
    eventually("all calls at the operator", async || {
        let Some(operator) = operators(&cluster).await? else { return Err("no Topology".to_owned()) };
        let edges = ingress(&operator);
        let status = operator.status.clone().unwrap_or_default();
        let agents = format!("scopeprobe-{}-ebpf", scope_probe::NAME);
        let calls_the_api_server = status.egress.iter().any(|edge| edge.peer.type_ == PeerType::ApiServer);
        let is_right = from(&edges, "stranger").iter().map(|edge| edge.opened).sum::<u64>() == STRANGERS
            && !from(&edges, &agents).is_empty()
            && edges.iter().any(|edge| edge.peer.node.is_some())
            && calls_the_api_server
            && own_edges(&cluster).await? == 0;
        if is_right { Ok(()) } else { Err(format!("{status:#?}")) }
    })
    .await
}
