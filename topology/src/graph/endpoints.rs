//! The ends of flows and who they are, each named once and then known by number.

use std::{collections::BTreeSet, net::IpAddr, time::SystemTime};

use super::{
    address::{Called, Scope},
    names::{End, EndpointId, Names, PeerId, PodEnd, ServiceId},
    nodes::{At, Nodes},
    observed::{INEXACT, Span},
};
use crate::{
    directory::{Directory, Owner},
    edge::{Identity, Peer},
    entity::{CgroupOwner, Pod, ServiceRef},
    flow::Protocol,
    hash::HashMap,
};

#[derive(Debug, PartialEq, Eq, Hash)]
enum EndKey<'a> {
    Cgroup { node: &'a str, owner: &'a CgroupOwner },
    UnknownCgroup { node: &'a str },
    PodAddress { uid: &'a str },
    PodNetns { uid: &'a str },
    NodeAddress { node: &'a str },
    NodeNetns { node: &'a str },
    BehindNode { node: &'a str },
    ApiServer,
    External { ip: IpAddr },
    SomePod { ip: IpAddr },
    ExternalName { name: &'a str },
    ExternalGroup { name: &'a str },
    OtherExternal,
    Service { service: &'a ServiceRef },
}

/// All ends and peers met so far.
#[derive(Debug)]
pub(super) struct Endpoints<'a> {
    directory: &'a Directory,
    pub(super) nodes: Nodes<'a>,
    api_servers: BTreeSet<(IpAddr, u16)>,
    names: Names,
    end_ids: HashMap<EndKey<'a>, EndpointId>,
    listeners: HashMap<Called<'a>, Vec<Listener>>,
}

/// End that was seen to answer at an address and port.
#[derive(Clone, Copy, Debug)]
struct Listener {
    end: EndpointId,
    /// Lower bound of the time of its first connection, and the time of its latest news.
    seen: Span,
}

impl<'a> Endpoints<'a> {
    pub(super) fn new(directory: &'a Directory, nodes: Nodes<'a>, names: Names) -> Self {
        Self {
            directory,
            nodes,
            api_servers: directory.api_servers(),
            names,
            end_ids: HashMap::default(),
            listeners: HashMap::default(),
        }
    }

    pub(super) fn end(&self, id: EndpointId) -> &End {
        self.names.end(id)
    }

    pub(super) fn peer(&self, id: PeerId) -> &Peer {
        self.names.peer(id)
    }

    pub(super) fn service(&self, id: ServiceId) -> &ServiceRef {
        self.names.service(id)
    }

    pub(super) fn service_id(&mut self, service: &ServiceRef) -> ServiceId {
        self.names.service_id(service)
    }

    pub(super) fn peer_of(&self, end: EndpointId) -> PeerId {
        self.end(end).peer
    }

    /// Ends with the names that it has given.
    pub(super) fn into_names(self) -> Names {
        self.names
    }

    /// Returns the endpoint that owns a cgroup.
    pub(super) fn by_cgroup(&mut self, node: &'a str, owner: Option<&'a CgroupOwner>) -> EndpointId {
        let key = match owner {
            Some(owner) => EndKey::Cgroup { node, owner },
            None => EndKey::UnknownCgroup { node },
        };
        if let Some(id) = self.end_ids.get(&key) {
            return *id;
        }
        let directory = self.directory;
        let id = match owner {
            None => self.outside_of_pods(&Peer::Node { node: node.to_owned() }, Identity::Netns),
            Some(CgroupOwner::HostProcess { name }) => {
                let peer = Peer::HostProcess { node: node.to_owned(), name: name.clone() };
                self.outside_of_pods(&peer, Identity::Cgroup)
            }
            Some(CgroupOwner::PodContainer { pod_uid, container_id }) => {
                // An agent that knows a socket's pod by the network namespace alone names no container.
                let identity = if container_id.is_empty() { Identity::Netns } else { Identity::Cgroup };
                match directory.pod_on(node, pod_uid, container_id) {
                    Some(pod) => {
                        let container = pod.container_name(container_id);
                        self.pod_end(pod, container, identity)
                    }
                    None => self.outside_of_pods(&Peer::UnknownPod { uid: pod_uid.clone() }, identity),
                }
            }
        };
        self.end_ids.insert(key, id);
        id
    }

    /// Notes which end was seen to answer at an address, and when.
    pub(super) fn note_listener(&mut self, at: Called<'a>, end: EndpointId, seen: Span) {
        let listeners = self.listeners.entry(at).or_default();
        match listeners.iter_mut().find(|listener| listener.end == end) {
            Some(listener) => listener.seen = listener.seen.with(&seen),
            None => listeners.push(Listener { end, seen }),
        }
    }

    /// Returns who answered at an address of no pod: of those that had answered before the call, or shortly after it, the one
    /// with the latest news.
    pub(super) fn listener(&self, called: &Called<'a>, until: SystemTime) -> Option<EndpointId> {
        let had_begun = |listener: &&Listener| listener.seen.from <= until + INEXACT;
        let begun = self.listeners.get(called)?.iter().filter(had_begun);
        begun.max_by_key(|listener| listener.seen.until).map(|listener| listener.end)
    }

    /// Returns the end of a pod that was seen to answer at an address.
    fn pods_listener(&self, called: &Called<'a>, pod: &Pod) -> Option<EndpointId> {
        let is_pods = |listener: &&Listener| self.end(listener.end).pod_uid() == Some(pod.uid.as_str());
        let listeners = self.listeners.get(called)?.iter().filter(is_pods);
        listeners.max_by_key(|listener| listener.seen.until).map(|listener| listener.end)
    }

    /// Returns the server at the original destination of calls that were made up to `until`, by the owner of the address at
    /// that time.
    pub(super) fn server_of(&mut self, called: &Called<'a>, owner: &Owner<'a>, until: SystemTime) -> EndpointId {
        let Called { scope, ip, port, protocol } = *called;
        match owner {
            Owner::Pod(pod) => self.pods_listener(called, pod).unwrap_or_else(|| self.pod_address(pod)),
            // Another listener may have existed at another time.
            Owner::Contested | Owner::Unknown => self.a_pods_address(ip),
            Owner::NoPod => match (self.listener(called, until), scope) {
                (Some(end), _) => end,
                // At its own port also where its node has the address, too.
                (None, Scope::Cluster) if protocol == Protocol::Tcp && self.api_servers.contains(&(ip, port)) => {
                    self.api_server()
                }
                (None, Scope::Namespace(node, _)) => self.node_address(node),
                (None, Scope::Node(node)) if self.nodes.is_shared(ip) && !self.is_services(ip) => {
                    self.node_address(node)
                }
                (None, Scope::Cluster | Scope::Node(_)) => self.called_address(ip),
            },
        }
    }

    /// Returns the server at an address at one moment.
    pub(super) fn server_at(&mut self, called: &Called<'a>, at: SystemTime) -> EndpointId {
        let owner = self.directory.owner_between(called.ip, at, at);
        self.server_of(called, &owner, at)
    }

    /// Returns the client at the address that a server observed, by the owner of the address at that time.
    pub(super) fn client_of(&mut self, ip: IpAddr, owner: &Owner<'a>, scope: Scope<'a>) -> EndpointId {
        match (owner, scope) {
            (Owner::Pod(pod), _) => self.pod_address(pod),
            (Owner::NoPod, _) if self.is_api_servers(ip) => self.api_server(),
            (Owner::NoPod, Scope::Node(node)) if self.nodes.is_shared(ip) => self.node_address(node),
            (Owner::NoPod, _) => self.outside_address(ip),
            (Owner::Contested | Owner::Unknown, _) => self.a_pods_address(ip),
        }
    }

    /// A pod by its address, its container unknown.
    pub(super) fn pod_address(&mut self, pod: &'a Pod) -> EndpointId {
        self.pod_known_by(EndKey::PodAddress { uid: &pod.uid }, pod, Identity::Ip)
    }

    /// A pod by its network namespace, its container unknown.
    pub(super) fn pod_netns(&mut self, pod: &'a Pod) -> EndpointId {
        self.pod_known_by(EndKey::PodNetns { uid: &pod.uid }, pod, Identity::Netns)
    }

    fn pod_known_by(&mut self, key: EndKey<'a>, pod: &'a Pod, identity: Identity) -> EndpointId {
        if let Some(id) = self.end_ids.get(&key) {
            return *id;
        }
        let id = self.pod_end(pod, "", identity);
        self.end_ids.insert(key, id);
        id
    }

    fn outside_address(&mut self, ip: IpAddr) -> EndpointId {
        // A folded row: external addresses that an agent has counted together.
        if ip.is_unspecified() {
            return self.other_external();
        }
        match self.nodes.at(ip) {
            Some(At::Node(node)) => self.node_address(node),
            Some(At::PodNetwork) => self.some_pod(ip),
            None => self.external(ip),
        }
    }

    /// Returns who has an address that a client called. The address of a Service is that Service's at any port.
    fn called_address(&mut self, ip: IpAddr) -> EndpointId {
        match self.service_of(ip) {
            Some(service) => {
                self.known_by(EndKey::Service { service }, Identity::Ip, || Peer::Service(service.clone()))
            }
            None => self.outside_address(ip),
        }
    }

    /// Returns the Service of an address that no Node object has. With kube-proxy in IPVS mode, agents report the addresses
    /// of all Services as their nodes' own.
    fn service_of(&self, ip: IpAddr) -> Option<&'a ServiceRef> {
        self.directory.service_with_address(ip).filter(|_| !self.directory.is_nodes_address(ip))
    }

    pub(super) fn is_services(&self, ip: IpAddr) -> bool {
        self.service_of(ip).is_some()
    }

    /// Returns an unknown pod: an address that some pod held is never external, regardless of external groups.
    fn a_pods_address(&mut self, ip: IpAddr) -> EndpointId {
        match self.nodes.at(ip) {
            Some(At::Node(node)) => self.node_address(node),
            Some(At::PodNetwork) | None => self.some_pod(ip),
        }
    }

    pub(super) fn peer_id(&mut self, peer: &Peer) -> PeerId {
        self.names.peer_id(peer)
    }

    /// Returns the peer that stands for a node.
    pub(super) fn node_peer(&mut self, node: &'a str) -> PeerId {
        let end = self.node_address(node);
        self.peer_of(end)
    }

    /// Returns the peers that an address may be of, at any time, apart from those that listen there and external ones.
    pub(super) fn peers_at(&mut self, ip: IpAddr) -> Vec<PeerId> {
        let directory = self.directory;
        let pods: Vec<EndpointId> = directory.holders(ip).map(|pod| self.pod_address(pod)).collect();
        let node = match self.nodes.at(ip) {
            Some(At::Node(node)) => Some(self.node_address(node)),
            Some(At::PodNetwork) | None => None,
        };
        pods.into_iter().chain(node).map(|end| self.peer_of(end)).collect()
    }

    fn node_address(&mut self, node: &'a str) -> EndpointId {
        self.known_by(EndKey::NodeAddress { node }, Identity::Ip, || Peer::Node { node: node.to_owned() })
    }

    /// Returns a client behind a node, which has replaced its address.
    pub(super) fn behind_node(&mut self, node: &'a str) -> EndpointId {
        self.known_by(EndKey::BehindNode { node }, Identity::Ip, || Peer::BehindNode { node: node.to_owned() })
    }

    fn external(&mut self, ip: IpAddr) -> EndpointId {
        let directory = self.directory;
        self.known_by(EndKey::External { ip }, Identity::Ip, || match directory.external_groups().of(ip) {
            Some(name) => Peer::ExternalGroup { name: name.to_owned() },
            None => Peer::External { ip },
        })
    }

    fn some_pod(&mut self, ip: IpAddr) -> EndpointId {
        self.known_by(EndKey::SomePod { ip }, Identity::Ip, || Peer::SomePod { ip })
    }

    /// Returns whether calls from this address are the API server's. False for nodes' addresses, from which others call
    /// as well.
    fn is_api_servers(&self, ip: IpAddr) -> bool {
        self.api_servers.iter().any(|(known, _)| *known == ip) && self.nodes.of(ip).is_none()
    }

    fn api_server(&mut self) -> EndpointId {
        self.known_by(EndKey::ApiServer, Identity::Ip, || Peer::ApiServer)
    }

    /// Returns the external peer behind a DNS name.
    pub(super) fn external_name(&mut self, name: &'a str) -> EndpointId {
        self.known_by(EndKey::ExternalName { name }, Identity::Ip, || Peer::ExternalName { name: name.to_owned() })
    }

    /// A group of addresses and DNS names outside of the cluster.
    pub(super) fn external_group(&mut self, name: &'a str) -> EndpointId {
        self.known_by(EndKey::ExternalGroup { name }, Identity::Ip, || Peer::ExternalGroup { name: name.to_owned() })
    }

    /// All addresses outside of the cluster that have no edges of their own.
    pub(super) fn other_external(&mut self) -> EndpointId {
        self.known_by(EndKey::OtherExternal, Identity::Ip, || Peer::OtherExternal)
    }

    /// The node itself: what answers at a loopback address outside of pods.
    pub(super) fn node_netns(&mut self, node: &'a str) -> EndpointId {
        self.known_by(EndKey::NodeNetns { node }, Identity::Netns, || Peer::Node { node: node.to_owned() })
    }

    /// Returns an endpoint that is not a pod, creating it once.
    fn known_by(&mut self, key: EndKey<'a>, identity: Identity, peer: impl FnOnce() -> Peer) -> EndpointId {
        if let Some(id) = self.end_ids.get(&key) {
            return *id;
        }
        let id = self.outside_of_pods(&peer(), identity);
        self.end_ids.insert(key, id);
        id
    }

    /// A Service of which the backend is not known.
    pub(super) fn service_peer(&mut self, service: ServiceId) -> PeerId {
        let peer = Peer::Service(self.names.service(service).clone());
        self.names.peer_id(&peer)
    }

    fn pod_end(&mut self, pod: &'a Pod, container: &'a str, identity: Identity) -> EndpointId {
        let end = PodEnd { uid: &pod.uid, pod: &pod.name, container };
        self.names.end_id(&Peer::Workload(pod.workload.clone()), Some(&end), identity)
    }

    fn outside_of_pods(&mut self, peer: &Peer, identity: Identity) -> EndpointId {
        self.names.end_id(peer, None, identity)
    }
}
