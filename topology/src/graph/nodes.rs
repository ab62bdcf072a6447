//! Maps addresses to nodes.

use std::{collections::hash_map::Entry, net::IpAddr};

use super::address::Scope;
use crate::{
    directory::Directory,
    flow::{FlowKey, Role},
    hash::HashMap,
    ledger::Ledger,
};

/// Nodes by their addresses: those of the Node objects, and those that the agents have found on their nodes. Node objects
/// decide where an agent names an address of another node.
#[derive(Clone, Debug)]
pub(super) struct Nodes<'a> {
    directory: &'a Directory,
    ledger: &'a Ledger,
    /// `None` where several nodes say that an address is theirs.
    by_agents: HashMap<IpAddr, Option<&'a str>>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(ledger: &'a Ledger, directory: &'a Directory) -> Self {
        let mut by_agents = HashMap::default();
        let found = ledger.node_addresses().filter(|(node, ip)| !directory.is_of_another_node_object(node, *ip));
        for (node, ip) in found {
            match by_agents.entry(ip) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Some(node));
                }
                Entry::Occupied(mut occupied) => {
                    occupied.insert(None);
                }
            }
        }
        Self { directory, ledger, by_agents }
    }

    /// Returns where the address that a flow's client called means one thing.
    ///
    /// Invariant: the same for both ends of a conversation that see the same addresses.
    pub(super) fn scope(&self, node: &'a str, key: &FlowKey) -> Scope<'a> {
        if key.local.is_loopback() || key.remote.is_loopback() {
            return Scope::Namespace(node, key.netns);
        }
        let called = key.called();
        // What calls an address of its own node stays there. A client on another node may call it, too: an address that moves.
        let is_from_elsewhere = || key.role == Role::Server && self.is_elsewhere(node, key.remote);
        let is_own = self.is_shared(called) && self.ledger.has_address(node, called) && !is_from_elsewhere();
        if is_own || is_link_local(called) { Scope::Node(node) } else { Scope::Cluster }
    }

    /// Returns whether a client's address is of another node, or of a pod there.
    fn is_elsewhere(&self, node: &str, ip: IpAddr) -> bool {
        let mut pods = self.directory.holders(ip).peekable();
        if pods.peek().is_some() {
            return pods.all(|pod| pod.node != node);
        }
        self.of(ip).is_some_and(|of| of != node)
    }

    /// Returns whether several nodes have an address of their own.
    pub(super) fn is_shared(&self, ip: IpAddr) -> bool {
        self.by_agents.get(&ip) == Some(&None)
    }

    /// The name of the node that an address is of, or whose pods' network it is in while no pod is known to have had it.
    pub(super) fn of(&self, ip: IpAddr) -> Option<&'a str> {
        if let Some(node) = self.directory.node_of(ip) {
            return Some(&node.name);
        }
        self.by_agents.get(&ip).copied().flatten()
    }

    /// Returns the relation of an address to the nodes; `None` if it has none.
    pub(super) fn at(&self, ip: IpAddr) -> Option<At<'a>> {
        if let Some(node) = self.by_agents.get(&ip).copied().flatten() {
            return Some(At::Node(node));
        }
        let node = self.directory.node_of(ip)?;
        Some(if node.is_own(ip) { At::Node(&node.name) } else { At::PodNetwork })
    }
}

/// Relation of an address to the nodes.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    /// This node's own.
    Node(&'a str),
    /// One of a node's network for pods, which may be anybody's there.
    PodNetwork,
}

/// Returns whether it is an address of IPv4 that is valid on one link only (RFC 3927): nodes give these to services of their
/// own. In IPv6, nodes of one link call each other at such addresses.
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_link_local())
}
