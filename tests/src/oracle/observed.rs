//! Content of the Topology objects.

use std::collections::btree_map::Entry;

use crds::{EdgePod, Topology, TopologyEdge, TopologyPeer};
use kube::{Api, api::ListParams};

use super::{EdgeCounts, EdgeName, Edges, Workload};
use crate::{Error, Result, namespace::Namespace};

/// The edges of a namespace as its Topology objects show them: once as the clients' objects do, once as the servers'.
/// Edges that do not stay in the namespace are left out, unless they name a pod of it.
///
/// # Errors
/// The API server's, and edges that contradict themselves.
pub async fn edges(namespace: &Namespace) -> Result<(Edges, Edges)> {
    let api: Api<Topology> = namespace.api();
    let objects = api.list(&ListParams::default()).await.map_err(Error::api("list Topologies"))?.items;
    let (mut by_clients, mut by_servers) = (Edges::new(), Edges::new());
    for object in &objects {
        let Some(status) = &object.status else { continue };
        let own = (status.workload.kind.clone(), status.workload.name.clone());
        for edge in &status.egress {
            let name = name(own.clone(), peer(namespace, &edge.peer), edge);
            add(&mut by_clients, name, counts(edge, false))?;
        }
        for edge in &status.ingress {
            let name = name(peer(namespace, &edge.peer), own.clone(), edge);
            add(&mut by_servers, name, counts(edge, true))?;
        }
    }
    Ok((by_clients, by_servers))
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
    EdgeName { client, server, service: edge.service.as_ref().map(|service| service.name.clone()), port: edge.port }
}

fn peer(namespace: &Namespace, peer: &TopologyPeer) -> Workload {
    let name = peer.name.clone().or_else(|| peer.ip.clone()).unwrap_or_default();
    match &peer.namespace {
        Some(other) if *other != namespace.name => (peer.kind.clone(), format!("{other}/{name}")),
        _ => (peer.kind.clone(), name),
    }
}

fn counts(edge: &TopologyEdge, at_server: bool) -> EdgeCounts {
    let parts = |pods: &[EdgePod]| {
        let opened = pods.iter().map(|pod| ((pod.pod.clone(), pod.container.clone()), pod.opened));
        opened.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (own, others) = (parts(&edge.pods), parts(&edge.peer_pods));
    let (clients, mut servers) = if at_server { (others, own) } else { (own, others) };
    // Whom a refused attempt was for is in the edge's name; the oracle knows of no server there.
    servers.retain(|_, opened| *opened > 0);
    let known = (edge.bytes_sent.unwrap_or_default(), edge.bytes_received.unwrap_or_default());
    let (sent, received) = if at_server { (known.1, known.0) } else { known };
    EdgeCounts { opened: edge.opened, active: edge.active, failed: edge.failed, sent, received, clients, servers }
}
