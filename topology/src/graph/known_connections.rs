//! Connections that are known apart from the flows: evicted by clients' agents, or published.

use std::collections::{BTreeMap, HashMap};

use crate::{
    count,
    edge::{EdgeCounters, EdgeKey, Endpoint, Peer},
    flow::Protocol,
};

/// Numbers of connections by client, server and the server's port, through any Service.
#[derive(Clone, Debug, Default)]
pub struct KnownConnections {
    connections: HashMap<(Peer, Peer, u16, Protocol), Known>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    /// By the server's pod. Other pods' counts do not contain these.
    by_pod: BTreeMap<String, u64>,
    /// Those of which the server's pod is not known.
    others: u64,
    /// All of them, with the bytes that their clients counted.
    counters: EdgeCounters,
}

impl KnownConnections {
    /// Adds connections of an edge, with their bytes. `servers` are the parts of its servers in them, as far as known.
    ///
    /// Invariant: what was there stays.
    pub fn add(&mut self, edge: &EdgeKey, counters: &EdgeCounters, servers: &[Endpoint]) {
        let opened = counters.opened;
        // A server counts at its own port. An edge without a port has no known server.
        let Some(port) = edge.port.filter(|_| opened > 0) else { return };
        let between = (edge.client.clone(), edge.server.clone(), port, edge.protocol);
        let known = self.connections.entry(between).or_default();
        known.counters.add(&EdgeCounters { failed: 0, active: 0, ..*counters });
        let mut others = opened;
        for server in servers.iter().filter(|server| server.opened > 0 && !server.pod.is_empty()) {
            let by_pod = known.by_pod.entry(server.pod.clone()).or_default();
            *by_pod = count::add(*by_pod, server.opened);
            others = others.saturating_sub(server.opened);
        }
        known.others = count::add(known.others, others);
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Takes up to `counted` of the connections to this pod and returns them, with their share in the bytes, and whether
    /// there are connections to no other pod, so that the bytes are theirs.
    pub(super) fn take(
        &mut self,
        (client, server, (port, protocol)): (&Peer, &Peer, (u16, Protocol)),
        pod: &str,
        counted: u64,
    ) -> (EdgeCounters, bool) {
        let nothing = (EdgeCounters::default(), true);
        if self.connections.is_empty() {
            return nothing;
        }
        let between = (client.clone(), server.clone(), port, protocol);
        let Some(Known { by_pod, others, counters }) = self.connections.get_mut(&between) else {
            return nothing;
        };
        let is_sole = by_pod.keys().all(|known| known == pod);
        let mut taken = 0;
        for left in by_pod.get_mut(pod).into_iter().chain([others]) {
            let count = (counted - taken).min(*left);
            *left -= count;
            taken += count;
        }
        let share = counters.share(taken);
        *counters = counters.without(&share);
        (share, is_sole)
    }
}
