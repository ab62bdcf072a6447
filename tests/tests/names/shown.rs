//! Short form of the Topology objects.

use std::collections::BTreeMap;

use crds::{Topology, TopologyEdge};
use scopeprobe_tests::{
    Result, eventually,
    namespace::Namespace,
    oracle::{cases::Case, observed},
};

/// Kind and name (or address) of the peer, the Service's name and port if one was called, and the server's port.
pub type Name = (String, String, Option<(String, u16)>, Option<u16>);
/// Number of connections, and number of addresses without an edge of their own.
pub type Counts = (u64, u64);
pub type Edges = BTreeMap<Name, Counts>;

/// An edge of [`Edges`].
pub fn edge(
    kind: &str,
    name: &str,
    service: Option<(&str, u16)>,
    port: u16,
    opened: u64,
    addresses: u64,
) -> (Name, Counts) {
    let service = service.map(|(name, port)| (name.to_owned(), port));
    ((kind.to_owned(), name.to_owned(), service, Some(port)), (opened, addresses))
}

pub fn edges(edges: &[TopologyEdge]) -> Edges {
    let of = |edge: &TopologyEdge| {
        let peer = &edge.peer;
        let (kind, name) = observed::peer_name(peer);
        let node = peer.node.as_ref().map(|node| format!("{node}/")).unwrap_or_default();
        ((kind, format!("{node}{name}"), observed::service_name(edge), edge.port), (edge.opened, edge.addresses))
    };
    edges.iter().map(of).collect()
}

/// Waits until a Topology has the expected content, and returns it.
pub async fn topology(
    namespace: &Namespace,
    name: &str,
    differs: impl Fn(&Topology) -> Option<String>,
) -> Result<Topology> {
    let api = namespace.api::<Topology>();
    eventually(&format!("{name} to be shown as it happened"), async || {
        let topology = api.get(name).await.map_err(|error| error.to_string())?;
        differs(&topology).map_or(Ok(topology), Err)
    })
    .await
}

/// Returns the difference between shown and expected values.
pub fn difference<T: PartialEq + std::fmt::Debug>(shown: &T, expected: &T) -> Option<String> {
    (shown != expected).then(|| format!("shown {shown:#?}\nexpected {expected:#?}"))
}

/// Prints how well edges are shown, whose names are all that they join.
pub fn print_case(name: &str, happened: &Edges, shown: &Edges) {
    println!("{}", Case::of(name, happened, shown, |counts| *counts, |_| ()));
}
