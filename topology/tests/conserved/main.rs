//! The join loses no connection that was observed at one end.
//!
//! Each connection that a client's agent counted is on one edge, or waits for the report of the other end. It waits no
//! longer than such a report can take.

#![expect(clippy::expect_used, reason = "a test")]

mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use scopeprobe_topology::{edge::Peer, graph::Graph};
use world::{ByClient, LAST_CALL_MS, LATE_MS, PERIOD_MS, SETTLE_MS, World, world};

/// Time at which everything was reported and nothing waits.
const QUIET_MS: u64 = LAST_CALL_MS + 3 * PERIOD_MS + LATE_MS + SETTLE_MS;

/// Returns the part of clients' counts that is shown.
fn shown(graph: &Graph) -> ByClient {
    let mut shown = ByClient::new();
    for edge in &graph.edges {
        let opened = edge.counters.opened - edge.from_servers.opened;
        if opened > 0 {
            *shown.entry((edge.key.client.clone(), edge.key.service.clone())).or_default() += opened;
        }
    }
    shown
}

fn opened(graph: &Graph) -> u64 {
    graph.edges.iter().map(|edge| edge.counters.opened).sum()
}

/// At any time: nothing is on two edges, and what is on none waits.
fn check(world: &World, now_ms: u64) -> Result<(), TestCaseError> {
    let (graph, told) = (world.graph(now_ms), world.told(now_ms));
    let shown = shown(&graph);
    for (of, count) in &shown {
        let counted = told.by_clients.get(of).copied().unwrap_or_default();
        prop_assert!(*count <= counted, "{of:?}: {count} shown, {counted} counted");
    }
    let waiting: u64 =
        told.by_clients.iter().map(|(of, counted)| counted - shown.get(of).copied().unwrap_or_default()).sum();
    prop_assert!(waiting <= graph.unsettled, "{waiting} are on no edge, {} wait", graph.unsettled);
    prop_assert!(graph.unsettled <= told.young, "{} wait, {} are young: {graph:#?}", graph.unsettled, told.young);
    prop_assert!(
        opened(&graph) + waiting <= told.happened,
        "{} shown, {waiting} wait, {} happened: {graph:#?}",
        opened(&graph),
        told.happened
    );
    Ok(())
}

/// Checks that everything is shown once nothing waits.
fn check_all(world: &World) -> Result<Graph, TestCaseError> {
    check(world, QUIET_MS)?;
    let (graph, told) = (world.graph(QUIET_MS), world.told(QUIET_MS));
    prop_assert_eq!(graph.unsettled, 0);
    prop_assert_eq!(shown(&graph), told.by_clients);
    Ok(graph)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    /// Holds for each choice of nodes with agents, and for each order of pods with one address.
    #[test]
    fn every_connection_is_on_one_edge(world in world(0.0, 0.8), now_ms in 0..QUIET_MS) {
        check(&world, now_ms)?;
        let graph = check_all(&world)?;
        if !world.has_unseen_processes() {
            prop_assert_eq!(opened(&graph), world.told(QUIET_MS).happened);
        }
    }

    /// The same where agents miss some: the other end's count stands, and what waited is shown in the end.
    #[test]
    fn what_an_agent_has_missed_leaves_nothing_waiting(world in world(0.2, 0.9), now_ms in 0..QUIET_MS) {
        check(&world, now_ms)?;
        check_all(&world)?;
    }

    /// If both ends of everything are observed, each server has all of its counts.
    #[test]
    fn servers_have_what_they_have_counted(world in world(0.0, 1.0)) {
        let world = world.keep_addresses();
        let graph = check_all(&world)?;
        let mut shown: BTreeMap<(Peer, Option<u16>), u64> = BTreeMap::new();
        for edge in &graph.edges {
            *shown.entry((edge.key.server.clone(), edge.key.port)).or_default() += edge.counters.opened;
        }
        prop_assert_eq!(shown, world.told(QUIET_MS).by_servers);
    }
}
