//! Content of the Topology objects.

use std::collections::{BTreeMap, btree_map::Entry};

use crds::{EdgePod, PeerType, Topology, TopologyEdge, TopologyPeer, TopologyStatus};
use kube::{Api, api::ListParams};

use super::{EdgeCounts, EdgeName, Edges, Endpoint, Workload};
use crate::{Error, Result, namespace::Namespace};

/// Connections by pod and container.
type Parts = BTreeMap<Endpoint, u64>;

/// The edges of a namespace as its Topology objects show them: once as the clients' objects do, once as the servers'.
/// Pods of the other end are those of its own object, at the edge with the same identifier.
///
/// # Errors
/// The API server's, and edges that contradict themselves.
pub async fn edges(namespace: &Namespace) -> Result<(Edges, Edges)> {
    let api: Api<Topology> = namespace.api();
    let objects = api.list(&ListParams::default()).await.map_err(Error::api("list Topologies"))?.items;
    let statuses: Vec<&TopologyStatus> = objects.iter().filter_map(|object| object.status.as_ref()).collect();
    let clients = parts_by_id(statuses.iter().flat_map(|status| &status.egress));
    let servers = parts_by_id(statuses.iter().flat_map(|status| &status.ingress));
    let (mut by_clients, mut by_servers) = (Edges::new(), Edges::new());
    for status in statuses {
        let own = (status.workload.kind.clone(), status.workload.name.clone());
        for edge in &status.egress {
            let name = name(own.clone(), peer(namespace, &edge.peer), edge);
            add(&mut by_clients, name, counts(edge, false, &clients, &servers))?;
        }
        for edge in &status.ingress {
            let name = name(peer(namespace, &edge.peer), own.clone(), edge);
            add(&mut by_servers, name, counts(edge, true, &clients, &servers))?;
        }
    }
    Ok((by_clients, by_servers))
}

/// Returns the peer as people name it: the kind of a workload, else the type, and the name or address.
#[must_use]
pub fn peer_name(peer: &TopologyPeer) -> Workload {
    let kind = match peer.type_ {
        PeerType::Workload => peer.kind.clone().unwrap_or_default(),
        // As the API writes it.
        type_ => serde_json::to_value(type_).ok().and_then(|text| Some(text.as_str()?.to_owned())).unwrap_or_default(),
    };
    let name = peer.name.as_ref().or(peer.ip.as_ref()).or(peer.node.as_ref());
    (kind, name.cloned().unwrap_or_default())
}

/// Returns name and port of the Service that was called.
#[must_use]
pub fn service_name(edge: &TopologyEdge) -> Option<(String, u16)> {
    edge.service.as_ref().map(|service| (service.name.clone(), service.port))
}

/// Connections by pod and container, as an object lists them.
#[must_use]
pub fn parts(pods: &[EdgePod]) -> Parts {
    pods.iter().map(|pod| ((pod.pod.clone(), pod.container.clone()), pod.opened)).collect()
}

fn parts_by_id<'a>(edges: impl Iterator<Item = &'a TopologyEdge>) -> BTreeMap<&'a str, Parts> {
    edges.map(|edge| (edge.id.as_str(), parts(&edge.pods))).collect()
}

fn add(edges: &mut Edges, name: EdgeName, counts: EdgeCounts) -> Result<()> {
    match edges.entry(name) {
        Entry::Vacant(place) => {
            place.insert(counts);
            Ok(())
        }
        Entry::Occupied(twin) => Err(Error::Unexpected(format!("{:?} is there twice: {counts:?}", twin.key()))),
    }
}

fn name(client: Workload, server: Workload, edge: &TopologyEdge) -> EdgeName {
    EdgeName { client, server, service: service_name(edge), port: edge.port }
}

fn peer(namespace: &Namespace, peer: &TopologyPeer) -> Workload {
    let (kind, name) = peer_name(peer);
    match &peer.namespace {
        Some(other) if *other != namespace.name => (kind, format!("{other}/{name}")),
        _ => (kind, name),
    }
}

fn counts(
    edge: &TopologyEdge,
    at_server: bool,
    clients: &BTreeMap<&str, Parts>,
    servers: &BTreeMap<&str, Parts>,
) -> EdgeCounts {
    let of = |ends: &BTreeMap<&str, Parts>| ends.get(edge.id.as_str()).cloned().unwrap_or_default();
    let (clients, mut servers) = (of(clients), of(servers));
    // The edge's name has the destination of a refused attempt; the oracle knows of no server there.
    servers.retain(|_, opened| *opened > 0);
    let known = (edge.bytes_sent.unwrap_or_default(), edge.bytes_received.unwrap_or_default());
    let (sent, received) = if at_server { (known.1, known.0) } else { known };
    EdgeCounts { opened: edge.opened, active: edge.active, failed: edge.failed, sent, received, clients, servers }
}
