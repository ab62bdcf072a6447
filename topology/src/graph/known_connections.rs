//! Connections that are known apart from the flows: evicted by clients' agents, or published.

use std::collections::BTreeMap;

use crate::{
    count,
    edge::{EdgeCounters, EdgeKey, Endpoint, Peer},
    flow::Protocol,
    hash::HashMap,
};

/// Numbers of connections by client, server and the server's port, through any Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownConnections {
    connections: HashMap<(Peer, Peer, u16, Protocol), Known>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// By the server's pod, as far as known: a client's agent does not know which of a Service's backends it reached.
    by_pod: BTreeMap<String, u64>,
    /// All of them, with the bytes that their clients counted.
    counters: EdgeCounters,
    /// Those that servers count.
    counted: u64,
}

impl KnownConnections {
    /// Adds connections of an edge, with their bytes. `servers` are the parts of its servers in them, as far as known.
    /// Servers count at most `counted` of them.
    ///
    /// Invariant: what was there stays.
    pub fn add(&mut self, edge: &EdgeKey, counters: &EdgeCounters, servers: &[Endpoint], counted: u64) {
        let opened = counters.opened;
        // A server counts at its own port. An edge without a port has no known server.
        let Some(port) = edge.port.filter(|_| opened > 0) else { return };
        let between = (edge.client.clone(), edge.server.clone(), port, edge.protocol);
        let known = self.connections.entry(between).or_default();
        known.counters.add(&EdgeCounters { failed: 0, pending: 0, active: 0, ..*counters });
        known.counted = count::add(known.counted, counted.min(opened));
        for server in servers.iter().filter(|server| server.opened > 0 && !server.pod.is_empty()) {
            let by_pod = known.by_pod.entry(server.pod.clone()).or_default();
            *by_pod = count::add(*by_pod, server.opened);
        }
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Returns the number of connections that servers count.
    pub(super) fn counted(&self, client: &Peer, server: &Peer, (port, protocol): (u16, Protocol)) -> u64 {
        let between = (client.clone(), server.clone(), port, protocol);
        self.connections.get(&between).map_or(0, |known| known.counted)
    }

    /// Takes up to `left` of the connections to this pod, or `to_any` pod, that servers count. Returns them, with their share
    /// in the bytes, and whether these are exact: servers count all of them, and they are to no other pod.
    pub(super) fn take(
        &mut self,
        (client, server, (port, protocol)): (&Peer, &Peer, (u16, Protocol)),
        pod: &str,
        to_any: bool,
        left: u64,
    ) -> (EdgeCounters, bool) {
        let nothing = (EdgeCounters::default(), true);
        let between = (client.clone(), server.clone(), port, protocol);
        let Some(known) = self.connections.get_mut(&between) else { return nothing };
        let to_pod = known.by_pod.get(pod).copied().unwrap_or_default();
        let is_exact = known.counted == known.counters.opened && known.by_pod.keys().all(|known| known == pod);
        let taken = left.min(known.counted).min(if to_any { u64::MAX } else { to_pod });
        known.counted -= taken;
        if let Some(to_pod) = known.by_pod.get_mut(pod) {
            *to_pod = to_pod.saturating_sub(taken);
        }
        let share = known.counters.share(taken);
        known.counters = known.counters.without(&share);
        (share, is_exact)
    }
}
