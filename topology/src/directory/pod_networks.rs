//! Pod networks of the nodes, by address.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{entity::Node, network_table::NetworkTable};

/// Names of nodes by their pod networks.
#[derive(Clone, Debug, Default)]
pub(super) struct PodNetworks {
    nodes: NetworkTable<BTreeSet<String>>,
}

impl PodNetworks {
    pub(super) fn insert(&mut self, node: &Node) {
        for network in &node.pod_networks {
            self.nodes.get_or_insert_with(network, BTreeSet::new).insert(node.name.clone());
        }
    }

    pub(super) fn remove(&mut self, node: &Node) {
        for network in &node.pod_networks {
            let Some(names) = self.nodes.get_mut(network) else { continue };
            names.remove(&node.name);
            if names.is_empty() {
                self.nodes.remove(network);
            }
        }
    }

    /// Returns the name of the node with a network that contains the address; of several, the first in alphabetical order.
    pub(super) fn node_of(&self, ip: IpAddr) -> Option<&str> {
        self.nodes.containing(ip).filter_map(BTreeSet::first).map(String::as_str).min()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::entity::Network;

    fn node() -> impl Strategy<Value = Node> {
        let network = (0..4_u32, 24..=32_u8).prop_filter_map("a network", |(last, prefix)| {
            Network::new(Ipv4Addr::from(10 << 24 | last).into(), prefix)
        });
        ("[a-d]", prop::collection::vec(network, 0..3)).prop_map(|(name, pod_networks)| Node {
            name,
            ips: Vec::new(),
            pod_networks,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn node_is_found_as_by_looking_at_each(nodes in prop::collection::vec((node(), any::<bool>()), 0..12), last in 0..6_u32) {
            let (mut networks, mut known) = (PodNetworks::default(), BTreeMap::new());
            for (node, stays) in nodes {
                if let Some(before) = known.insert(node.name.clone(), node.clone()) {
                    networks.remove(&before);
                }
                networks.insert(&node);
                if !stays {
                    networks.remove(&node);
                    known.remove(&node.name);
                }
            }
            let ip = IpAddr::from(Ipv4Addr::from(10 << 24 | last));
            let found = known.values().find(|node| node.pod_networks.iter().any(|network| network.contains(ip)));
            prop_assert_eq!(networks.node_of(ip), found.map(|node| node.name.as_str()));
            if known.is_empty() {
                prop_assert!(networks.nodes.is_empty());
            }
        }
    }
}
