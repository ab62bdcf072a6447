//! Pods that were gone before this operator began have no name for it if no checkpoint records them, though agents still
//! count their connections. Their predecessor knew their names: what it has published of them must not come a second time,
//! under no name. Nor must it come at a Service, of which no agent reports the backend any more.

use std::{collections::HashMap, sync::Arc};

use crate::{
    directory::Directory,
    edge::{Edge, EdgeCounters, EdgeKey, Peer},
    entity::ServicePortRef,
    flow::Protocol,
    graph::{Graph, WithBackends},
};

/// Counters that were published under a name, are not reported under it any more, and were not found without a name
/// yet.
#[derive(Debug, Default)]
pub(super) struct ExpiredPods {
    /// By server and port, where the client has no name.
    clients: HashMap<(Peer, Option<u16>, Protocol), EdgeCounters>,
    /// By client, Service and port, where the server has none.
    servers: HashMap<(Peer, Option<ServicePortRef>, Option<u16>, Protocol), EdgeCounters>,
    /// By client and Service, where no server's agent reports the backend any more.
    backends: HashMap<(Peer, ServicePortRef, Protocol), EdgeCounters>,
}

impl ExpiredPods {
    pub(super) fn new<'a>(unknown: impl Iterator<Item = (&'a EdgeKey, &'a EdgeCounters)>) -> Self {
        let mut expired = Self::default();
        for (key, counters) in unknown.filter(|(_, counters)| counters.opened > 0 || counters.failed > 0) {
            if !is_address(&key.client) {
                expired.clients.entry(of_server(key)).or_default().add(counters);
            }
            if !is_address(&key.server) {
                expired.servers.entry(of_client(key)).or_default().add(counters);
            }
            if let Some(through) = through_service(key).filter(|_| !is_service(&key.server)) {
                expired.backends.entry(through).or_default().add(counters);
            }
        }
        expired
    }

    /// Returns how much of an unnamed edge belongs to a named edge, apart from counts that agents were known to report
    /// without a name.
    pub(super) fn under_a_name(
        &mut self,
        edge: &Edge,
        published: &EdgeCounters,
        directory: &Directory,
    ) -> EdgeCounters {
        let key = &edge.key;
        let has_no_name = |peer| has_no_name(peer, directory);
        let known = match (has_no_name(&key.client), has_no_name(&key.server)) {
            (false, _) if is_service(&key.server) => through_service(key).and_then(|key| self.backends.get_mut(&key)),
            (true, false) => self.clients.get_mut(&of_server(key)),
            (false, true) => self.servers.get_mut(&of_client(key)),
            _ => None,
        };
        let Some(known) = known else { return EdgeCounters::default() };
        let new = edge.counters.without(published);
        let left = known.without(&new);
        let taken = known.without(&left);
        *known = left;
        taken
    }
}

fn of_server(key: &EdgeKey) -> (Peer, Option<u16>, Protocol) {
    (key.server.clone(), key.port, key.protocol)
}

fn of_client(key: &EdgeKey) -> (Peer, Option<ServicePortRef>, Option<u16>, Protocol) {
    (key.client.clone(), key.service.clone(), key.port, key.protocol)
}

fn through_service(key: &EdgeKey) -> Option<(Peer, ServicePortRef, Protocol)> {
    Some((key.client.clone(), key.service.clone()?, key.protocol))
}

/// Takes from edges what is on others.
pub(super) fn leave(graph: &mut Graph, taken: &HashMap<EdgeKey, EdgeCounters>) {
    if taken.is_empty() {
        return;
    }
    graph.edges.retain_mut(|edge| {
        let Some(taken) = taken.get(&edge.key) else { return true };
        let edge = Arc::make_mut(edge);
        edge.counters = edge.counters.without(taken);
        edge.from_servers = edge.from_servers.without(taken);
        let left = edge.counters;
        for end in edge.clients.iter_mut().chain(&mut edge.servers) {
            (end.opened, end.failed) = (end.opened.min(left.opened), end.failed.min(left.failed));
        }
        left.opened > 0 || left.failed > 0
    });
}

/// Returns which connections of these are on edges to Services in the graph.
pub(super) fn with_backends(graph: &Graph, taken: &HashMap<EdgeKey, EdgeCounters>) -> WithBackends {
    let mut found = WithBackends::new();
    for edge in graph.edges.iter().filter(|edge| is_service(&edge.key.server)) {
        let mut left = taken.get(&edge.key).map_or(0, |taken| taken.opened);
        for client in &edge.clients {
            let opened = client.opened.min(left);
            left -= opened;
            if opened > 0 {
                found.insert((edge.key.clone(), client.pod.clone(), client.container.clone()), opened);
            }
        }
    }
    found
}

/// Returns the same without the connections of flows that are forgotten, by the graphs before and after.
pub(super) fn without_forgotten(
    known: &WithBackends,
    before: &Graph,
    after: &HashMap<EdgeKey, Arc<Edge>>,
) -> WithBackends {
    let before: HashMap<&EdgeKey, &Edge> = before.edges.iter().map(|edge| (&edge.key, edge.as_ref())).collect();
    let left = known.iter().filter_map(|((key, pod, container), opened)| {
        let of_client = |edge: &Edge| {
            let client = edge.clients.iter().find(|client| (&client.pod, &client.container) == (pod, container));
            client.map_or(0, |client| client.opened)
        };
        let [had, has] =
            [before.get(key).copied(), after.get(key).map(Arc::as_ref)].map(|edge| edge.map_or(0, of_client));
        let left = opened.saturating_sub(had.saturating_sub(has)).min(has);
        (left > 0).then(|| ((key.clone(), pod.clone(), container.clone()), left))
    });
    left.collect()
}

/// Returns whether this peer may stand for a pod without a name: by its UID, by an address of its node's pod network,
/// or by an address that another pod took over.
fn has_no_name(peer: &Peer, directory: &Directory) -> bool {
    match peer {
        Peer::UnknownPod { .. } | Peer::SomePod { .. } => true,
        Peer::External { ip } => directory.is_pods_address(*ip),
        _ => is_address(peer),
    }
}

/// Returns whether this peer is a Service, that is a backend that no agent reports.
fn is_service(peer: &Peer) -> bool {
    matches!(peer, Peer::Service(_))
}

fn is_address(peer: &Peer) -> bool {
    matches!(peer, Peer::Node { .. })
}
