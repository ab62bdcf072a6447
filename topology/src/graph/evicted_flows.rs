//! Flows that clients' agents evicted while servers' agents may still count them.

use std::collections::{BTreeMap, HashMap};

use crate::{
    count,
    edge::{EdgeKey, Endpoint, Peer},
    flow::Protocol,
};

/// Connections by client, server and the server's port, through any Service.
#[derive(Clone, Debug, Default)]
pub struct EvictedFlows {
    connections: HashMap<(Peer, Peer, u16, Protocol), Evicted>,
}

#[derive(Clone, Debug, Default)]
struct Evicted {
    /// By the server's pod. Other pods' counts do not contain these.
    by_pod: BTreeMap<String, u64>,
    /// Those of which the server's pod is not known.
    others: u64,
}

impl EvictedFlows {
    /// Adds connections of an edge. `servers` are the parts of its servers in them, as far as known.
    ///
    /// Invariant: what was there stays.
    pub fn add(&mut self, edge: &EdgeKey, opened: u64, servers: &[Endpoint]) {
        // A server counts at its own port. An edge without a port has no known server.
        let Some(port) = edge.port.filter(|_| opened > 0) else { return };
        let between = (edge.client.clone(), edge.server.clone(), port, edge.protocol);
        let known = self.connections.entry(between).or_default();
        let mut others = opened;
        for server in servers.iter().filter(|server| server.opened > 0 && !server.pod.is_empty()) {
            let by_pod = known.by_pod.entry(server.pod.clone()).or_default();
            *by_pod = count::add(*by_pod, server.opened);
            others = others.saturating_sub(server.opened);
        }
        known.others = count::add(known.others, others);
    }

    /// Returns whether nothing was evicted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Takes up to `counted` evicted connections to this pod and returns their number.
    pub(super) fn take(
        &mut self,
        (client, server, (port, protocol)): (&Peer, &Peer, (u16, Protocol)),
        pod: &str,
        counted: u64,
    ) -> u64 {
        if self.connections.is_empty() {
            return 0;
        }
        let between = (client.clone(), server.clone(), port, protocol);
        let Some(Evicted { by_pod, others }) = self.connections.get_mut(&between) else { return 0 };
        let mut taken = 0;
        for left in by_pod.get_mut(pod).into_iter().chain([others]) {
            let count = (counted - taken).min(*left);
            *left -= count;
            taken += count;
        }
        taken
    }
}
