//! Properties of a node that are kept.

use k8s_openapi::api::core::v1::Node as Object;
use topology::entity::{Network, Node};

pub(super) fn facts(object: Object) -> Option<Node> {
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let networks = object.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
    Some(Node {
        name: object.metadata.name?,
        ips: addresses.iter().filter_map(|address| address.address.parse().ok()).collect(),
        pod_networks: networks.iter().filter_map(|network| Network::parse(network)).collect(),
    })
}
