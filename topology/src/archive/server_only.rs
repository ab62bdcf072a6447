//! Connections that only servers' agents counted. The choice among the edges between the same workloads is a guess, and
//! other connections may change it. Connections that were published stay on their edge.

use std::collections::{HashMap, HashSet};

use crate::{
    counts::Counts,
    edge::{Edge, EdgeKey, Endpoint, Peer},
    flow::Protocol,
};

/// Client, server, the server's port and the protocol, through any Service.
type Between = (Peer, Peer, Option<u16>, Protocol);

fn between(edge: &Edge) -> Between {
    let key = &edge.key;
    (key.client.clone(), key.server.clone(), key.port, key.protocol)
}

/// Returns the part of an edge that only servers' agents have counted.
pub(super) fn part_of(edge: &Edge) -> Counts {
    Counts {
        counters: edge.from_servers,
        clients: edge.clients_from_servers.clone(),
        servers: edge.servers_from_servers.clone(),
    }
}

/// Moves such connections to the edges that otherwise have fewer than were published. `published` has the edges and
/// their numbers of connections, without those that agents no longer report; only edges that are `to_fill` get any.
///
/// Invariants: the sum over all edges does not change, and no edge falls below its published number by the move.
pub(super) fn return_published<'a>(
    edges: &mut [Edge],
    published: impl Iterator<Item = (&'a Edge, u64)>,
    to_fill: impl Fn(&EdgeKey) -> bool,
) {
    // All indices are those of `edges`, whose length stays.
    let mut sources: HashMap<Between, Vec<usize>> = HashMap::new();
    for (index, edge) in edges.iter().enumerate().filter(|(_, edge)| edge.from_servers.opened > 0) {
        sources.entry(between(edge)).or_default().push(index);
    }
    if sources.is_empty() {
        return;
    }
    let published: HashMap<&EdgeKey, u64> = published.map(|(edge, opened)| (&edge.key, opened)).collect();
    let places: HashMap<EdgeKey, usize> =
        edges.iter().enumerate().map(|(index, edge)| (edge.key.clone(), index)).collect();
    let mut short: Vec<(usize, u64)> = published
        .iter()
        .filter(|(key, _)| to_fill(key))
        .filter_map(|(key, least)| {
            let place = *places.get(*key)?;
            let missing = least.saturating_sub(edges[place].counters.opened);
            (missing > 0).then_some((place, missing))
        })
        .collect();
    short.sort_unstable();
    for (place, mut missing) in short {
        for source in sources.get(&between(&edges[place])).into_iter().flatten() {
            let spare = &edges[*source];
            let least = published.get(&spare.key).copied().unwrap_or_default();
            let spare = spare.counters.opened.saturating_sub(least).min(spare.from_servers.opened);
            let opened = spare.min(missing);
            missing -= opened;
            let moved = take(&mut edges[*source], opened);
            add(&mut edges[place], &moved);
        }
    }
}

/// Adds the published edges that are missing, with counters of 0, and returns their keys.
pub(super) fn add_published<'a>(edges: &mut Vec<Edge>, published: impl Iterator<Item = &'a Edge>) -> HashSet<EdgeKey> {
    let known: HashSet<EdgeKey> = edges.iter().map(|edge| edge.key.clone()).collect();
    let empty = |edge: &Edge| {
        let mut edge = edge.clone();
        Counts::default().write_to(&mut edge);
        write_part(&mut edge, Counts::default());
        edge
    };
    let missing: Vec<Edge> = published.filter(|edge| !known.contains(&edge.key)).map(empty).collect();
    let keys = missing.iter().map(|edge| edge.key.clone()).collect();
    edges.extend(missing);
    keys
}

fn take(edge: &mut Edge, opened: u64) -> Counts {
    let only_servers = part_of(edge);
    let taken = Counts {
        counters: edge.from_servers.share(opened),
        clients: first(&only_servers.clients, opened),
        servers: first(&only_servers.servers, opened),
    };
    Counts::of(edge).without(&taken).write_to(edge);
    write_part(edge, only_servers.without(&taken));
    taken
}

fn add(edge: &mut Edge, moved: &Counts) {
    let only_servers = part_of(edge).plus(moved);
    Counts::of(edge).plus(moved).write_to(edge);
    write_part(edge, only_servers);
}

fn write_part(edge: &mut Edge, part: Counts) {
    (edge.from_servers, edge.clients_from_servers, edge.servers_from_servers) =
        (part.counters, part.clients, part.servers);
}

/// Returns the first endpoints, up to `opened` connections in total.
fn first(endpoints: &[Endpoint], opened: u64) -> Vec<Endpoint> {
    let mut left = opened;
    let mut part = |endpoint: &Endpoint| {
        let opened = endpoint.opened.min(left);
        left -= opened;
        Endpoint { opened, failed: 0, ..endpoint.clone() }
    };
    endpoints.iter().map(&mut part).filter(|endpoint| endpoint.opened > 0).collect()
}
