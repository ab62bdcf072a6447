//! Settings of the publisher: `spec.topology` of the oldest ScopeProbe, in the publisher's types.

use std::time::Duration;

use crds::TopologySettings;
use kube::core::Selector;
use topology::{
    entity::Network,
    external::{ExternalGroup, ExternalGroups},
};

use crate::invalid_field::{InvalidField, interval};

/// `spec.topology` of the ScopeProbe that decides. The publisher gets it through a watch channel of
/// `Option<PublishSettings>`; none means that there is no ScopeProbe, and that nothing is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishSettings {
    /// Namespaces whose workloads get objects.
    pub namespaces: Selector,
    /// Maximum number of edges per object and direction.
    pub max_edges: usize,
    /// Maximum number of own pods per edge.
    pub max_pods: usize,
    /// Minimum interval between writes of an object's counters.
    pub counter_interval: Duration,
    /// Time for which an edge stays after its last connection ended.
    pub retention: Duration,
    /// Maximum number of external addresses with edges of their own, per workload and direction.
    pub max_external: usize,
    /// Names for addresses outside of the cluster.
    pub external_groups: ExternalGroups,
    /// Whether ScopeProbe's own traffic is shown.
    pub include_self: bool,
}

impl TryFrom<&TopologySettings> for PublishSettings {
    type Error = InvalidField;

    fn try_from(settings: &TopologySettings) -> Result<Self, InvalidField> {
        let namespaces = Selector::try_from(settings.namespace_selector.clone()).map_err(|error| {
            let expected = "a label selector of Namespaces";
            InvalidField::new("spec.topology.namespaceSelector", error.to_string(), expected)
        })?;
        Ok(Self {
            namespaces,
            max_pods: at_most(settings.pods),
            max_edges: at_most(settings.max_edges),
            counter_interval: interval("spec.topology.counterInterval", settings.counter_interval)?,
            retention: interval("spec.topology.retention", settings.retention)?,
            max_external: at_most(settings.max_external_peers),
            external_groups: external_groups(&settings.external_groups)?,
            include_self: settings.include_self,
        })
    }
}

/// Returns a limit. One that exceeds the address space is none.
fn at_most(limit: u32) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Reads the names that users give to external addresses and DNS names.
///
/// # Errors
/// Returns the first range that is not in CIDR notation.
pub fn external_groups(spec: &[crds::ExternalGroup]) -> Result<ExternalGroups, InvalidField> {
    let network = |group: &crds::ExternalGroup, cidr: &String| {
        Network::parse(cidr).ok_or_else(|| {
            let path = format!("spec.topology.externalGroups[{}].cidrs", group.name);
            InvalidField::new(path, cidr, "a range of addresses in CIDR notation, for example 203.0.113.0/24")
        })
    };
    let group = |group: &crds::ExternalGroup| {
        Ok(ExternalGroup {
            name: group.name.clone(),
            networks: group.cidrs.iter().map(|cidr| network(group, cidr)).collect::<Result<_, InvalidField>>()?,
            dns_names: group.dns_names.clone(),
        })
    };
    spec.iter().map(group).collect::<Result<Vec<_>, _>>().map(ExternalGroups::new)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(settings: &Value) -> Result<PublishSettings, InvalidField> {
        let settings: TopologySettings = serde_json::from_value(settings.clone()).expect("it decodes");
        PublishSettings::try_from(&settings)
    }

    #[test]
    fn settings_have_defaults_and_groups() {
        let settings = read(&json!({})).expect("it is valid");
        assert!(settings.namespaces.selects_all());
        assert_eq!((settings.max_edges, settings.max_pods, settings.max_external), (100, 5, 50));
        let groups = json!([{"name": "office", "cidrs": ["192.0.2.0/24"], "dnsNames": ["*.example.com"]}]);
        let named = read(&json!({"externalGroups": groups})).expect("it is valid").external_groups;
        assert_eq!(named.of("192.0.2.7".parse().expect("an address")), Some("office"));
        assert_eq!(named.of_dns_name("api.example.com"), Some("office"));
    }

    #[test]
    fn settings_that_an_older_schema_admits_are_errors() {
        for (wrong, path) in [
            (
                json!({"externalGroups": [{"name": "a", "cidrs": ["192.0.2.0/24", "everything"]}]}),
                "spec.topology.externalGroups[a].cidrs",
            ),
            (json!({"counterInterval": "-1s"}), "spec.topology.counterInterval"),
            (json!({"retention": "0s"}), "spec.topology.retention"),
            (
                json!({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
                "spec.topology.namespaceSelector",
            ),
        ] {
            assert_eq!(read(&wrong).map_err(|error| error.path), Err(path.to_owned()), "{wrong}");
        }
    }
}
