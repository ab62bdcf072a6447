//! Maps addresses to nodes.

use std::{collections::hash_map::Entry, net::IpAddr};

use crate::{directory::Directory, hash::HashMap, ledger::Ledger};

/// Nodes by their addresses: those of the Node objects, and those that the agents have found on their nodes.
#[derive(Clone, Debug)]
pub(super) struct Nodes<'a> {
    directory: &'a Directory,
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
        Self { directory, by_agents }
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
