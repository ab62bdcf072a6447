//! Settings of the publisher: `spec.topology` of the oldest ScopeProbe.

use std::time::Duration;

use crds::{ExternalGroup, TopologySettings};
use kube::core::{Expression, Selector};

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
    pub external_groups: Vec<ExternalGroup>,
}

impl From<&TopologySettings> for PublishSettings {
    fn from(settings: &TopologySettings) -> Self {
        // The schema admits only selectors that can be read. Were it older than the operator, no namespace would be selected.
        let nothing = || Selector::from(Expression::In(String::new(), [].into()));
        Self {
            namespaces: settings.namespace_selector.clone().try_into().unwrap_or_else(|_| nothing()),
            max_pods: usize::try_from(settings.pods).unwrap_or(usize::MAX),
            max_edges: usize::try_from(settings.max_edges).unwrap_or(usize::MAX),
            counter_interval: settings.counter_interval.into(),
            retention: settings.retention.into(),
            max_external: usize::try_from(settings.max_external_peers).unwrap_or(usize::MAX),
            external_groups: settings.external_groups.clone(),
        }
    }
}
