//! Maps addresses to nodes.

use std::{collections::hash_map::Entry, net::IpAddr};

use super::observed::Scope;
use crate::{
    directory::Directory,
    flow::{FlowKey, Role},
    hash::HashMap,
    ledger::Ledger,
};

/// Nodes by their addresses: those of the Node objects, and those that the agents have found on their nodes.
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
        for (node, ip) in ledger.node_addresses() {
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
        let called = if key.role == Role::Client { key.remote } else { key.local };
        // What calls an address of its own node stays there, and no router forwards link-local addresses.
        let is_own = self.is_shared(called) && self.ledger.has_address(node, called);
        if is_own || is_link_local(called) { Scope::Node(node) } else { Scope::Cluster }
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

/// Returns whether an address is valid on one link only (RFC 3927, RFC 4291).
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
