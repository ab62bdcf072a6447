//! Leaves out what a node's agent reports of pods on other nodes. Pure.

use topology::{directory::Directory, entity::CgroupOwner};

/// Removes the identities of pods on other nodes. Returns the names of these pods, with their nodes.
pub(super) fn leave_out(directory: &Directory, node: &str, identities: &mut Vec<(u64, CgroupOwner)>) -> Vec<String> {
    let mut left_out = Vec::new();
    identities.retain(|(_, owner)| {
        let CgroupOwner::PodContainer { pod_uid, container_id } = owner else { return true };
        // The resolution of a cgroup knows this rule as well: a pod may become known after the report.
        let Some(pod) = directory.pod_elsewhere(node, pod_uid, container_id) else { return true };
        left_out.push(format!("{}/{} on {}", pod.namespace, pod.name, pod.node));
        false
    });
    left_out
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use topology::entity::{Pod, PodLifetime, Workload};

    use super::*;

    fn pod(uid: &str, node: &str) -> Pod {
        let workload = Workload {
            namespace: "shop".to_owned(),
            kind: "Pod".to_owned(),
            name: uid.to_owned(),
            group: String::new(),
        };
        Pod {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: uid.to_owned(),
            node: node.to_owned(),
            host_network: false,
            ips: Vec::new(),
            ended: false,
            containers: [(format!("container-{uid}"), "main".to_owned())].into(),
            host_ports: Vec::new(),
            life: PodLifetime::default(),
            workload,
        }
    }

    #[test]
    fn pods_of_other_nodes_are_left_out_by_uid_and_by_container() {
        let mut directory = Directory::new();
        for (uid, node) in [("here", "node-1"), ("there", "node-2"), ("pending", "")] {
            directory.upsert_pod(pod(uid, node), SystemTime::UNIX_EPOCH);
        }
        let owner = |pod_uid: &str, container_id: &str| CgroupOwner::PodContainer {
            pod_uid: pod_uid.to_owned(),
            container_id: container_id.to_owned(),
        };
        let kept = [
            (1, owner("here", "container-here")),
            (2, owner("unknown", "container-unknown")),
            (3, owner("pending", "")),
            (4, CgroupOwner::HostProcess { name: "sshd".to_owned() }),
        ];
        let lies = [(5, owner("there", "")), (6, owner("unknown", "container-there"))];
        let mut identities = [&kept[..], &lies].concat();
        let left_out = leave_out(&directory, "node-1", &mut identities);
        assert_eq!(identities, kept);
        assert_eq!(left_out, ["shop/there on node-2", "shop/there on node-2"]);
        assert_eq!(directory.pod_on("node-1", "there", ""), None, "nor does it resolve later");
        assert!(directory.pod_on("node-2", "there", "").is_some());
    }
}
