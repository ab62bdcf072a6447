//! Real connections between the pods of a fleet, by their own counts, and the Topology objects' content in the same
//! shape.

pub mod agreement;
pub mod cases;
pub mod expected;
pub mod fleet;
pub mod observed;

use std::collections::BTreeMap;

/// A workload: kind and name.
pub type Workload = (String, String);

/// Key of an edge: client, server, the Service that was called, the server's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EdgeName {
    /// The client.
    pub client: Workload,
    /// The server.
    pub server: Workload,
    /// Name and port of the Service, if one was called.
    pub service: Option<(String, u16)>,
    /// Port at which the server listens, or would have to. `None` if the server is unknown.
    pub port: Option<u16>,
}

/// Pod and container; no container if nothing listened.
pub type Endpoint = (String, String);

/// Counters from the client's point of view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeCounts {
    /// Connections established.
    pub opened: u64,
    /// Of these, open now.
    pub active: u64,
    /// Failed attempts.
    pub failed: u64,
    /// Payload from client to server.
    pub sent: u64,
    /// Payload from server to client.
    pub received: u64,
    /// Connections established by each client.
    pub clients: BTreeMap<Endpoint, u64>,
    /// Connections established with each server.
    pub servers: BTreeMap<Endpoint, u64>,
}

/// All edges between the fleet's workloads.
pub type Edges = BTreeMap<EdgeName, EdgeCounts>;

/// Returns the differences of two accounts, one per line; empty if they agree.
#[must_use]
pub fn differences(expected: &Edges, observed: &Edges) -> Vec<String> {
    let missing = expected
        .iter()
        .filter(|(name, _)| !observed.contains_key(name))
        .map(|(name, counts)| format!("missing: {name:?} {counts:?}"));
    let invented = observed
        .iter()
        .filter(|(name, _)| !expected.contains_key(name))
        .map(|(name, counts)| format!("did not happen: {name:?} {counts:?}"));
    let wrong = expected.iter().filter_map(|(name, wanted)| {
        let found = observed.get(name)?;
        (found != wanted).then(|| format!("wrong: {name:?}\n    happened {wanted:?}\n    shown    {found:?}"))
    });
    missing.chain(invented).chain(wrong).collect()
}
