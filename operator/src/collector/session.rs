//! One node's stream: its order, its place among other streams of the same node, and what it does to the ledger.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use tonic::Status;
use topology::{
    count,
    flow::{FlowCounters, FlowKey},
    ledger::{ClientReport, LateEpoch, Ledger, News},
    sighting::Sighting,
};

use super::{
    decode::{Capture, Flow, Report},
    flow_limits::{FlowLimits, LeftOutFlows},
    foreign_pods,
    inputs::CollectorInputs,
};
use crate::{
    cluster::ClusterIndex,
    metrics::Metrics,
    observation::{LeftOut, NodeObservation, Observations, ResumedEpoch, may_miss_uncounted},
    shared_ledger::SharedLedger,
};

/// Maximum number of pods, and of addresses, that the log names for one stream.
const MAX_NAMED: usize = 10;

/// Maximum number of owners of cgroups that a node has beside those of its flows: as many as one message may name.
const MAX_OWNERS_WITHOUT_FLOWS: usize = report::MAX_IDENTITIES_PER_MESSAGE;

/// All streams that are open: one per node.
#[derive(Clone)]
pub(super) struct Sessions {
    shared_ledger: SharedLedger,
    observations: Observations,
    index: ClusterIndex,
    limits: FlowLimits,
    metrics: Metrics,
    open: Arc<Mutex<HashMap<String, watch::Sender<()>>>>,
}

impl Sessions {
    pub(super) fn new(inputs: &CollectorInputs) -> Self {
        Self {
            shared_ledger: inputs.shared_ledger.clone(),
            observations: inputs.observations.clone(),
            index: inputs.index.clone(),
            limits: FlowLimits::from(&inputs.limits),
            metrics: inputs.metrics.clone(),
            open: Arc::default(),
        }
    }
}

/// An open stream. When it is dropped, the node counts as not connected, unless another stream has taken its place.
pub(super) struct Session {
    sessions: Sessions,
    node: String,
    expected: u64,
    left_out: LeftOutFlows,
    /// True from the first message of a snapshot to its last one.
    in_snapshot: bool,
    /// Names of pods on other nodes that this stream has named.
    foreign_pods: HashSet<String>,
    /// Addresses of other nodes at which this stream has flows.
    foreign_addresses: HashSet<IpAddr>,
    /// Closed when another stream takes this one's place: the sender is the one in `Sessions::open`.
    place: watch::Receiver<()>,
}

impl Session {
    /// Opens a stream by its first message, in the place of an older one of the same node.
    pub(super) fn open(sessions: Sessions, first: &Report) -> Result<Self, Status> {
        if !first.begins_snapshot {
            return Err(Status::invalid_argument("begins_snapshot: a stream's first message has to begin a snapshot"));
        }
        let (sender, place) = watch::channel(());
        let mut open = sessions.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(first.node.clone(), sender);
        sessions.shared_ledger.set_agents(open.len());
        drop(open);
        Ok(Self {
            sessions,
            node: first.node.clone(),
            expected: 1,
            left_out: LeftOutFlows::default(),
            in_snapshot: false,
            foreign_pods: HashSet::new(),
            foreign_addresses: HashSet::new(),
            place,
        })
    }

    /// Returns the time that its agent is to leave between two reports of changed counters.
    pub(super) fn counter_interval(&self) -> Duration {
        self.sessions.shared_ledger.counter_interval()
    }

    /// Done when another stream has taken this one's place.
    pub(super) async fn replaced(&mut self) {
        while self.place.changed().await.is_ok() {}
    }

    fn has_place(&self) -> bool {
        self.place.has_changed().is_ok()
    }

    /// Takes a message in, as a whole or not at all; its sequence number.
    pub(super) async fn take_in(&mut self, mut report: Report) -> Result<u64, Status> {
        self.check_order(&report)?;
        self.leave_out_foreign_pods(&mut report);
        let foreign = self.foreign_addresses(&report);
        // Before waiting for the ledger: ages are relative to the message.
        let now = SystemTime::now();
        let shared_ledger = self.sessions.shared_ledger.clone();
        let mut ledger = shared_ledger.ledger().lock().await;
        if !self.has_place() {
            return Err(Status::aborted("another stream of the same node has taken this one's place"));
        }
        let first = self.expected == 1;
        self.in_snapshot |= report.begins_snapshot;
        let mut room = Room {
            limits: self.sessions.limits,
            foreign,
            left_out: &mut self.left_out,
            in_snapshot: self.in_snapshot,
            allowance: None,
            refused: Vec::new(),
        };
        let (news, sent) = apply(&mut ledger, &report, first, now, &mut room)
            .map_err(|late| Status::failed_precondition(format!("epoch: {late}")))?;
        drop(ledger);
        let refused = room.refused;
        self.name_foreign_addresses(&refused);
        self.in_snapshot &= !report.ends_snapshot;
        self.expected += 1;
        let left_out = self.left_out.sum();
        self.sessions.observations.update(&self.node, |node| observe(node, &report, sent, now, &left_out));
        shared_ledger.mark(news);
        Ok(report.sequence)
    }

    /// Leaves out identities of pods on other nodes, and names these pods once per stream.
    fn leave_out_foreign_pods(&mut self, report: &mut Report) {
        if report.identities.is_empty() {
            return;
        }
        let index = self.sessions.index.read();
        let left_out = foreign_pods::leave_out(index.directory(), &self.node, &mut report.identities);
        for pod in left_out {
            self.sessions.metrics.foreign_pods.inc();
            if self.foreign_pods.len() < MAX_NAMED && self.foreign_pods.insert(pod.clone()) {
                tracing::warn!(
                    node = self.node,
                    pod,
                    "left out what an agent reports of a pod that is not on its node"
                );
            }
        }
    }

    /// Returns the addresses in a report's flows, as their own end, that are other nodes'.
    fn foreign_addresses(&self, report: &Report) -> HashSet<IpAddr> {
        let own: HashSet<IpAddr> = report.flows.iter().map(|flow| flow.key.local).collect();
        let index = self.sessions.index.read();
        own.into_iter().filter(|ip| index.directory().is_another_nodes(&self.node, *ip)).collect()
    }

    /// Names addresses of other nodes once per stream.
    fn name_foreign_addresses(&mut self, refused: &[IpAddr]) {
        for address in refused {
            self.sessions.metrics.foreign_flows.inc();
            if self.foreign_addresses.len() < MAX_NAMED && self.foreign_addresses.insert(*address) {
                tracing::warn!(node = self.node, %address, "left out flows at an address of another Node");
            }
        }
    }

    fn check_order(&self, report: &Report) -> Result<(), Status> {
        if report.node != self.node {
            return Err(Status::invalid_argument(format!(
                "node: {:?} on a stream of {:?}; open a stream per node",
                report.node, self.node
            )));
        }
        if report.sequence != self.expected {
            return Err(Status::invalid_argument(format!(
                "sequence: {} where {} was due; open a new stream with a snapshot",
                report.sequence, self.expected
            )));
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut open = self.sessions.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_place() {
            open.remove(&self.node);
            self.sessions.shared_ledger.set_agents(open.len());
            self.sessions.observations.update(&self.node, NodeObservation::disconnect);
        }
    }
}

/// Room for the flows of one message.
struct Room<'a> {
    limits: FlowLimits,
    /// Addresses of other nodes: no flow of this node is there.
    foreign: HashSet<IpAddr>,
    left_out: &'a mut LeftOutFlows,
    in_snapshot: bool,
    /// Number of flows that may be added; `None` before the first new one.
    allowance: Option<usize>,
    /// Addresses of flows that were left out because of them.
    refused: Vec<IpAddr>,
}

impl Room<'_> {
    /// Returns whether a flow is stored. Counts it if not.
    fn admits(&mut self, ledger: &Ledger, node: &str, key: &FlowKey, counters: &FlowCounters) -> bool {
        if self.left_out.contains(key) {
            self.left_out.add(key, counters, self.in_snapshot);
            return false;
        }
        if ledger.has_flow(node, key) {
            return true;
        }
        if self.foreign.contains(&key.local) {
            self.refused.push(key.local);
            self.left_out.add(key, counters, self.in_snapshot);
            return false;
        }
        let limits = self.limits;
        let allowance = self.allowance.get_or_insert_with(|| {
            let (mut own, mut others) = (0, Vec::new());
            for (other, flows) in ledger.flow_counts() {
                if other == node { own = flows } else { others.push(flows) }
            }
            limits.allowance(own, others.into_iter())
        });
        if *allowance > 0 {
            *allowance -= 1;
            return true;
        }
        self.left_out.add_without_room(key, counters, self.in_snapshot);
        false
    }
}

/// Returns what is new, and when the report was sent by the operator's clock.
fn apply(
    ledger: &mut Ledger,
    report: &Report,
    first: bool,
    now: SystemTime,
    room: &mut Room<'_>,
) -> Result<(News, SystemTime), LateEpoch> {
    let (node, epoch) = (report.node.as_str(), report.epoch);
    ledger.resume(node, epoch, report.origin)?;
    ledger.record_heartbeat(node, now);
    if first {
        ledger.begin_stream(node);
    }
    if report.begins_snapshot {
        ledger.begin_snapshot(node, epoch)?;
    }
    let mut news = News::of_structure(ledger.set_node_addresses(node, epoch, &report.node_addresses)?);
    let max_owners = max_owners(ledger, report);
    for (cgroup_id, owner) in &report.identities {
        if ledger.owner_count(node) >= max_owners {
            break;
        }
        news = news.max(News::of_structure(ledger.identify(node, epoch, *cgroup_id, owner.clone())?));
    }
    let sent = report.sent.map_or(now, |sent| ledger.observe_clock(node, sent, now));
    for Flow { key, counters, ages, remote_names, nat_peers } in &report.flows {
        if !room.admits(ledger, node, key, counters) {
            continue;
        }
        news = news.max(ledger.apply(node, epoch, *key, counters, Sighting::new(ages, sent, now))?);
        let has_names = ledger.set_remote_names(node, epoch, key, remote_names)?;
        let has_peers = ledger.record_nat_peers(node, epoch, key, nat_peers)?;
        news = news.max(News::of_structure(has_names || has_peers));
    }
    if report.ends_snapshot {
        news = news.max(News::of_structure(ledger.end_snapshot(node, epoch, now)?));
    }
    ledger.record_clients(node, epoch, &client_report(&report.capture, sent))?;
    Ok((news, sent))
}

/// Returns the maximum number of owners of cgroups of a node. An agent names cgroups of flows only, and each stream forgets those
/// without one.
fn max_owners(ledger: &Ledger, report: &Report) -> usize {
    if ledger.owner_count(&report.node) + report.identities.len() <= MAX_OWNERS_WITHOUT_FLOWS {
        return MAX_OWNERS_WITHOUT_FLOWS;
    }
    let flows = ledger.flow_counts().find(|(node, _)| *node == report.node).map_or(0, |(_, flows)| flows);
    flows.saturating_add(report.flows.len()).saturating_add(MAX_OWNERS_WITHOUT_FLOWS)
}

/// Returns what a message, made at `made` by the operator's clock, shows of its node's clients.
fn client_report(capture: &Capture, made: SystemTime) -> ClientReport {
    let ago = |age: Duration| made.checked_sub(age).unwrap_or(UNIX_EPOCH);
    ClientReport {
        attached: ago(capture.attached_age),
        complete_until: capture.complete_age.map(ago),
        made,
        lost: count::add(capture.losses.opened, capture.losses.missed_runs),
        is_exact: capture.mode == crds::Mode::Ebpf && !may_miss_uncounted(capture.mode, &capture.attach),
        observes_udp: capture.observes_udp,
    }
}

fn observe(node: &mut NodeObservation, report: &Report, sent: SystemTime, now: SystemTime, left_out: &LeftOut) {
    let Capture {
        mode, reason, message, attach, kernel, attached_age, losses, seen, folding, asks_for_fallback, ..
    } = report.capture.clone();
    let is_same = node.origin == report.origin.0;
    let earlier = node.left_out.with_restored(&node.losses, &losses);
    let left_out = if is_same { earlier.and_later(left_out) } else { left_out.clone() };
    let (seen, losses) = left_out.declared(seen, losses);
    if report.origin == report.epoch {
        node.begin_epoch(&report.epoch.0);
    } else {
        node.resume_epoch(&ResumedEpoch {
            epoch: &report.epoch.0,
            origin: &report.origin.0,
            seen,
            losses,
            now_unix_ms: unix_ms(now),
        });
    }
    node.connected = true;
    node.last_report_unix_ms = unix_ms(now);
    node.mode = Some(mode);
    node.reason = reason;
    node.message = message;
    node.attach = attach;
    node.kernel = kernel;
    node.losses = losses;
    node.seen = seen;
    node.left_out = left_out;
    node.folding = folding;
    node.ask_for_fallback(asks_for_fallback, node.last_report_unix_ms);
    if node.has_capture() {
        let attached = sent.checked_sub(attached_age).unwrap_or(UNIX_EPOCH);
        node.note_capture(unix_ms(attached), unix_ms(sent));
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
