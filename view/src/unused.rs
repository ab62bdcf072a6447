//! Services and workloads without an observed caller.

use std::collections::{BTreeMap, BTreeSet};

use crds::{PeerType, SeenEnds};

use crate::{
    inventory::{Inventory, Listed, Property},
    map::{Edge, Map, Peer, printable},
    node,
};

/// A Service or a workload without an observed caller.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unused {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Certainty of the statement.
    pub finding: Finding,
}

/// Reason why an edge may belong to a Service that is listed.
const BY_SERVERS: &str = "without an observed client: no agent knows whether a Service was called; one before that workload may have callers";

/// Nodes with gaps that are named; further ones are counted.
const NODES: usize = 5;

/// Certainty that an object has no callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// No edge leads to it.
    NoCaller,
    /// Edges lead to it from nodes and their processes only, such as a kubelet's probes.
    NodesOnly,
    /// No edge leads to it, and it has no pods.
    NoPods,
    /// A headless Service: its clients call pods, so edges do not name it.
    UnknownHeadless,
    /// An alias of another name: its clients call that name's address, so edges do not name it.
    UnknownAlias,
    /// A Service with clients outside of the cluster: edges of these may not name it.
    UnknownExposed,
}

impl Finding {
    fn words(self) -> &'static str {
        match self {
            Self::NoCaller => "no caller observed",
            Self::NodesOnly => "called from nodes only: probes, processes, or clients that a node forwarded",
            Self::NoPods => "no caller observed, and no pods wanted",
            Self::UnknownHeadless => "unknown: headless, its clients call pods; see its workload",
            Self::UnknownExposed => "unknown: clients outside of the cluster do not name it; see its workload",
            Self::UnknownAlias => "unknown: a DNS alias, its clients call the address of another name",
        }
    }
}

/// Callers of one object.
#[derive(Clone, Copy, Default)]
struct Callers {
    others: bool,
    nodes: bool,
}

type Key = (String, String, String);

/// Returns the Services and workloads to which no edge leads, in order. Objects are those of the inventory and the workloads of
/// the map, of kinds that the inventory does not have.
#[must_use]
pub fn unused(map: &Map, inventory: &Inventory) -> Vec<Unused> {
    let callers = callers(map);
    let listed = inventory.listed();
    let kinds: BTreeSet<&str> = listed.iter().map(|listed| listed.kind).collect();
    // Callers of workloads in other namespaces were not read.
    let from_map = map.ends().filter_map(key).filter(|(kind, namespace, _)| {
        kind != "Service" && !kinds.contains(kind.as_str()) && inventory.is_of(namespace)
    });
    let mut properties: BTreeMap<Key, Option<Property>> = from_map.map(|key| (key, None)).collect();
    properties.extend(listed.into_iter().map(|listed| (listed_key(listed), listed.property)));
    let unused = properties.into_iter().filter_map(|(key, property)| {
        let finding = finding(callers.get(&key).copied().unwrap_or_default(), property)?;
        let (kind, namespace, name) = key;
        Some(Unused { kind, namespace, name, finding })
    });
    unused.collect()
}

fn finding(callers: Callers, property: Option<Property>) -> Option<Finding> {
    match (callers, property) {
        (Callers { others: true, .. }, _) => None,
        (_, Some(Property::Headless)) => Some(Finding::UnknownHeadless),
        (_, Some(Property::ExternalName)) => Some(Finding::UnknownAlias),
        (_, Some(Property::Exposed)) => Some(Finding::UnknownExposed),
        (Callers { nodes: true, .. }, _) => Some(Finding::NodesOnly),
        (_, Some(Property::ScaledToZero)) => Some(Finding::NoPods),
        (_, None) => Some(Finding::NoCaller),
    }
}

fn callers(map: &Map) -> BTreeMap<Key, Callers> {
    let mut all: BTreeMap<Key, Callers> = BTreeMap::new();
    for edge in &map.edges {
        let is_node =
            matches!(&edge.client, Peer::One(peer) if matches!(peer.type_, PeerType::Node | PeerType::HostProcess));
        // A workload that calls itself would still do so without any other caller.
        let is_itself = edge.client == edge.server;
        for key in key(&edge.server).filter(|_| !is_itself).into_iter().chain(service_key(edge)) {
            let callers = all.entry(key).or_default();
            *callers = Callers { others: callers.others || !is_node, nodes: callers.nodes || is_node };
        }
    }
    all
}

fn key(peer: &Peer) -> Option<Key> {
    let Peer::One(one) = peer else { return None };
    if one.type_ == PeerType::ApiServer {
        // Edges name the server itself, although most clients call its Service.
        return Some(("Service".to_owned(), "default".to_owned(), "kubernetes".to_owned()));
    }
    let namespace = peer.namespace()?;
    let kind = if one.type_ == PeerType::Service { "Service" } else { one.kind.as_deref()? };
    Some((kind.to_owned(), namespace.to_owned(), one.name.clone()?))
}

fn listed_key(listed: &Listed) -> Key {
    (listed.kind.to_owned(), listed.namespace.clone(), listed.name.clone())
}

/// Returns the Service that an edge's client called, of the text `namespace/name:port`.
fn service_key(edge: &Edge) -> Option<Key> {
    let (namespace, rest) = edge.service.as_deref()?.split_once('/')?;
    let (name, _) = rest.rsplit_once(':')?;
    Some(("Service".to_owned(), namespace.to_owned(), name.to_owned()))
}

/// Returns a table of the objects.
#[must_use]
pub fn table(unused: &[Unused]) -> String {
    let header = ["KIND", "NAME", "CALLERS"].map(str::to_owned);
    let rows = unused.iter().map(|unused| {
        let name = printable(&format!("{}/{}", unused.namespace, unused.name));
        [printable(&unused.kind), name, unused.finding.words().to_owned()]
    });
    crate::render::aligned(&[header].into_iter().chain(rows).collect::<Vec<_>>())
}

/// Returns what keeps the statement from being certain: nodes whose agents did not record everything, and edges that name no
/// Service.
#[must_use]
pub fn caveats(map: &Map, inventory: &Inventory) -> Vec<String> {
    let rare = "an edge leaves the map some time after its last connection (spec.topology.retention of the ScopeProbe): \
                rarer callers are not listed";
    let mut caveats: Vec<String> = inventory.nodes().into_iter().filter_map(node::gap).collect();
    if let Some(more) = caveats.len().checked_sub(NODES).filter(|more| *more > 0) {
        caveats.truncate(NODES);
        caveats.push(format!("{more} more nodes have gaps; `kubectl scopeprobe why` lists them"));
    }
    if inventory.nodes().is_empty() {
        caveats.push("the coverage of the nodes is not known: no NodeProbe was read".to_owned());
    }
    if !inventory.listed().iter().any(|listed| listed.kind == "Service") {
        caveats.push("no Services were read: only workloads are listed".to_owned());
    }
    if !inventory.listed().iter().any(|listed| listed.kind != "Service") {
        caveats.push("no workloads were read: those without any edge are not listed".to_owned());
    }
    let without_service = map.edges.iter().filter(|edge| edge.seen == Some(SeenEnds::Server) && edge.service.is_none());
    match without_service.count() {
        0 => {}
        1 => caveats.push(format!("1 edge {BY_SERVERS}")),
        number => caveats.push(format!("{number} edges {BY_SERVERS}")),
    }
    caveats.push(rare.to_owned());
    caveats
}
