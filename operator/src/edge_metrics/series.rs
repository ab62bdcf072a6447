//! Series made from edges. Pure: each graph leads to the next series, in any order of its edges.
//!
//! Each count of an edge counts in one series: the one that the edge had when a graph first showed it. A series therefore never
//! decreases, even if an edge is removed, or moves between its own series and the one of all others. Connections that a graph
//! shows on another edge than before count once more, in the series of that edge.

use std::{
    borrow::Borrow,
    cmp::Reverse,
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
    time::SystemTime,
};

use topology::edge::{Edge, EdgeKey};

use super::labels;
use crate::settings::{EdgeMetricsLevel, EdgeMetricsSettings};

/// Counts of an edge or a series that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeriesCounts {
    /// Connections that were established.
    pub opened: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Payload from client to server.
    pub bytes_sent: u64,
    /// Payload from server to client.
    pub bytes_received: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
}

impl SeriesCounts {
    fn of(edge: &Edge) -> Self {
        let counters = &edge.counters;
        Self {
            opened: counters.opened,
            failed: counters.failed,
            bytes_sent: counters.bytes_sent,
            bytes_received: counters.bytes_received,
            retransmits: counters.retransmits,
        }
    }

    fn with_each(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            opened: combine(self.opened, other.opened),
            failed: combine(self.failed, other.failed),
            bytes_sent: combine(self.bytes_sent, other.bytes_sent),
            bytes_received: combine(self.bytes_received, other.bytes_received),
            retransmits: combine(self.retransmits, other.retransmits),
        }
    }

    /// Returns the sum of both.
    pub(super) fn plus(self, other: Self) -> Self {
        self.with_each(other, u64::saturating_add)
    }

    /// Returns the growth since `earlier`. A count that became less has not grown.
    pub(super) fn since(self, earlier: Self) -> Self {
        self.with_each(earlier, u64::saturating_sub)
    }

    /// Returns the greater of each.
    pub(super) fn at_least(self, other: Self) -> Self {
        self.with_each(other, u64::max)
    }
}

/// State of an edge or a series at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeriesState {
    /// Connections that are open.
    pub open: u64,
    /// Attempts that are pending.
    pub pending: u64,
    /// Connections whose payload is not, or not fully, known.
    pub without_bytes: u64,
    /// True if an end of any of the edges reports retransmissions.
    pub has_retransmits: bool,
}

impl SeriesState {
    fn of(edge: &Edge) -> Self {
        let counters = &edge.counters;
        let (open, pending, without_bytes) = (counters.active, counters.pending, counters.without_bytes);
        Self { open, pending, without_bytes, has_retransmits: edge.knows_retransmits }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            open: self.open.saturating_add(other.open),
            pending: self.pending.saturating_add(other.pending),
            without_bytes: self.without_bytes.saturating_add(other.without_bytes),
            has_retransmits: self.has_retransmits || other.has_retransmits,
        }
    }
}

/// One series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSeries {
    /// Labels, as they are between braces.
    pub labels: Arc<str>,
    /// Time from which the series counts.
    pub created: SystemTime,
    /// Growth of its edges since then.
    pub counts: SeriesCounts,
    /// State of its edges.
    pub state: SeriesState,
}

/// The series of one graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesSnapshot {
    /// All series, ordered by labels. The one that sums all others is the last.
    pub series: Vec<EdgeSeries>,
    /// Number of edges in the series that sums all others.
    pub summed_edges: usize,
}

/// An edge, found by its key.
#[derive(Debug)]
struct EdgeByKey(Arc<Edge>);

impl Borrow<EdgeKey> for EdgeByKey {
    fn borrow(&self) -> &EdgeKey {
        &self.0.key
    }
}

impl Hash for EdgeByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialEq for EdgeByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for EdgeByKey {}

/// An edge's labels, and the greatest counts that it has had.
#[derive(Clone, Debug)]
struct TrackedEdge {
    labels: Arc<str>,
    counted: SeriesCounts,
}

/// A series that has begun.
#[derive(Clone, Copy, Debug)]
struct BegunSeries {
    created: SystemTime,
    counts: SeriesCounts,
}

/// Edges with the same labels, in one graph.
#[derive(Clone, Copy, Debug, Default)]
struct EdgeGroup {
    growth: SeriesCounts,
    state: SeriesState,
    edges: usize,
    /// Connections and failed attempts, by which the busiest groups get series of their own.
    activity: u64,
}

impl EdgeGroup {
    fn add(&mut self, other: &Self) {
        self.growth = self.growth.plus(other.growth);
        self.state = self.state.plus(other.state);
        self.edges += other.edges;
        self.activity = self.activity.saturating_add(other.activity);
    }
}

/// A group with its labels.
type LabelledGroup = (Arc<str>, EdgeGroup);

/// Makes series from one graph after another.
#[derive(Debug)]
pub struct SeriesBook {
    settings: EdgeMetricsSettings,
    edges: HashMap<EdgeByKey, TrackedEdge>,
    /// Series that have begun, also those whose edges are at present in the sum of all others.
    series: HashMap<Arc<str>, BegunSeries>,
    /// The sum of all others, also while it has no edge.
    other: Option<BegunSeries>,
    /// Time of the last graph; `None` before the first complete one.
    as_of: Option<SystemTime>,
}

impl SeriesBook {
    /// Returns a book without series; `None` if the settings disable them.
    #[must_use]
    pub fn new(settings: EdgeMetricsSettings) -> Option<Self> {
        let is_on = settings.level != EdgeMetricsLevel::Off;
        is_on.then(|| Self { settings, edges: HashMap::new(), series: HashMap::new(), other: None, as_of: None })
    }

    /// Returns the series of a graph as of that time. The graph has each edge once.
    ///
    /// The first complete graph is what all series begin with: its counts were counted before. An earlier graph has no series,
    /// because the rest of the nodes' counts would look like growth.
    ///
    /// Invariant: the growth of all series is the growth of all edges.
    pub fn follow<'a>(
        &mut self,
        edges: impl Iterator<Item = &'a Arc<Edge>>,
        as_of: SystemTime,
        is_complete: bool,
    ) -> SeriesSnapshot {
        if self.as_of.is_none() && !is_complete {
            return SeriesSnapshot::default();
        }
        let groups = self.group(edges);
        // What is new since the last graph may have happened at any time since then.
        let created = self.as_of.unwrap_or(as_of).min(as_of);
        self.as_of = Some(as_of);
        let (own, others) = self.divide(groups);
        self.snapshot(own, others, created)
    }

    /// Groups edges by labels, and adds their growth.
    fn group<'a>(&mut self, edges: impl Iterator<Item = &'a Arc<Edge>>) -> HashMap<Arc<str>, EdgeGroup> {
        let is_first = self.as_of.is_none();
        let capacity = self.edges.len();
        let mut before = std::mem::replace(&mut self.edges, HashMap::with_capacity(capacity));
        let mut groups: HashMap<Arc<str>, EdgeGroup> = HashMap::with_capacity(self.series.len());
        for edge in edges {
            let counts = SeriesCounts::of(edge);
            let known = before.remove(&edge.key);
            let counted =
                known.as_ref().map_or(if is_first { counts } else { SeriesCounts::default() }, |it| it.counted);
            let labels = known.map_or_else(|| self.labels_of(edge, &groups), |known| known.labels);
            let group = EdgeGroup {
                growth: counts.since(counted),
                state: SeriesState::of(edge),
                edges: 1,
                activity: counts.opened.saturating_add(counts.failed),
            };
            groups.entry(Arc::clone(&labels)).or_default().add(&group);
            self.edges.insert(EdgeByKey(Arc::clone(edge)), TrackedEdge { labels, counted: counts.at_least(counted) });
        }
        groups
    }

    /// Returns the labels of a new edge. Equal ones share their text.
    fn labels_of(&self, edge: &Edge, groups: &HashMap<Arc<str>, EdgeGroup>) -> Arc<str> {
        let text = labels::of(&edge.key, self.settings.level);
        groups.get_key_value(text.as_str()).map_or_else(|| text.into(), |(labels, _)| Arc::clone(labels))
    }

    /// Divides groups into the busiest ones, ordered by labels, and all others.
    fn divide(&self, groups: HashMap<Arc<str>, EdgeGroup>) -> (Vec<LabelledGroup>, Vec<LabelledGroup>) {
        let mut groups: Vec<LabelledGroup> = groups.into_iter().collect();
        let limit = usize::try_from(self.settings.max_series).unwrap_or(usize::MAX);
        let mut others = Vec::new();
        if groups.len() > limit {
            groups.sort_unstable_by(|(one, one_group), (other, other_group)| {
                let rank = |group: &EdgeGroup| Reverse(group.activity);
                rank(one_group).cmp(&rank(other_group)).then_with(|| one.cmp(other))
            });
            others = groups.split_off(limit);
        }
        groups.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        (groups, others)
    }

    fn snapshot(&mut self, own: Vec<LabelledGroup>, others: Vec<LabelledGroup>, created: SystemTime) -> SeriesSnapshot {
        let mut before = std::mem::take(&mut self.series);
        let mut series = Vec::with_capacity(own.len() + 1);
        for (labels, group) in own {
            let begun = grown(before.remove(&labels), &group, created);
            self.series.insert(Arc::clone(&labels), begun);
            series.push(EdgeSeries { labels, created: begun.created, counts: begun.counts, state: group.state });
        }
        let mut summed = EdgeGroup::default();
        for (labels, group) in others {
            summed.add(&group);
            // A scraper compares a series that returns with what it read last.
            if let Some(begun) = before.remove(&labels) {
                self.series.insert(labels, begun);
            }
        }
        if summed.edges > 0 {
            let begun = grown(self.other, &summed, created);
            self.other = Some(begun);
            let BegunSeries { created, counts } = begun;
            series.push(EdgeSeries { labels: labels::OTHER.into(), created, counts, state: summed.state });
        }
        SeriesSnapshot { series, summed_edges: summed.edges }
    }
}

/// Returns a series with the growth of its edges, or a new one.
fn grown(series: Option<BegunSeries>, group: &EdgeGroup, created: SystemTime) -> BegunSeries {
    let BegunSeries { created, counts } = series.unwrap_or(BegunSeries { created, counts: SeriesCounts::default() });
    BegunSeries { created, counts: counts.plus(group.growth) }
}
