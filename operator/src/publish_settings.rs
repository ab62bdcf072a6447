//! Settings of the publisher: `spec.topology` of the oldest ScopeProbe.

use std::time::Duration;

use crds::{ExternalGroup, TopologySettings};

/// `spec.topology` of the ScopeProbe that decides. The publisher gets it through a watch channel of
/// `Option<PublishSettings>`; none means that there is no ScopeProbe, and that nothing is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishSettings {
    /// Maximum number of edges per object and direction.
    pub max_edges: usize,
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
        Self {
            max_edges: usize::try_from(settings.max_edges).unwrap_or(usize::MAX),
            counter_interval: settings.counter_interval.into(),
            retention: settings.retention.into(),
            max_external: usize::try_from(settings.max_external_peers).unwrap_or(usize::MAX),
            external_groups: settings.external_groups.clone(),
        }
    }
}
