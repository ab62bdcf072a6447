//! Selects the object that records a proxied connection: that of the pod's workload.

use std::collections::HashMap;

use topology::{
    entity::Workload,
    graph::{PlacedLegs, PodHash, RecordedLeg},
};

use crate::cluster::Index;

/// Workloads of pods, in one state of the index.
#[derive(Debug, Default)]
pub(super) struct LegOwners {
    revision: Option<u64>,
    workloads: HashMap<PodHash, Workload>,
}

impl LegOwners {
    /// Returns the records of each workload's pods, in a fixed order. Records of pods that are not known are left out: their
    /// connections are no workload's.
    pub(super) fn by_workload(&mut self, legs: &PlacedLegs, index: &Index) -> HashMap<&Workload, Vec<RecordedLeg>> {
        if legs.is_empty() {
            return HashMap::new();
        }
        if self.revision != Some(index.revision()) {
            let pods = index.directory().pods_by_uid();
            self.workloads = pods.map(|(uid, pod)| (PodHash::of(uid), pod.workload.clone())).collect();
            self.revision = Some(index.revision());
        }
        let mut by_workload: HashMap<&Workload, Vec<RecordedLeg>> = HashMap::new();
        for recorded in legs.iter() {
            if let Some(workload) = self.workloads.get(&recorded.pod) {
                by_workload.entry(workload).or_default().push(recorded);
            }
        }
        for legs in by_workload.values_mut() {
            legs.sort_unstable_by(|one, other| (&one.node, one.key, one.pod).cmp(&(&other.node, other.key, other.pod)));
        }
        by_workload
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use topology::{
        flow::{FlowKey, Protocol, Role},
        graph::PlacedLeg,
    };

    use super::*;
    use crate::publisher::pod_records::tests::recorded;

    fn leg(cgroup_id: u64, uid: &str) -> RecordedLeg {
        let ip = "10.244.1.2".parse().expect("an address");
        let key = FlowKey {
            cgroup_id,
            netns: 1,
            role: Role::Client,
            local: ip,
            remote: ip,
            port: 80,
            protocol: Protocol::Tcp,
        };
        RecordedLeg { node: "node-1".to_owned(), key, pod: PodHash::of(uid), leg: PlacedLeg::default() }
    }

    #[test]
    fn records_are_of_the_workload_of_their_pod() {
        let mut index = Index::default();
        index.restore_pods(
            vec![recorded("a", "web"), recorded("b", "db")],
            SystemTime::UNIX_EPOCH + Duration::from_secs(9),
        );
        let mut legs = PlacedLegs::default();
        for recorded in [leg(2, "a"), leg(1, "a"), leg(3, "b"), leg(4, "unknown")] {
            legs.restore(recorded);
        }
        let mut owners = LegOwners::default();
        let found = owners.by_workload(&legs, &index);
        let of = |name: &str| {
            let found = found.iter().find(|(workload, _)| workload.name == name);
            found.map(|(_, legs)| legs.iter().map(|recorded| recorded.key.cgroup_id).collect::<Vec<_>>())
        };
        assert_eq!((of("web"), of("db"), found.len()), (Some(vec![1, 2]), Some(vec![3]), 2));
    }
}
