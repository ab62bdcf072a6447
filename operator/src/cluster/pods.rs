//! Properties of a pod that are kept.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use k8s_openapi::{
    api::core::v1::{ContainerPort, ContainerState, ContainerStatus, Pod as Object, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use topology::{
    entity::{HostPort, Pod, PodLifetime, Workload},
    flow::Protocol,
};

use super::{
    owners::Reference,
    profile::{PodProfile, Profile},
};

/// A pod, and who controls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its workload is the pod itself until its owners have been looked up.
    pub(super) pod: Pod,
    pub(super) controller: Option<Reference>,
    /// Of a static pod: the UID that its node knows it by, also as part of its cgroup's name.
    pub(super) node_uid: Option<String>,
    /// Properties that it shares with other pods of its workload.
    pub(super) profile: PodProfile,
}

/// Annotation of a static pod: a hash of the pod's manifest.
const MANIFEST_HASH: &str = "kubernetes.io/config.hash";

pub(super) fn facts(object: Object) -> Option<PodFacts> {
    // A static pod is owned by its node, which is nothing that a person deployed.
    let controller = Reference::controller_of(&object.metadata).filter(|owner| owner.kind != "Node");
    let life = life(&object.metadata, object.status.as_ref());
    let spec = object.spec.unwrap_or_default();
    let profile = PodProfile {
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
        profile: Profile::of(&object.metadata, &spec).into(),
    };
    let node_uid = object.metadata.annotations.and_then(|mut annotations| annotations.remove(MANIFEST_HASH));
    let namespace = object.metadata.namespace?;
    let name = object.metadata.name?;
    let status = object.status.unwrap_or_default();
    let host_network = spec.host_network.unwrap_or(false);
    let host_ports = if host_network { Vec::new() } else { host_ports(&spec) };
    let pod = Pod {
        uid: object.metadata.uid?,
        workload: Workload {
            namespace: namespace.clone(),
            kind: "Pod".to_owned(),
            name: name.clone(),
            group: String::new(),
        },
        namespace,
        name,
        node: spec.node_name.unwrap_or_default(),
        host_network,
        ips: status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
        ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        containers: containers(&status),
        host_ports,
        life,
    };
    Some(PodFacts { pod, controller, node_uid, profile })
}

/// Returns the ports of the node that lead to containers; sidecars are init containers.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    let host_port = |port: &ContainerPort| {
        Some(HostPort {
            ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified()),
            port: number(port.host_port?)?,
            container_port: number(port.container_port)?,
            protocol: match port.protocol.as_deref() {
                None | Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some(_) => return None,
            },
        })
    };
    ports.filter_map(host_port).collect()
}

fn life(metadata: &ObjectMeta, status: Option<&PodStatus>) -> PodLifetime {
    let grace = metadata.deletion_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let deleted = metadata.deletion_timestamp.as_ref().map(time);
    PodLifetime {
        created: metadata.creation_timestamp.as_ref().map(time),
        started: status.and_then(|status| status.start_time.as_ref()).map(time),
        ran: status.and_then(ran),
        deleted: deleted.and_then(|end| end.checked_sub(Duration::from_secs(grace.unwrap_or(0)))),
        finished: status.and_then(finished),
    }
}

/// Returns the first start of any container, restarts included.
fn ran(status: &PodStatus) -> Option<SystemTime> {
    let ran_since = |state: &ContainerState| {
        let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
        running.or(state.terminated.as_ref().and_then(|terminated| terminated.started_at.as_ref())).map(time)
    };
    let known = container_statuses(status).flat_map(|status| [&status.last_state, &status.state]).flatten();
    // One that could not be started has a time of zero.
    known.filter_map(ran_since).filter(|time| *time > SystemTime::UNIX_EPOCH).min()
}

/// Returns the end of the last container, if none runs and none will restart.
fn finished(status: &PodStatus) -> Option<SystemTime> {
    let mut last = None;
    for status in container_statuses(status) {
        let terminated = status.state.as_ref()?.terminated.as_ref()?;
        last = last.max(Some(time(terminated.finished_at.as_ref()?)));
    }
    last.filter(|finished| *finished > SystemTime::UNIX_EPOCH)
}

fn container_statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten()
}

fn time(time: &Time) -> SystemTime {
    time.0.into()
}

/// Container id → name. A container that was started again has had another id before.
fn containers(status: &PodStatus) -> BTreeMap<String, String> {
    let mut containers = BTreeMap::new();
    for status in container_statuses(status) {
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
