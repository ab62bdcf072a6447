//! Edges of clients that agents have observed, on which connections are shown that only servers have counted. Through
//! which Service these came is a guess, which must not change each time that agents report.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    counts::Counts,
    edge::{Edge, EdgeCounters, EdgeKey, Peer, Seen},
};

/// Time for which an edge has to have fewer such connections until the fewer count. Agents of both ends report at different
/// times: a server's count, of which clients' counts are taken, is too low for a moment.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Edges with connections that only servers have counted, as they were shown last.
#[derive(Clone, Debug, Default)]
pub(super) struct Placements(HashMap<EdgeKey, Placement>);

#[derive(Clone, Debug)]
struct Placement {
    /// Part of it that only servers have counted.
    part: EdgeCounters,
    /// `None` for an edge that was published.
    shown: Option<Arc<Edge>>,
    /// Time since which the edge has had fewer connections.
    fewer_since: Option<SystemTime>,
}

impl Placements {
    /// Takes the parts of published edges.
    pub(super) fn restore<'a>(&mut self, published: impl IntoIterator<Item = &'a Edge>) {
        let placement = |(key, part)| (key, Placement { part, shown: None, fewer_since: None });
        self.0 = parts(published).into_iter().map(placement).collect();
    }

    /// Returns whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the part of each edge that only servers have counted.
    pub(super) fn parts(&self) -> HashMap<EdgeKey, EdgeCounters> {
        let placed = self.0.iter().filter(|(key, _)| !is_behind_node(key));
        placed.map(|(key, placement)| (key.clone(), placement.part)).collect()
    }

    /// Gives edges their parts as they were published.
    pub(super) fn write_to(&self, edges: &mut [Arc<Edge>]) {
        for edge in edges {
            if let Some(placement) = self.0.get(&edge.key) {
                Arc::make_mut(edge).from_servers = placement.part;
            }
        }
    }

    /// Keeps what was shown of an edge that has fewer such connections only for a moment, and remembers what is shown now.
    /// Returns the time at which the first of these edges changes without a report.
    pub(super) fn keep(&mut self, edges: &mut Vec<Arc<Edge>>, now: SystemTime) -> Option<SystemTime> {
        let mut before = std::mem::take(&mut self.0);
        for edge in edges.iter_mut() {
            let kept = before.remove(&edge.key).and_then(|known| known.unless_over(&edge.from_servers, now));
            if let Some(placement) = &kept {
                placement.raise(Arc::make_mut(edge));
            }
            if is_placed(edge) || is_behind_node(&edge.key) {
                let fewer_since = kept.and_then(|placement| placement.fewer_since);
                let placement = Placement { part: edge.from_servers, shown: Some(Arc::clone(edge)), fewer_since };
                self.0.insert(edge.key.clone(), placement);
            }
        }
        for (key, placement) in before {
            if let Some(placement) = placement.unless_over(&EdgeCounters::default(), now) {
                edges.extend(placement.shown.clone());
                self.0.insert(key, placement);
            }
        }
        edges.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        self.0.values().filter_map(|placement| placement.fewer_since).min().map(|since| since + PATIENCE)
    }
}

/// Returns the part of each edge that only servers have counted, where these edges are of observed clients.
pub(super) fn parts<'a>(edges: impl IntoIterator<Item = &'a Edge>) -> HashMap<EdgeKey, EdgeCounters> {
    let placed = edges.into_iter().filter(|edge| is_placed(edge));
    placed.map(|edge| (edge.key.clone(), edge.from_servers)).collect()
}

/// Returns the part of each edge that only servers have counted, apart from clients behind a node.
pub(super) fn parts_of<'a>(edges: impl Iterator<Item = &'a Edge>) -> HashMap<EdgeKey, EdgeCounters> {
    edges.filter(|edge| !is_behind_node(&edge.key)).map(|edge| (edge.key.clone(), edge.from_servers)).collect()
}

/// Returns whether only servers have counted a part of an edge, but not all of it. If no agent has observed the client,
/// nothing shows how it calls the server: a later guess is a better one.
fn is_placed(edge: &Edge) -> bool {
    edge.from_servers.opened > 0 && edge.seen != Seen::Server
}

/// Returns whether the client is behind a node. For a moment, clients of the node may seem to have opened its connections,
/// if the server's agent reports later than the node's.
fn is_behind_node(key: &EdgeKey) -> bool {
    matches!(key.client, Peer::BehindNode { .. })
}

impl Placement {
    /// Returns the placement if the edge has fewer connections or bytes now, and not for long.
    fn unless_over(mut self, part: &EdgeCounters, now: SystemTime) -> Option<Self> {
        let counts = |of: &EdgeCounters| [of.opened, of.bytes_sent, of.bytes_received];
        if counts(part).into_iter().zip(counts(&self.part)).all(|(now, before)| now >= before) {
            return None;
        }
        let since = *self.fewer_since.get_or_insert(now);
        (now.duration_since(since).unwrap_or_default() < PATIENCE).then_some(self)
    }

    /// Raises an edge to what was shown of it.
    fn raise(&self, edge: &mut Edge) {
        edge.from_servers = self.part;
        if let Some(shown) = &self.shown {
            Counts::of(edge).at_least(&Counts::of(shown)).write_to(edge);
            edge.clients_from_servers.clone_from(&shown.clients_from_servers);
            edge.servers_from_servers.clone_from(&shown.servers_from_servers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::tests::edge as edge_with;

    fn edge(opened: u64, from_servers: u64) -> Arc<Edge> {
        let edge = edge_with(opened);
        Arc::new(Edge { from_servers: edge_with(from_servers).counters, ..edge })
    }

    /// Returns what is kept of these edges, and until when, in seconds since the start.
    fn kept(placements: &mut Placements, mut edges: Vec<Arc<Edge>>, seconds: u64) -> (Vec<(u64, u64)>, Option<u64>) {
        let until = placements.keep(&mut edges, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let until = until.and_then(|until| until.duration_since(SystemTime::UNIX_EPOCH).ok());
        let shown = edges.iter().map(|edge| (edge.counters.opened, edge.from_servers.opened)).collect();
        (shown, until.map(|until| until.as_secs()))
    }

    #[test]
    fn fewer_connections_of_servers_count_once_they_stay() {
        let mut placements = Placements::default();
        assert_eq!(kept(&mut placements, vec![edge(10, 3)], 0), (vec![(10, 3)], None));
        // The client's agent has reported two others, of which the server's has not reported any yet.
        assert_eq!(kept(&mut placements, vec![edge(9, 1)], 1), (vec![(10, 3)], Some(11)));
        assert_eq!(kept(&mut placements, Vec::new(), 2), (vec![(10, 3)], Some(11)));
        assert_eq!(kept(&mut placements, vec![edge(12, 3)], 3), (vec![(12, 3)], None));
        // The client's agent has reported them late.
        assert_eq!(kept(&mut placements, vec![edge(11, 0)], 4), (vec![(12, 3)], Some(14)));
        assert_eq!(kept(&mut placements, vec![edge(11, 0)], 13), (vec![(12, 3)], Some(14)));
        assert_eq!(kept(&mut placements, vec![edge(11, 0)], 14), (vec![(11, 0)], None));
        assert_eq!(kept(&mut placements, Vec::new(), 15), (Vec::new(), None));
    }
}
