//! The ends of flows and who they are, each named once and then known by number.

use std::{collections::HashMap, net::IpAddr, time::SystemTime};

use super::nodes::Nodes;
use crate::{
    directory::{Directory, Owner},
    edge::Peer,
    entity::{CgroupOwner, Pod, ServiceRef},
    flow::Protocol,
};

/// A peer, by number.
pub(super) type PeerId = u32;
/// An end, by number.
pub(super) type EndId = u32;

/// A container, a process or an address at one end of flows.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub peer: PeerId,
    pub pod_uid: Option<&'a str>,
    pub pod: &'a str,
    pub container: &'a str,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum EndKey<'a> {
    Cgroup { node: &'a str, owner: &'a CgroupOwner },
    UnknownCgroup { node: &'a str },
    PodAddress { uid: &'a str },
    NodeAddress { node: &'a str },
    External { ip: IpAddr },
}

/// All ends and peers met so far.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    directory: &'a Directory,
    pub(super) nodes: Nodes<'a>,
    peers: Vec<Peer>,
    peer_ids: HashMap<Peer, PeerId>,
    list: Vec<End<'a>>,
    end_ids: HashMap<EndKey<'a>, EndId>,
    /// With the time of the latest news of it.
    listeners: HashMap<(IpAddr, u16, Protocol), (SystemTime, EndId)>,
}

impl<'a> Ends<'a> {
    pub(super) fn new(directory: &'a Directory, nodes: Nodes<'a>) -> Self {
        Self {
            directory,
            nodes,
            peers: Vec::new(),
            peer_ids: HashMap::new(),
            list: Vec::new(),
            end_ids: HashMap::new(),
            listeners: HashMap::new(),
        }
    }

    pub(super) fn end(&self, id: EndId) -> &End<'a> {
        &self.list[id as usize]
    }

    pub(super) fn peer(&self, id: PeerId) -> &Peer {
        &self.peers[id as usize]
    }

    pub(super) fn peer_of(&self, end: EndId) -> PeerId {
        self.end(end).peer
    }

    /// Whose sockets these are, by cgroup.
    pub(super) fn by_cgroup(&mut self, node: &'a str, owner: Option<&'a CgroupOwner>) -> EndId {
        let key = match owner {
            Some(owner) => EndKey::Cgroup { node, owner },
            None => EndKey::UnknownCgroup { node },
        };
        if let Some(id) = self.end_ids.get(&key) {
            return *id;
        }
        let directory = self.directory;
        let id = match owner {
            None => self.outside_of_pods(Peer::Node { node: node.to_owned() }),
            Some(CgroupOwner::HostProcess { name }) => {
                self.outside_of_pods(Peer::HostProcess { node: node.to_owned(), name: name.clone() })
            }
            Some(CgroupOwner::PodContainer { pod_uid, container_id }) => {
                // A static pod's cgroup carries another UID than its object; its containers' ids are the same.
                let pod = directory.pod(pod_uid).or_else(|| directory.pod_of_container(container_id));
                match pod {
                    Some(pod) => {
                        let container = pod.containers.get(container_id).map_or("", String::as_str);
                        self.pod_end(pod, container)
                    }
                    None => self.outside_of_pods(Peer::UnknownPod { uid: pod_uid.clone() }),
                }
            }
        };
        self.end_ids.insert(key, id);
        id
    }

    /// Notes which end was seen to listen at an address, with the latest news of it: of several, the last one counts.
    pub(super) fn note_listener(&mut self, at: (IpAddr, u16, Protocol), end: EndId, changed: SystemTime) {
        let latest = self.listeners.entry(at).or_insert((changed, end));
        if changed >= latest.0 {
            *latest = (changed, end);
        }
    }

    /// Who a server is, by the address that a client dialled and by whose it was then.
    pub(super) fn server_of(&mut self, dialled: (IpAddr, u16, Protocol), owner: &Owner<'a>) -> EndId {
        let (ip, ..) = dialled;
        let listener = self.listeners.get(&dialled).map(|(_, end)| *end);
        match (owner, listener) {
            (Owner::Pod(pod) | Owner::Probably(pod), Some(end)) if self.end(end).pod_uid == Some(pod.uid.as_str()) => {
                end
            }
            (Owner::Pod(pod) | Owner::Probably(pod), _) => self.pod_address(pod),
            (Owner::NoPod, Some(end)) => end,
            // Somebody may have listened there at another time.
            (Owner::NoPod | Owner::Contested | Owner::Unknown, _) => self.outside_address(ip),
        }
    }

    /// Who a server is, by its address at one moment.
    pub(super) fn server_at(&mut self, dialled: (IpAddr, u16, Protocol), at: SystemTime) -> EndId {
        let owner = self.directory.owner_between(dialled.0, at, at);
        self.server_of(dialled, &owner)
    }

    /// Who a client is, by the address that a server saw and by whose it was then.
    pub(super) fn client_of(&mut self, ip: IpAddr, owner: &Owner<'a>) -> EndId {
        match owner.pod() {
            Some(pod) => self.pod_address(pod),
            None => self.outside_address(ip),
        }
    }

    /// A pod, its container unknown.
    pub(super) fn pod_address(&mut self, pod: &'a Pod) -> EndId {
        let key = EndKey::PodAddress { uid: &pod.uid };
        if let Some(id) = self.end_ids.get(&key) {
            return *id;
        }
        let id = self.pod_end(pod, "");
        self.end_ids.insert(key, id);
        id
    }

    fn outside_address(&mut self, ip: IpAddr) -> EndId {
        let (key, peer) = match self.nodes.of(ip) {
            Some(node) => (EndKey::NodeAddress { node }, Peer::Node { node: node.to_owned() }),
            None => (EndKey::External { ip }, Peer::External { ip }),
        };
        if let Some(id) = self.end_ids.get(&key) {
            return *id;
        }
        let id = self.outside_of_pods(peer);
        self.end_ids.insert(key, id);
        id
    }

    /// The node itself: what answers at a loopback address outside of pods.
    pub(super) fn node(&mut self, node: &'a str) -> EndId {
        let key = EndKey::NodeAddress { node };
        if let Some(id) = self.end_ids.get(&key) {
            return *id;
        }
        let id = self.outside_of_pods(Peer::Node { node: node.to_owned() });
        self.end_ids.insert(key, id);
        id
    }

    /// A Service of which the backend is not known.
    pub(super) fn service(&mut self, service: &ServiceRef) -> PeerId {
        self.intern(Peer::Service(service.clone()))
    }

    fn pod_end(&mut self, pod: &'a Pod, container: &'a str) -> EndId {
        let peer = self.intern(Peer::Workload(pod.workload.clone()));
        self.push(End { peer, pod_uid: Some(&pod.uid), pod: &pod.name, container })
    }

    fn outside_of_pods(&mut self, peer: Peer) -> EndId {
        let peer = self.intern(peer);
        self.push(End { peer, pod_uid: None, pod: "", container: "" })
    }

    #[expect(clippy::cast_possible_truncation, reason = "4 billion peers do not fit into memory")]
    fn intern(&mut self, peer: Peer) -> PeerId {
        if let Some(id) = self.peer_ids.get(&peer) {
            return *id;
        }
        let id = self.peers.len() as PeerId;
        self.peers.push(peer.clone());
        self.peer_ids.insert(peer, id);
        id
    }

    #[expect(clippy::cast_possible_truncation, reason = "4 billion ends do not fit into memory")]
    fn push(&mut self, end: End<'a>) -> EndId {
        self.list.push(end);
        (self.list.len() - 1) as EndId
    }
}
