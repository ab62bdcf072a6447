//! Networks of the cluster beside private ones, for agents that fold external flows.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::Directory;
use crate::entity::Network;

/// Ranges that agents never regard as external. The agents' programs have the same.
const SPECIAL: [Network; 10] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v6(0, 127),
    v6(0xfc00, 7),
    v6(0xfe80, 10),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Network {
    Network { address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

const fn v6(first: u16, prefix: u8) -> Network {
    Network { address: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)), prefix }
}

/// Returns whether agents never regard an address as external, in any cluster.
pub(crate) fn is_special(ip: IpAddr) -> bool {
    SPECIAL.iter().any(|network| network.contains(ip))
}

/// Networks of the cluster that are not private.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNetworks {
    /// The networks: disjoint, and none is half of a range of which the other half is there, too.
    pub networks: Vec<Network>,
    /// Number of networks beyond the maximum.
    pub omitted: usize,
}

impl Directory {
    /// Returns the cluster's networks that are not private, at most `max` of them and the largest ones first: those of
    /// nodes, of their pods, of Services and of API servers.
    ///
    /// Invariants: none contains another one; without omitted ones, each address of a node, pod or Service is special or in
    /// one of them.
    #[must_use]
    pub fn own_networks(&self, max: usize) -> OwnNetworks {
        let is_public = |network: &Network| !SPECIAL.iter().any(|special| special.contains_network(network));
        let nodes = self.nodes.values();
        let of_nodes =
            nodes.flat_map(|node| node.ips.iter().copied().map(single).chain(node.pod_networks.iter().copied()));
        let present = self.pods.values().filter(|record| record.removed.is_none() && !record.pod.host_network);
        let of_pods = present.flat_map(|record| record.pod.ips.iter().copied().map(single));
        let of_services = self.services.addresses().map(single);
        let of_api_servers = self.api_servers().into_iter().map(|(ip, _)| single(ip));
        let all = of_nodes.chain(of_pods).chain(of_services).chain(of_api_servers);
        let mut networks = merge(all.filter(is_public).map(|network| network.trimmed()).collect());
        let omitted = networks.len().saturating_sub(max);
        networks.sort_by_key(|network| (network.prefix, *network));
        networks.truncate(max);
        OwnNetworks { networks, omitted }
    }
}

/// Returns the range of one address.
fn single(address: IpAddr) -> Network {
    Network { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
}

/// Leaves out ranges within others, and joins halves of ranges. Takes trimmed ranges.
fn merge(networks: BTreeSet<Network>) -> Vec<Network> {
    let mut merged: Vec<Network> = Vec::new();
    // Sorted by address and then by prefix: a range comes before those within it.
    for mut network in networks {
        if merged.last().is_some_and(|last| last.contains_network(&network)) {
            continue;
        }
        while let Some(whole) = merged.last().and_then(|last| last.joined_with(&network)) {
            merged.pop();
            network = whole;
        }
        merged.push(network);
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::entity::{Node, Service, ServiceRef};

    fn network(text: &str) -> Network {
        Network::parse(text).expect("a range")
    }

    fn directory(nodes: &[(&[&str], &[&str])], services: &[&str]) -> Directory {
        let mut directory = Directory::new();
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>();
        for (number, (addresses, pod_networks)) in nodes.iter().enumerate() {
            directory.upsert_node(Node {
                name: number.to_string(),
                ips: ips(addresses),
                pod_networks: pod_networks.iter().map(|text| network(text)).collect(),
            });
        }
        let name = ServiceRef { namespace: "n".to_owned(), name: "s".to_owned() };
        let service = Service { name, addresses: ips(services), ports: Vec::new() };
        directory.upsert_service(service, SystemTime::UNIX_EPOCH);
        directory
    }

    #[test]
    fn own_networks_are_those_outside_of_private_ranges() {
        let directory = directory(
            &[
                (&["10.0.0.1", "203.0.113.9", "2001:db8::9"], &["10.244.0.0/24", "198.51.100.0/25"]),
                (&["192.168.0.1", "198.51.100.7"], &["fd00::/64", "198.51.100.128/25"]),
            ],
            &["172.20.0.1", "203.0.113.8", "fe80::1"],
        );
        let own = directory.own_networks(256);
        let expected = ["198.51.100.0/24", "203.0.113.8/31", "2001:db8::9/128"].map(network);
        assert_eq!(own, OwnNetworks { networks: expected.to_vec(), omitted: 0 });
    }

    #[test]
    fn largest_networks_stay_where_there_are_too_many() {
        let directory = directory(&[(&["203.0.113.1", "203.0.113.3", "203.0.113.5"], &["198.51.100.0/24"])], &[]);
        let own = directory.own_networks(2);
        let expected = ["198.51.100.0/24", "203.0.113.1/32"].map(network);
        assert_eq!(own, OwnNetworks { networks: expected.to_vec(), omitted: 2 });
    }

    proptest! {
        #[test]
        fn merged_ranges_contain_the_same_addresses(ranges in prop::collection::vec((0..64_u32, 26..=32_u8), 0..12)) {
            let address = |last: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(0xcb00_7100 | last));
            let given: BTreeSet<Network> =
                ranges.iter().map(|(last, prefix)| Network { address: address(*last), prefix: *prefix }.trimmed()).collect();
            let merged = merge(given.clone());
            for last in 0..128 {
                let contained = given.iter().any(|range| range.contains(address(last)));
                let times = merged.iter().filter(|range| range.contains(address(last))).count();
                prop_assert_eq!(times, usize::from(contained));
            }
        }
    }
}
