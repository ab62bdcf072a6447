//! Proxies to which the network of a pod redirects outgoing connections.
//!
//! The kernel shows them: netfilter leads a redirected connection to a loopback address
//! (`nf_nat_redirect_ipv4`, Linux 3.19), but its client keeps the address of another interface. A client that calls a
//! loopback address with another address of its own looks the same to the server, but has called that address itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    entity::CgroupOwner,
    flow::{FlowKey, Protocol, Role},
    hash::{HashMap, HashSet},
    ledger::{Ledger, NodeRecords},
};

/// A node's interceptors, by their network namespaces and cgroups.
type OfNode = BTreeMap<(u32, u64), Interceptor>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Interceptor {
    /// Ports at which it accepts what is redirected.
    ports: BTreeSet<u16>,
    owner: Option<CgroupOwner>,
}

/// Interceptors of all nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Interceptors {
    by_node: HashMap<String, OfNode>,
}

impl Interceptors {
    /// Returns those of all flows.
    pub(super) fn of(ledger: &Ledger) -> Self {
        let mut all = Self::default();
        for node in ledger.records() {
            all.follow(&node);
        }
        all
    }

    /// Reads the flows of a node again. Returns the network namespaces that have other interceptors than before.
    pub(super) fn follow(&mut self, node: &NodeRecords<'_>) -> BTreeSet<u32> {
        let mut now = OfNode::new();
        let intercepted: Vec<&FlowKey> =
            node.flows().map(|flow| flow.key()).filter(|key| is_intercepted(key)).collect();
        let called = if intercepted.is_empty() { HashSet::default() } else { called_with_other_addresses(node) };
        for key in intercepted.into_iter().filter(|key| !called.contains(&(key.netns, key.local, key.port))) {
            let interceptor = now.entry((key.netns, key.cgroup_id)).or_default();
            interceptor.ports.insert(key.port);
            interceptor.owner = node.owner_of(key.cgroup_id).cloned();
        }
        let before = self.by_node.remove(node.name()).unwrap_or_default();
        let differ = |one: &OfNode, other: &OfNode| -> BTreeSet<u32> {
            let is_other = |(at, it): &(&(u32, u64), &Interceptor)| other.get(at) != Some(it);
            one.iter().filter(is_other).map(|((netns, _), _)| *netns).collect()
        };
        let changed = differ(&before, &now).into_iter().chain(differ(&now, &before)).collect();
        if !now.is_empty() {
            self.by_node.insert(node.name().to_owned(), now);
        }
        changed
    }

    /// Returns the network namespaces of a node with an interceptor of such an owner.
    pub(super) fn of_owners(&self, node: &str, is_owner: impl Fn(&CgroupOwner) -> bool) -> BTreeSet<u32> {
        let of_node = self.by_node.get(node).into_iter().flatten();
        let of_owners = of_node.filter(|(_, interceptor)| interceptor.owner.as_ref().is_some_and(&is_owner));
        of_owners.map(|((netns, _), _)| *netns).collect()
    }

    /// Drops those of all nodes but the ones of the ledger.
    pub(super) fn retain(&mut self, ledger: &Ledger) {
        self.by_node.retain(|node, _| ledger.records_of(node).is_some());
    }

    /// Returns whether there are any in a network namespace.
    pub(super) fn has(&self, node: &str, netns: u32) -> bool {
        let of_namespace = (netns, 0)..=(netns, u64::MAX);
        self.by_node.get(node).is_some_and(|of_node| of_node.range(of_namespace).next().is_some())
    }

    /// Returns the ports at which a cgroup accepts what a network namespace redirects; `None` if it does not.
    pub(super) fn ports(&self, node: &str, netns: u32, cgroup_id: u64) -> Option<&BTreeSet<u16>> {
        self.by_node.get(node)?.get(&(netns, cgroup_id)).map(|interceptor| &interceptor.ports)
    }

    /// Returns the cgroup of a network namespace's interceptor, the first one if there are several.
    pub(super) fn cgroup_in(&self, node: &str, netns: u32) -> Option<u64> {
        let of_namespace = (netns, 0)..=(netns, u64::MAX);
        self.by_node.get(node)?.range(of_namespace).next().map(|((_, cgroup_id), _)| *cgroup_id)
    }
}

/// Returns whether a flow is the server's end of redirected connections.
pub(super) fn is_intercepted(key: &FlowKey) -> bool {
    key.role == Role::Server
        && key.protocol == Protocol::Tcp
        && key.local.is_loopback()
        && !key.remote.is_loopback()
        && !key.remote.is_unspecified()
}

/// Returns the loopback addresses and ports of network namespaces that clients call with addresses of other interfaces.
fn called_with_other_addresses(node: &NodeRecords<'_>) -> HashSet<(u32, IpAddr, u16)> {
    let is_such = |key: &&FlowKey| {
        key.role == Role::Client
            && key.protocol == Protocol::Tcp
            && key.remote.is_loopback()
            && !key.local.is_loopback()
            && !key.local.is_unspecified()
    };
    let keys = node.flows().map(|flow| flow.key()).filter(is_such);
    keys.map(|key| (key.netns, key.remote, key.port)).collect()
}
