//! Pods as a checkpoint records them. Agents count the connections of a pod after its deletion, and an operator that begins
//! later has no other source of its name.

use std::{borrow::Cow, time::SystemTime};

use super::{Change, Directory, PodRecord};
use crate::{
    entity::{Backend, Pod, ServiceRef},
    flow::Protocol,
    hash::HashMap,
    ownership::ObservedTimes,
};

/// A pod, with all by which flows are resolved to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedPod<'a> {
    /// The pod. Its containers may be named by the first characters of their IDs, see [`Pod::containers`].
    pub pod: Cow<'a, Pod>,
    /// UID that the kubelet uses for a static pod.
    pub node_uid: Option<String>,
    /// Times at which it was observed with its addresses; `None` if it has none.
    pub observed: Option<ObservedTimes>,
    /// Ports of Services that led to it.
    pub backends: Vec<BackendPort>,
}

/// Port of a Service that leads or led to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendPort {
    /// The Service.
    pub service: ServiceRef,
    /// `spec.ports[].port`.
    pub port: u16,
    /// `spec.ports[].protocol`.
    pub protocol: Protocol,
    /// Place of the pod's address in [`Pod::ips`].
    pub address: usize,
    /// The port at that address.
    pub target: u16,
}

/// Backends by the UID of their pod.
#[derive(Debug)]
pub struct BackendsByPod<'a>(HashMap<&'a str, Vec<ServiceBackend<'a>>>);

/// Backend of a Service's port.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServiceBackend<'a> {
    pub(super) service: &'a ServiceRef,
    pub(super) port: (u16, Protocol),
    pub(super) backend: &'a Backend,
}

impl BackendsByPod<'_> {
    fn of(&self, pod: &Pod) -> Vec<BackendPort> {
        let port = |ServiceBackend { service, port: (port, protocol), backend }: &ServiceBackend<'_>| {
            let address = pod.ips.iter().position(|ip| *ip == backend.ip)?;
            let service = (*service).clone();
            Some(BackendPort { service, port: *port, protocol: *protocol, address, target: backend.port })
        };
        let mut ports: Vec<BackendPort> = self.0.get(pod.uid.as_str()).into_iter().flatten().filter_map(port).collect();
        ports.sort_unstable();
        ports
    }
}

impl Directory {
    /// Returns the removed pods that are kept, the one removed last first.
    pub fn removed_pods(&self) -> impl Iterator<Item = &Pod> {
        let records = self.removed_pods.iter().rev().filter_map(|(_, uid)| self.pods.get(uid));
        records.map(|record| &record.pod)
    }

    /// Returns the backends of all present Services by their pods, former backends included.
    #[must_use]
    pub fn backends_by_pod(&self) -> BackendsByPod<'_> {
        let mut by_pod: HashMap<&str, Vec<ServiceBackend<'_>>> = HashMap::default();
        for backend in self.services.all_backends() {
            if let Some(uid) = &backend.backend.pod_uid {
                by_pod.entry(uid).or_default().push(backend);
            }
        }
        BackendsByPod(by_pod)
    }

    /// Returns a pod, by the UID of its object, as a checkpoint records it.
    #[must_use]
    pub fn recorded(&self, uid: &str, backends: &BackendsByPod<'_>) -> Option<RecordedPod<'_>> {
        let PodRecord { pod, node_uid, .. } = self.pods.get(uid)?;
        Some(RecordedPod {
            node_uid: node_uid.clone(),
            observed: self.ownership.observed(uid),
            backends: backends.of(pod),
            pod: Cow::Borrowed(pod),
        })
    }

    /// Adds a pod from a checkpoint as one that was removed at `now`, and the Services' ports that led to it. Of a known pod,
    /// adds these ports only. Returns whether the pod was added.
    ///
    /// Invariant: present pods and present backends do not change.
    pub fn restore_pod(&mut self, recorded: RecordedPod<'_>, now: SystemTime) -> bool {
        let RecordedPod { pod, node_uid, observed, backends } = recorded;
        // Checkpoints have no host ports.
        let pod = Pod { host_ports: Vec::new(), ..pod.into_owned() };
        for BackendPort { service, port, protocol, address, target } in backends {
            if let Some(ip) = pod.ips.get(address) {
                let backend = Backend { ip: *ip, port: target, pod_uid: Some(pod.uid.clone()) };
                self.services.restore_former(&service, (port, protocol), backend, now);
                self.note_all(self.services.changes_of(&service));
            }
        }
        if self.pods.contains_key(&pod.uid) {
            return false;
        }
        if let Some(observed) = observed {
            self.ownership.restore(&pod, observed, now);
        }
        // A present static pod, or a present container, is not renamed.
        let node_uid =
            node_uid.filter(|uid| !self.pods.contains_key(uid) && self.static_pod_on(&pod.node, uid).is_none());
        if let Some(node_uid) = &node_uid {
            self.place_static_pod(node_uid, &pod);
        }
        for id in pod.containers.keys().filter(|id| !id.is_empty()) {
            self.pod_by_container.entry(id.clone()).or_insert_with(|| pod.uid.clone());
        }
        self.note_pod(&pod);
        if let Some(node_uid) = &node_uid {
            self.changes.note(Change::Pod(node_uid.clone()));
        }
        self.removed_pods.insert((now, pod.uid.clone()));
        self.pods.insert(pod.uid.clone(), PodRecord { pod, node_uid, removed: Some(now) });
        self.bound_removed_pods();
        true
    }

    /// Returns whether [`Self::forget_unrecorded`] would drop anything.
    #[must_use]
    pub fn has_unrecorded(&self) -> bool {
        self.services.has_unrecorded(|backend| is_recorded(backend, &self.pods))
    }

    /// Drops removed entries that a checkpoint does not record: Services, and former backends that are no known pod.
    ///
    /// Invariant: pods stay.
    pub fn forget_unrecorded(&mut self) {
        let pods = &self.pods;
        self.services.forget_unrecorded(|backend| is_recorded(backend, pods));
    }
}

/// Returns whether a checkpoint records a former backend: it is a known pod.
fn is_recorded(backend: &Backend, pods: &HashMap<String, PodRecord>) -> bool {
    backend.pod_uid.as_ref().is_some_and(|uid| pods.contains_key(uid))
}

impl RecordedPod<'_> {
    /// Returns the same without a borrow.
    #[must_use]
    pub fn into_owned(self) -> RecordedPod<'static> {
        let Self { pod, node_uid, observed, backends } = self;
        RecordedPod { pod: Cow::Owned(pod.into_owned()), node_uid, observed, backends }
    }
}
