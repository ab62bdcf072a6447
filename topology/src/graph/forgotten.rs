//! What clients' agents have forgotten, while servers' agents may still count it.

use std::collections::HashMap;

use crate::edge::{EdgeKey, Peer};

/// Connections by client, server and the server's port, through whatever Service.
#[derive(Clone, Debug, Default)]
pub struct Forgotten {
    connections: HashMap<(Peer, Peer, u16), u64>,
}

impl Forgotten {
    /// Adds connections of an edge.
    pub fn add(&mut self, edge: &EdgeKey, opened: u64) {
        if opened > 0 {
            let between = (edge.client.clone(), edge.server.clone(), edge.port);
            *self.connections.entry(between).or_default() += opened;
        }
    }

    /// Whether nothing was forgotten.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// How many of `counted` connections were forgotten and not taken yet; they are taken.
    pub(super) fn take(&mut self, client: &Peer, server: &Peer, port: u16, counted: u64) -> u64 {
        if self.connections.is_empty() {
            return 0;
        }
        let Some(left) = self.connections.get_mut(&(client.clone(), server.clone(), port)) else { return 0 };
        let taken = counted.min(*left);
        *left -= taken;
        taken
    }
}
