//! Round-trip times and retransmissions of both ends, or of one.

use std::sync::Arc;

use scopeprobe_topology::{
    edge::{Edge, Peer},
    flow::{FlowCounters, Role},
    graph::Graph,
    rtt::{RttBucket, RttHistogram},
};

use crate::world::{World, at, pod};

/// Connections of one flow that all had this round-trip time, and what was sent again on them.
fn measured(opened: u64, rtt: u32, retransmits: u64) -> FlowCounters {
    let mut histogram = RttHistogram::default();
    (0..opened).for_each(|_| histogram.add(RttBucket::of(rtt)));
    FlowCounters { opened, retransmits: Some(retransmits), rtt: histogram, ..FlowCounters::default() }
}

/// The server, retransmits where they are known, and the round-trip time's bound.
fn measures(graph: &Graph) -> Vec<(String, Option<u64>, Option<u32>)> {
    let of = |edge: &Edge| {
        let retransmits = edge.knows_retransmits.then_some(edge.counters.retransmits);
        let Peer::Workload(server) = &edge.key.server else { return (String::new(), retransmits, None) };
        (server.name.clone(), retransmits, edge.rtt.map(RttBucket::below))
    };
    graph.edges.iter().map(Arc::as_ref).map(of).collect()
}

#[test]
fn round_trips_are_the_clients_and_retransmits_are_both_ends() {
    let (to_db, from_web) = (("10.244.1.2", "10.244.2.2", 5432), ("10.244.2.2", "10.244.1.2", 5432));
    let mut world = World::new();
    world.counters("db", Role::Server, from_web, &measured(3, 5_000, 1), at(0));
    assert_eq!(measures(&world.graph(at(10))), [("db".to_owned(), Some(1), Some(8_192))]);
    world.counters("web", Role::Client, to_db, &measured(3, 300, 2), at(10));
    assert_eq!(measures(&world.graph(at(20))), [("db".to_owned(), Some(3), Some(512))]);
}

#[test]
fn edge_omits_missing_measurements() {
    let mut world = World::new();
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 3, at(0));
    assert_eq!(measures(&world.graph(at(10))), [("db".to_owned(), None, None)]);
}

#[test]
fn behind_a_service_of_two_workloads_each_server_tells_its_own_round_trips() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("replica", "node-1", "10.244.1.3"), at(0));
    world.service(None, &["db", "replica"]);
    world.counters("web", Role::Client, ("10.244.1.2", "10.96.0.5", 80), &measured(4, 300, 8), at(0));
    world.counters("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), &measured(1, 900, 1), at(0));
    world.counters("replica", Role::Server, ("10.244.1.3", "10.244.1.2", 5432), &measured(3, 50, 0), at(0));
    let expected = [("db".to_owned(), Some(2 + 1), Some(1_024)), ("replica".to_owned(), Some(6), Some(64))];
    assert_eq!(measures(&world.graph(at(10))), expected);
}
