//! Account of one node: its agent's epochs, the owners of its cgroups, its flows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Epoch, LateEpoch, RESUMABLE, account::Account, epochs::Epochs, observed_times::ObservedTimes};
use crate::{
    clock::NodeClock,
    entity::CgroupOwner,
    flow::{FlowKey, Protocol, Role},
};

/// A flow of a former cgroup.
pub(super) type OrphanedFlow = (FlowKey, Arc<CgroupOwner>, Arc<Account>);

/// Account of one node.
#[derive(Clone, Debug)]
pub(super) struct NodeAccount {
    pub(super) epochs: Epochs,
    /// Flows that the current snapshot contained so far.
    pub(super) snapshot: Option<HashSet<FlowKey>>,
    pub(super) owners: Arc<HashMap<u64, Arc<CgroupOwner>>>,
    /// The node's own addresses, as its agent reported them.
    pub(super) addresses: Arc<BTreeSet<IpAddr>>,
    pub(super) flows: Arc<BTreeMap<FlowKey, Arc<Account>>>,
    /// Time of the first flow of each listener that has flows.
    pub(super) listeners: Arc<HashMap<Listener, SystemTime>>,
    /// Flows of cgroups whose ID has another owner now (after a reboot, for example).
    pub(super) orphaned: Arc<Vec<OrphanedFlow>>,
    /// True if the Node object was deleted.
    pub(super) gone: bool,
    /// True if a snapshot of the current epoch was completed.
    pub(super) complete: bool,
    /// Folded rows whose flows have no open connections of the last epoch that this one has not reported.
    pub(super) without_unclaimed: HashSet<FlowKey>,
    /// True if accounts of a replaced epoch are kept.
    pub(super) keeps_displaced: bool,
    /// Time at which that was first noted.
    pub(super) displaced_at: Option<SystemTime>,
    /// Time of the agent's last message, as far as recorded.
    pub(super) heard: Option<SystemTime>,
    pub(super) observed_times: Arc<ObservedTimes>,
    pub(super) clock: NodeClock,
}

impl NodeAccount {
    pub(super) fn new(epoch: Epoch, origin: Epoch) -> Self {
        Self {
            epochs: Epochs::new(epoch, origin),
            snapshot: None,
            owners: Arc::default(),
            addresses: Arc::default(),
            flows: Arc::default(),
            listeners: Arc::default(),
            orphaned: Arc::default(),
            gone: false,
            complete: false,
            without_unclaimed: HashSet::new(),
            keeps_displaced: false,
            displaced_at: None,
            heard: None,
            observed_times: Arc::default(),
            clock: NodeClock::default(),
        }
    }

    pub(super) fn enter(&mut self, epoch: Epoch, origin: Epoch) -> Result<(), LateEpoch> {
        if self.epochs.is_current(epoch) {
            self.gone = false;
            return Ok(());
        }
        let before = self.epochs.origin();
        self.epochs.enter(epoch, origin)?;
        self.snapshot = None;
        self.gone = false;
        self.complete = false;
        self.without_unclaimed = HashSet::new();
        if origin != before {
            self.flows_mut().for_each(|(_, flow)| flow.displace(before));
            (self.keeps_displaced, self.displaced_at) = (true, None);
        }
        Ok(())
    }

    /// Drops the kept accounts of an epoch that was not resumed in time.
    pub(super) fn forget_displaced(&mut self, now: SystemTime) {
        let since = *self.displaced_at.get_or_insert(now);
        if self.keeps_displaced && now.duration_since(since).unwrap_or_default() >= RESUMABLE {
            self.flows_mut().for_each(|(_, flow)| flow.forget_displaced());
            self.keeps_displaced = false;
        }
    }

    pub(super) fn identify(&mut self, cgroup_id: u64, owner: CgroupOwner) -> bool {
        let Some(known) = self.owners.get(&cgroup_id) else {
            Arc::make_mut(&mut self.owners).insert(cgroup_id, Arc::new(owner));
            return true;
        };
        if **known == owner {
            return false;
        }
        if !refines(known, &owner) {
            self.orphan(cgroup_id);
        }
        Arc::make_mut(&mut self.owners).insert(cgroup_id, Arc::new(owner));
        true
    }

    /// Returns the time at which a flow's listener had its first flow.
    pub(super) fn listening_since(&self, key: &FlowKey) -> Option<SystemTime> {
        self.listeners.get(&Listener::of(key)?).copied()
    }

    /// Drops the listeners without flows.
    pub(super) fn forget_listeners(&mut self) {
        let keys = self.flows.keys().chain(self.orphaned.iter().map(|(key, ..)| key));
        let present: HashSet<Listener> = keys.filter_map(Listener::of).collect();
        if present.len() < self.listeners.len() {
            Arc::make_mut(&mut self.listeners).retain(|listener, _| present.contains(listener));
        }
    }

    /// Drops the owners of cgroups without flows.
    pub(super) fn forget_unused_owners(&mut self) {
        let Self { flows, owners, .. } = self;
        let has_flows = |id: u64| flows.range(first_key(id)..).next().is_some_and(|(key, _)| key.cgroup_id == id);
        if owners.keys().all(|cgroup_id| has_flows(*cgroup_id)) {
            return;
        }
        let owners = Arc::make_mut(owners);
        owners.retain(|cgroup_id, _| has_flows(*cgroup_id));
        if owners.capacity() > 4 * owners.len() {
            owners.shrink_to(2 * owners.len());
        }
    }

    /// Ends the flows of a cgroup whose ID has another owner now; they stay with the former owner.
    pub(super) fn orphan(&mut self, cgroup_id: u64) {
        let Some(owner) = self.owners.get(&cgroup_id).cloned() else { return };
        let keys: Vec<FlowKey> = self
            .flows
            .range(first_key(cgroup_id)..)
            .map_while(|(key, _)| (key.cgroup_id == cgroup_id).then_some(*key))
            .collect();
        if keys.is_empty() {
            return;
        }
        let (flows, orphaned) = (Arc::make_mut(&mut self.flows), Arc::make_mut(&mut self.orphaned));
        for key in keys {
            if let Some(mut account) = flows.remove(&key) {
                let flow = Arc::make_mut(&mut account);
                flow.over = true;
                flow.forget_displaced();
                orphaned.push((key, Arc::clone(&owner), account));
            }
        }
    }

    /// Returns the present state, apart from an unfinished snapshot. Both share what does not change.
    pub(super) fn share(&self) -> Self {
        Self {
            epochs: self.epochs.clone(),
            snapshot: None,
            without_unclaimed: HashSet::new(),
            owners: Arc::clone(&self.owners),
            addresses: Arc::clone(&self.addresses),
            flows: Arc::clone(&self.flows),
            listeners: Arc::clone(&self.listeners),
            orphaned: Arc::clone(&self.orphaned),
            observed_times: Arc::clone(&self.observed_times),
            ..*self
        }
    }

    /// Returns the flows of the present cgroups, to be changed.
    pub(super) fn flows_mut(&mut self) -> impl Iterator<Item = (&FlowKey, &mut Account)> {
        Arc::make_mut(&mut self.flows).iter_mut().map(|(key, flow)| (key, Arc::make_mut(flow)))
    }

    /// Returns one of them.
    pub(super) fn flow_mut(&mut self, key: &FlowKey) -> Option<&mut Account> {
        Arc::make_mut(&mut self.flows).get_mut(key).map(Arc::make_mut)
    }

    /// Returns whether flows are to be dropped.
    pub(super) fn has_retirable(&self, now: SystemTime, retention: Duration) -> bool {
        let orphaned = self.orphaned.iter().map(|(_, _, flow)| flow);
        self.flows.values().chain(orphaned).any(|flow| flow.is_retirable(now, retention))
    }
}

/// Sockets of a cgroup that answer at an address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Listener {
    cgroup_id: u64,
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
}

impl Listener {
    /// Returns the listener of a server's flow.
    fn of(key: &FlowKey) -> Option<Self> {
        let FlowKey { cgroup_id, local: ip, port, protocol, .. } = *key;
        (key.role == Role::Server).then_some(Self { cgroup_id, ip, port, protocol })
    }
}

/// Notes that a listener has had a flow since a time.
pub(super) fn note_listener(listeners: &mut Arc<HashMap<Listener, SystemTime>>, key: &FlowKey, since: SystemTime) {
    let Some(listener) = Listener::of(key) else { return };
    if listeners.get(&listener).is_none_or(|known| since < *known) {
        Arc::make_mut(listeners).insert(listener, since);
    }
}

/// The least key of a cgroup in the order of keys.
pub(super) fn first_key(cgroup_id: u64) -> FlowKey {
    let lowest = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    FlowKey { cgroup_id, netns: 0, role: Role::Client, local: lowest, remote: lowest, port: 0, protocol: Protocol::Tcp }
}

/// Returns whether `new` describes the same owner as `old` in more detail, instead of another owner.
fn refines(old: &CgroupOwner, new: &CgroupOwner) -> bool {
    match (old, new) {
        (CgroupOwner::HostProcess { .. }, CgroupOwner::HostProcess { .. }) => true,
        (
            CgroupOwner::PodContainer { pod_uid: old_pod, container_id: known },
            CgroupOwner::PodContainer { pod_uid: new_pod, container_id: said },
        ) => old_pod == new_pod && (known.is_empty() || known == said),
        _ => false,
    }
}
