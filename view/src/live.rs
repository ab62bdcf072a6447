//! The map while it changes: nodes and edges by identifier, and the differences that lead from one revision to the next.

mod journal;

use std::collections::BTreeMap;

use crds::{CaptureMethod, IdentitySource, PeerType, SeenEnds, TransportProtocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

pub use self::journal::{CatchUp, Journal};
use crate::{
    map::{Counters, Edge, Map, Peer, printable},
    render::Names,
};

/// All that a page shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Graph {
    /// Ends of edges, by identifier.
    pub nodes: BTreeMap<String, GraphNode>,
    /// Edges, by identifier.
    pub edges: BTreeMap<String, GraphEdge>,
    /// Gaps of the map.
    pub caveats: Vec<String>,
    /// Reason for which the map may be out of date; empty if it is not.
    pub problem: String,
}

/// One end of edges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphNode {
    /// Name that tables and pictures show, with the kind where two workloads have the same.
    pub label: String,
    /// Type of the peer; `None` for a group of peers.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<PeerType>,
    /// Namespace of a workload or Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Kind of a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name of the workload, Service, node or DNS entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// True if it is outside of the cluster.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_external: bool,
}

/// Edge between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphEdge {
    /// Identifier of the client's node.
    pub client: String,
    /// Identifier of the server's node.
    pub server: String,
    /// Service that the client called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Port at which the server listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Transport protocol.
    pub protocol: TransportProtocol,
    /// Counters, as the client sees them.
    #[serde(flatten)]
    pub counters: Counters,
    /// Ends that agents observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<SeenEnds>,
    /// Source of the peer's identity, in the object that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentitySource>,
    /// Methods of the agents that observed it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<CaptureMethod>,
    /// True if the direction of some connections is a guess.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_inferred: bool,
    /// Transparent proxies on the way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
    /// Time at which an agent first observed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Time>,
    /// Lower bound of the time of the last activity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
    /// Time of the last failed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failed: Option<Time>,
}

/// Difference between two graphs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delta {
    /// Nodes that are new or have changed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, GraphNode>,
    /// Edges that are new or have changed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub edges: BTreeMap<String, GraphEdge>,
    /// Nodes that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_nodes: Vec<String>,
    /// Edges that are gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_edges: Vec<String>,
    /// All caveats, if they have changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caveats: Option<Vec<String>>,
    /// The problem, if it has changed; empty if it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Graph {
    /// Returns the graph of a map.
    #[must_use]
    pub fn of(map: &Map) -> Self {
        let names = Names::of(map);
        Self {
            nodes: names.all().map(|(peer, name)| (node_id(peer), GraphNode::of(peer, name))).collect(),
            edges: map.edges.iter().map(|edge| (edge.id.clone(), GraphEdge::of(edge))).collect(),
            caveats: map.caveats.clone(),
            problem: String::new(),
        }
    }

    /// Applies a difference. That between this graph and another makes it the other.
    pub fn apply(&mut self, delta: &Delta) {
        for id in &delta.removed_edges {
            self.edges.remove(id);
        }
        for id in &delta.removed_nodes {
            self.nodes.remove(id);
        }
        self.nodes.extend(delta.nodes.clone());
        self.edges.extend(delta.edges.clone());
        self.caveats = delta.caveats.clone().unwrap_or_else(|| std::mem::take(&mut self.caveats));
        self.problem = delta.problem.clone().unwrap_or_else(|| std::mem::take(&mut self.problem));
    }
}

impl Delta {
    /// Returns the difference that leads from one graph to another.
    #[must_use]
    pub fn between(before: &Graph, after: &Graph) -> Self {
        Self {
            nodes: changed(&before.nodes, &after.nodes),
            edges: changed(&before.edges, &after.edges),
            removed_nodes: removed(&before.nodes, &after.nodes),
            removed_edges: removed(&before.edges, &after.edges),
            caveats: (before.caveats != after.caveats).then(|| after.caveats.clone()),
            problem: (before.problem != after.problem).then(|| after.problem.clone()),
        }
    }

    /// Returns whether both graphs were the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the number of nodes and edges in it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.nodes.len() + self.edges.len() + self.removed_nodes.len() + self.removed_edges.len()
    }
}

fn changed<T: Clone + PartialEq>(before: &BTreeMap<String, T>, after: &BTreeMap<String, T>) -> BTreeMap<String, T> {
    let is_changed = |(id, value): &(&String, &T)| before.get(*id) != Some(*value);
    after.iter().filter(is_changed).map(|(id, value)| (id.clone(), value.clone())).collect()
}

fn removed<T>(before: &BTreeMap<String, T>, after: &BTreeMap<String, T>) -> Vec<String> {
    before.keys().filter(|id| !after.contains_key(*id)).cloned().collect()
}

impl GraphNode {
    fn of(peer: &Peer, label: &str) -> Self {
        let (type_, name) = match peer {
            Peer::One(one) => (Some(one.type_), one.name.as_deref()),
            Peer::Group(_) => (None, None),
        };
        Self {
            label: printable(label),
            type_,
            namespace: peer.namespace().map(printable),
            kind: peer.kind().map(printable),
            name: name.map(printable),
            is_external: peer.is_external(),
        }
    }
}

impl GraphEdge {
    fn of(edge: &Edge) -> Self {
        Self {
            client: node_id(&edge.client),
            server: node_id(&edge.server),
            service: edge.service.clone(),
            port: edge.port,
            protocol: edge.protocol,
            counters: edge.counters,
            seen: edge.seen,
            identity: edge.identity,
            methods: edge.methods.clone(),
            is_inferred: edge.is_inferred,
            via: edge.via.clone(),
            first_seen: edge.first_seen.clone(),
            last_seen: edge.last_seen.clone(),
            last_failed: edge.last_failed.clone(),
        }
    }
}

/// Returns an identifier of a peer that does not depend on other peers: links to a page contain it.
fn node_id(peer: &Peer) -> String {
    let one = match peer {
        Peer::Group(group) => return format!("Group/{}", escaped(&group.group)),
        Peer::One(one) => one,
    };
    // As kubectl writes a kind: the version says nothing about the workload.
    let group = one.api_version.as_deref().and_then(|version| version.split_once('/')).map(|(group, _)| group);
    let kind = one.kind.as_ref().map(|kind| group.map_or_else(|| kind.clone(), |group| format!("{kind}.{group}")));
    let parts = [&one.namespace, &kind, &one.name, &one.node, &one.ip, &one.uid, &one.cluster];
    let id = parts.into_iter().fold(format!("{:?}", one.type_), |mut id, part| {
        id.push('/');
        id.push_str(&escaped(part.as_deref().unwrap_or_default()));
        id
    });
    id.trim_end_matches('/').to_owned()
}

/// Escapes the separator.
fn escaped(part: &str) -> String {
    part.replace('%', "%25").replace('/', "%2F")
}
