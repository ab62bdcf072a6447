//! Times of edges: the first observation, the last activity, and the last failed attempt.

use std::time::SystemTime;

use scopeprobe_topology::{
    archive::{Archive, Published},
    edge::{Edge, Times},
    flow::{FlowCounters, Role},
    graph::{Graph, Options},
    ledger::Epoch,
};

use crate::world::{EPOCH, RETENTION, SETTLE, World, at, edges, key, pod};

const TO_DB: (&str, &str, u16) = ("10.244.1.2", "10.244.2.2", 5432);
const TO_SERVICE: (&str, &str, u16) = ("10.244.1.2", "10.96.0.5", 80);

fn counters(opened: u64, failed: u64) -> FlowCounters {
    FlowCounters { opened, closed: opened, failed, ..FlowCounters::default() }
}

fn times(edge: &Edge, now: SystemTime) -> [Option<SystemTime>; 3] {
    let Times { first_seen, last_seen, last_failed } = edge.times.expect("its flows are known");
    [Some(first_seen), Some(last_seen.at(now)), last_failed]
}

fn times_of_only(graph: &Graph, now: SystemTime) -> [Option<SystemTime>; 3] {
    assert_eq!(graph.edges.len(), 1, "{:?}", edges(graph));
    times(&graph.edges[0], now)
}

#[test]
fn last_failure_stays_until_the_next_one_and_over_epochs() {
    let mut world = World::new();
    world.counters("web", Role::Client, TO_DB, &counters(0, 1), at(10));
    world.counters("web", Role::Client, TO_DB, &counters(3, 1), at(20));
    assert_eq!(times_of_only(&world.graph(at(60)), at(60)), [Some(at(10)), Some(at(20)), Some(at(10))]);
    world.counters("web", Role::Client, TO_DB, &counters(3, 2), at(30));
    assert_eq!(times_of_only(&world.graph(at(60)), at(60)), [Some(at(10)), Some(at(30)), Some(at(30))]);
    // A new epoch counts from zero.
    let next = Epoch([2; 16]);
    world.ledger.apply("node-1", next, key("web", Role::Client, TO_DB), &counters(1, 0), at(40)).expect("a new epoch");
    assert_eq!(times_of_only(&world.graph(at(60)), at(60)), [Some(at(10)), Some(at(40)), Some(at(30))]);
}

#[test]
fn an_open_connection_is_seen_now() {
    let mut world = World::new();
    world.counters("web", Role::Client, TO_DB, &FlowCounters { opened: 1, ..FlowCounters::default() }, at(10));
    assert_eq!(times_of_only(&world.graph(at(60)), at(60)), [Some(at(10)), Some(at(60)), None]);
}

#[test]
fn failures_that_no_backend_answered_are_at_the_service_alone() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("cache", "node-2", "10.244.2.3"), at(0));
    world.service(None, &["db", "cache"]);
    world.counters("web", Role::Client, TO_SERVICE, &counters(2, 4), at(10));
    world.flow("cache", Role::Server, ("10.244.2.3", "10.244.1.2", 5432), 2, at(10));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> cache:5432 via db:80 2+0", "web -> service db via db:80 0+4"]);
    let failed: Vec<_> = graph.edges.iter().map(|edge| times(edge, at(60))[2]).collect();
    assert_eq!(failed, [None, Some(at(10))]);
}

#[test]
fn times_survive_flows_that_are_retired_and_an_operators_restart() {
    let mut world = World::new();
    let options = |now| Options { now, settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
    let mut archive = Archive::new();
    world.counters("web", Role::Client, TO_DB, &counters(1, 1), at(10));
    // Another container of the same pod goes on.
    let other = world.ledger.flows().next().map(|flow| *flow.key).expect("it was reported");
    world.ledger.begin_snapshot("node-1", EPOCH).expect("the present epoch");
    let going_on = scopeprobe_topology::flow::FlowKey { netns: 5, ..other };
    world.report("web", going_on, &FlowCounters { opened: 1, ..FlowCounters::default() }, at(20));
    world.ledger.end_snapshot("node-1", EPOCH, at(20)).expect("the present epoch");
    let much_later = at(20) + 2 * RETENTION;
    world.ledger.record_heartbeat("node-1", much_later);
    let retired = archive.retire(&mut world.ledger, &world.directory, much_later, RETENTION);
    assert_eq!(retired, 1);
    let graph = archive.build(&world.ledger, &world.directory, &options(much_later));
    let wanted = [Some(at(10)), Some(much_later), Some(at(10))];
    assert_eq!((edges(&graph), times_of_only(&graph, much_later)), (vec!["web -> db:5432 2+1".to_owned()], wanted));

    let earlier = |edge: &Edge| graph.earlier.get(&edge.key).cloned().unwrap_or_default();
    let published = graph.edges.iter().map(|edge| Published { edge: Edge::clone(edge), earlier: earlier(edge) });
    let mut next = Archive::new();
    next.restore(published, much_later);
    let mut fresh = World::new();
    fresh.report("web", going_on, &FlowCounters { opened: 1, ..FlowCounters::default() }, much_later);
    next.settle(&fresh.ledger, &fresh.directory, much_later);
    // When the server's agent has had its time to report as well.
    let settled = much_later + 2 * SETTLE;
    let graph = next.build(&fresh.ledger, &fresh.directory, &options(settled));
    let wanted = [Some(at(10)), Some(settled), Some(at(10))];
    assert_eq!((edges(&graph), times_of_only(&graph, settled)), (vec!["web -> db:5432 2+1".to_owned()], wanted));
}
