//! Part of published edges that agents no longer report, as of when all of them have reported.

use std::collections::HashMap;

use super::Published;
use crate::{
    count,
    counts::Counts,
    edge::{Edge, EdgeCounters, EdgeKey},
};

/// Adds to the known part of each edge what agents have forgotten since it was published.
///
/// On which of the edges between the same peers a connection is that only a server counted is a guess, which may be another
/// one now. Agents have therefore forgotten only what all these edges lack, beyond all such connections. Bytes follow the
/// connections: those of a connection that was open when the edge was published, or is open now, differ without anything
/// being forgotten.
pub(super) fn settle(published: &mut HashMap<EdgeKey, Published>, reported: &[Edge]) {
    let mut spare: HashMap<EdgeKey, u64> = HashMap::new();
    for edge in reported.iter().filter(|edge| edge.from_servers.opened > 0) {
        let sum = spare.entry(direct(&edge.key)).or_default();
        *sum = count::add(*sum, edge.from_servers.opened);
    }
    let reported: HashMap<&EdgeKey, &Edge> = reported.iter().map(|edge| (&edge.key, edge)).collect();
    let mut published: Vec<_> = published.iter_mut().collect();
    published.sort_unstable_by_key(|(key, _)| *key);
    for (key, Published { edge, earlier }) in published {
        let by_clients = reported.get(key).map(|edge| Counts::of(edge).without(&Counts::from_servers(edge)));
        let missing = Counts::of(edge).without(earlier).without(&by_clients.unwrap_or_default());
        let spare = spare.entry(direct(key)).or_default();
        let found = missing.counters.opened.min(*spare);
        *spare -= found;
        *earlier = earlier.plus(&limited(missing, found));
    }
}

/// Returns the key of the edge without a Service, which stands for all edges between the same peers.
fn direct(key: &EdgeKey) -> EdgeKey {
    EdgeKey { service: None, ..key.clone() }
}

/// Returns the counts without so many connections, and with all failed attempts, which servers do not count.
fn limited(counts: Counts, found: u64) -> Counts {
    let Counts { counters, mut clients, mut servers } = counts;
    let opened = counters.opened.saturating_sub(found);
    let part = if opened == 0 { EdgeCounters::default() } else { counters.share(opened) };
    for endpoints in [&mut clients, &mut servers] {
        let mut left = opened;
        for end in endpoints.iter_mut() {
            end.opened = end.opened.min(left);
            left -= end.opened;
        }
        endpoints.retain(|end| end.opened > 0 || end.failed > 0);
    }
    Counts { counters: EdgeCounters { active: 0, failed: counters.failed, ..part }, clients, servers }
}
