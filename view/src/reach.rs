//! What depends on a peer: its callers, their callers, and so on.

use std::collections::{BTreeMap, BTreeSet};

use crate::map::{Map, Peer};

/// A peer that depends on another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// The peer.
    pub peer: Peer,
    /// Number of edges on the shortest way.
    pub hops: usize,
    /// The next peers on the shortest ways.
    pub through: Vec<Peer>,
}

/// Returns the peers of a name, and the servers behind a Service of that name.
#[must_use]
pub fn named<'m>(map: &'m Map, name: &str) -> BTreeSet<&'m Peer> {
    let servers = map.edges.iter().filter(|edge| edge.is_call_to(name)).map(|edge| &edge.server);
    map.ends().filter(|peer| peer.is_named(name)).chain(servers).collect()
}

/// Returns the peers that call a named peer, directly or through others, the nearest first; `None` if no peer of the map has
/// the name.
#[must_use]
pub fn dependents(map: &Map, named: &str) -> Option<Vec<Dependent>> {
    let origins = self::named(map, named);
    if origins.is_empty() {
        return None;
    }
    let mut callers: BTreeMap<&Peer, BTreeSet<&Peer>> = BTreeMap::new();
    for edge in &map.edges {
        callers.entry(&edge.server).or_default().insert(&edge.client);
    }
    let mut known: BTreeSet<&Peer> = origins.clone();
    let (mut last, mut found) = (origins, Vec::new());
    for hops in 1.. {
        let mut next: BTreeMap<&Peer, Vec<Peer>> = BTreeMap::new();
        for server in &last {
            for client in callers.get(*server).into_iter().flatten().filter(|client| !known.contains(*client)) {
                next.entry(client).or_default().push((*server).clone());
            }
        }
        if next.is_empty() {
            break;
        }
        last = next.keys().copied().collect();
        known.extend(last.iter().copied());
        found.extend(next.into_iter().map(|(peer, through)| Dependent { peer: peer.clone(), hops, through }));
    }
    Some(found)
}
