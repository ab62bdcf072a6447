//! Pending attempts: their edge appears with them, and leaves with them.

use scopeprobe_topology::{
    edge::LastSeen,
    flow::{FlowCounters, Role},
    graph::Graph,
    ledger::Epoch,
};

use crate::world::{RETENTION, World, at, edges, pod};

const TO_DB: (&str, &str, u16) = ("10.244.1.2", "10.244.2.2", 5432);
const TO_SERVICE: (&str, &str, u16) = ("10.244.1.2", "10.96.0.5", 80);

fn counters(opened: u64, failed: u64, [begun, ended]: [u64; 2]) -> FlowCounters {
    FlowCounters {
        opened,
        closed: opened,
        failed,
        pending_begun: begun,
        pending_ended: ended,
        ..FlowCounters::default()
    }
}

/// Returns the edges, each with its pending attempts.
fn pending(graph: &Graph) -> Vec<(String, u64)> {
    edges(graph).into_iter().zip(graph.edges.iter().map(|edge| edge.counters.pending)).collect()
}

fn one(edge: &str, pending: u64) -> Vec<(String, u64)> {
    vec![(edge.to_owned(), pending)]
}

#[test]
fn edge_lives_while_attempts_are_pending_and_goes_on_with_their_results() {
    let mut world = World::new();
    world.counters("web", Role::Client, TO_DB, &counters(0, 0, [2, 0]), at(10));
    let late = at(10) + 2 * RETENTION;
    let graph = world.graph(late);
    assert_eq!(pending(&graph), one("web -> db:5432 0+0", 2));
    assert_eq!(graph.edges[0].clients.len(), 1, "the pod shows");
    assert_eq!(graph.edges[0].times.map(|times| times.last_seen), Some(LastSeen::Now));
    world.counters("web", Role::Client, TO_DB, &counters(1, 1, [2, 2]), late);
    assert_eq!(pending(&world.graph(late)), one("web -> db:5432 1+1", 0));
}

#[test]
fn pending_attempts_are_where_failed_ones_are() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("cache", "node-2", "10.244.2.3"), at(0));
    world.service(None, &["db", "cache"]);
    world.counters("web", Role::Client, TO_SERVICE, &counters(2, 4, [3, 0]), at(10));
    world.flow("cache", Role::Server, ("10.244.2.3", "10.244.1.2", 5432), 2, at(10));
    let [to_cache, to_service] = [("web -> cache:5432 via db:80 2+0", 0), ("web -> service db via db:80 0+4", 3)]
        .map(|(it, n)| (it.to_owned(), n));
    assert_eq!(pending(&world.graph(at(60))), [to_cache, to_service]);

    let mut only = World::new();
    only.service(None, &["db"]);
    only.counters("web", Role::Client, TO_SERVICE, &counters(0, 0, [3, 0]), at(10));
    let failed = World { ledger: only.ledger.clone(), directory: only.directory.clone() };
    assert_eq!(pending(&failed.graph(at(60))), one("web -> db:5432 via db:80 0+0", 3));
}

#[test]
fn pending_attempts_end_with_the_epoch_and_with_an_agent_that_is_silent() {
    let mut world = World::new();
    world.counters("web", Role::Client, TO_DB, &counters(0, 0, [2, 0]), at(10));
    world.ledger.record_heartbeat("node-1", at(10));
    let shown = one("web -> db:5432 0+0", 2);
    assert_eq!(pending(&world.graph(at(60))), shown);
    assert_eq!(pending(&world.graph(at(80))), [], "it is silent");
    world.ledger.record_heartbeat("node-1", at(90));
    assert_eq!(pending(&world.graph(at(90))), shown);
    world.ledger.enter("node-1", Epoch([2; 16])).expect("a new epoch");
    assert_eq!(pending(&world.graph(at(91))), []);
}

#[test]
fn servers_know_nothing_of_pending_attempts() {
    let mut world = World::new();
    world.counters("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), &counters(0, 0, [2, 0]), at(10));
    assert_eq!(pending(&world.graph(at(60))), []);
}
