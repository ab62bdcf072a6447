//! Waiting for an edge.

use crds::{Topology, TopologyEdge};
use scopeprobe_tests::{Result, eventually, namespace::Namespace};

/// Waits until a Topology of the namespace lists an incoming edge as wanted.
pub async fn eventually_shown(
    namespace: &Namespace,
    topology: &str,
    what: &str,
    wanted: impl Fn(&TopologyEdge) -> bool,
) -> Result<()> {
    let api = namespace.api::<Topology>();
    eventually(&format!("{what} in {topology}"), async || {
        let status = api.get(topology).await.map_err(|error| error.to_string())?.status.unwrap_or_default();
        if status.ingress.iter().any(&wanted) { Ok(()) } else { Err(format!("{:#?}", status.ingress)) }
    })
    .await
}
