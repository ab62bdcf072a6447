//! Names that people give to external addresses and DNS names, as the graph uses them.

use topology::{
    entity::Network,
    external::{ExternalGroup, ExternalGroups},
};

/// Takes all ranges that are some. The schema lets nothing else pass; were it older than the operator, the others would
/// still count.
pub(super) fn groups(spec: &[crds::ExternalGroup]) -> ExternalGroups {
    let network = |group: &crds::ExternalGroup, cidr: &String| {
        let network = Network::parse(cidr);
        if network.is_none() {
            tracing::warn!(group = group.name, cidr, "left out what is no range of addresses in CIDR notation");
        }
        network
    };
    ExternalGroups::new(spec.iter().map(|group| ExternalGroup {
        name: group.name.clone(),
        networks: group.cidrs.iter().filter_map(|cidr| network(group, cidr)).collect(),
        dns_names: group.dns_names.clone(),
    }))
}
