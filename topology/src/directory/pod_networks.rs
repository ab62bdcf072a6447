//! Pod networks of the nodes, by address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    entity::{Network, Node},
    hash::HashMap,
};

/// Nodes by their pod networks. A look-up takes as many steps as there are different lengths of prefixes, however many
/// nodes there are.
#[derive(Clone, Debug, Default)]
pub(super) struct PodNetworks {
    /// Names of nodes, by the network's first address and its prefix.
    nodes: HashMap<Network, BTreeSet<String>>,
    /// Number of networks of each prefix length.
    prefixes: BTreeMap<u8, usize>,
}

impl PodNetworks {
    pub(super) fn insert(&mut self, node: &Node) {
        for network in &node.pod_networks {
            let names = self.nodes.entry(network.trimmed()).or_default();
            if names.is_empty() {
                *self.prefixes.entry(network.prefix).or_default() += 1;
            }
            names.insert(node.name.clone());
        }
    }

    pub(super) fn remove(&mut self, node: &Node) {
        for network in node.pod_networks.iter().map(Network::trimmed) {
            let Some(names) = self.nodes.get_mut(&network) else { continue };
            names.remove(&node.name);
            if !names.is_empty() {
                continue;
            }
            self.nodes.remove(&network);
            if let Some(number) = self.prefixes.get_mut(&network.prefix) {
                *number -= 1;
                if *number == 0 {
                    self.prefixes.remove(&network.prefix);
                }
            }
        }
    }

    /// Returns the name of the node with a network that contains the address; of several, the first in alphabetical order.
    pub(super) fn node_of(&self, ip: IpAddr) -> Option<&str> {
        let networks = self.prefixes.keys().filter_map(|prefix| Network::new(ip, *prefix));
        let names = networks.filter_map(|network| self.nodes.get(&network.trimmed())?.first());
        names.map(String::as_str).min()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

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
                prop_assert!(networks.nodes.is_empty() && networks.prefixes.is_empty());
            }
        }
    }
}
