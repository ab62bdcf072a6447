//! What is left of flows that the ledger has let go of: their share in edges that live on.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use crate::{
    directory::Directory,
    edge::{EdgeCounters, EdgeKey},
    graph::{self, Graph, Options},
    ledger::Ledger,
};

/// Counters of retired flows, by the edge that they were part of.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    counters: HashMap<EdgeKey, EdgeCounters>,
}

impl Archive {
    /// Holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the graph of all flows, those included that have been retired.
    #[must_use]
    pub fn build(&self, ledger: &Ledger, directory: &Directory, options: &Options) -> Graph {
        let mut graph = graph::build(ledger, directory, options);
        for edge in &mut graph.edges {
            if let Some(retired) = self.counters.get(&edge.key) {
                edge.counters.add(retired);
            }
        }
        graph
    }

    /// Retires the flows that have been over for `retention`, so that the counters of edges that live do not shrink,
    /// and forgets the edges that are gone. Returns how many flows went.
    pub fn retire(
        &mut self,
        ledger: &mut Ledger,
        directory: &Directory,
        now: SystemTime,
        retention: Duration,
    ) -> usize {
        if !ledger.has_retirable(now, retention) {
            return 0;
        }
        // Everything is to be on an edge, and every edge to live, so that the difference is what went.
        let options = Options { now, settle: Duration::ZERO, retention: Duration::MAX };
        let before = graph::build(ledger, directory, &options);
        let retired = ledger.retire(now, retention);
        let after: HashMap<EdgeKey, EdgeCounters> =
            graph::build(ledger, directory, &options).edges.into_iter().map(|edge| (edge.key, edge.counters)).collect();
        self.counters.retain(|key, _| after.contains_key(key));
        for edge in before.edges {
            let Some(stays) = after.get(&edge.key) else { continue };
            let gone = edge.counters.without(stays);
            if gone != EdgeCounters::default() {
                self.counters.entry(edge.key).or_default().add(&gone);
            }
        }
        retired
    }
}
