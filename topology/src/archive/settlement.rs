//! Part of published edges that agents no longer report, as of when all of them have reported.

use std::collections::HashMap;

use super::Published;
use crate::{
    count,
    counts::Counts,
    edge::{Edge, EdgeCounters, EdgeKey},
};

/// Adds to the known part of each edge what agents have forgotten since it was published, and to the part that only servers
/// counted what only these report now.
///
/// Connections that an edge lacks are first those that a server still reports between the same peers, beyond what was so
/// when the edge was published; agents have forgotten only the rest. Bytes follow the connections: those of a connection
/// that was open when the edge was published, or is open now, differ without anything being forgotten.
///
/// `from_servers` is the most that only servers have counted of each edge since all agents have reported.
pub(super) fn settle(
    published: &mut HashMap<EdgeKey, Published>,
    reported: &[Edge],
    from_servers: &HashMap<EdgeKey, EdgeCounters>,
) {
    let mut spare: HashMap<EdgeKey, u64> = HashMap::new();
    for edge in reported {
        let before = published.get(&edge.key).map_or(0, |published| published.edge.from_servers.opened);
        let sum = spare.entry(edge.key.direct()).or_default();
        *sum = count::add(*sum, edge.from_servers.opened.saturating_sub(before));
    }
    let reported: HashMap<&EdgeKey, &Edge> = reported.iter().map(|edge| (&edge.key, edge)).collect();
    let mut published: Vec<_> = published.iter_mut().collect();
    published.sort_unstable_by_key(|(key, _)| *key);
    for (key, Published { edge, earlier }) in published {
        let now = reported.get(key);
        let by_clients = now.map(|now| Counts::of(now).without(&Counts::from_servers(now))).unwrap_or_default();
        let by_servers = now.map(|now| Counts::from_servers(now)).unwrap_or_default();
        let counters = edge.from_servers.at_most(from_servers.get(key).unwrap_or(&by_servers.counters));
        let by_servers = Counts { counters, ..by_servers };
        let missing = Counts::of(edge).without(&earlier.counts).without(&by_clients).without(&by_servers);
        let spare = spare.entry(key.direct()).or_default();
        let found = missing.counters.opened.min(*spare);
        *spare -= found;
        let mut by_servers = by_servers.counters;
        by_servers.add(&missing.counters.share(found));
        earlier.counts = earlier.counts.plus(&limited(missing, found));
        edge.from_servers = by_servers;
    }
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
