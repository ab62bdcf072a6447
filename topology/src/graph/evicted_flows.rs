//! Flows that clients' agents evicted while servers' agents may still count them.

use std::collections::HashMap;

use crate::{
    count,
    edge::{EdgeKey, Peer},
    flow::Protocol,
};

/// Connections by client, server and the server's port, through any Service.
#[derive(Clone, Debug, Default)]
pub struct EvictedFlows {
    connections: HashMap<(Peer, Peer, u16, Protocol), u64>,
}

impl EvictedFlows {
    /// Adds connections of an edge.
    ///
    /// Invariant: what was there stays.
    pub fn add(&mut self, edge: &EdgeKey, opened: u64) {
        // A server counts at its own port. An edge without a port has no known server.
        if let Some(port) = edge.port.filter(|_| opened > 0) {
            let between = (edge.client.clone(), edge.server.clone(), port, edge.protocol);
            let known = self.connections.entry(between).or_default();
            *known = count::add(*known, opened);
        }
    }

    /// Returns whether nothing was evicted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Takes up to `counted` evicted connections and returns their number.
    pub(super) fn take(
        &mut self,
        client: &Peer,
        server: &Peer,
        (port, protocol): (u16, Protocol),
        counted: u64,
    ) -> u64 {
        if self.connections.is_empty() {
            return 0;
        }
        let between = (client.clone(), server.clone(), port, protocol);
        let Some(left) = self.connections.get_mut(&between) else { return 0 };
        let taken = counted.min(*left);
        *left -= taken;
        taken
    }
}
