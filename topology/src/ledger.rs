//! One continuous account of all epochs of all agents.
//!
//! An agent's counters restart with each epoch. The ledger adds up the epochs without counting anything twice: a
//! connection that was open across two epochs is one connection. If a time was unobserved, the account may fall short
//! of the truth. It never exceeds the truth and never decreases.

mod account;
mod epochs;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::{
    account::{Account, recent_bytes::RecentBytes},
    epochs::Epochs,
};
use crate::{
    clock::NodeClock,
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, FlowTotals},
    history::Part,
    nat_peer::{NatPeer, NatPeers},
    sighting::Sighting,
};

/// Names one run of an agent's capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub [u8; 16]);

/// Maximum number of names of a flow's remote address.
pub const MAX_REMOTE_NAMES: usize = 4;

/// Time after which a silent agent counts as not reporting: several times the agents' longest pause.
const PATIENCE: Duration = Duration::from_mins(1);

/// Time for which the ledger keeps the accounts of a replaced epoch, so that nothing is missing if its agent continues
/// under a new epoch. An agent that still runs does so within seconds.
pub const RESUMABLE: Duration = Duration::from_mins(2);

/// Error of a message whose epoch was replaced by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this epoch of the node has ended: a later one has reported since; report under that or draw a new one")]
pub struct LateEpoch;

/// A flow and its account. All times are the operator's; `first_seen <= changed`.
#[derive(Clone, Copy, Debug)]
pub struct FlowView<'a> {
    /// The node whose agent reports it.
    pub node: &'a str,
    /// Owner of the sockets; `None` if the agent has not reported it.
    pub owner: Option<&'a CgroupOwner>,
    /// Key of the flow.
    pub key: &'a FlowKey,
    /// DNS names that led the client to the remote address, as observed by the agent: at most [`MAX_REMOTE_NAMES`].
    pub remote_names: &'a [String],
    /// NAT peers of its connections, as far as conntrack reported them.
    pub nat_peers: &'a NatPeers,
    /// Its account.
    pub totals: FlowTotals,
    /// Part that the agent would report to an operator without any state.
    pub anew: FlowTotals,
    /// Lower bound of the time of its first event.
    pub first_seen: SystemTime,
    /// Time of the last change of its account; nothing reported happened later.
    pub changed: SystemTime,
    /// Time of its first report.
    pub reported: SystemTime,
    /// Upper bound of the time of the last failed attempt; `None` if none was reported.
    pub last_failed: Option<SystemTime>,
    /// Times at which its connections were opened and its attempts failed, oldest first. Their sum is at most `totals`;
    /// the difference is older.
    pub parts: &'a [Part],
    /// Time of the agent's last message, as recorded by [`Ledger::record_heartbeat`].
    pub heard: Option<SystemTime>,
    recent_bytes: RecentBytes,
}

impl FlowView<'_> {
    /// Returns the flow as an operator without any state would know it.
    #[must_use]
    pub fn from_agents(self) -> Self {
        Self { totals: self.anew, ..self }
    }

    /// Returns a lower bound of the payload, sent and received, that was observed up to `time`.
    #[must_use]
    pub fn bytes_at(&self, time: SystemTime) -> [u64; 2] {
        let FlowTotals { bytes_sent, bytes_received, .. } = self.totals;
        if self.changed <= time {
            return [bytes_sent, bytes_received];
        }
        let [sent, received] = self.recent_bytes.at(time);
        [sent.min(bytes_sent), received.min(bytes_received)]
    }
}

/// Account of all flows of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    nodes: BTreeMap<String, NodeAccount>,
}

#[derive(Clone, Debug)]
struct NodeAccount {
    epochs: Epochs,
    /// Flows that the current snapshot contained so far.
    snapshot: Option<HashSet<FlowKey>>,
    owners: HashMap<u64, Arc<CgroupOwner>>,
    /// The node's own addresses, as its agent reported them.
    addresses: BTreeSet<IpAddr>,
    flows: BTreeMap<FlowKey, Account>,
    /// Flows of cgroups whose ID has another owner now (after a reboot, for example).
    orphaned: Vec<(FlowKey, Arc<CgroupOwner>, Account)>,
    /// True if the Node object was deleted.
    gone: bool,
    /// True if a snapshot of the current epoch was completed.
    complete: bool,
    /// True if accounts of a replaced epoch are kept.
    keeps_displaced: bool,
    /// Time at which that was first noted.
    displaced_at: Option<SystemTime>,
    /// Time of the agent's last message, as far as recorded.
    heard: Option<SystemTime>,
    clock: NodeClock,
}

impl NodeAccount {
    fn new(epoch: Epoch, origin: Epoch) -> Self {
        Self {
            epochs: Epochs::new(epoch, origin),
            snapshot: None,
            owners: HashMap::new(),
            addresses: BTreeSet::new(),
            flows: BTreeMap::new(),
            orphaned: Vec::new(),
            gone: false,
            complete: false,
            keeps_displaced: false,
            displaced_at: None,
            heard: None,
            clock: NodeClock::default(),
        }
    }

    fn view<'a>(
        &self,
        node: &'a str,
        owner: Option<&'a Arc<CgroupOwner>>,
        key: &'a FlowKey,
        flow: &'a Account,
        anew: FlowTotals,
    ) -> FlowView<'a> {
        FlowView {
            node,
            owner: owner.map(Arc::as_ref),
            key,
            remote_names: &flow.remote_names,
            nat_peers: &flow.nat_peers,
            totals: flow.totals(),
            anew,
            first_seen: flow.first_seen,
            changed: flow.changed,
            reported: flow.reported_at,
            last_failed: flow.last_failed,
            parts: flow.history.parts(),
            heard: self.heard,
            recent_bytes: flow.recent_bytes,
        }
    }

    fn enter(&mut self, epoch: Epoch, origin: Epoch) -> Result<(), LateEpoch> {
        if self.epochs.is_current(epoch) {
            self.gone = false;
            return Ok(());
        }
        let before = self.epochs.origin();
        self.epochs.enter(epoch, origin)?;
        self.snapshot = None;
        self.gone = false;
        self.complete = false;
        if origin != before {
            self.flows.values_mut().for_each(|flow| flow.displace(before));
            (self.keeps_displaced, self.displaced_at) = (true, None);
        }
        Ok(())
    }

    /// Drops the kept accounts of an epoch that was not resumed in time.
    fn forget_displaced(&mut self, now: SystemTime) {
        let since = *self.displaced_at.get_or_insert(now);
        if self.keeps_displaced && now.duration_since(since).unwrap_or_default() >= RESUMABLE {
            self.flows.values_mut().for_each(Account::forget_displaced);
            self.keeps_displaced = false;
        }
    }

    fn identify(&mut self, cgroup_id: u64, owner: CgroupOwner) -> bool {
        let Some(known) = self.owners.get(&cgroup_id) else {
            self.owners.insert(cgroup_id, Arc::new(owner));
            return true;
        };
        if **known == owner {
            return false;
        }
        if !refines(known, &owner) {
            self.orphan(cgroup_id);
        }
        self.owners.insert(cgroup_id, Arc::new(owner));
        true
    }

    /// Drops the owners of cgroups without flows.
    fn forget_unused_owners(&mut self) {
        let Self { flows, owners, .. } = self;
        let has_flows = |id: u64| flows.range(first_key(id)..).next().is_some_and(|(key, _)| key.cgroup_id == id);
        owners.retain(|cgroup_id, _| has_flows(*cgroup_id));
        if owners.capacity() > 4 * owners.len() {
            owners.shrink_to(2 * owners.len());
        }
    }

    /// Ends the flows of a cgroup whose ID has another owner now; they stay with the former owner.
    fn orphan(&mut self, cgroup_id: u64) {
        let Some(owner) = self.owners.get(&cgroup_id).cloned() else { return };
        let keys: Vec<FlowKey> = self
            .flows
            .range(first_key(cgroup_id)..)
            .map_while(|(key, _)| (key.cgroup_id == cgroup_id).then_some(*key))
            .collect();
        for key in keys {
            if let Some(mut account) = self.flows.remove(&key) {
                account.over = true;
                account.forget_displaced();
                self.orphaned.push((key, Arc::clone(&owner), account));
            }
        }
    }
}

/// The least key of a cgroup in the order of keys.
fn first_key(cgroup_id: u64) -> FlowKey {
    let lowest = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    FlowKey {
        cgroup_id,
        netns: 0,
        role: crate::flow::Role::Client,
        local: lowest,
        remote: lowest,
        port: 0,
        protocol: crate::flow::Protocol::Tcp,
    }
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

impl Ledger {
    /// Returns an empty ledger.
    ///
    /// Invariant: it has no flows and no nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `epoch` the node's current one, if it is new.
    ///
    /// Invariant: no total decreases; an epoch that has ended stays ended.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn enter(&mut self, node: &str, epoch: Epoch) -> Result<(), LateEpoch> {
        self.resume(node, epoch, epoch)
    }

    /// Makes `epoch` the node's current one, if it is new. Its counters continue those of the epochs of the same `origin`,
    /// the epoch in which they began, for any number of other epochs in between.
    ///
    /// Invariant: no total decreases; an epoch that has ended stays ended.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn resume(&mut self, node: &str, epoch: Epoch, origin: Epoch) -> Result<(), LateEpoch> {
        self.node(node, epoch, origin).map(|_| ())
    }

    fn current(&mut self, node: &str, epoch: Epoch) -> Result<&mut NodeAccount, LateEpoch> {
        self.node(node, epoch, epoch)
    }

    fn node(&mut self, node: &str, epoch: Epoch, origin: Epoch) -> Result<&mut NodeAccount, LateEpoch> {
        let account = self.nodes.entry(node.to_owned()).or_insert_with(|| NodeAccount::new(epoch, origin));
        account.enter(epoch, origin)?;
        Ok(account)
    }

    /// Begins a new stream of the node's agent. The agent sends the identities of all cgroups again, so those without
    /// flows are dropped.
    ///
    /// Invariant: no flow changes.
    pub fn begin_stream(&mut self, node: &str) {
        let Some(account) = self.nodes.get_mut(node) else { return };
        account.forget_unused_owners();
        account.snapshot = None;
    }

    /// Records the owner of a cgroup's sockets. Returns whether it changed.
    ///
    /// Invariant: a cgroup's flows stay with their owner when another cgroup gets its ID.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn identify(
        &mut self,
        node: &str,
        epoch: Epoch,
        cgroup_id: u64,
        owner: CgroupOwner,
    ) -> Result<bool, LateEpoch> {
        Ok(self.current(node, epoch)?.identify(cgroup_id, owner))
    }

    /// Records the node's own addresses. Returns whether they changed.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn set_node_addresses(&mut self, node: &str, epoch: Epoch, addresses: &[IpAddr]) -> Result<bool, LateEpoch> {
        let account = self.current(node, epoch)?;
        let addresses = addresses.iter().copied().collect();
        let news = account.addresses != addresses;
        account.addresses = addresses;
        Ok(news)
    }

    /// Returns the nodes' own addresses, as their agents reported them. Several nodes may have the same, for example that
    /// of a bridge.
    pub fn node_addresses(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.nodes.iter().flat_map(|(node, account)| account.addresses.iter().map(|ip| (node.as_str(), *ip)))
    }

    /// Merges a flow's counters and the times of their events. Returns whether its account changed. Repeated and
    /// reordered reports change nothing.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn apply(
        &mut self,
        node: &str,
        epoch: Epoch,
        key: FlowKey,
        counters: &FlowCounters,
        sighting: impl Into<Sighting>,
    ) -> Result<bool, LateEpoch> {
        let sighting = sighting.into();
        let account = self.current(node, epoch)?;
        if let Some(snapshot) = &mut account.snapshot {
            snapshot.insert(key);
        }
        account.epochs.note_flow();
        let mut is_new = false;
        let flow = account.flows.entry(key).or_insert_with(|| {
            is_new = true;
            Account::new(&sighting)
        });
        Ok(flow.apply(counters, &sighting, account.epochs.resumed()) || is_new)
    }

    /// Records the DNS names that led a flow's client to its remote address. Returns whether they changed.
    ///
    /// An empty list keeps the names of an earlier epoch. Of more than [`MAX_REMOTE_NAMES`], the first ones are stored.
    /// Does nothing for a flow that was never reported.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn set_remote_names(
        &mut self,
        node: &str,
        epoch: Epoch,
        key: &FlowKey,
        names: &[String],
    ) -> Result<bool, LateEpoch> {
        let Some(flow) = self.current(node, epoch)?.flows.get_mut(key) else { return Ok(false) };
        let names = &names[..names.len().min(MAX_REMOTE_NAMES)];
        if names.is_empty() || flow.remote_names == names {
            return Ok(false);
        }
        flow.remote_names = names.to_vec();
        Ok(true)
    }

    /// Records the flow's NAT peers and their connection counts, since its run began. Returns whether anything changed.
    ///
    /// Counts only grow, so a report can be repeated or late. Does nothing for a flow that was never reported.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn record_nat_peers(
        &mut self,
        node: &str,
        epoch: Epoch,
        key: &FlowKey,
        nat_peers: &[(NatPeer, u64)],
    ) -> Result<bool, LateEpoch> {
        let Some(flow) = self.current(node, epoch)?.flows.get_mut(key) else { return Ok(false) };
        Ok(flow.nat_peers.take_in(nat_peers))
    }

    /// Begins a snapshot: all flows of the node are reported until [`Self::end_snapshot`]. An unfinished snapshot is
    /// discarded.
    ///
    /// Invariant: no flow changes.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn begin_snapshot(&mut self, node: &str, epoch: Epoch) -> Result<(), LateEpoch> {
        self.current(node, epoch)?.snapshot = Some(HashSet::new());
        Ok(())
    }

    /// Ends flows that the snapshot did not contain: no connection is open, totals stay. Returns whether any flow ended.
    /// Does nothing without a snapshot. The agent sends the identities of cgroups without flows in it again when they have
    /// flows, so those are dropped once their flows are.
    ///
    /// Invariant: the snapshot contains all flows of the current epoch that then have open connections.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn end_snapshot(&mut self, node: &str, epoch: Epoch, now: SystemTime) -> Result<bool, LateEpoch> {
        let account = self.current(node, epoch)?;
        let Some(named) = account.snapshot.take() else { return Ok(false) };
        account.complete = true;
        let mut changed = false;
        for (key, flow) in &mut account.flows {
            if !flow.over && !named.contains(key) {
                changed |= flow.end(now);
            }
        }
        account.forget_unused_owners();
        Ok(changed)
    }

    /// Ends all flows of a deleted node. Returns whether any was active.
    ///
    /// Invariant: none of its connections is open afterwards; no other count changes.
    pub fn remove_node(&mut self, node: &str, now: SystemTime) -> bool {
        let Some(account) = self.nodes.get_mut(node) else { return false };
        account.gone = true;
        let mut changed = false;
        for flow in account.flows.values_mut() {
            changed |= flow.end(now);
            flow.forget_displaced();
        }
        changed
    }

    /// Drops flows that are over and have not changed for `retention`, and deleted nodes. Returns the number of dropped
    /// flows. Keeps a flow that its agent still has, because its counters continue.
    ///
    /// Invariant: the remaining flows do not change.
    pub fn retire(&mut self, now: SystemTime, retention: Duration) -> usize {
        let mut retired = 0;
        let mut keep = |flow: &Account| {
            let stays = !flow.is_retirable(now, retention);
            retired += usize::from(!stays);
            stays
        };
        for account in self.nodes.values_mut() {
            account.flows.retain(|_, flow| keep(flow));
            account.orphaned.retain(|(_, _, flow)| keep(flow));
        }
        self.nodes.retain(|_, node| !(node.gone && node.flows.is_empty() && node.orphaned.is_empty()));
        retired
    }

    /// Merges parts of flows whose times make no difference. `are_one` returns for a flow's key and two consecutive
    /// parts whether they may be merged. Totals do not change.
    pub fn condense(&mut self, are_one: impl Fn(&FlowKey, &Part, &Part) -> bool) {
        for account in self.nodes.values_mut() {
            let current = account.flows.iter_mut();
            let orphaned = account.orphaned.iter_mut().map(|(key, _, flow)| (&*key, flow));
            for (key, flow) in current.chain(orphaned) {
                flow.history.condense(|one, next| are_one(key, one, next));
            }
        }
    }

    /// Returns whether [`Self::retire`] would evict anything.
    ///
    /// Invariant: if not, [`Self::retire`] drops none.
    #[must_use]
    pub fn has_retirable(&self, now: SystemTime, retention: Duration) -> bool {
        let due = |flow: &Account| flow.is_retirable(now, retention);
        self.nodes
            .values()
            .any(|node| node.flows.values().any(due) || node.orphaned.iter().any(|(_, _, flow)| due(flow)))
    }

    /// Records the time of a message from the node's agent, a heartbeat included. Does nothing for a node that has never
    /// reported. Times may come in any order; the latest one counts.
    pub fn record_heartbeat(&mut self, node: &str, now: SystemTime) {
        if let Some(account) = self.nodes.get_mut(node) {
            account.heard = account.heard.max(Some(now));
            account.forget_displaced(now);
        }
    }

    /// Returns the time of the last message from the node's agent, as noted with [`Self::record_heartbeat`].
    #[must_use]
    pub fn heard(&self, node: &str) -> Option<SystemTime> {
        self.nodes.get(node).and_then(|account| account.heard)
    }

    /// Records that a message was sent at `sent` by the node's clock and received at `received` by the operator's.
    /// Returns its sending time by the operator's clock, at most `received`. For a node that has never reported, returns
    /// `received`.
    pub fn observe_clock(&mut self, node: &str, sent: SystemTime, received: SystemTime) -> SystemTime {
        self.nodes.get_mut(node).map_or(received, |account| account.clock.observe(sent, received))
    }

    /// Returns the clock estimates of all nodes, each node once.
    ///
    /// Invariant: a node that has reported is among them until it is deleted.
    pub fn clocks(&self) -> impl Iterator<Item = (&str, &NodeClock)> {
        self.nodes.iter().map(|(node, account)| (node.as_str(), &account.clock))
    }

    /// Returns the time at which the next node that is observed at `now` becomes silent without further messages.
    ///
    /// Invariant: it is later than `now`.
    #[must_use]
    pub fn next_silence(&self, now: SystemTime) -> Option<SystemTime> {
        let heard = self.nodes.values().filter(|account| !account.gone).filter_map(|account| account.heard);
        heard.map(|heard| heard + PATIENCE).filter(|silent| *silent > now).min()
    }

    /// Returns whether an agent of this node reports: the node is not removed, and not silent at `now` if it ever
    /// reported. The join does not wait for other nodes.
    #[must_use]
    pub fn observes(&self, node: &str, now: SystemTime) -> bool {
        self.nodes.get(node).is_some_and(|account| !account.gone && !is_silent(account.heard, now))
    }

    /// Returns whether all flows of the node's current epoch are known, because a snapshot was completed.
    #[must_use]
    pub fn is_complete(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|account| account.complete && !account.gone)
    }

    /// Returns whether flows exist that agents no longer report.
    #[must_use]
    pub fn has_history(&self) -> bool {
        self.flows().any(|flow| flow.anew != flow.totals)
    }

    /// Returns all flows, in an order that depends on their keys and not on the time of their reports.
    ///
    /// Invariant: each flow once.
    pub fn flows(&self) -> impl Iterator<Item = FlowView<'_>> {
        self.nodes.iter().flat_map(|(node, account)| {
            // The agent of a node that returns reports all of it again.
            let anew = |flow: &Account| if account.gone { flow.totals() } else { flow.anew() };
            let current = account.flows.iter().map(move |(key, flow)| {
                let owner = account.owners.get(&key.cgroup_id);
                account.view(node, owner, key, flow, anew(flow))
            });
            let orphaned = account
                .orphaned
                .iter()
                .map(move |(key, owner, flow)| account.view(node, Some(owner), key, flow, FlowTotals::default()));
            current.chain(orphaned)
        })
    }
}

/// Returns whether an agent with this last message is silent at `now`, that is for [`PATIENCE`] or longer.
#[must_use]
pub(crate) fn is_silent(heard: Option<SystemTime>, now: SystemTime) -> bool {
    heard.is_some_and(|heard| now.duration_since(heard).unwrap_or_default() >= PATIENCE)
}
