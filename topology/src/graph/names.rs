//! Names of ends, peers and Services, each with a number. Numbers stay valid as long as the table lives, also while the
//! directory changes: an end that gets another name gets another number.

use std::sync::Arc;

use crate::{
    edge::{Identity, Peer},
    entity::ServiceRef,
    hash::HashMap,
};

/// Number of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PeerId(u32);

/// Number of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EndpointId(u32);

/// Number of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ServiceId(u32);

/// A container, a process or an address at one end of flows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct End {
    pub(super) peer: PeerId,
    pod_uid: Option<Box<str>>,
    /// Name of the pod; empty for others.
    pub(super) pod: Box<str>,
    /// Name of the container; empty if it is not known.
    pub(super) container: Box<str>,
    pub(super) identity: Identity,
}

impl End {
    /// Returns the UID of the pod, if it is a known one.
    pub(super) fn pod_uid(&self) -> Option<&str> {
        self.pod_uid.as_deref()
    }
}

/// A known pod by its names, and one of its containers.
pub(super) struct PodEnd<'a> {
    pub(super) uid: &'a str,
    pub(super) pod: &'a str,
    pub(super) container: &'a str,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    peers: Vec<Peer>,
    peer_ids: HashMap<Peer, PeerId>,
    ends: Vec<Arc<End>>,
    end_ids: HashMap<Arc<End>, EndpointId>,
    services: Vec<ServiceRef>,
    service_ids: HashMap<ServiceRef, ServiceId>,
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.peers.len() + self.ends.len() + self.services.len()
    }

    pub(super) fn end(&self, id: EndpointId) -> &End {
        &self.ends[id.0 as usize]
    }

    pub(super) fn peer(&self, id: PeerId) -> &Peer {
        &self.peers[id.0 as usize]
    }

    pub(super) fn service(&self, id: ServiceId) -> &ServiceRef {
        &self.services[id.0 as usize]
    }

    /// Returns the number of a peer, the same for equal ones.
    pub(super) fn peer_id(&mut self, peer: &Peer) -> PeerId {
        if let Some(id) = self.peer_ids.get(peer) {
            return *id;
        }
        let id = PeerId(next(&self.peers));
        self.peers.push(peer.clone());
        self.peer_ids.insert(peer.clone(), id);
        id
    }

    /// Returns the number of a Service, the same for equal ones.
    pub(super) fn service_id(&mut self, service: &ServiceRef) -> ServiceId {
        if let Some(id) = self.service_ids.get(service) {
            return *id;
        }
        let id = ServiceId(next(&self.services));
        self.services.push(service.clone());
        self.service_ids.insert(service.clone(), id);
        id
    }

    /// Returns the number of an end, the same for equal ones.
    pub(super) fn end_id(&mut self, peer: &Peer, pod: Option<&PodEnd<'_>>, identity: Identity) -> EndpointId {
        let end = Arc::new(End {
            peer: self.peer_id(peer),
            pod_uid: pod.map(|pod| pod.uid.into()),
            pod: pod.map(|pod| pod.pod).unwrap_or_default().into(),
            container: pod.map(|pod| pod.container).unwrap_or_default().into(),
            identity,
        });
        if let Some(id) = self.end_ids.get(&end) {
            return *id;
        }
        let id = EndpointId(next(&self.ends));
        self.ends.push(Arc::clone(&end));
        self.end_ids.insert(end, id);
        id
    }
}

#[expect(clippy::cast_possible_truncation, reason = "4 billion names do not fit into memory")]
fn next<T>(names: &[T]) -> u32 {
    names.len() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ends_have_the_same_number() {
        let mut names = Names::default();
        let pod = |container| PodEnd { uid: "uid-1", pod: "web-1", container };
        let mut id = |container| names.end_id(&Peer::ApiServer, Some(&pod(container)), Identity::Cgroup);
        let ids = ["app", "sidecar", "app"].map(&mut id);
        assert_eq!(ids[0], ids[2]);
        assert_ne!(ids[0], ids[1]);
        assert_eq!(names.len(), 3, "two ends and their peer");
    }
}
