//! The graph against simulated clusters of which everything is known: who really talked to whom, how often, by what way.

mod cluster;

use std::collections::BTreeMap;

use cluster::{Seen, cluster};
use proptest::prelude::*;
use scopeprobe_topology::{
    edge::{EdgeCounters, EdgeKey},
    graph::Graph,
};

fn counters(graph: &Graph) -> BTreeMap<EdgeKey, EdgeCounters> {
    graph.edges.iter().map(|edge| (edge.key.clone(), edge.counters)).collect()
}

/// Removes bytes: behind a Service with several workloads, their division is known per connection, not per byte.
fn without_bytes(edges: BTreeMap<EdgeKey, EdgeCounters>) -> BTreeMap<EdgeKey, EdgeCounters> {
    let strip = |counters: EdgeCounters| EdgeCounters { bytes_sent: 0, bytes_received: 0, active: 0, ..counters };
    without_retransmits(edges).into_iter().map(|(key, counters)| (key, strip(counters))).collect()
}

/// Removes retransmissions: a server's cannot be assigned to the paths of the same client.
fn without_retransmits(edges: BTreeMap<EdgeKey, EdgeCounters>) -> BTreeMap<EdgeKey, EdgeCounters> {
    edges.into_iter().map(|(key, counters)| (key, EdgeCounters { retransmits: 0, ..counters })).collect()
}

/// Returns the retransmissions between each client and server, by any path.
fn retransmits_between(edges: BTreeMap<EdgeKey, EdgeCounters>) -> BTreeMap<EdgeKey, u64> {
    let mut between = BTreeMap::new();
    for (key, counters) in edges {
        *between.entry(EdgeKey { service: None, ..key }).or_default() += counters.retransmits;
    }
    between
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    /// Every edge is there with its exact count, and none that did not happen; whether agents see all nodes or some.
    #[test]
    fn every_edge_and_no_other(cluster in cluster()) {
        let graph = cluster.graph(cluster.seed);
        prop_assert_eq!(without_bytes(counters(&graph)), without_bytes(cluster.truth()));
        prop_assert_eq!(graph.unsettled, 0);
    }

    /// Bytes and open connections are exact as well if a Service leads to one workload.
    #[test]
    fn bytes_are_exact_without_a_choice(cluster in cluster()) {
        let mut cluster = cluster;
        cluster.split_services = false;
        let (shown, truth) = (counters(&cluster.graph(cluster.seed)), cluster.truth());
        prop_assert_eq!(without_retransmits(shown), without_retransmits(truth));
    }

    /// Edges have the retransmissions of both ends, or of the observed end.
    #[test]
    fn retransmits_of_both_ends_are_added_up(cluster in cluster()) {
        let mut cluster = cluster;
        let graph = cluster.graph(cluster.seed);
        let (shown, truth) = (counters(&graph), cluster.truth());
        let sum = |edges: &BTreeMap<_, EdgeCounters>| edges.values().map(|edge| edge.retransmits).sum::<u64>();
        prop_assert_eq!(sum(&shown), sum(&truth));
        prop_assert!(graph.edges.iter().all(|edge| edge.knows_retransmits));
        cluster.split_services = false;
        let (shown, truth) = (counters(&cluster.graph(cluster.seed)), cluster.truth());
        prop_assert_eq!(retransmits_between(shown), retransmits_between(truth));
    }

    /// Servers may know bytes that a client's agent does not report. No bytes are guessed if both a Service and the
    /// direct path lead to a server, which share both addresses.
    #[test]
    fn bytes_that_are_not_known_are_not_guessed(cluster in cluster()) {
        let mut cluster = cluster;
        (cluster.split_services, cluster.half_known) = (false, true);
        let (shown, truth) = (counters(&cluster.graph(cluster.seed)), cluster.truth());
        prop_assert!(shown.keys().eq(truth.keys()));
        for (key, shown) in shown {
            let truth = truth[&key];
            let but_bytes = |it: EdgeCounters| (it.opened, it.active, it.failed, it.inferred);
            prop_assert_eq!(but_bytes(shown), but_bytes(truth));
            prop_assert!(shown.bytes_sent <= truth.bytes_sent && 2 * shown.bytes_sent >= truth.bytes_sent, "{key:?}: {shown:?} of {truth:?}");
            prop_assert!(shown.without_bytes > 0 || shown.bytes_sent == truth.bytes_sent, "{key:?}: {shown:?} of {truth:?}");
        }
    }

    /// No connection is on two edges or on none.
    #[test]
    fn connections_are_conserved(cluster in cluster()) {
        let graph = cluster.graph(cluster.seed);
        let sum: u64 = graph.edges.iter().map(|edge| edge.counters.opened).sum();
        let happened: u64 = cluster.conversations().filter(|(_, seen)| *seen != Seen::Nothing).map(|(it, _)| it.opened).sum();
        prop_assert_eq!(sum + graph.unsettled, happened);
        let sent: u64 = graph.edges.iter().map(|edge| edge.counters.bytes_sent).sum();
        let happened: u64 =
            cluster.conversations().filter(|(_, seen)| *seen != Seen::Nothing).map(|(it, _)| it.bytes_sent()).sum();
        prop_assert_eq!(sent, happened);
    }

    /// Counters of each endpoint equal its real connections.
    #[test]
    fn endpoints_add_up(cluster in cluster()) {
        let mut cluster = cluster;
        cluster.observed = [true; 3];
        for edge in cluster.graph(cluster.seed).edges {
            let sum = |ends: &[scopeprobe_topology::edge::Endpoint]| ends.iter().map(|end| end.opened).sum::<u64>();
            prop_assert_eq!(sum(&edge.clients), edge.counters.opened, "{:?}", edge);
            prop_assert_eq!(sum(&edge.servers), edge.counters.opened, "{:?}", edge);
        }
        let graph = cluster.graph(cluster.seed);
        let mut servers: BTreeMap<(String, String), u64> = BTreeMap::new();
        for end in graph.edges.iter().flat_map(|edge| &edge.servers).filter(|end| end.opened > 0) {
            *servers.entry((end.pod.clone(), end.container.clone())).or_default() += end.opened;
        }
        prop_assert_eq!(servers, cluster.opened_by_server());
    }

    /// The graph does not depend on the order of reports.
    #[test]
    fn order_of_reports_does_not_matter(cluster in cluster(), other_seed in any::<u64>()) {
        prop_assert_eq!(cluster.graph(cluster.seed), cluster.graph(other_seed));
    }
}
