//! Part of published edges that agents no longer report, as of when all of them have reported.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Published, merged_externals::is_shared};
use crate::{
    count,
    counts::Counts,
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Peer, Seen},
    entity::ServicePortRef,
    flow::Protocol,
};

/// The most that only servers have counted since all agents have reported: a server's count is behind for a moment if its
/// agent reports after the clients'.
#[derive(Clone, Debug, Default)]
pub(super) struct FromServers {
    by_edge: HashMap<EdgeKey, EdgeCounters>,
    /// Connections of all edges between two peers, by their edge without a Service. Which of the edges has them may change
    /// from look to look.
    between: HashMap<EdgeKey, u64>,
    /// The same without those of clients behind the client's node.
    between_alone: HashMap<EdgeKey, u64>,
}

impl FromServers {
    /// Takes in what agents report now.
    pub(super) fn note(&mut self, reported: &[Arc<Edge>]) {
        let (mut between, mut alone) = (HashMap::new(), HashMap::new());
        for edge in reported.iter().filter(|edge| edge.from_servers.opened > 0) {
            let opened = edge.from_servers.opened;
            let most = self.by_edge.entry(edge.key.clone()).or_default();
            *most = most.at_least(&edge.from_servers);
            for key in groups(&edge.key) {
                add_opened(&mut between, key, opened);
            }
            add_opened(&mut alone, edge.key.direct(), opened);
        }
        for (all, now) in [(&mut self.between, between), (&mut self.between_alone, alone)] {
            for (key, opened) in now {
                let most = all.entry(key).or_default();
                *most = opened.max(*most);
            }
        }
    }

    /// Returns whether the edges between two peers, by their edge without a Service, had as many of these connections.
    pub(super) fn reach(&self, direct: &EdgeKey, opened: u64) -> bool {
        self.between_alone.get(direct).copied().unwrap_or_default() >= opened
    }

    /// Returns the most that only servers have counted of an edge.
    pub(super) fn of(&self, key: &EdgeKey) -> EdgeCounters {
        self.by_edge.get(key).copied().unwrap_or_default()
    }

    /// Returns the connections that only servers have counted between two peers and that are not on these edges, by the edge
    /// without a Service.
    fn spare(&self, published: &HashMap<EdgeKey, Published>) -> HashMap<EdgeKey, u64> {
        let mut spare = self.between.clone();
        for (key, Published { edge, .. }) in published {
            let on_edge = edge.from_servers.opened.min(self.of(key).opened);
            for key in groups(key) {
                if let Some(left) = spare.get_mut(&key) {
                    *left = left.saturating_sub(on_edge);
                }
            }
        }
        spare
    }
}

/// Adds connections to those of a key.
pub(super) fn add_opened(sums: &mut HashMap<EdgeKey, u64>, key: EdgeKey, opened: u64) {
    let sum = sums.entry(key).or_default();
    *sum = count::add(*sum, opened);
}

/// Returns the edge without a Service, and that of the client's node if an edge's client is behind one.
fn groups(key: &EdgeKey) -> impl Iterator<Item = EdgeKey> {
    [Some(key.direct()), of_node(key)].into_iter().flatten()
}

/// Adds to the known part of each edge what agents have forgotten since it was published, and to the part that only servers
/// counted what only these report now.
///
/// Connections that an edge lacks are first those that a server still reports between the same peers, beyond what was so
/// when the edge was published; agents have forgotten only the rest. Bytes follow the connections: those of a connection
/// that was open when the edge was published, or is open now, differ without anything being forgotten.
///
/// New connections of other pods may hide what agents have forgotten of a pod. If they report none of a pod's calls of a
/// Service or server any more, they have forgotten all of them. The bytes of hidden connections are missing.
///
/// `from_servers` has noted `reported`, and what was reported before.
pub(super) fn settle(published: &mut HashMap<EdgeKey, Published>, reported: &[Arc<Edge>], from_servers: &FromServers) {
    let mut spare = from_servers.spare(published);
    let by_clients: Vec<(&EdgeKey, Counts)> =
        reported.iter().map(|edge| (&edge.key, Counts::of(edge).without(&Counts::from_servers(edge)))).collect();
    let callers = by_clients.iter().flat_map(|(key, counts)| counts.clients.iter().map(|it| Caller::of(key, it)));
    let callers: HashSet<Caller<'_>> = callers.collect();
    let reported: HashMap<&EdgeKey, &Edge> = reported.iter().map(|edge| (&edge.key, &**edge)).collect();
    let mut published: Vec<_> = published.iter_mut().collect();
    published.sort_unstable_by_key(|(key, _)| *key);
    for (key, Published { edge, earlier }) in &mut published {
        let now = reported.get(key);
        let by_clients = now.map(|now| Counts::of(now).without(&Counts::from_servers(now))).unwrap_or_default();
        let by_servers = now.map(|now| Counts::from_servers(now)).unwrap_or_default();
        let counters = edge.from_servers.at_most(&from_servers.of(key));
        let by_servers = Counts { counters, ..by_servers };
        let before = Counts::of(edge).without(&earlier.counts);
        let mut missing = before.without(&by_clients).without(&by_servers);
        let of_clients = before.counters.opened.saturating_sub(by_servers.counters.opened);
        let hidden = forgotten_of_pods(key, &before.clients, &by_clients.clients, of_clients, &callers);
        if edge.seen != Seen::Server && hidden > missing.counters.opened {
            missing.counters.opened = hidden;
        }
        let spare = spare.entry(key.direct()).or_default();
        let found = missing.counters.opened.min(*spare);
        *spare -= found;
        let mut by_servers = by_servers.counters;
        by_servers.add(&missing.counters.share(found));
        earlier.counts = earlier.counts.plus(&limited(missing, found));
        edge.from_servers = by_servers;
    }
    add_lacking(published, &reported);
}

/// Adds to the known parts of edges between the same peers what these edges lack together, by what agents report now.
///
/// The most that servers have counted contains calls that the clients' agents have reported since. What is taken for a
/// server's because of them has been forgotten: the next calls would take its place.
fn add_lacking(published: Vec<(&EdgeKey, &mut Published)>, reported: &HashMap<&EdgeKey, &Edge>) {
    let mut lacking: HashMap<EdgeKey, u64> = HashMap::new();
    for (key, Published { edge, .. }) in published.iter().filter(|(_, published)| has_clients(published)) {
        add_opened(&mut lacking, peers(key), edge.counters.opened);
    }
    let earlier = published.iter().map(|(key, published)| (*key, published.earlier.counts.counters.opened));
    for (key, opened) in earlier.chain(reported.values().map(|edge| (&edge.key, edge.counters.opened))) {
        if let Some(lack) = lacking.get_mut(&peers(key)) {
            *lack = lack.saturating_sub(opened);
        }
    }
    for (key, Published { edge, earlier }) in published.into_iter().filter(|(_, published)| has_clients(published)) {
        let Some(left) = lacking.get_mut(&peers(key)).filter(|left| **left > 0) else { continue };
        let now = reported.get(key).map(|now| Counts::of(now)).unwrap_or_default();
        let lack = Counts::of(edge).without(&earlier.counts).without(&now);
        let opened = lack.counters.opened.min(*left);
        *left -= opened;
        let others = lack.counters.opened - opened;
        earlier.counts = earlier.counts.plus(&limited(lack, others));
        edge.from_servers = edge.from_servers.without(&edge.from_servers.share(opened));
    }
}

/// Returns whether clients' agents have counted connections of a published edge.
fn has_clients(published: &Published) -> bool {
    published.edge.seen != Seen::Server && !is_shared(&published.edge.key)
}

/// Returns the edge that stands for all edges between two peers, those of clients behind the client's node included.
fn peers(key: &EdgeKey) -> EdgeKey {
    of_node(key).unwrap_or_else(|| key.direct())
}

/// Returns the edge that connections of clients behind a node were on if the node's agent had not reported all of its clients.
fn of_node(key: &EdgeKey) -> Option<EdgeKey> {
    let Peer::BehindNode { node } = &key.client else { return None };
    Some(EdgeKey { client: Peer::Node { node: node.clone() }, ..key.direct() })
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
    Counts { counters: EdgeCounters { active: 0, pending: 0, failed: counters.failed, ..part }, clients, servers }
}

/// Pod that called a Service, or a server without one.
#[derive(PartialEq, Eq, Hash)]
struct Caller<'a> {
    client: &'a Peer,
    pod: &'a str,
    service: Option<&'a ServicePortRef>,
    server: Option<(&'a Peer, Option<u16>)>,
    protocol: Protocol,
}

impl<'a> Caller<'a> {
    fn of(key: &'a EdgeKey, client: &'a Endpoint) -> Self {
        let service = key.service.as_ref();
        let server = service.is_none().then_some((&key.server, key.port));
        Self { client: &key.client, pod: &client.pod, service, server, protocol: key.protocol }
    }
}

/// Returns how many of an edge's `opened` connections agents have forgotten of pods that are no `callers` any more, at least.
/// `before` are the clients' parts that agents reported before, and `now` those that they report now.
fn forgotten_of_pods(
    key: &EdgeKey,
    before: &[Endpoint],
    now: &[Endpoint],
    opened: u64,
    callers: &HashSet<Caller<'_>>,
) -> u64 {
    let (gone, present): (Vec<&Endpoint>, Vec<&Endpoint>) = before
        .iter()
        .filter(|client| !client.pod.is_empty())
        .partition(|client| !callers.contains(&Caller::of(key, client)));
    let gone = gone.into_iter().fold(0, |sum, client| count::add(sum, client.opened));
    // Not all parts are published.
    let still = present.into_iter().fold(0, |sum, client| {
        let now = now.iter().find(|now| (&now.pod, &now.container) == (&client.pod, &client.container));
        count::add(sum, now.map_or(0, |now| now.opened.min(client.opened)))
    });
    gone.min(opened.saturating_sub(still))
}
