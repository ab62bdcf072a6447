//! Examples for tests of all crates.

use crate::{
    edge::{Edge, EdgeCounters, EdgeKey, Identity, Seen},
    flow::Methods,
};

/// Returns an edge whose ends were both observed, with these counters and nothing else.
#[must_use]
pub fn edge(key: EdgeKey, counters: EdgeCounters) -> Edge {
    Edge {
        key,
        counters,
        times: None,
        from_servers: EdgeCounters::default(),
        clients_from_servers: Vec::new(),
        servers_from_servers: Vec::new(),
        clients: Vec::new(),
        servers: Vec::new(),
        seen: Seen::Both,
        client_identity: Identity::Cgroup,
        server_identity: Identity::Cgroup,
        methods: Methods::default(),
        dns_names: Vec::new(),
        addresses: 0,
        knows_retransmits: false,
        rtt: None,
        via: Vec::new(),
    }
}
