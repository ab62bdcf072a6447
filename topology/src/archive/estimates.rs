//! Bytes of edges that are an estimate. A server does not see through which Service a connection came. What a client's
//! agent missed therefore has a share of the server's bytes.

use std::collections::HashMap;

use crate::{
    edge::{Edge, EdgeCounters, EdgeKey},
    graph::Graph,
};

/// Greatest bytes, sent and received, that each edge with a share in servers' bytes has had since it has one.
#[derive(Clone, Debug, Default)]
pub(super) struct Estimates(HashMap<EdgeKey, [u64; 2]>);

impl Estimates {
    /// Raises the bytes of estimated edges to what they have been.
    ///
    /// Invariant: bytes of an edge shrink only when they are no estimate any more.
    pub(super) fn keep(&mut self, graph: &mut Graph) {
        let mut kept = HashMap::new();
        for edge in graph.edges.iter_mut().filter(|edge| is_estimated(edge)) {
            let counters = &mut edge.counters;
            let [sent, received] = self.0.remove(&edge.key).unwrap_or_default();
            counters.bytes_sent = counters.bytes_sent.max(sent);
            counters.bytes_received = counters.bytes_received.max(received);
            kept.insert(edge.key.clone(), [counters.bytes_sent, counters.bytes_received]);
        }
        self.0 = kept;
    }
}

/// Returns whether a part of the edge was counted by servers only.
fn is_estimated(edge: &Edge) -> bool {
    edge.from_servers != EdgeCounters::default() && edge.from_servers != edge.counters
}
