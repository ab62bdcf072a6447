//! What clients' agents have forgotten, while servers' agents may still count it.

use std::collections::HashMap;

use crate::{
    count,
    edge::{EdgeKey, Peer},
    flow::Protocol,
};

/// Connections by client, server and the server's port, through whatever Service.
#[derive(Clone, Debug, Default)]
pub struct Forgotten {
    connections: HashMap<(Peer, Peer, u16, Protocol), u64>,
}

impl Forgotten {
    /// Adds connections of an edge.
    ///
    /// Invariant: what was there stays.
    pub fn add(&mut self, edge: &EdgeKey, opened: u64) {
        if opened > 0 {
            let between = (edge.client.clone(), edge.server.clone(), edge.port, edge.protocol);
            let known = self.connections.entry(between).or_default();
            *known = count::add(*known, opened);
        }
    }

    /// Whether nothing was forgotten.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// How many of `counted` connections were forgotten and not taken yet; they are taken.
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
