//! Differences between two maps: which edges are there, regardless of their counts.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::map::{Edge, Map};

/// Relation of two maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relation {
    /// The second is of the same cluster, at a later time.
    #[default]
    Later,
    /// They are of two clusters, which do not share counters.
    OtherCluster,
}

/// Difference between two maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// Relation of the maps.
    #[serde(skip)]
    pub relation: Relation,
    /// Edges of the second map only.
    pub added: Vec<Edge>,
    /// Edges of the first map only.
    pub removed: Vec<Edge>,
    /// Edges of both with further failed attempts in the second map, or with pending ones where there were none. Of two clusters,
    /// those with failed or pending attempts in the second one only.
    pub failing: Vec<Edge>,
    /// Gaps that the objects of the first map declare: an edge may be there and not listed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caveats_before: Vec<String>,
    /// The same of the second map.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caveats_after: Vec<String>,
}

impl Difference {
    /// Compares two maps.
    #[must_use]
    pub fn between(before: &Map, after: &Map, relation: Relation) -> Self {
        let by_id = |map: &Map| -> BTreeMap<String, Edge> {
            map.edges.iter().map(|edge| (edge.id.clone(), edge.clone())).collect()
        };
        let (before_by_id, after_by_id) = (by_id(before), by_id(after));
        let fails_since = |before: &Edge, after: &Edge| match relation {
            Relation::OtherCluster => after.counters.has_failures() && !before.counters.has_failures(),
            Relation::Later => {
                after.counters.failed > before.counters.failed
                    || after.last_failed > before.last_failed
                    || (after.counters.pending > 0 && before.counters.pending == 0)
            }
        };
        let added = after.edges.iter().filter(|edge| !before_by_id.contains_key(&edge.id));
        let removed = before.edges.iter().filter(|edge| !after_by_id.contains_key(&edge.id));
        let failing = after
            .edges
            .iter()
            .filter(|edge| before_by_id.get(&edge.id).is_some_and(|before| fails_since(before, edge)));
        Self {
            relation,
            added: added.cloned().collect(),
            removed: removed.cloned().collect(),
            failing: failing.cloned().collect(),
            caveats_before: before.caveats.clone(),
            caveats_after: after.caveats.clone(),
        }
    }

    /// Returns whether there is no difference.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.failing.is_empty()
    }
}
