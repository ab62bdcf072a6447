//! Groups edges: a map of namespaces instead of workloads.

use std::collections::BTreeMap;

use crds::PeerType;

use crate::map::{Counters, Edge, EdgePods, Group, Map, Peer};

/// What a node of the picture stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// A workload.
    #[default]
    Workload,
    /// All workloads of a namespace, and all external peers.
    Namespace,
}

/// Returns the map on this level. Edges between the same two groups are one, with the sums of their counters.
#[must_use]
pub fn on(level: Level, map: Map) -> Map {
    if level == Level::Workload {
        return map;
    }
    let mut groups: BTreeMap<(Peer, Peer, _), Edge> = BTreeMap::new();
    let caveats = map.caveats.clone();
    for edge in map.edges {
        let (client, server) = (group(&edge.client), group(&edge.server));
        let key = (client.clone(), server.clone(), edge.protocol);
        let sum = groups.entry(key).or_insert_with(|| Edge {
            id: String::new(),
            client,
            server,
            service: None,
            port: None,
            protocol: edge.protocol,
            counters: Counters::default(),
            seen: None,
            identity: None,
            methods: Vec::new(),
            is_inferred: false,
            via: Vec::new(),
            first_seen: edge.first_seen.clone(),
            last_seen: None,
            last_failed: None,
            client_pods: EdgePods::default(),
            server_pods: EdgePods::default(),
        });
        sum.counters.add(&edge.counters);
        sum.is_inferred |= edge.is_inferred;
        sum.first_seen = [sum.first_seen.take(), edge.first_seen].into_iter().flatten().min();
        sum.last_seen = sum.last_seen.take().max(edge.last_seen);
        sum.last_failed = sum.last_failed.take().max(edge.last_failed);
    }
    let mut edges: Vec<Edge> = groups.into_values().collect();
    for edge in &mut edges {
        edge.id = format!("{} {} {:?}", edge.client, edge.server, edge.protocol);
    }
    Map::new(edges, caveats)
}

fn group(peer: &Peer) -> Peer {
    let group = match peer {
        Peer::Group(_) => return peer.clone(),
        Peer::One(one) => match (peer.namespace(), one.type_) {
            (Some(namespace), _) => format!("namespace {namespace}"),
            (None, PeerType::Node | PeerType::HostProcess) => "nodes".to_owned(),
            (None, PeerType::UnknownPod) => "unknown pods".to_owned(),
            (None, PeerType::ApiServer) => "API server".to_owned(),
            (None, _) => "external".to_owned(),
        },
    };
    let group = peer.cluster().map_or_else(|| group.clone(), |cluster| format!("{group}@{cluster}"));
    Peer::Group(Group { group, is_external: peer.is_external() })
}
