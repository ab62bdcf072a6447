//! Flows of a ledger by reference: two states of a ledger can be compared without any total being computed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::SystemTime,
};

use super::{FlowView, Ledger, account::Account, is_silent, node_account::NodeAccount};
use crate::{
    entity::CgroupOwner,
    flow::{FlowKey, FlowTotals},
    hash::HashSet,
    nat_peer::NatPeers,
};

/// One node's part of a ledger.
#[derive(Clone, Copy)]
pub(crate) struct NodeRecords<'a> {
    name: &'a str,
    account: &'a NodeAccount,
}

/// State of a node apart from its flows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeState<'a> {
    is_gone: bool,
    /// Time of its agent's last message, if it is silent.
    heard: Option<SystemTime>,
    addresses: &'a Arc<BTreeSet<IpAddr>>,
    /// Number of its observed times that began at a time of which connections may have been judged before.
    observed: u64,
}

/// A flow.
#[derive(Clone, Copy)]
pub(crate) struct FlowRecord<'a> {
    node: NodeRecords<'a>,
    key: &'a FlowKey,
    /// Owner of a cgroup whose ID has another owner now.
    former_owner: Option<&'a Arc<CgroupOwner>>,
    flow: &'a Arc<Account>,
}

impl Ledger {
    /// Returns the parts of all nodes, by name.
    pub(crate) fn records(&self) -> impl Iterator<Item = NodeRecords<'_>> {
        self.nodes.iter().map(|(name, account)| NodeRecords { name, account })
    }

    /// Returns this state with flows of an earlier one, where `keeps` says so for the node and the flow's place among its
    /// flows. These must have only counted since ([`FlowRecord::has_only_counted_since`]).
    pub(crate) fn with_earlier_counts<K: Fn(usize) -> bool>(&self, earlier: &Self, keeps: impl Fn(&str) -> K) -> Self {
        let with_earlier = |(name, account): (&String, &NodeAccount)| {
            let mut account = account.share();
            if let Some(earlier) = earlier.nodes.get(name) {
                account.flows = with_earlier_counts(&account.flows, &earlier.flows, keeps(name));
            }
            (name.clone(), account)
        };
        Self { nodes: self.nodes.iter().map(with_earlier).collect() }
    }

    /// Returns the part of a node.
    pub(crate) fn records_of(&self, node: &str) -> Option<NodeRecords<'_>> {
        self.nodes.get_key_value(node).map(|(name, account)| NodeRecords { name, account })
    }
}

impl<'a> NodeRecords<'a> {
    pub(crate) fn name(&self) -> &'a str {
        self.name
    }

    pub(crate) fn state(&self, now: SystemTime) -> NodeState<'a> {
        NodeState {
            is_gone: self.account.gone,
            heard: self.account.heard.filter(|_| is_silent(self.account.heard, now)),
            addresses: &self.account.addresses,
            observed: self.account.observed_times.begun(),
        }
    }

    /// Returns the flows of the present cgroups, by key, and then those of former ones.
    pub(crate) fn flows(self) -> impl Iterator<Item = FlowRecord<'a>> {
        let current = self.account.flows.iter();
        let current = current.map(move |(key, flow)| FlowRecord { node: self, key, former_owner: None, flow });
        let orphaned = self.account.orphaned.iter();
        let orphaned = orphaned.map(move |(key, owner, flow)| {
            let former_owner = Some(owner);
            FlowRecord { node: self, key, former_owner, flow }
        });
        current.chain(orphaned)
    }

    /// Returns the owner of a cgroup.
    pub(crate) fn owner_of(&self, cgroup_id: u64) -> Option<&'a CgroupOwner> {
        self.account.owners.get(&cgroup_id).map(Arc::as_ref)
    }

    /// Returns whether all flows are those of another state of this node, unchanged.
    pub(crate) fn has_same_flows(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.account.flows, &other.account.flows)
            && Arc::ptr_eq(&self.account.orphaned, &other.account.orphaned)
            && Arc::ptr_eq(&self.account.owners, &other.account.owners)
    }

    /// Returns the cgroups that have another owner than in another state of this node.
    pub(crate) fn cgroups_with_another_owner(&self, other: &Self) -> HashSet<u64> {
        let (now, before) = (&self.account.owners, &other.account.owners);
        if Arc::ptr_eq(now, before) {
            return HashSet::default();
        }
        let is_another = |(cgroup_id, owner): (&u64, &Arc<CgroupOwner>)| {
            (before.get(cgroup_id) != Some(owner)).then_some(*cgroup_id)
        };
        let gone = before.keys().filter(|cgroup_id| !now.contains_key(cgroup_id)).copied();
        now.iter().filter_map(is_another).chain(gone).collect()
    }
}

impl<'a> FlowRecord<'a> {
    pub(crate) fn node(&self) -> &'a str {
        self.node.name
    }

    pub(crate) fn key(&self) -> &'a FlowKey {
        self.key
    }

    /// Returns whether it is of a cgroup whose ID has another owner now.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.former_owner.is_some()
    }

    pub(crate) fn owner(&self) -> Option<&'a CgroupOwner> {
        self.former_owner.map(Arc::as_ref).or_else(|| self.node.owner_of(self.key.cgroup_id))
    }

    pub(crate) fn nat_peers(&self) -> &'a NatPeers {
        &self.flow.nat_peers
    }

    /// Returns whether this is the same flow as in another state of the ledger, and nothing of it has changed.
    pub(crate) fn is_unchanged_since(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.flow, other.flow)
    }

    /// Returns whether its agent no longer reports a part of it.
    pub(crate) fn has_history(&self) -> bool {
        let totals = || self.flow.totals();
        !self.is_all_reported() && self.anew(totals) != totals()
    }

    /// Returns whether it is the same flow as in another state of the ledger, and its agent has only counted since.
    pub(crate) fn has_only_counted_since(&self, earlier: &Self) -> bool {
        !self.is_orphaned() && !earlier.is_orphaned() && self.flow.has_only_counted_since(earlier.flow)
    }

    fn is_all_reported(&self) -> bool {
        // The agent of a node that returns reports all of it again.
        !self.is_orphaned() && (self.node.account.gone || self.flow.is_all_reported())
    }

    /// Returns the part that the agent would report to an operator without any state.
    fn anew(&self, totals: impl FnOnce() -> FlowTotals) -> FlowTotals {
        if self.is_orphaned() {
            FlowTotals::default()
        } else if self.is_all_reported() {
            totals()
        } else {
            self.flow.anew()
        }
    }

    /// Returns the flow with its totals.
    pub(crate) fn view(&self) -> FlowView<'a> {
        let (NodeRecords { name, account }, flow) = (self.node, self.flow);
        let totals = flow.totals();
        FlowView {
            node: name,
            owner: self.owner(),
            key: self.key,
            remote_names: &flow.remote_names,
            nat_peers: &flow.nat_peers,
            totals,
            anew: self.anew(|| totals),
            first_seen: flow.first_seen,
            listening_since: account.listening_since(self.key).map_or(flow.first_seen, |it| it.min(flow.first_seen)),
            changed: flow.changed,
            reported: flow.reported_at,
            last_failed: flow.last_failed,
            parts: flow.history.parts(),
            pending_ended: flow.pending_ended.into(),
            heard: account.heard,
            is_orphaned: self.is_orphaned(),
            forgotten: FlowTotals::default(),
            recent_bytes: flow.recent_bytes,
        }
    }
}

type Flows = BTreeMap<FlowKey, Arc<Account>>;

/// Returns a node's flows with the counts of an earlier state, where `keeps` says so for a flow's place.
fn with_earlier_counts(flows: &Arc<Flows>, earlier: &Arc<Flows>, keeps: impl Fn(usize) -> bool) -> Arc<Flows> {
    if Arc::ptr_eq(flows, earlier) {
        return Arc::clone(flows);
    }
    let mut known = earlier.iter().peekable();
    let mut any = false;
    let mut mixed = Vec::with_capacity(flows.len());
    for (place, (key, flow)) in flows.iter().enumerate() {
        while known.next_if(|(other, _)| *other < key).is_some() {}
        let same = known.next_if(|(other, _)| *other == key).map(|(_, before)| before);
        let kept = same.filter(|_| keeps(place));
        any |= kept.is_some();
        mixed.push((*key, Arc::clone(kept.unwrap_or(flow))));
    }
    if any { Arc::new(mixed.into_iter().collect()) } else { Arc::clone(flows) }
}
