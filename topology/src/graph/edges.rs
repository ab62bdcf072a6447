//! Makes edges of sums, with the names of their ends.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    endpoints::Endpoints,
    external_peers::{self, Choice, Collapsed, Outside},
    key::Key,
    made_edges::MadeEdges,
    names::EndpointId,
    sums::{EndpointSum, Sum},
};
use crate::{
    count,
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Identity, MAX_DNS_NAMES, MAX_PROXIES, Peer, Proxy, Side, Times},
    entity::ServicePortRef,
    hash::HashMap,
};

/// The edges that live, by key, and which addresses of the outside have edges of their own. `made` are those of before.
pub(super) fn edges(
    mut sums: HashMap<Key, Cow<'_, Sum>>,
    ends: &mut Endpoints<'_>,
    choice: Choice<'_>,
    made: &mut MadeEdges,
) -> (Vec<Arc<Edge>>, Outside) {
    sums.retain(|_, sum| sum.live && sum.counters != EdgeCounters::default());
    let Collapsed { sums, outside, addresses } = external_peers::collapse(sums, ends, choice);
    let other = ends.other_external();
    let other = ends.peer_of(other);
    let count = |key: Key| {
        // A folded row has at least one address behind it.
        let least = u64::from(key.client == other || key.server == other);
        addresses.get(&key).copied().unwrap_or_default().max(least)
    };
    // Which addresses share an edge depends on all of them.
    made.mark(sums.keys().filter(|key| key.client == other || key.server == other).copied());
    (made.follow(sums, |key, sum| Edge { addresses: count(key), ..edge(key, sum, ends) }), outside)
}

/// Returns the public key of an edge.
pub(super) fn edge_key(key: &Key, ends: &Endpoints<'_>) -> EdgeKey {
    EdgeKey {
        client: ends.peer(key.client).clone(),
        server: ends.peer(key.server).clone(),
        service: key.service.map(|key| ServicePortRef { service: ends.service(key.service).clone(), port: key.port }),
        port: key.port,
        protocol: key.protocol,
    }
}

fn edge(key: Key, sum: &Sum, ends: &Endpoints<'_>) -> Edge {
    let identity = |certain: bool, tracked: bool, parts: &BTreeMap<EndpointId, EndpointSum>| {
        let best = parts.keys().map(|end| ends.end(*end).identity).min();
        match (certain, tracked) {
            (true, _) => best.unwrap_or(Identity::Cgroup),
            (false, true) => Identity::Conntrack,
            // A backend that was guessed is no more certain than an address.
            (false, false) => Identity::Ip,
        }
    };
    Edge {
        key: edge_key(&key, ends),
        counters: sum.counters,
        times: sum.times.map(|times| Times {
            // The flow of a client may lead to others, too, where its attempts have failed.
            last_failed: times.last_failed.filter(|_| sum.counters.failed > 0),
            ..times
        }),
        from_servers: sum.from_servers,
        clients_from_servers: endpoints(&sum.clients_from_servers, ends),
        servers_from_servers: endpoints(&sum.servers_from_servers, ends),
        clients: endpoints(&sum.clients, ends),
        servers: endpoints(&sum.servers, ends),
        seen: sum.seen(),
        client_identity: identity(
            sum.client_seen || sum.both_seen || sum.client_certain,
            sum.client_tracked,
            &sum.clients,
        ),
        server_identity: identity(sum.server_certain, sum.server_tracked, &sum.servers),
        methods: sum.methods,
        dns_names: match ends.peer(key.server) {
            Peer::External { .. } => sum.dns_names.iter().take(MAX_DNS_NAMES).cloned().collect(),
            _ => Vec::new(),
        },
        addresses: 0,
        knows_retransmits: sum.knows_retransmits,
        rtt: sum.rtt_by_clients.median().or_else(|| sum.rtt_by_servers.median()),
        via: via(&sum.via, ends),
    }
}

/// Returns proxies by side and name.
fn via(proxies: &BTreeSet<(Side, EndpointId)>, ends: &Endpoints<'_>) -> Vec<Proxy> {
    let proxy = |(side, id): &(Side, EndpointId)| {
        let end = ends.end(*id);
        Proxy { side: *side, peer: ends.peer(end.peer).clone(), container: end.container.to_string() }
    };
    let by_name: BTreeSet<Proxy> = proxies.iter().map(proxy).collect();
    by_name.into_iter().take(MAX_PROXIES).collect()
}

/// By name; what has the same name is added up.
fn endpoints(parts: &BTreeMap<EndpointId, EndpointSum>, ends: &Endpoints<'_>) -> Vec<Endpoint> {
    let mut by_name: BTreeMap<(&str, &str), EndpointSum> = BTreeMap::new();
    for (id, part) in parts {
        let end = ends.end(*id);
        let named = by_name.entry((&*end.pod, &*end.container)).or_default();
        named.opened = count::add(named.opened, part.opened);
        named.failed = count::add(named.failed, part.failed);
    }
    by_name
        .into_iter()
        .map(|((pod, container), part)| Endpoint {
            pod: pod.to_owned(),
            container: container.to_owned(),
            opened: part.opened,
            failed: part.failed,
        })
        .collect()
}
