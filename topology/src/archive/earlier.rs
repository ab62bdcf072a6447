//! Part of each edge that an operator would not learn from the agents if it began now.

use std::collections::HashMap;

use super::Published;
use crate::{
    count,
    counts::{Counts, Earlier},
    edge::{Edge, EdgeKey, Seen},
    graph::Graph,
};

/// Returns what the graph has and the graph of what agents report, `anew`, does not. `published` is what an earlier operator
/// has published.
pub(super) fn earlier(
    graph: &Graph,
    anew: &Graph,
    published: Option<&HashMap<EdgeKey, Published>>,
) -> HashMap<EdgeKey, Earlier> {
    let mut anew = anew.edges.iter().peekable();
    let mut forgotten_by_servers = graph.forgotten_by_servers.clone();
    // Both are in the order of keys.
    let with_anew = graph.edges.iter().map(|edge| {
        while anew.next_if(|other| other.key < edge.key).is_some() {}
        (&**edge, anew.next_if(|other| other.key == edge.key).map(|anew| &**anew))
    });
    let of = |(edge, anew): (&Edge, Option<&Edge>)| {
        let counts = unknown_to_agents(edge, anew);
        let before = published.and_then(|published| published.get(&edge.key));
        let before = before.map(|published| published.earlier.clone()).unwrap_or_default();
        let since = counts.without(&before.counts);
        let by_neither = take_forgotten(&edge.key, &since, &mut forgotten_by_servers);
        let since = since.counters.opened.saturating_sub(by_neither);
        let known_to_servers = count::add(before.known_to_servers, since).min(counts.counters.opened);
        (edge.key.clone(), Earlier { counts, known_to_servers })
    };
    let forgotten = with_anew.filter(|(edge, anew)| anew.is_none_or(|anew| !has_same_counts(edge, anew)));
    forgotten.map(of).filter(|(_, earlier)| *earlier != Earlier::default()).collect()
}

/// Returns whether agents know all of an edge.
fn has_same_counts(edge: &Edge, anew: &Edge) -> bool {
    let counts = |edge: &Edge| (edge.counters, edge.from_servers);
    counts(edge) == counts(anew)
        && edge.clients == anew.clients
        && edge.servers == anew.servers
        && edge.clients_from_servers == anew.clients_from_servers
        && edge.servers_from_servers == anew.servers_from_servers
}

fn unknown_to_agents(edge: &Edge, anew: Option<&Edge>) -> Counts {
    let mut known = anew.map(Counts::of).unwrap_or_default();
    if let Some(anew) = anew.filter(|_| edge.seen != Seen::Server) {
        // What only servers still count of it, and did not before, is taken for what the clients' agents have forgotten.
        known = known.without(&Counts::from_servers(anew).without(&Counts::from_servers(edge)));
    }
    let mut counts = Counts::of(edge).without(&known);
    (counts.counters.active, counts.counters.pending) = (0, 0);
    counts
}

/// Returns how many of these connections of an edge the agents of their servers have forgotten, too, and takes them.
fn take_forgotten(edge: &EdgeKey, counts: &Counts, forgotten_by_servers: &mut HashMap<(EdgeKey, String), u64>) -> u64 {
    if forgotten_by_servers.is_empty() || counts.counters.opened == 0 {
        return 0;
    }
    let direct = edge.direct();
    counts.servers.iter().fold(0, |sum, server| {
        let forgotten = forgotten_by_servers.get_mut(&(direct.clone(), server.pod.clone()));
        let taken = forgotten.map_or(0, |left| {
            let taken = server.opened.min(*left);
            *left -= taken;
            taken
        });
        count::add(sum, taken)
    })
}
