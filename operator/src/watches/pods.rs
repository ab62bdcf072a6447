//! What is kept of a pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod as Object, PodStatus};
use topology::entity::{Pod, Workload};

use super::owners::Reference;

/// A pod, and who controls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its workload is the pod itself until its owners have been looked up.
    pub(super) pod: Pod,
    pub(super) controller: Option<Reference>,
    /// Of a static pod: the UID that its node knows it by, also as part of its cgroup's name.
    pub(super) node_uid: Option<String>,
}

/// Where the object of a static pod says it: a hash of the pod's manifest.
const MANIFEST_HASH: &str = "kubernetes.io/config.hash";

pub(super) fn facts(object: Object) -> Option<PodFacts> {
    // A static pod is owned by its node, which is nothing that a person deployed.
    let controller = Reference::controller_of(&object.metadata).filter(|owner| owner.kind != "Node");
    let node_uid = object.metadata.annotations.and_then(|mut annotations| annotations.remove(MANIFEST_HASH));
    let namespace = object.metadata.namespace?;
    let name = object.metadata.name?;
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let pod = Pod {
        uid: object.metadata.uid?,
        workload: Workload { namespace: namespace.clone(), kind: "Pod".to_owned(), name: name.clone() },
        namespace,
        name,
        node: spec.node_name.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or(false),
        ips: status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
        ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        containers: containers(&status),
    };
    Some(PodFacts { pod, controller, node_uid })
}

/// Container id → name. A container that was started again has had another id before.
fn containers(status: &PodStatus) -> BTreeMap<String, String> {
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let mut containers = BTreeMap::new();
    for status in all.into_iter().flatten().flatten() {
        for id in ids(status) {
            if !id.is_empty() {
                containers.insert(id.to_owned(), status.name.clone());
            }
        }
    }
    containers
}

/// Now and before the last restart, without `containerd://`.
fn ids(status: &ContainerStatus) -> impl Iterator<Item = &str> {
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let ids = [status.container_id.as_deref(), last.and_then(|terminated| terminated.container_id.as_deref())];
    ids.into_iter().flatten().map(|id| id.rsplit_once("://").map_or(id, |(_, id)| id))
}
