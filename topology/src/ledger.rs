//! One continuous account of all epochs of all agents.
//!
//! An agent's counters restart with each epoch. The ledger adds up the epochs without counting anything twice: a
//! connection that was open across two epochs is one connection. If a time was unobserved, the account may fall short
//! of the truth. It never exceeds the truth and never decreases.

mod account;
mod epochs;
mod folded_rows;
mod node_account;
mod observed_times;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use self::observed_times::{ClientReport, Observed, TimesByNode};
pub(crate) use self::records::{FlowRecord, NodeRecords, NodeState};
use self::{
    account::{Account, recent_bytes::RecentBytes},
    node_account::NodeAccount,
};
use crate::{
    clock::NodeClock,
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, FlowTotals, Protocol},
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

/// Time without a change after which a flow's edge may have left the graph, so that a change may bring it back.
const QUIET: Duration = Duration::from_mins(1);

/// News of a report, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// Nothing that was not known.
    #[default]
    Nothing,
    /// Counters of edges that are known.
    Counters,
    /// Something by which edges can come or go.
    Structure,
}

impl News {
    /// Returns the news of a change that may make edges come or go.
    #[must_use]
    pub fn of_structure(has_changed: bool) -> Self {
        if has_changed { Self::Structure } else { Self::Nothing }
    }
}

/// Retirement of flows.
#[derive(Clone, Debug)]
pub struct Retirement {
    /// The ledger with them.
    pub before: Ledger,
    /// The ledger without them.
    pub after: Ledger,
    /// Their number.
    pub flows: usize,
}

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
    /// Lower bound of the time at which its sockets' owner began to answer at the local address and port, as far as flows
    /// show; of a client's flow, `first_seen`.
    pub listening_since: SystemTime,
    /// Time of the last change of its account; nothing reported happened later.
    pub changed: SystemTime,
    /// Time of its first report.
    pub reported: SystemTime,
    /// Upper bound of the time of the last failed attempt; `None` if none was reported.
    pub last_failed: Option<SystemTime>,
    /// Times at which its connections were opened and its attempts failed, oldest first. Their sum is at most `totals`;
    /// the difference is older.
    pub parts: &'a [Part],
    /// Number of attempts that were pending and are not any more, in the counters that its agent reported last.
    pub pending_ended: u64,
    /// Time of the agent's last message, as recorded by [`Ledger::record_heartbeat`].
    pub heard: Option<SystemTime>,
    /// True if its cgroup's ID has another owner now.
    pub(crate) is_orphaned: bool,
    /// Part that is left out of `totals` because the agent no longer reports it.
    pub(crate) forgotten: FlowTotals,
    recent_bytes: RecentBytes,
}

impl FlowView<'_> {
    /// Returns the flow as an operator without any state would know it.
    #[must_use]
    pub fn from_agents(self) -> Self {
        let (totals, anew) = (self.totals, self.anew);
        let forgotten = FlowTotals {
            opened: totals.opened.saturating_sub(anew.opened),
            failed: totals.failed.saturating_sub(anew.failed),
            bytes_sent: totals.bytes_sent.saturating_sub(anew.bytes_sent),
            bytes_received: totals.bytes_received.saturating_sub(anew.bytes_received),
            ..FlowTotals::default()
        };
        Self { totals: anew, forgotten, ..self }
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
        let addresses: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        let news = *account.addresses != addresses;
        if news {
            account.addresses = Arc::new(addresses);
        }
        Ok(news)
    }

    /// Returns the nodes' own addresses, as their agents reported them. Several nodes may have the same, for example that
    /// of a bridge.
    pub fn node_addresses(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.nodes.iter().flat_map(|(node, account)| account.addresses.iter().map(|ip| (node.as_str(), *ip)))
    }

    /// Returns whether an address is among those that the node's agent reported as the node's own.
    #[must_use]
    pub fn has_address(&self, node: &str, ip: IpAddr) -> bool {
        self.nodes.get(node).is_some_and(|account| account.addresses.contains(&ip))
    }

    /// Merges a flow's counters and the times of their events. Returns what is new. Repeated and reordered reports change
    /// nothing.
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
    ) -> Result<News, LateEpoch> {
        let sighting = sighting.into();
        let account = self.current(node, epoch)?;
        if let Some(snapshot) = &mut account.snapshot {
            snapshot.insert(key);
        }
        account.epochs.note_flow();
        let counted_elsewhere = account.take_from_other_rows(&key, counters);
        let mut is_new = false;
        let flow = Arc::make_mut(&mut account.flows).entry(key).or_insert_with(|| {
            is_new = true;
            Arc::new(Account::new(&sighting))
        });
        let flow = Arc::make_mut(flow);
        if is_new {
            node_account::note_listener(&mut account.listeners, &key, flow.first_seen);
        }
        flow.receive_open(&counted_elsewhere);
        let was_quiet = sighting.changed().duration_since(flow.changed).unwrap_or_default() >= QUIET;
        let had_pending = flow.has_pending();
        let has_changed = flow.apply(counters, &sighting, account.epochs.resumed());
        let is_structure = is_new || was_quiet || had_pending != flow.has_pending();
        Ok(match (is_structure, is_new || has_changed) {
            (_, false) => News::Nothing,
            (true, true) => News::Structure,
            (false, true) => News::Counters,
        })
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
        let account = self.current(node, epoch)?;
        let names = &names[..names.len().min(MAX_REMOTE_NAMES)];
        if names.is_empty() || account.flows.get(key).is_none_or(|flow| flow.remote_names == names) {
            return Ok(false);
        }
        let Some(flow) = account.flow_mut(key) else { return Ok(false) };
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
        let account = self.current(node, epoch)?;
        if nat_peers.is_empty() {
            return Ok(false);
        }
        Ok(account.flow_mut(key).is_some_and(|flow| flow.nat_peers.take_in(nat_peers)))
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
        let is_over = |(key, flow): (&FlowKey, &Arc<Account>)| (!flow.over && !named.contains(key)).then_some(*key);
        let over: Vec<FlowKey> = account.flows.iter().filter_map(is_over).collect();
        for key in over {
            changed |= account.flow_mut(&key).is_some_and(|flow| flow.end(now));
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
        for (_, flow) in account.flows_mut() {
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
        for account in self.nodes.values_mut().filter(|account| account.has_retirable(now, retention)) {
            Arc::make_mut(&mut account.flows).retain(|_, flow| keep(flow));
            Arc::make_mut(&mut account.orphaned).retain(|(_, _, flow)| keep(flow));
            account.forget_listeners();
        }
        self.nodes.retain(|_, node| !(node.gone && node.flows.is_empty() && node.orphaned.is_empty()));
        retired
    }

    /// Returns the names of the nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// Returns the present state, to be read while this one changes. Both share what does not change.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self { nodes: self.nodes.iter().map(|(node, account)| (node.clone(), account.share())).collect() }
    }

    /// Retires flows as [`Self::retire`]. Returns the states before and after; `None` if there is nothing to retire.
    pub fn take_retirable(&mut self, now: SystemTime, retention: Duration) -> Option<Retirement> {
        if !self.has_retirable(now, retention) {
            return None;
        }
        let before = self.snapshot();
        let flows = self.retire(now, retention);
        Some(Retirement { before, after: self.snapshot(), flows })
    }

    /// Merges parts of a node's flows whose times make no difference. `are_one` returns for a flow's key and two consecutive
    /// parts whether they may be merged. Totals do not change.
    pub fn condense(&mut self, node: &str, are_one: impl Fn(&FlowKey, &Part, &Part) -> bool) {
        let Some(account) = self.nodes.get_mut(node) else { return };
        let is_condensable =
            |key: &FlowKey, flow: &Account| flow.history.is_condensable(|one, next| are_one(key, one, next));
        // A flow that does not change stays the same object: nothing that follows changes looks at it.
        let keys: Vec<FlowKey> =
            account.flows.iter().filter(|(key, flow)| is_condensable(key, flow)).map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(flow) = account.flow_mut(&key) {
                flow.history.condense(|one, next| are_one(&key, one, next));
            }
        }
        if account.orphaned.iter().any(|(key, _, flow)| is_condensable(key, flow)) {
            for (key, _, flow) in Arc::make_mut(&mut account.orphaned) {
                if is_condensable(key, flow) {
                    Arc::make_mut(flow).history.condense(|one, next| are_one(key, one, next));
                }
            }
        }
    }

    /// Returns whether [`Self::retire`] would evict anything.
    ///
    /// Invariant: if not, [`Self::retire`] drops none.
    #[must_use]
    pub fn has_retirable(&self, now: SystemTime, retention: Duration) -> bool {
        self.nodes.values().any(|node| node.has_retirable(now, retention))
    }

    /// Records the time of a message from the node's agent, a heartbeat included. Does nothing for a node that has never
    /// reported. Times may come in any order; the latest one counts.
    pub fn record_heartbeat(&mut self, node: &str, now: SystemTime) {
        if let Some(account) = self.nodes.get_mut(node) {
            account.heard = account.heard.max(Some(now));
            account.forget_displaced(now);
        }
    }

    /// Records what a message shows of the node's clients, once all flows of the current epoch are known.
    ///
    /// # Errors
    /// Returns an error if the epoch was replaced by another one.
    pub fn record_clients(&mut self, node: &str, epoch: Epoch, report: &ClientReport) -> Result<(), LateEpoch> {
        let account = self.current(node, epoch)?;
        if account.complete {
            let origin = account.epochs.origin();
            Arc::make_mut(&mut account.observed_times).record(origin, report);
        }
        Ok(())
    }

    /// Returns whether the node's agent has reported all connections that clients of the node opened between two times.
    #[must_use]
    pub fn observed_clients(&self, node: &str, part: &Part, protocol: Protocol, now: SystemTime) -> Observed {
        self.nodes.get(node).map_or(Observed::Partly, |account| {
            account.observed_times.between(part.since, part.until, protocol, self.observes(node, now))
        })
    }

    /// Returns the observed times of all nodes.
    #[must_use]
    pub fn observed_times(&self) -> TimesByNode {
        let of = |account: &NodeAccount, ip: &IpAddr| (*ip, Arc::clone(&account.observed_times));
        let by_address =
            self.nodes.values().flat_map(|account| account.addresses.iter().map(move |ip| of(account, ip)));
        let by_name = self.nodes.iter().map(|(node, account)| (node.clone(), Arc::clone(&account.observed_times)));
        TimesByNode { by_name: by_name.collect(), by_address: by_address.collect() }
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
        self.records().flat_map(NodeRecords::flows).any(|flow| flow.has_history())
    }

    /// Returns the number of flows.
    #[must_use]
    pub fn flow_count(&self) -> usize {
        self.nodes.values().map(|account| account.flows.len() + account.orphaned.len()).sum()
    }

    /// Returns the number of flows of each node.
    pub fn flow_counts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.nodes.iter().map(|(node, account)| (node.as_str(), account.flows.len() + account.orphaned.len()))
    }

    /// Returns whether an agent's flow is stored.
    #[must_use]
    pub fn has_flow(&self, node: &str, key: &FlowKey) -> bool {
        self.nodes.get(node).is_some_and(|account| account.flows.contains_key(key))
    }

    /// Returns the number of cgroups of a node with a known owner.
    #[must_use]
    pub fn owner_count(&self, node: &str) -> usize {
        self.nodes.get(node).map_or(0, |account| account.owners.len())
    }

    /// Returns all flows, in an order that depends on their keys and not on the time of their reports.
    ///
    /// Invariant: each flow once.
    pub fn flows(&self) -> impl Iterator<Item = FlowView<'_>> {
        self.records().flat_map(NodeRecords::flows).map(|flow| flow.view())
    }
}

/// Returns whether an agent with this last message is silent at `now`, that is for [`PATIENCE`] or longer.
#[must_use]
pub(crate) fn is_silent(heard: Option<SystemTime>, now: SystemTime) -> bool {
    heard.is_some_and(|heard| now.duration_since(heard).unwrap_or_default() >= PATIENCE)
}
