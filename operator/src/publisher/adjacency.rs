//! Turns the graph round: from edges to workloads with their edges.

use std::{collections::BTreeMap, sync::Arc};

use crds::{NamespaceEdge, TopologyTotals};
use topology::{
    edge::{Edge, Peer},
    entity::Workload,
    graph::Graph,
};

use crate::observation::TopologyOverview;

/// Maximum number of namespace pairs in an overview.
const MAX_NAMESPACE_EDGES: usize = 50;

/// One workload's edges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Edges<'a> {
    pub egress: Vec<&'a Arc<Edge>>,
    pub ingress: Vec<&'a Arc<Edge>>,
}

/// All workloads that have edges.
pub(super) fn by_workload(graph: &Graph) -> BTreeMap<&Workload, Edges<'_>> {
    let mut workloads: BTreeMap<&Workload, Edges<'_>> = BTreeMap::new();
    for edge in &graph.edges {
        if let Peer::Workload(client) = &edge.key.client {
            workloads.entry(client).or_default().egress.push(edge);
        }
        if let Peer::Workload(server) = &edge.key.server {
            workloads.entry(server).or_default().ingress.push(edge);
        }
    }
    workloads
}

/// Returns the size of the topology, without what its objects leave out and how old their counters get.
pub(super) fn overview(graph: &Graph, workloads: &BTreeMap<&Workload, Edges<'_>>) -> TopologyOverview {
    let mut pairs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for edge in &graph.edges {
        *pairs.entry((namespace(&edge.key.client), namespace(&edge.key.server))).or_default() += 1;
    }
    let mut pairs: Vec<((&str, &str), u64)> = pairs.into_iter().collect();
    pairs.sort_by_key(|(pair, edges)| (std::cmp::Reverse(*edges), *pair));
    TopologyOverview {
        totals: TopologyTotals {
            workloads: workloads.len() as u64,
            edges: graph.edges.len() as u64,
            ..TopologyTotals::default()
        },
        omitted_namespaces: pairs.len().saturating_sub(MAX_NAMESPACE_EDGES) as u64,
        namespaces: pairs
            .into_iter()
            .take(MAX_NAMESPACE_EDGES)
            .map(|((from, to), edges)| NamespaceEdge { from: from.to_owned(), to: to.to_owned(), edges })
            .collect(),
    }
}

fn namespace(peer: &Peer) -> &str {
    match peer {
        Peer::Workload(workload) => &workload.namespace,
        Peer::Service(service) => &service.namespace,
        Peer::HostProcess { .. } | Peer::Node { .. } => "(node)",
        Peer::External { .. }
        | Peer::BehindNode { .. }
        | Peer::ExternalGroup { .. }
        | Peer::ExternalName { .. }
        | Peer::OtherExternal => "(external)",
        Peer::ApiServer => "(api-server)",
        Peer::UnknownPod { .. } | Peer::SomePod { .. } => "(unknown)",
    }
}
