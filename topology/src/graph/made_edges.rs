//! Edges that were made of sums, kept for as long as these stay: most edges of a graph are those of the one before.

use std::{borrow::Cow, sync::Arc};

use super::{key::Key, sums::Sum};
use crate::{
    edge::Edge,
    hash::{HashMap, HashSet},
};

/// The edges of the last graph.
#[derive(Clone, Debug, Default)]
pub(super) struct MadeEdges {
    /// By their public keys.
    edges: Vec<(Key, Arc<Edge>)>,
    /// Keys whose sums may have changed since.
    stale: HashSet<Key>,
}

impl MadeEdges {
    /// Has these edges made again.
    pub(super) fn mark(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.stale.extend(keys);
    }

    /// Returns the edges of all sums, by their public keys. Only those that are new or marked are made.
    pub(super) fn follow(
        &mut self,
        mut sums: HashMap<Key, Cow<'_, Sum>>,
        make: impl Fn(Key, &Sum) -> Edge,
    ) -> Vec<Arc<Edge>> {
        let stale = std::mem::take(&mut self.stale);
        let before = std::mem::take(&mut self.edges).into_iter();
        let mut edges: Vec<_> = before.filter(|(key, _)| !stale.contains(key) && sums.remove(key).is_some()).collect();
        if !sums.is_empty() {
            edges.extend(sums.into_iter().map(|(key, sum)| (key, Arc::new(make(key, &sum)))));
            // Stable, because this is quick where most of it is in order.
            edges.sort_by(|one, other| one.1.key.cmp(&other.1.key));
        }
        self.edges = edges;
        self.edges.iter().map(|(_, edge)| Arc::clone(edge)).collect()
    }
}
