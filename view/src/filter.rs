//! Selects edges.

use std::collections::BTreeSet;

use crds::TransportProtocol;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::map::{Edge, Map, Peer};

/// Conditions on edges. An edge has to satisfy all of those that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Namespaces of which a workload or Service is at one end, at least.
    pub namespaces: BTreeSet<String>,
    /// Peer of which the neighbourhood counts.
    pub around: Option<String>,
    /// Number of edges from that peer, in either direction.
    pub hops: usize,
    /// Name of the client.
    pub from: Option<String>,
    /// Name of the server, or of the Service that the client called.
    pub to: Option<String>,
    /// Port of the server.
    pub port: Option<u16>,
    /// Transport protocol.
    pub protocol: Option<TransportProtocol>,
    /// True for edges with an external end only.
    pub external: bool,
    /// True for edges with failed or pending attempts only.
    pub failed: bool,
    /// Time since which an edge exists.
    pub new_since: Option<Time>,
}

impl Filter {
    /// Returns the edges that satisfy all conditions. The neighbourhood is that in the edges that satisfy the others.
    #[must_use]
    pub fn apply(&self, map: Map) -> Map {
        let map = map.retain(|edge| self.keeps(edge));
        let Some(around) = &self.around else { return map };
        let mut near: BTreeSet<Peer> = map.ends().filter(|peer| peer.is_named(around)).cloned().collect();
        for _ in 1..self.hops.max(1) {
            let next: Vec<Peer> =
                map.edges.iter().filter(|edge| touches(edge, &near)).flat_map(Edge::ends).cloned().collect();
            near.extend(next);
        }
        map.retain(|edge| touches(edge, &near))
    }

    fn keeps(&self, edge: &Edge) -> bool {
        let in_namespace = |peer: &Peer| peer.namespace().is_some_and(|namespace| self.namespaces.contains(namespace));
        (self.namespaces.is_empty() || edge.ends().any(in_namespace))
            && self.from.as_ref().is_none_or(|from| edge.client.is_named(from))
            && self.to.as_ref().is_none_or(|to| edge.is_call_to(to))
            && self.port.is_none_or(|port| edge.port == Some(port))
            && self.protocol.is_none_or(|protocol| edge.protocol == protocol)
            && (!self.external || edge.ends().any(Peer::is_external))
            && (!self.failed || edge.counters.has_failures())
            && self.new_since.as_ref().is_none_or(|since| edge.first_seen.as_ref().is_some_and(|first| first >= since))
    }
}

fn touches(edge: &Edge, peers: &BTreeSet<Peer>) -> bool {
    edge.ends().any(|peer| peers.contains(peer))
}
