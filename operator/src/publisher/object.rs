//! Computes a Topology's status: its edges, bounded by number and by bytes, and sums over all of them.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use crds::{
    MAX_LABELS, MAX_REQUIREMENT_VALUES, MAX_REQUIREMENTS, OmittedEdges, PodSelector, Summary, TopologyEdge,
    TopologyStatus, Totals, WorkloadRef,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time},
    jiff::Timestamp,
};
use topology::{
    activity,
    count::{self, MAX_COUNT},
    counts::{Counts, Earlier},
    edge::{Edge, EdgeCounters, EdgeKey, Seen},
    entity::Workload,
    graph::RecordedLeg,
    plural::counted,
};

use super::{
    adjacency::Edges,
    byte_budget,
    checkpoint::{self, Omitted, ToRecord},
    edge_id::EdgeId,
    pod_records::PodRecords,
    shown_edge::{Direction, shown, to_minute},
    summary,
};
use crate::cluster::{Index, WorkloadFacts};

/// Maximum number of ServiceAccounts that an object lists.
const MAX_SERVICE_ACCOUNTS: usize = 10;

/// Reason of omitted edges: there are too many.
pub(super) const MAX_EDGES: &str = "MaxEdges";
/// Reason of omitted edges: the object would become too large.
pub(super) const MAX_BYTES: &str = "MaxBytes";
/// Reason of omitted edges: the API cannot hold their counters.
const COUNTERS_TOO_LARGE: &str = "CountersTooLarge";

/// Limits on the contents of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Edges in each direction.
    pub edges: usize,
    /// Own pods of an edge.
    pub pods: usize,
}

/// Inputs of an object beside its own edges.
#[derive(Clone, Copy)]
pub(super) struct ObjectInputs<'a> {
    pub index: &'a Index,
    /// Part of the edges' counters that agents no longer report.
    pub earlier: &'a HashMap<EdgeKey, Earlier>,
    /// Pods that checkpoints record.
    pub records: &'a PodRecords<'a>,
    pub limits: Limits,
    /// The present.
    pub now: SystemTime,
}

/// Returns the status of a workload's Topology. `silent` are the workload's nodes without a reporting agent, and `legs` records
/// of its pods' proxied connections.
pub(super) fn status(
    workload: &Workload,
    facts: &WorkloadFacts,
    edges: &Edges<'_>,
    silent: &BTreeSet<&str>,
    legs: &[RecordedLeg],
    world: &ObjectInputs<'_>,
) -> TopologyStatus {
    let workload_ref = workload_ref(workload, facts);
    let exact = ExactEdges { egress: exact(&edges.egress), ingress: exact(&edges.ingress) };
    let mut egress = ListedEdges::new(&exact.egress, Direction::Egress, world);
    let mut ingress = ListedEdges::new(&exact.ingress, Direction::Ingress, world);
    let pods = world.records.of(workload, edges);
    let to_record = ToRecord { workload, pods: &pods, legs };
    let (checkpoint, mut not_recorded) = egress.checkpoint(&ingress, world.earlier, to_record);
    let bytes = byte_budget::for_edges(&workload_ref, checkpoint.as_deref());
    let (fitting_out, fitting_in) = byte_budget::fitting(&egress.bounds(), &ingress.bounds(), bytes);
    let all_fit = egress.truncate(fitting_out) & ingress.truncate(fitting_in);
    let checkpoint = if all_fit {
        checkpoint
    } else {
        let (checkpoint, omitted) = egress.checkpoint(&ingress, world.earlier, to_record);
        not_recorded = omitted;
        checkpoint
    };
    let omitted_of = |listed_out: usize, listed_in: usize| OmittedEdges {
        egress: (edges.egress.len() - listed_out) as u64,
        ingress: (edges.ingress.len() - listed_in) as u64,
    };
    let omissions = Omissions {
        too_large: omitted_of(exact.egress.len(), exact.ingress.len()),
        all: omitted_of(egress.ranked.len(), ingress.ranked.len()),
        all_fit,
        not_recorded,
    };
    let totals = totals(&exact, edges);
    TopologyStatus {
        workload: workload_ref,
        summary: Summary {
            from: summary::from(&workload.namespace, edges.ingress.iter().map(|edge| &***edge)),
            to: summary::to(&workload.namespace, edges.egress.iter().map(|edge| &***edge)),
        },
        conditions: vec![observed(silent), truncated(&omissions, &totals, world.limits)],
        totals,
        egress: egress.into_edges(),
        ingress: ingress.into_edges(),
        omitted: omissions.all,
        checkpoint,
    }
}

/// Numbers of edges that are not listed, and why.
struct Omissions {
    all: OmittedEdges,
    /// Edges with counters that the API cannot hold.
    too_large: OmittedEdges,
    /// True if no edge was omitted to save bytes.
    all_fit: bool,
    /// Contents for which the checkpoint has no room.
    not_recorded: Omitted,
}

/// A workload's edges with counters that the API can hold.
struct ExactEdges<'a> {
    egress: Vec<&'a Edge>,
    ingress: Vec<&'a Edge>,
}

/// Returns the edges with counters that the API can hold. A counter at the maximum may stand for a greater number.
fn exact<'a>(edges: &[&'a Arc<Edge>]) -> Vec<&'a Edge> {
    edges.iter().map(|edge| &***edge).filter(|edge| edge.counters.is_exact()).collect()
}

/// The listed edges of one direction, by importance.
struct ListedEdges<'a> {
    ranked: Vec<(&'a Edge, TopologyEdge)>,
}

impl<'a> ListedEdges<'a> {
    fn new(edges: &[&'a Edge], direction: Direction, world: &ObjectInputs<'_>) -> Self {
        let Limits { edges: max_edges, pods: max_pods } = world.limits;
        let shown = |edge| (edge, shown(edge, direction, world.index, max_pods, world.now));
        let mut ranked = edges.to_vec();
        ranked.sort_by_key(|edge| {
            let counters = &edge.counters;
            let bytes = counters.bytes_sent.saturating_add(counters.bytes_received);
            // Classes, not counts: otherwise two about equally busy edges would displace each other repeatedly.
            let connections =
                activity::class(counters.opened.saturating_add(counters.failed).saturating_add(counters.pending));
            (Reverse(connections), Reverse(activity::class(bytes)), &edge.key)
        });
        ranked.truncate(max_edges);
        Self { ranked: ranked.into_iter().map(shown).collect() }
    }

    fn bounds(&self) -> Vec<usize> {
        self.ranked.iter().map(|(_, shown)| byte_budget::bound(shown)).collect()
    }

    /// Keeps the first edges. Returns whether these are all.
    fn truncate(&mut self, length: usize) -> bool {
        let is_all = length >= self.ranked.len();
        self.ranked.truncate(length);
        is_all
    }

    /// Returns the listed edges in the order of the graph: by peer.
    fn into_edges(mut self) -> Vec<TopologyEdge> {
        self.ranked.sort_by_key(|(edge, _)| &edge.key);
        self.ranked.into_iter().map(|(_, shown)| shown).collect()
    }

    /// Returns the checkpoint of these egress edges, of `ingress` and of the rest, and what does not fit. Each edge has the
    /// endpoints of its own end only.
    fn checkpoint(
        &self,
        ingress: &Self,
        earlier: &HashMap<EdgeKey, Earlier>,
        to_record: ToRecord<'_>,
    ) -> (Option<String>, Omitted) {
        let mut kept: Vec<(EdgeId, checkpoint::Entry)> = Vec::new();
        let nothing = Earlier::default();
        for (list, direction) in [(self, Direction::Egress), (ingress, Direction::Ingress)] {
            for (edge, _) in &list.ranked {
                let from_servers = own_part_of_servers(edge);
                let earlier = earlier.get(&edge.key);
                if earlier.is_none() && from_servers.opened == 0 {
                    continue;
                }
                let Earlier { counts: earlier, known_to_servers } = earlier.unwrap_or(&nothing);
                let (counters, known_to_servers) = (earlier.counters, *known_to_servers);
                let is_loop = edge.key.client == edge.key.server;
                let counts = match direction {
                    Direction::Egress if is_loop => earlier.clone(),
                    // The list of egress edges contains it as well.
                    Direction::Ingress if is_loop => continue,
                    Direction::Egress => Counts { counters, clients: earlier.clients.clone(), servers: Vec::new() },
                    Direction::Ingress => Counts { counters, clients: Vec::new(), servers: earlier.servers.clone() },
                };
                let earlier = Earlier { counts, known_to_servers };
                kept.push((EdgeId::of(&edge.key), checkpoint::Entry { earlier, from_servers }));
            }
        }
        checkpoint::encode(kept.iter().map(|(id, entry)| (*id, entry)), to_record)
    }
}

/// Returns what only servers have counted of an edge, unless that is all of it, which its `seen` says.
fn own_part_of_servers(edge: &Edge) -> EdgeCounters {
    if edge.seen == Seen::Server { EdgeCounters::default() } else { edge.from_servers }
}

fn workload_ref(workload: &Workload, facts: &WorkloadFacts) -> WorkloadRef {
    let WorkloadFacts { api_version, app, pod_selector, service_accounts, host_network } = facts.clone();
    WorkloadRef {
        api_version,
        kind: workload.kind.clone(),
        name: workload.name.clone(),
        app: app.name,
        version: app.version,
        component: app.component,
        part_of: app.part_of,
        pod_selector: pod_selector.and_then(bounded),
        service_accounts: service_accounts.into_iter().take(MAX_SERVICE_ACCOUNTS).collect(),
        host_network,
    }
}

/// Returns a selector if it is within the object's limits, and otherwise nothing: a part of it would select more pods.
fn bounded(selector: LabelSelector) -> Option<PodSelector> {
    let match_labels = selector.match_labels.unwrap_or_default();
    let match_expressions = selector.match_expressions.unwrap_or_default();
    let fits = match_labels.len() <= MAX_LABELS
        && match_expressions.len() <= MAX_REQUIREMENTS
        && match_expressions
            .iter()
            .all(|it| it.values.as_ref().is_none_or(|list| list.len() <= MAX_REQUIREMENT_VALUES));
    fits.then_some(PodSelector { match_labels, match_expressions })
}

/// Returns sums over the edges whose counters can be written, and numbers of all edges.
fn totals(exact: &ExactEdges<'_>, edges: &Edges<'_>) -> Totals {
    let mut sent = EdgeCounters::default();
    exact.egress.iter().for_each(|edge| sent.add(&edge.counters));
    let mut received = EdgeCounters::default();
    exact.ingress.iter().for_each(|edge| received.add(&edge.counters));
    let all = || exact.egress.iter().chain(&exact.ingress);
    let last_failed: Option<SystemTime> = all().filter_map(|edge| edge.times?.last_failed).max();
    Totals {
        egress: edges.egress.len() as u64,
        ingress: edges.ingress.len() as u64,
        opened: count::add(sent.opened, received.opened),
        active: count::add(sent.active, received.active),
        failed: count::add(sent.failed, received.failed),
        pending: count::add(sent.pending, received.pending),
        last_failed: last_failed.and_then(to_minute),
        bytes_sent: count::add(sent.bytes_sent, received.bytes_received),
        bytes_received: count::add(sent.bytes_received, received.bytes_sent),
        without_bytes: count::add(sent.without_bytes, received.without_bytes),
        retransmits: all()
            .any(|edge| edge.knows_retransmits)
            .then(|| count::add(sent.retransmits, received.retransmits)),
    }
}

fn observed(silent: &BTreeSet<&str>) -> Condition {
    if silent.is_empty() {
        return condition("Observed", true, "AgentsReport", "Agents report from all nodes on which the workload runs.");
    }
    let nodes: Vec<&str> = silent.iter().copied().take(3).collect();
    let more = if silent.len() > nodes.len() { ", …" } else { "" };
    let message = format!(
        "No agent reports from {} of the workload ({}{more}). For its pods there, the Topology shows only connections that their peers' agents observe. See the NodeProbes of these nodes.",
        counted(silent.len() as u64, "node"),
        nodes.join(", ")
    );
    condition("Observed", false, "NodesNotReporting", &message)
}

fn truncated(omissions: &Omissions, totals: &Totals, limits: Limits) -> Condition {
    let Omissions { all, too_large, all_fit, not_recorded } = omissions;
    let (egress, ingress) = (all.egress - too_large.egress, all.ingress - too_large.ingress);
    let mut parts = Vec::new();
    if egress > 0 || ingress > 0 {
        parts.push(format!(
            "{} and {} are not listed; the totals count them. {}",
            counted(egress, "egress edge"),
            counted(ingress, "ingress edge"),
            remedy(limits, *all_fit)
        ));
    }
    let reason = match (parts.is_empty(), all_fit) {
        (true, _) => COUNTERS_TOO_LARGE,
        (false, true) => MAX_EDGES,
        (false, false) => MAX_BYTES,
    };
    if too_large.egress > 0 || too_large.ingress > 0 {
        parts.push(format!(
            "{} and {} are not listed, nor counted in the totals: their counters exceed {MAX_COUNT}, the greatest number of the API. Check which agent reports such numbers.",
            counted(too_large.egress, "egress edge"),
            counted(too_large.ingress, "ingress edge")
        ));
    }
    if !is_exact(totals) {
        parts.push(format!("The totals exceed {MAX_COUNT}, the greatest number of the API, and stop there."));
    }
    let is_truncated = !parts.is_empty();
    if !is_truncated {
        parts.push("All edges are listed.".to_owned());
    }
    if not_recorded.pods > 0 {
        // Without a number, which would change with each pod.
        parts.push("The checkpoint has no room for all pods: after a restart of the operator, connections of pods that were deleted meanwhile may appear as those of an UnknownPod.".to_owned());
    }
    if not_recorded.legs > 0 {
        parts.push("The checkpoint has no room for all proxied connections: after a restart of the operator, some may appear on the edges to the proxy and to the server.".to_owned());
    }
    condition("Truncated", is_truncated, if is_truncated { reason } else { "Complete" }, &parts.join(" "))
}

fn remedy(limits: Limits, all_fit: bool) -> String {
    let Limits { edges, pods } = limits;
    if all_fit {
        return format!("To list more, raise spec.topology.maxEdges of the ScopeProbe (now {edges}).");
    }
    let limit = format!("An object has at most {} KiB.", byte_budget::MAX_OBJECT / 1024);
    match pods {
        0 => limit,
        pods => format!("{limit} To list more, lower spec.topology.pods of the ScopeProbe (now {pods})."),
    }
}

fn is_exact(totals: &Totals) -> bool {
    let Totals {
        egress: _,
        ingress: _,
        opened,
        active,
        failed,
        pending,
        last_failed: _,
        bytes_sent,
        bytes_received,
        without_bytes,
        retransmits,
    } = *totals;
    let all = [opened, active, failed, pending, bytes_sent, bytes_received, without_bytes];
    all.into_iter().chain(retransmits).all(|total| total < MAX_COUNT)
}

fn condition(type_: &str, is: bool, reason: &str, message: &str) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: if is { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        observed_generation: None,
    }
}
