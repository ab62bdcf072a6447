//! Computes a Topology's status: its edges, bounded, and sums over all of them.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use crds::{
    CaptureMethod, DirectionSource, EarlierCounts, EdgePod, OmittedEdges, ServiceReference, Summary, TopologyEdge,
    TopologyPeer, TopologyStatus, Totals, WorkloadRef,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use topology::{
    activity,
    count::{self, MAX_COUNT},
    counts::Counts,
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Identity, Peer},
    entity::Workload,
    plural::counted,
    rtt::RttBucket,
};

use super::{adjacency::Edges, summary};
use crate::watches::AppLabels;

/// Maximum number of pods and containers per side of an edge.
const MAX_LISTED: usize = 10;
/// Why edges are not listed: there are too many.
const MAX_EDGES: &str = "MaxEdges";
/// Name of the API server: its Service's.
const API_SERVER: &str = "kubernetes";

/// Returns the status of a workload's Topology. `earlier` is what agents no longer report of edges. `silent` are the
/// workload's nodes without a reporting agent.
pub(super) fn status(
    workload: &Workload,
    edges: &Edges<'_>,
    earlier: &HashMap<EdgeKey, Counts>,
    silent: &BTreeSet<&str>,
    max_edges: usize,
) -> TopologyStatus {
    let exact = Edges { egress: exact(&edges.egress), ingress: exact(&edges.ingress) };
    let egress = busiest(&exact.egress, max_edges);
    let ingress = busiest(&exact.ingress, max_edges);
    let beyond = |all: &Edges<'_>, listed: &Edges<'_>| OmittedEdges {
        egress: (all.egress.len() - listed.egress.len()) as u64,
        ingress: (all.ingress.len() - listed.ingress.len()) as u64,
    };
    let too_large = beyond(edges, &exact);
    let totals = totals(&exact);
    let listed = Edges { egress, ingress };
    let omitted = beyond(edges, &listed);
    let Edges { egress, ingress } = listed;
    TopologyStatus {
        workload: self::workload(workload, &AppLabels::default()),
        summary: Summary {
            to: summary::to(&workload.namespace, edges.egress.iter().copied()),
            from: summary::from(&workload.namespace, edges.ingress.iter().copied()),
        },
        totals,
        egress: egress.into_iter().map(|edge| outgoing(edge, earlier.get(&edge.key))).collect(),
        ingress: ingress.into_iter().map(|edge| incoming(edge, earlier.get(&edge.key))).collect(),
        omitted,
        conditions: vec![observed(silent), truncated(&omitted, &too_large, &totals, max_edges)],
    }
}

/// Returns the reference to the workload.
pub(super) fn workload(workload: &Workload, app: &AppLabels) -> WorkloadRef {
    let AppLabels { name, version, instance, component, part_of } = app.clone();
    let (kind, own_name) = (workload.kind.clone(), workload.name.clone());
    WorkloadRef { kind, name: own_name, app: name, version, instance, component, part_of }
}

/// The same without counters: who talks to whom. What is chosen by counters because not all fits counts as counters.
pub(super) fn structure(status: &TopologyStatus) -> TopologyStatus {
    let mut structure = status.clone();
    structure.totals = Totals::default();
    for condition in &mut structure.conditions {
        condition.message.clear();
        condition.last_transition_time = Time(Timestamp::UNIX_EPOCH);
    }
    let OmittedEdges { egress, ingress } = structure.omitted;
    let is_chosen = structure.conditions.iter().any(|condition| condition.reason == MAX_EDGES);
    for (list, omitted) in [(&mut structure.egress, egress), (&mut structure.ingress, ingress)] {
        if is_chosen && omitted > 0 {
            list.clear();
        }
        for edge in list {
            (edge.opened, edge.active, edge.failed, edge.without_bytes) = (0, 0, 0, 0);
            (edge.bytes_sent, edge.bytes_received) = (None, None);
            edge.addresses = 0;
            (edge.retransmits, edge.rtt_microseconds) = (None, None);
            edge.earlier = None;
            strip(&mut edge.pods, edge.omitted_pods);
            strip(&mut edge.peer_pods, edge.omitted_peer_pods);
        }
    }
    structure
}

fn strip(pods: &mut Vec<EdgePod>, omitted: u64) {
    if omitted > 0 {
        pods.clear();
    }
    for pod in &mut *pods {
        (pod.opened, pod.failed, pod.earlier_opened, pod.earlier_failed) = (0, 0, 0, 0);
    }
    pods.sort();
}

/// Conditions that are as they were keep the time of their last change.
pub(super) fn keep_transition_times(desired: &mut TopologyStatus, known: Option<&TopologyStatus>, now: Timestamp) {
    for condition in &mut desired.conditions {
        let same = known
            .into_iter()
            .flat_map(|status| &status.conditions)
            .find(|other| other.type_ == condition.type_ && other.status == condition.status);
        // The API keeps whole seconds.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        condition.last_transition_time = same.map_or(Time(now), |same| same.last_transition_time.clone());
    }
}

/// Those of which all counters can be written: one that has reached the greatest number may stand for more.
fn exact<'a>(edges: &[&'a Edge]) -> Vec<&'a Edge> {
    edges.iter().copied().filter(|edge| edge.counters.is_exact()).collect()
}

/// By key, as the graph has them.
fn busiest<'a>(edges: &[&'a Edge], max_edges: usize) -> Vec<&'a Edge> {
    let mut chosen = edges.to_vec();
    if chosen.len() > max_edges {
        chosen.sort_by_key(|edge| {
            let counters = &edge.counters;
            let bytes = counters.bytes_sent.saturating_add(counters.bytes_received);
            // Coarsely, or two that are about as busy would take each other's place all the time.
            let connections = activity::class(counters.opened.saturating_add(counters.failed));
            (Reverse(connections), Reverse(activity::class(bytes)), &edge.key)
        });
        chosen.truncate(max_edges);
        chosen.sort_by_key(|edge| &edge.key);
    }
    chosen
}

fn totals(edges: &Edges<'_>) -> Totals {
    let mut sent = EdgeCounters::default();
    edges.egress.iter().for_each(|edge| sent.add(&edge.counters));
    let mut received = EdgeCounters::default();
    edges.ingress.iter().for_each(|edge| received.add(&edge.counters));
    Totals {
        opened: count::add(sent.opened, received.opened),
        active: count::add(sent.active, received.active),
        failed: count::add(sent.failed, received.failed),
        bytes_sent: count::add(sent.bytes_sent, received.bytes_received),
        bytes_received: count::add(sent.bytes_received, received.bytes_sent),
        without_bytes: count::add(sent.without_bytes, received.without_bytes),
        retransmits: edges
            .egress
            .iter()
            .chain(&edges.ingress)
            .any(|edge| edge.knows_retransmits)
            .then(|| count::add(sent.retransmits, received.retransmits)),
    }
}

fn outgoing(edge: &Edge, earlier: Option<&Counts>) -> TopologyEdge {
    let side = Side {
        other: &edge.key.server,
        own: (&edge.clients, earlier.map_or(&[], |earlier| &earlier.clients)),
        others: (&edge.servers, earlier.map_or(&[], |earlier| &earlier.servers)),
        identity: edge.server_identity,
        bytes: |counters| (counters.bytes_sent, counters.bytes_received),
    };
    one_way(edge, earlier, &side)
}

fn incoming(edge: &Edge, earlier: Option<&Counts>) -> TopologyEdge {
    let side = Side {
        other: &edge.key.client,
        own: (&edge.servers, earlier.map_or(&[], |earlier| &earlier.servers)),
        others: (&edge.clients, earlier.map_or(&[], |earlier| &earlier.clients)),
        identity: edge.client_identity,
        bytes: |counters| (counters.bytes_received, counters.bytes_sent),
    };
    one_way(edge, earlier, &side)
}

/// An edge as one of its ends sees it.
struct Side<'a> {
    other: &'a Peer,
    /// With the part that agents no longer know.
    own: (&'a [Endpoint], &'a [Endpoint]),
    others: (&'a [Endpoint], &'a [Endpoint]),
    identity: Identity,
    /// Sent and received.
    bytes: fn(&EdgeCounters) -> (u64, u64),
}

fn one_way(edge: &Edge, earlier: Option<&Counts>, side: &Side<'_>) -> TopologyEdge {
    let service = edge.key.service.as_ref();
    let (own_pods, omitted_pods) = pods(side.own);
    let (peer_pods, omitted_peer_pods) = pods(side.others);
    let (bytes_sent, bytes_received) = (side.bytes)(&edge.counters);
    TopologyEdge {
        peer: peer(side.other),
        service: service
            .map(|service| ServiceReference { namespace: service.namespace.clone(), name: service.name.clone() }),
        port: edge.key.port,
        protocol: edge.key.protocol.into(),
        containers: containers(side.own.0),
        peer_containers: containers(side.others.0),
        pods: own_pods,
        peer_pods,
        omitted_pods,
        omitted_peer_pods,
        opened: edge.counters.opened,
        active: edge.counters.active,
        failed: edge.counters.failed,
        bytes_sent: known(bytes_sent, &edge.counters),
        bytes_received: known(bytes_received, &edge.counters),
        without_bytes: edge.counters.without_bytes,
        retransmits: edge.knows_retransmits.then_some(edge.counters.retransmits),
        rtt_microseconds: edge.rtt.map(RttBucket::below),
        earlier: earlier.map(|earlier| earlier_counts(&earlier.counters, side.bytes)),
        seen: edge.seen.into(),
        identity: side.identity.into(),
        methods: CaptureMethod::of(edge.methods),
        dns_names: edge.dns_names.clone(),
        addresses: edge.addresses,
        direction: direction(&edge.counters),
    }
}

/// Absent where nothing is known of any connection's payload.
fn known(bytes: u64, counters: &EdgeCounters) -> Option<u64> {
    let nothing = bytes == 0 && counters.opened > 0 && counters.without_bytes >= counters.opened;
    (!nothing).then_some(bytes)
}

/// One connection whose direction was seen is enough to know the edge's.
fn direction(counters: &EdgeCounters) -> DirectionSource {
    let all = counters.opened.saturating_add(counters.failed);
    if all > 0 && counters.inferred >= all { DirectionSource::Inferred } else { DirectionSource::Observed }
}

fn earlier_counts(counters: &EdgeCounters, bytes: fn(&EdgeCounters) -> (u64, u64)) -> EarlierCounts {
    let (bytes_sent, bytes_received) = bytes(counters);
    EarlierCounts {
        opened: counters.opened,
        failed: counters.failed,
        bytes_sent,
        bytes_received,
        without_bytes: counters.without_bytes,
        retransmits: counters.retransmits,
    }
}

fn peer(peer: &Peer) -> TopologyPeer {
    let of = |kind: &str| TopologyPeer { kind: kind.to_owned(), ..TopologyPeer::default() };
    match peer {
        Peer::Workload(workload) => TopologyPeer {
            namespace: Some(workload.namespace.clone()),
            name: Some(workload.name.clone()),
            ..of(&workload.kind)
        },
        Peer::UnknownPod { uid } => TopologyPeer { name: Some(uid.clone()), ..of("UnknownPod") },
        Peer::SomePod { ip } => TopologyPeer { ip: Some(ip.to_string()), ..of("UnknownPod") },
        Peer::Service(service) => TopologyPeer {
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            ..of("Service")
        },
        Peer::HostProcess { node, name } => {
            TopologyPeer { node: Some(node.clone()), name: Some(name.clone()), ..of("HostProcess") }
        }
        Peer::Node { node } => TopologyPeer { name: Some(node.clone()), ..of("Node") },
        Peer::External { ip } => TopologyPeer { ip: Some(ip.to_string()), ..of("External") },
        Peer::ExternalName { name } => TopologyPeer { name: Some(name.clone()), ..of("External") },
        Peer::ExternalGroup { name } => TopologyPeer { name: Some(name.clone()), ..of("ExternalGroup") },
        Peer::ApiServer => TopologyPeer { name: Some(API_SERVER.to_owned()), ..of("ApiServer") },
        Peer::OtherExternal => of("OtherExternal"),
    }
}

fn containers(endpoints: &[Endpoint]) -> Vec<String> {
    let names: BTreeSet<&String> = endpoints.iter().map(|end| &end.container).filter(|name| !name.is_empty()).collect();
    names.into_iter().take(MAX_LISTED).cloned().collect()
}

/// By name, those that are busiest where not all fit, and how many are not listed.
fn pods((endpoints, earlier): (&[Endpoint], &[Endpoint])) -> (Vec<EdgePod>, u64) {
    let earlier: HashMap<(&str, &str), &Endpoint> =
        earlier.iter().map(|end| ((end.pod.as_str(), end.container.as_str()), end)).collect();
    let mut pods: Vec<EdgePod> = endpoints
        .iter()
        .filter(|end| !end.pod.is_empty())
        .map(|end| {
            let earlier = earlier.get(&(end.pod.as_str(), end.container.as_str()));
            EdgePod {
                pod: end.pod.clone(),
                container: end.container.clone(),
                opened: end.opened,
                failed: end.failed,
                earlier_opened: earlier.map_or(0, |earlier| earlier.opened),
                earlier_failed: earlier.map_or(0, |earlier| earlier.failed),
            }
        })
        .collect();
    let omitted = pods.len().saturating_sub(MAX_LISTED) as u64;
    if omitted > 0 {
        pods.sort_by(|a, b| {
            let busy = |pod: &EdgePod| Reverse(activity::class(pod.opened.saturating_add(pod.failed)));
            (busy(a), &a.pod, &a.container).cmp(&(busy(b), &b.pod, &b.container))
        });
        pods.truncate(MAX_LISTED);
    }
    // Not by counters, which would shuffle the list with every connection.
    pods.sort_by(|a, b| (&a.pod, &a.container).cmp(&(&b.pod, &b.container)));
    (pods, omitted)
}

fn observed(silent: &BTreeSet<&str>) -> Condition {
    if silent.is_empty() {
        return condition("Observed", true, "AgentsReport", "Agents report from all nodes on which the workload runs.");
    }
    let first: Vec<&str> = silent.iter().copied().take(3).collect();
    let message = format!(
        "No agent reports from {} of the nodes on which the workload runs ({}, …): see their NodeProbes. Of its pods there, only what others see of them is shown.",
        silent.len(),
        first.join(", ")
    );
    condition("Observed", false, "NodesNotReporting", &message)
}

fn truncated(omitted: &OmittedEdges, too_large: &OmittedEdges, totals: &Totals, max_edges: usize) -> Condition {
    let (egress, ingress) = (omitted.egress - too_large.egress, omitted.ingress - too_large.ingress);
    let mut parts = Vec::new();
    if egress > 0 || ingress > 0 {
        parts.push(format!(
            "{} and {} are not listed; the totals count them. To list more, raise spec.topology.maxEdges of the ScopeProbe (now {max_edges}).",
            counted(egress, "egress edge"),
            counted(ingress, "ingress edge")
        ));
    }
    let reason = if parts.is_empty() { "CountersTooLarge" } else { MAX_EDGES };
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
    if parts.is_empty() {
        return condition("Truncated", false, "Complete", "All edges are listed.");
    }
    condition("Truncated", true, reason, &parts.join(" "))
}

fn is_exact(totals: &Totals) -> bool {
    let Totals { opened, active, failed, bytes_sent, bytes_received, without_bytes, retransmits } = *totals;
    let all = [opened, active, failed, bytes_sent, bytes_received, without_bytes];
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

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(opened: &[u64]) -> Vec<Endpoint> {
        let end = |(number, opened): (usize, &u64)| Endpoint {
            pod: format!("pod-{number:02}"),
            container: "main".to_owned(),
            opened: *opened,
            failed: 0,
        };
        opened.iter().enumerate().map(end).collect()
    }

    fn names(opened: &[u64]) -> Vec<String> {
        pods((&endpoints(opened), &[])).0.into_iter().map(|pod| pod.pod).collect()
    }

    #[test]
    fn counters_do_not_change_the_order_of_pods() {
        assert_eq!(names(&[1, 2, 3]), names(&[3, 2, 1]));
        assert_eq!(names(&[1, 2, 3]), ["pod-00", "pod-01", "pod-02"]);
    }

    #[test]
    fn the_busiest_pods_are_listed_where_not_all_fit() {
        let mut opened = [5; MAX_LISTED + 2];
        (opened[1], opened[4]) = (1, 2);
        let listed = names(&opened);
        assert_eq!(pods((&endpoints(&opened), &[])).1, 2);
        assert!(listed.is_sorted() && listed.len() == MAX_LISTED, "{listed:?}");
        assert!(!listed.contains(&"pod-01".to_owned()) && !listed.contains(&"pod-04".to_owned()), "{listed:?}");
    }
}
