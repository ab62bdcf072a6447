//! Network namespaces of pods in which one end accepts connections and calls its own pod: it may be a proxy
//! ([`super::incoming_proxies`]), and all that the pod's servers have accepted depends on it.

use std::net::IpAddr;

use super::{
    names::{EndpointId, PeerId},
    partition::AnchorId,
};
use crate::hash::{HashMap, HashSet};

/// Node and inode number of a network namespace.
pub(super) type NamespaceId = (PeerId, u32);

/// Network namespaces by their ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces {
    by_id: HashMap<NamespaceId, Namespace>,
    /// Addresses of pods that have a relay.
    relayed: HashMap<IpAddr, AnchorId>,
}

#[derive(Clone, Debug, Default)]
struct Namespace {
    /// Whether an end accepts connections from elsewhere, and whether it calls its own pod.
    ends: HashMap<EndpointId, (bool, bool)>,
    /// Anchors of what is called in the namespace.
    anchors: HashSet<AnchorId>,
    addresses: HashSet<IpAddr>,
    has_relay: bool,
}

/// A flow that begins or ends at a server in a pod's network namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inward<'a> {
    pub(super) namespace: NamespaceId,
    pub(super) end: EndpointId,
    pub(super) anchor: AnchorId,
    /// Addresses of the pod.
    pub(super) addresses: &'a [IpAddr],
    /// True if it is a server's flow from elsewhere, false if it is a call of the end's own pod.
    pub(super) is_arrival: bool,
}

/// Anchors that are to be connected, and addresses of which all are.
#[derive(Debug, Default)]
pub(super) struct Connected {
    pub(super) anchors: Vec<AnchorId>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Namespaces {
    /// Adds a flow. Returns what is to be connected because of it.
    pub(super) fn add(&mut self, flow: &Inward<'_>) -> Connected {
        let namespace = self.by_id.entry(flow.namespace).or_default();
        let (accepts, calls) = namespace.ends.entry(flow.end).or_default();
        *accepts |= flow.is_arrival;
        *calls |= !flow.is_arrival;
        let becomes_relay = *accepts && *calls && !namespace.has_relay;
        namespace.has_relay |= becomes_relay;
        let is_new = namespace.anchors.insert(flow.anchor);
        let mut new_addresses: Vec<IpAddr> =
            flow.addresses.iter().copied().filter(|ip| namespace.addresses.insert(*ip)).collect();
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
