//! Divides flows into groups that can be joined apart from each other: what one flow of a group becomes depends on no
//! flow of another group.
//!
//! The join looks at more than two ends: at other flows of the same address and port, of the pods that held the address,
//! of a Service's backends, and of the server at its port. All of these are one group. Groups only grow: one that is
//! larger than it needs to be is no error.

use std::net::IpAddr;

use super::{
    address::Scope,
    anchor::AnchorId,
    endpoints::Endpoints,
    interceptors::is_intercepted,
    key::ServiceKey,
    names::{EndpointId, PeerId},
    namespaces::{Inward, Kind, Namespaces},
    nodes::At,
};
use crate::{
    directory::{Change, Directory},
    edge::Peer,
    entity::CgroupOwner,
    flow::{FlowKey, Protocol, Role},
    hash::{HashMap, HashSet},
    ledger::FlowRecord,
};

/// Something that connects flows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Anchor {
    /// An address and port that a client calls, or at which a server listens.
    Point(Point),
    /// A server at a port.
    Server(PeerId, u16, Protocol),
    /// A Service at a port.
    Service(ServiceKey),
    /// A pod by its UID: a backend that has no address of its own.
    Pod(Box<str>),
}

/// An address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Point {
    /// Node, and network namespace of a loopback address; `None` where an address means the same in the whole cluster.
    scope: Option<(PeerId, Option<u32>)>,
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
}

/// Changes of a directory.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pods: HashSet<Box<str>>,
    addresses: HashSet<IpAddr>,
    node_ports: HashSet<(u16, Protocol)>,
}

impl Changed {
    /// Collects changes; `None` if anything can have changed.
    pub(super) fn collect<'c>(changes: impl Iterator<Item = &'c Change>) -> Option<Self> {
        let mut collected = Self::default();
        for change in changes {
            match change {
                Change::Pod(id) => _ = collected.pods.insert(id.as_str().into()),
                Change::Address(ip) => _ = collected.addresses.insert(*ip),
                Change::NodePort(port, protocol) => _ = collected.node_ports.insert((*port, *protocol)),
                Change::Everything => return None,
            }
        }
        Some(collected)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.addresses.is_empty() && self.node_ports.is_empty()
    }

    /// Returns whether the names of a cgroup's owner may have changed.
    pub(super) fn concerns_owner(&self, owner: &CgroupOwner) -> bool {
        match owner {
            CgroupOwner::PodContainer { pod_uid, container_id } => {
                self.pods.contains(pod_uid.as_str()) || self.pods.contains(container_id.as_str())
            }
            CgroupOwner::HostProcess { .. } => false,
        }
    }

    /// Returns whether a flow's names may have changed.
    pub(super) fn concerns(&self, flow: &FlowRecord<'_>) -> bool {
        if self.is_empty() {
            return false;
        }
        let key = flow.key();
        flow.owner().is_some_and(|owner| self.concerns_owner(owner))
            || [key.local, key.remote].iter().any(|ip| self.addresses.contains(ip))
            || self.node_ports.contains(&(key.port, key.protocol))
            || flow.nat_peers().iter().any(|(peer, _)| self.addresses.contains(&peer.ip))
    }
}

/// The groups.
#[derive(Clone, Debug, Default)]
pub(super) struct Partition {
    ids: HashMap<Anchor, AnchorId>,
    /// Of each anchor, one that it is connected with: itself if it names the group.
    parents: Vec<AnchorId>,
    /// Anchors that are connected with all that the directory says of them.
    connected: HashSet<AnchorId>,
    /// Anchors of addresses that mean the same in the whole cluster.
    by_address: HashMap<IpAddr, Vec<AnchorId>>,
    namespaces: Namespaces,
    /// Anchors whose groups are to be joined again.
    stale: Vec<AnchorId>,
}

impl Partition {
    pub(super) fn len(&self) -> usize {
        self.parents.len()
    }

    /// Returns the anchor that names the group of another.
    pub(super) fn group_of(&self, mut id: AnchorId) -> AnchorId {
        loop {
            let parent = self.parents[id.0 as usize];
            if parent == id {
                return id;
            }
            id = parent;
        }
    }

    /// Has a group joined again.
    pub(super) fn mark(&mut self, id: AnchorId) {
        self.stale.push(id);
    }

    /// Has the group of a server at a port joined again, if there is one.
    pub(super) fn mark_server(&mut self, server: PeerId, port: u16, protocol: Protocol) {
        if let Some(id) = self.ids.get(&Anchor::Server(server, port, protocol)) {
            self.stale.push(*id);
        }
    }

    /// Returns the groups that are to be joined again.
    pub(super) fn take_stale(&mut self) -> HashSet<AnchorId> {
        // Short ways make all questions about groups quick.
        for at in 0..self.parents.len() {
            self.parents[at] = self.group_of(self.parents[at]);
        }
        std::mem::take(&mut self.stale).into_iter().map(|id| self.group_of(id)).collect()
    }

    /// Connects a flow with others, and has its group joined again. Returns its anchor.
    pub(super) fn add<'a>(
        &mut self,
        flow: &FlowRecord<'a>,
        ends: &mut Endpoints<'a>,
        directory: &'a Directory,
    ) -> AnchorId {
        let key = flow.key();
        let end = ends.by_cgroup(flow.node(), flow.owner());
        let scope = ends.nodes.scope(flow.node(), key);
        let ip = key.called();
        let part = match scope {
            Scope::Cluster => None,
            Scope::Node(node) => Some((ends.node_peer(node), None)),
            Scope::Namespace(node, netns) => Some((ends.node_peer(node), Some(netns))),
        };
        let point = Point { scope: part, ip, port: key.port, protocol: key.protocol };
        let id = self.point(point, ends, directory);
        if scope.is_loopback() || key.role == Role::Server {
            self.connect_server(id, ends.peer_of(end), &point);
        }
        if scope.is_loopback() || scope != Scope::Cluster && !ends.is_services(ip) {
            // What answers at a loopback address may be named by the network namespace, and by the node at its own.
            self.connect_server(id, ends.node_peer(flow.node()), &point);
        }
        if scope.is_loopback() && key.role == Role::Server && !key.local.is_loopback() {
            // It listens for others, too.
            let listens = self.point(Point { scope: None, ..point }, ends, directory);
            self.connect(id, listens);
        }
        if key.role == Role::Client {
            for (far, _) in flow.nat_peers().iter() {
                let far = Point { scope: None, ip: far.ip, port: far.port, protocol: key.protocol };
                let far = self.point(far, ends, directory);
                self.connect(id, far);
            }
        }
        self.connect_relay(flow, end, (id, scope.is_loopback()), ends, directory);
        self.mark(id);
        id
    }

    /// Connects all that is called in the network of a pod which has a relay, if the flow is of such a pod.
    fn connect_relay<'a>(
        &mut self,
        flow: &FlowRecord<'a>,
        end: EndpointId,
        (anchor, is_loopback): (AnchorId, bool),
        ends: &mut Endpoints<'a>,
        directory: &'a Directory,
    ) {
        let key = flow.key();
        if key.protocol != Protocol::Tcp {
            return;
        }
        let is_inner = is_loopback || key.local == key.remote;
        let kind = match key.role {
            // What the network redirects at the client, where it may call itself.
            Role::Server if is_intercepted(key) => {
                Kind::Intercepted(Some(key.remote).filter(|ip| directory.is_pods_address(*ip)))
            }
            Role::Server if !is_inner && directory.is_pods_address(key.local) => Kind::Arrival(key.local),
            Role::Client if is_inner => Kind::Inner,
            Role::Client if directory.is_pods_address_on(flow.node(), key.remote) => Kind::To(key.remote),
            Role::Client if leads_back(key, directory) => Kind::From(key.local),
            Role::Client | Role::Server => return,
        };
        let namespace = (ends.node_peer(flow.node()), key.netns);
        let connected = self.namespaces.add(&Inward { namespace, end, anchor, kind });
        let at_addresses = connected.addresses.iter().filter_map(|ip| self.by_address.get(ip)).flatten();
        let all: Vec<AnchorId> = connected.anchors.iter().chain(at_addresses).copied().collect();
        for other in all {
            self.connect(anchor, other);
        }
    }

    /// Connects everything anew of which the directory says something else, and has its groups joined again.
    pub(super) fn follow<'a>(&mut self, changed: &Changed, ends: &mut Endpoints<'a>, directory: &'a Directory) {
        if changed.is_empty() {
            return;
        }
        let is_concerned = |anchor: &Anchor| match anchor {
            Anchor::Point(point) => {
                changed.addresses.contains(&point.ip) || changed.node_ports.contains(&(point.port, point.protocol))
            }
            Anchor::Pod(uid) => changed.pods.contains(uid),
            Anchor::Server(..) | Anchor::Service(_) => false,
        };
        let concerned: Vec<(Anchor, AnchorId)> = self
            .ids
            .iter()
            .filter(|(anchor, _)| is_concerned(anchor))
            .map(|(anchor, id)| (anchor.clone(), *id))
            .collect();
        for (_, id) in &concerned {
            self.connected.remove(id);
        }
        for (anchor, id) in concerned {
            self.mark(id);
            if let Anchor::Point(point) = anchor {
                self.point(point, ends, directory);
            }
        }
    }

    /// Returns a point's anchor, connected with all that may be found there.
    fn point<'a>(&mut self, point: Point, ends: &mut Endpoints<'a>, directory: &'a Directory) -> AnchorId {
        let id = self.anchor(Anchor::Point(point));
        if !self.connected.insert(id) {
            return id;
        }
        if point.scope.is_none()
            && let Some(relay) = self.namespaces.relay_at(point.ip)
        {
            self.connect(id, relay);
        }
        let owners = if point.scope.is_none() { ends.peers_at(point.ip) } else { Vec::new() };
        for server in owners {
            self.connect_server(id, server, &point);
        }
        let node = match (point.scope, ends.nodes.at(point.ip)) {
            (None, Some(At::Node(node))) => Some(node.to_owned()),
            // A port of a node can be called at a loopback address, too.
            (Some((node, Some(_))), _) => match ends.peer(node) {
                Peer::Node { node } => Some(node.clone()),
                _ => None,
            },
            _ => None,
        };
        let pods = |node: &String| directory.pods_at_host_port(node, point.ip, point.port, point.protocol);
        for (pod, port) in node.iter().flat_map(pods) {
            let end = ends.pod_address(pod);
            self.connect_server(id, ends.peer_of(end), &Point { port, ..point });
            for ip in &pod.ips {
                let pods = self.point(Point { scope: None, ip: *ip, port, protocol: point.protocol }, ends, directory);
                self.connect(id, pods);
            }
        }
        // A node port can be called at a loopback address, too.
        for called in directory.services_at(point.ip, (point.port, point.protocol)) {
            let service = ServiceKey { service: ends.service_id(called.service), port: called.port };
            let service = self.anchor(Anchor::Service(service));
            self.connect(id, service);
            for backend in called.backends {
                let at = Point { scope: None, ip: backend.ip, port: backend.port, protocol: point.protocol };
                let backends = self.point(at, ends, directory);
                self.connect(service, backends);
                let Some(uid) = &backend.pod_uid else { continue };
                let by_uid = self.anchor(Anchor::Pod(uid.as_str().into()));
                self.connect(service, by_uid);
                if let Some(pod) = directory.pod(uid) {
                    let end = ends.pod_address(pod);
                    self.connect_server(service, ends.peer_of(end), &at);
                }
            }
        }
        id
    }

    fn connect_server(&mut self, id: AnchorId, server: PeerId, at: &Point) {
        let server = self.anchor(Anchor::Server(server, at.port, at.protocol));
        self.connect(id, server);
    }

    #[expect(clippy::cast_possible_truncation, reason = "4 billion anchors do not fit into memory")]
    fn anchor(&mut self, anchor: Anchor) -> AnchorId {
        let next = AnchorId(self.parents.len() as u32);
        let address = match &anchor {
            Anchor::Point(Point { scope: None, ip, .. }) => Some(*ip),
            _ => None,
        };
        let id = *self.ids.entry(anchor).or_insert(next);
        if id == next {
            self.parents.push(id);
            if let Some(ip) = address {
                self.by_address.entry(ip).or_default().push(id);
            }
        }
        id
    }

    /// Connects two groups; what was one group each is to be joined again.
    fn connect(&mut self, one: AnchorId, other: AnchorId) {
        let (one, other) = (self.group_of(one), self.group_of(other));
        if one != other {
            // The older names the group, so that ways stay short.
            let (parent, child) = (one.min(other), one.max(other));
            self.parents[child.0 as usize] = parent;
            self.mark(parent);
        }
    }
}

/// Returns whether a client's flow leads to a Service of its own pod.
fn leads_back(key: &FlowKey, directory: &Directory) -> bool {
    let called = directory.services_at(key.remote, (key.port, key.protocol));
    called.iter().any(|service| service.backends.iter().any(|backend| backend.ip == key.local))
}
