//! Connections that only servers' agents have counted.

use crate::{counts::Counts, edge::Edge};

/// Returns the part of an edge that only servers' agents have counted.
pub(super) fn part_of(edge: &Edge) -> Counts {
    Counts {
        counters: edge.from_servers,
        clients: edge.clients_from_servers.clone(),
        servers: edge.servers_from_servers.clone(),
    }
}
