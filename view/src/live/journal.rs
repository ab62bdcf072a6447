//! Revisions of a graph, and the differences between the last of them.

use std::collections::VecDeque;

use super::{Delta, Graph};

/// Maximum number of differences that are kept.
const MOST_DELTAS: usize = 512;

/// The present graph, and how it came about.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    graph: Graph,
    revision: u64,
    /// Differences that lead to `revision`, the oldest first.
    deltas: VecDeque<Delta>,
    /// Nodes and edges in them.
    size: usize,
}

/// All that a reader of an earlier revision lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatchUp<'j> {
    /// Differences to apply one after the other, each with the revision to which it leads. There may be none.
    Deltas(Vec<(u64, &'j Delta)>),
    /// The whole graph, as the differences are not kept any more.
    Snapshot,
}

impl Journal {
    /// Returns the present graph.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Returns the number of the present revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Makes a graph the present one. Returns whether it differs from the one before.
    pub fn record(&mut self, next: Graph) -> bool {
        let delta = Delta::between(&self.graph, &next);
        if delta.is_empty() {
            return false;
        }
        self.graph = next;
        self.revision += 1;
        self.size += delta.size();
        self.deltas.push_back(delta);
        // Beyond the size of the graph, a snapshot is shorter.
        let most = self.graph.nodes.len() + self.graph.edges.len();
        while self.deltas.len() > MOST_DELTAS || self.size > most {
            let Some(oldest) = self.deltas.pop_front() else { break };
            self.size -= oldest.size();
        }
        true
    }

    /// Returns what a reader of a revision lacks.
    #[must_use]
    pub fn since(&self, revision: u64) -> CatchUp<'_> {
        let missing = self.revision.checked_sub(revision).and_then(|missing| usize::try_from(missing).ok());
        match missing {
            Some(missing) if missing <= self.deltas.len() => {
                let first = self.deltas.len() - missing;
                CatchUp::Deltas((revision + 1..).zip(self.deltas.range(first..)).collect())
            }
            _ => CatchUp::Snapshot,
        }
    }
}
