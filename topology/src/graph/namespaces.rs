//! Network namespaces of pods in which one end accepts connections and calls its own pod: it may be a proxy
//! ([`super::incoming_proxies`]), and all that the pod's servers have accepted depends on it.

use std::net::IpAddr;

use super::{
    anchor::AnchorId,
    names::{EndpointId, PeerId},
};
use crate::hash::{HashMap, HashSet};

/// Node and inode number of a network namespace.
pub(super) type NamespaceId = (PeerId, u32);

/// Network namespaces by their ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces {
    by_id: HashMap<NamespaceId, Namespace>,
    /// Addresses at which pods with a relay are called.
    relayed: HashMap<IpAddr, AnchorId>,
}

#[derive(Clone, Debug, Default)]
struct Namespace {
    ends: HashMap<EndpointId, Calls>,
    /// Anchors of what is called in the namespace.
    anchors: HashSet<AnchorId>,
    /// Addresses at which flows from elsewhere arrived, or from which the pod called itself by a Service.
    addresses: HashSet<IpAddr>,
    /// True if an end may be a proxy in front of others, or connections are redirected.
    has_relay: bool,
}

/// Flows of an end.
#[derive(Clone, Debug, Default)]
struct Calls {
    is_server: bool,
    is_inner_client: bool,
    called: HashSet<IpAddr>,
}

impl Calls {
    fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Arrival(_) | Kind::Intercepted(_) => self.is_server = true,
            Kind::Inner => self.is_inner_client = true,
            Kind::To(ip) => _ = self.called.insert(ip),
            Kind::From(_) => {}
        }
    }

    fn is_relay(&self, addresses: &HashSet<IpAddr>) -> bool {
        self.is_server && (self.is_inner_client || !self.called.is_disjoint(addresses))
    }
}

/// A flow that begins or ends in a pod's network namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inward {
    pub(super) namespace: NamespaceId,
    pub(super) end: EndpointId,
    pub(super) anchor: AnchorId,
    pub(super) kind: Kind,
}

/// Way on which a flow leads into a namespace.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A server's flow from elsewhere, which called this address.
    Arrival(IpAddr),
    /// A server's flow that was redirected at its client; with the client's address if it is a pod's.
    Intercepted(Option<IpAddr>),
    /// A client's flow from loopback, or from the called address itself.
    Inner,
    /// A client's flow to this address, which may be the namespace's own.
    To(IpAddr),
    /// A client's flow from this address of the namespace to a Service that may lead back to it.
    From(IpAddr),
}

/// Anchors that are to be connected, and addresses of which all are.
#[derive(Debug, Default)]
pub(super) struct Connected {
    pub(super) anchors: Vec<AnchorId>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Namespaces {
    /// Adds a flow. Returns what is to be connected because of it.
    pub(super) fn add(&mut self, flow: &Inward) -> Connected {
        let namespace = self.by_id.entry(flow.namespace).or_default();
        namespace.ends.entry(flow.end).or_default().add(flow.kind);
        let new_address = match flow.kind {
            Kind::Arrival(ip) | Kind::From(ip) => Some(ip),
            Kind::Intercepted(ip) => ip,
            Kind::Inner | Kind::To(_) => None,
        };
        let new_address = new_address.filter(|ip| namespace.addresses.insert(*ip));
        // Whether a proxy accepts the pod's own calls depends on all flows of the pod.
        let is_relay = |calls: &Calls| calls.is_relay(&namespace.addresses);
        let becomes_relay = !namespace.has_relay
            && (matches!(flow.kind, Kind::Intercepted(_)) || namespace.ends.values().any(is_relay));
        namespace.has_relay |= becomes_relay;
        let is_new = !matches!(flow.kind, Kind::To(_)) && namespace.anchors.insert(flow.anchor);
        let mut new_addresses: Vec<IpAddr> = new_address.into_iter().collect();
        if !namespace.has_relay {
            return Connected::default();
        }
        let mut connected = Connected::default();
        if becomes_relay {
            connected.anchors.extend(&namespace.anchors);
            new_addresses = namespace.addresses.iter().copied().collect();
        } else if is_new {
            connected.anchors.extend(namespace.anchors.iter().copied().find(|anchor| *anchor != flow.anchor));
            connected.anchors.push(flow.anchor);
        }
        connected.anchors.sort_unstable();
        for ip in &new_addresses {
            self.relayed.insert(*ip, flow.anchor);
        }
        connected.addresses = new_addresses;
        connected
    }

    /// Returns an anchor of the group of a pod that has a relay, by its address.
    pub(super) fn relay_at(&self, ip: IpAddr) -> Option<AnchorId> {
        self.relayed.get(&ip).copied()
    }
}
