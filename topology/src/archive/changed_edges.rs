//! Edges that are changed in the same way in each graph. The changed edge is kept while the edge and the reason stay, so
//! that it is the same object for all that is made of it.

use std::sync::Arc;

use crate::{edge::Edge, hash::HashMap};

/// Changes of edges for reasons of one type, each with something that it leaves.
#[derive(Clone, Debug)]
pub(super) struct ChangedEdges<R, L = ()> {
    /// By the address of the edge before its change, as long as that lives.
    changes: HashMap<usize, Change<R, L>>,
    /// The same of the graph before.
    before: HashMap<usize, Change<R, L>>,
}

#[derive(Clone, Debug)]
struct Change<R, L> {
    /// Keeps the address from becoming another edge's.
    edge: Arc<Edge>,
    reason: R,
    changed: Arc<Edge>,
    left: L,
}

impl<R, L> Default for ChangedEdges<R, L> {
    fn default() -> Self {
        Self { changes: HashMap::default(), before: HashMap::default() }
    }
}

impl<R: PartialEq, L: Clone> ChangedEdges<R, L> {
    /// Begins a graph. Changes that the last one did not have are forgotten.
    pub(super) fn begin(&mut self) {
        self.before = std::mem::take(&mut self.changes);
    }

    /// Changes an edge, and returns what the change leaves. The reason and the edge determine the change: if both are those
    /// of the graph before, so is the changed edge.
    pub(super) fn change(&mut self, edge: &mut Arc<Edge>, reason: R, change: impl FnOnce(&mut Edge) -> L) -> L {
        let address = Arc::as_ptr(edge).addr();
        let known =
            self.before.remove(&address).filter(|known| Arc::ptr_eq(&known.edge, edge) && known.reason == reason);
        let known = known.unwrap_or_else(|| {
            let mut changed = Edge::clone(edge);
            let left = change(&mut changed);
            Change { edge: Arc::clone(edge), reason, changed: Arc::new(changed), left }
        });
        *edge = Arc::clone(&known.changed);
        let left = known.left.clone();
        self.changes.insert(address, known);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::tests::edge;

    #[test]
    fn changed_edge_is_the_same_while_edge_and_reason_are() {
        let mut changes = ChangedEdges::<u64>::default();
        let original = Arc::new(edge(1));
        let mut after = |reason: u64, original: &Arc<Edge>| {
            changes.begin();
            let mut edge = Arc::clone(original);
            changes.change(&mut edge, reason, |edge| edge.counters.opened += reason);
            edge
        };
        let first = after(2, &original);
        assert_eq!((first.counters.opened, original.counters.opened), (3, 1));
        assert!(Arc::ptr_eq(&after(2, &original), &first));
        assert_eq!(after(3, &original).counters.opened, 4);
        let other = Arc::new(edge(5));
        assert_eq!(after(3, &other).counters.opened, 8);
        assert_eq!(after(2, &original), first, "it is made again");
    }
}
