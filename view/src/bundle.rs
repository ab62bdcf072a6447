//! A bundle of the map and the nodes' states for people who may not know the cluster: names and addresses become numbers.

use std::collections::BTreeMap;

use crds::{NodeProbe, NodeProbeStatus, TopologyPeer};
use serde_json::{Value, json};

use crate::{
    inventory::Inventory,
    map::{Edge, EdgePods, Group, Map, Peer},
};

/// Kinds of workloads that say nothing about their owner, with their API versions.
const COMMON_KINDS: [(&str, &str); 7] = [
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "CronJob"),
    ("batch/v1", "Job"),
    ("v1", "Pod"),
];

/// Returns a list of the map and the states of nodes, which commands read again. Without names, equal names have equal numbers.
///
/// # Errors
/// Returns an error if an object cannot be written as JSON.
pub fn bundle(map: Map, inventory: &Inventory, has_names: bool) -> serde_json::Result<Value> {
    let mut pseudonyms = Pseudonyms::default();
    let map = if has_names { map } else { pseudonyms.map(map) };
    let nodes = inventory.nodes().into_iter().cloned();
    let nodes = nodes.map(|node| if has_names { node } else { pseudonyms.node(&node) });
    let mut items = vec![serde_json::to_value(map)?];
    for node in nodes {
        items.push(serde_json::to_value(node)?);
    }
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}))
}

/// Numbers of names, by the kind of name.
#[derive(Default)]
struct Pseudonyms(BTreeMap<&'static str, BTreeMap<String, usize>>);

impl Pseudonyms {
    fn of(&mut self, kind: &'static str, name: &str) -> String {
        let names = self.0.entry(kind).or_default();
        let next = names.len() + 1;
        format!("{kind}-{}", names.entry(name.to_owned()).or_insert(next))
    }

    fn of_any(&mut self, kind: &'static str, name: Option<&String>) -> Option<String> {
        name.map(|name| self.of(kind, name))
    }

    fn map(&mut self, map: Map) -> Map {
        let gaps = map.caveats.len();
        let edges = map.edges.into_iter().enumerate().map(|(number, edge)| self.edge(number, edge)).collect();
        // They have names.
        let caveats = (gaps > 0).then(|| format!("gaps that the original map declares, without their text: {gaps}"));
        Map::new(edges, caveats.into_iter().collect())
    }

    fn edge(&mut self, number: usize, edge: Edge) -> Edge {
        let service = edge.service.as_deref().map(|service| self.service(service));
        Edge {
            // Identifiers are hashes of names, which could be guessed.
            id: format!("edge-{}", number + 1),
            client: self.peer(&edge.client),
            server: self.peer(&edge.server),
            service,
            via: edge.via.iter().map(|via| self.of("proxy", via)).collect(),
            client_pods: EdgePods::default(),
            server_pods: EdgePods::default(),
            ..edge
        }
    }

    fn service(&mut self, service: &str) -> String {
        let parts = service.split_once('/').and_then(|(namespace, rest)| Some((namespace, rest.rsplit_once(':')?)));
        match parts {
            Some((namespace, (name, port))) if port.parse::<u16>().is_ok() => {
                format!("{}/{}:{port}", self.of("namespace", namespace), self.of("name", name))
            }
            _ => self.of("service", service),
        }
    }

    fn peer(&mut self, peer: &Peer) -> Peer {
        let one = match peer {
            Peer::One(one) => one,
            Peer::Group(group) => {
                return Peer::Group(Group { group: self.of("group", &group.group), is_external: group.is_external });
            }
        };
        let kind = one.api_version.as_deref().zip(one.kind.as_deref());
        let is_common = kind.is_some_and(|kind| COMMON_KINDS.contains(&kind));
        Peer::one(TopologyPeer {
            type_: one.type_,
            api_version: one.api_version.clone().filter(|_| is_common),
            kind: if is_common { one.kind.clone() } else { self.of_any("kind", one.kind.as_ref()) },
            namespace: self.of_any("namespace", one.namespace.as_ref()),
            name: self.of_any("name", one.name.as_ref()),
            node: self.of_any("node", one.node.as_ref()),
            ip: self.of_any("ip", one.ip.as_ref()),
            uid: self.of_any("uid", one.uid.as_ref()),
            cluster: self.of_any("cluster", one.cluster.as_ref()),
        })
    }

    /// Returns the state of a node without texts that people or programs have written.
    fn node(&mut self, node: &NodeProbe) -> NodeProbe {
        let mut redacted =
            NodeProbe::new(&self.of("node", node.metadata.name.as_deref().unwrap_or_default()), node.spec.clone());
        let status = node.status.clone();
        redacted.status = status.map(|status| NodeProbeStatus {
            probe: self.of("probe", &status.probe),
            message: String::new(),
            epoch: String::new(),
            coverage_record: None,
            fallback: status.fallback.map(|mut fallback| {
                fallback.message.clear();
                fallback.image.clear();
                fallback.boot_id.clear();
                fallback
            }),
            conditions: status
                .conditions
                .into_iter()
                .map(|mut condition| {
                    "without its text".clone_into(&mut condition.message);
                    condition
                })
                .collect(),
            ..status
        });
        redacted
    }
}
