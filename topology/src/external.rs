//! Names that a person has given to addresses and DNS names outside of the cluster.

use std::net::IpAddr;

use crate::{entity::Network, hash::HashMap, network_table::NetworkTable};

/// A name, with the ranges of addresses and the DNS names that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalGroup {
    /// Name of the group.
    pub name: String,
    /// Ranges of addresses.
    pub networks: Vec<Network>,
    /// DNS names, and patterns of them: `*.example.com` stands for all names below `example.com`.
    pub dns_names: Vec<String>,
}

/// Maps addresses and DNS names to group names. The narrowest range of an address wins. An exact DNS name precedes
/// patterns, of which the longest wins. Among equals, the first group wins.
///
/// A look-up takes as many steps as there are different lengths of prefixes, or labels in the name, however many groups
/// there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExternalGroups {
    names: Vec<String>,
    /// Places in `names` by range.
    by_network: NetworkTable<usize>,
    /// Places in `names` by exact DNS name.
    by_dns_name: HashMap<String, usize>,
    /// Places in `names` by the part of a pattern after `*.`.
    by_dns_suffix: HashMap<String, usize>,
}

impl ExternalGroups {
    /// Takes the groups in their order.
    #[must_use]
    pub fn new(groups: impl IntoIterator<Item = ExternalGroup>) -> Self {
        let mut all = Self::default();
        for group in groups {
            let index = all.names.len();
            all.names.push(group.name);
            for network in group.networks {
                all.by_network.get_or_insert_with(&network, || index);
            }
            for pattern in group.dns_names {
                let pattern = pattern.to_ascii_lowercase();
                match pattern.strip_prefix("*.") {
                    Some(suffix) => all.by_dns_suffix.entry(suffix.to_owned()).or_insert(index),
                    None => all.by_dns_name.entry(pattern).or_insert(index),
                };
            }
        }
        all
    }

    /// Returns the name of the group that contains an address, regardless of the address's owner.
    ///
    /// Invariant: [`Self::has`] is true of the name.
    #[must_use]
    pub fn of(&self, ip: IpAddr) -> Option<&str> {
        let found = self.by_network.containing(ip).next()?;
        self.names.get(*found).map(String::as_str)
    }

    /// Returns the group of a DNS name, regardless of the address behind it.
    ///
    /// Invariant: [`Self::has`] is true of the name.
    #[must_use]
    pub fn of_dns_name(&self, name: &str) -> Option<&str> {
        if self.by_dns_name.is_empty() && self.by_dns_suffix.is_empty() {
            return None;
        }
        let name = name.to_ascii_lowercase();
        let suffixes = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        let mut by_suffix = suffixes.filter_map(|suffix| self.by_dns_suffix.get(suffix));
        let found = self.by_dns_name.get(&name).or_else(|| by_suffix.next())?;
        self.names.get(*found).map(String::as_str)
    }

    /// Returns the group of all of these DNS names, if they share one.
    #[must_use]
    pub fn of_dns_names(&self, names: &[String]) -> Option<&str> {
        let (first, others) = names.split_first()?;
        let group = self.of_dns_name(first)?;
        others.iter().all(|other| self.of_dns_name(other) == Some(group)).then_some(group)
    }

    /// Returns whether a group of this name exists.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(name: &str, networks: &[&str]) -> ExternalGroup {
        ExternalGroup {
            name: name.to_owned(),
            networks: networks.iter().map(|text| Network::parse(text).expect("a range")).collect(),
            dns_names: Vec::new(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_narrowest_range_counts_and_then_the_first_group() {
        let groups = ExternalGroups::new([
            group("everything", &["0.0.0.0/0", "192.0.2.7/24"]),
            group("office", &["192.0.2.0/24", "2001:db8::/32"]),
            group("printer", &["192.0.2.9/32"]),
        ]);
        let of = |text: &str| groups.of(ip(text));
        assert_eq!(of("192.0.2.9"), Some("printer"));
        assert_eq!(of("192.0.2.8"), Some("everything"));
        assert_eq!(of("203.0.113.1"), Some("everything"));
        assert_eq!(of("2001:db8::1"), Some("office"));
        assert_eq!(of("2001:db9::1"), None);
        assert_eq!(ExternalGroups::default().of(ip("192.0.2.9")), None);
    }

    #[test]
    fn exact_dns_name_precedes_longest_pattern_and_first_group() {
        let group = |name: &str, dns_names: &[&str]| ExternalGroup {
            name: name.to_owned(),
            networks: Vec::new(),
            dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
        };
        let groups = ExternalGroups::new([
            group("cloud", &["*.example.com", "*.example.net"]),
            group("storage", &["*.s3.example.com", "*.example.net"]),
            group("api", &["api.s3.example.com", "Mixed.Example.org"]),
        ]);
        let of = |name: &str| groups.of_dns_name(name);
        assert_eq!(of("api.s3.example.com"), Some("api"));
        assert_eq!(of("a.b.s3.example.com"), Some("storage"));
        assert_eq!(of("S3.example.com"), Some("cloud"));
        assert_eq!(of("a.example.net"), Some("cloud"));
        assert_eq!(of("mixed.example.org"), Some("api"));
        assert_eq!([of("example.com"), of("notexample.com"), of("com"), of("")], [None; 4]);
        let several = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            groups.of_dns_names(&names).map(str::to_owned)
        };
        assert_eq!(several(&["a.example.com", "b.example.com"]), Some("cloud".to_owned()));
        assert_eq!([several(&["a.example.com", "a.example.org"]), several(&[])], [None, None]);
    }

    /// Few leading bits, so that ranges meet.
    fn network() -> impl Strategy<Value = Network> {
        let address = prop_oneof![
            (0..8_u32).prop_map(|top| IpAddr::from(std::net::Ipv4Addr::from(top << 29))),
            (0..8_u128).prop_map(|top| IpAddr::from(std::net::Ipv6Addr::from(top << 125))),
        ];
        (address, 0..4_u8).prop_filter_map("too long", |(address, prefix)| Network::new(address, prefix))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn as_by_looking_at_all_of_them(
            groups in prop::collection::vec(prop::collection::vec(network(), 0..4), 0..5),
            address in network(),
        ) {
            let groups: Vec<ExternalGroup> = groups
                .into_iter()
                .enumerate()
                .map(|(number, networks)| ExternalGroup { name: number.to_string(), networks, dns_names: Vec::new() })
                .collect();
            let ranges = groups.iter().flat_map(|group| group.networks.iter().map(|network| (network, &group.name)));
            let containing = ranges.filter(|(network, _)| network.contains(address.address));
            // The last of those that are equally long, as of the reversed list, is the first.
            let all: Vec<_> = containing.collect();
            let wanted = all.into_iter().rev().max_by_key(|(network, _)| network.prefix).map(|(_, name)| name.clone());
            prop_assert_eq!(ExternalGroups::new(groups).of(address.address).map(str::to_owned), wanted);
        }
    }
}
