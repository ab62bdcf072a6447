//! Operators that are replaced, and agents that begin anew meanwhile, against a simulated truth: what was published
//! lives on, and nothing is published that did not happen.

#![expect(clippy::expect_used, reason = "a test")]

mod backends;
mod skewed;
mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use scopeprobe_topology::{
    edge::{EdgeCounters, EdgeKey},
    graph::Graph,
};

use self::world::{Step, World, edge, step};

fn counters(graph: &Graph) -> BTreeMap<EdgeKey, EdgeCounters> {
    graph.edges.iter().map(|edge| (edge.key.clone(), edge.counters)).collect()
}

fn at_most(some: &EdgeCounters, most: &EdgeCounters) -> bool {
    some.opened <= most.opened
        && some.failed <= most.failed
        && some.bytes_sent <= most.bytes_sent
        && some.bytes_received <= most.bytes_received
}

/// Reduces edges to sums if something was missed. A server may know a connection that the client's agent has not
/// reported, without its Service and bytes. A pod may also be gone before any operator that published has known its
/// name.
fn comparable(edges: &BTreeMap<EdgeKey, EdgeCounters>, missed: bool) -> BTreeMap<EdgeKey, EdgeCounters> {
    let mut sums: BTreeMap<EdgeKey, EdgeCounters> = BTreeMap::new();
    for (key, counters) in edges {
        let key = if missed { edge(false) } else { key.clone() };
        let sum = sums.entry(key).or_default();
        sum.add(counters);
        if missed {
            (sum.bytes_sent, sum.bytes_received) = (0, 0);
        }
    }
    sums
}

fn exceeding(some: &BTreeMap<EdgeKey, EdgeCounters>, most: &BTreeMap<EdgeKey, EdgeCounters>) -> Option<String> {
    let most = |key: &EdgeKey| most.get(key).copied().unwrap_or_default();
    let wrong = some.iter().find(|(key, counters)| !at_most(counters, &most(key)));
    wrong.map(|(key, counters)| format!("{key:?}: {counters:?} over {:?}", most(key)))
}

/// Runs the steps and compares with the truth after each.
fn check(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    let mut before = BTreeMap::new();
    for step in steps {
        world.run(step);
        let now = counters(&world.build());
        let truth = comparable(&world.truth, world.missed);
        prop_assert_eq!(exceeding(&comparable(&now, world.missed), &truth), None, "after {:?}", step);
        // What a new operator has not heard of may be less than what the old one had in mind and not written.
        if matches!(step, Step::RestartOperator(_)) {
            before = counters(&world.published);
        }
        if !world.missed {
            prop_assert_eq!(exceeding(&before, &now), None, "after {:?}", step);
        }
        before = now;
    }
    world.report();
    if !world.missed {
        prop_assert_eq!(counters(&world.build()), world.truth);
    }
    Ok(())
}

/// The client's agent has missed a call of the Service. The server's count of it is first shown on the direct edge.
#[test]
fn what_only_a_server_saw_stays_on_the_edge_on_which_it_was_published() -> Result<(), TestCaseError> {
    use Step::{Close, Open, Publish, Report, RestartAgent, RestartOperator};
    let of_an_edge_that_lives = [
        Open(false, 0),
        Open(false, 0),
        Close(false),
        Report,
        Open(true, 0),
        Publish,
        Close(true),
        RestartAgent(0, false),
        Open(false, 0),
        RestartOperator(false),
        Open(true, 0),
        Report,
    ];
    check(&of_an_edge_that_lives)?;
    let of_an_edge_that_is_no_more =
        [Open(true, 0), Close(true), RestartAgent(0, false), Publish, Open(true, 0), RestartOperator(false)];
    check(&of_an_edge_that_is_no_more)
}

/// Runs the steps, and compares the connections and bytes of all edges with the truth.
fn assert_complete(steps: &[Step]) {
    let mut world = World::new();
    for step in steps {
        world.run(step);
    }
    let all = |counters: &EdgeCounters| (counters.opened, counters.bytes_sent, counters.bytes_received);
    let shown = counters(&world.build());
    assert_eq!(shown.values().map(all).collect::<Vec<_>>(), world.truth.values().map(all).collect::<Vec<_>>());
}

/// The client's agent has missed calls, and another one is open when the edge is published: what it sends later is not
/// taken for bytes that agents have forgotten.
#[test]
fn bytes_of_connections_that_were_open_when_published_are_complete() {
    use Step::{Close, Open, Publish, Report, RestartAgent, RestartOperator, Send};
    let missed = [Open(false, 10), Open(false, 10), Open(false, 10), Close(false), RestartAgent(0, false)];
    let then = [Open(false, 10), Close(false), Open(false, 0), Report, Publish, Send(false, 10), Close(false)];
    let restart = [Report, RestartOperator(false), Open(false, 10), Report];
    assert_complete(&[missed.as_slice(), &then, &restart].concat());
}

/// A connection is open when the client's agent reports for the last time: the server's agent knows its bytes.
#[test]
fn bytes_of_connections_that_were_open_when_an_agent_crashed_are_complete() {
    use Step::{Close, Open, Publish, Report, RestartAgent, RestartOperator, Send};
    let last_report = [Open(false, 10), Close(false), Open(false, 0), Report];
    let missed = [Send(false, 10), Close(false), Open(false, 10), Close(false), RestartAgent(0, false)];
    let then = [Open(false, 10), Close(false), Report, Publish, RestartOperator(false), Report];
    assert_complete(&[last_report.as_slice(), &missed, &then].concat());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn what_was_published_lives_on(steps in prop::collection::vec(step(), 0..60)) {
        check(&steps)?;
    }
}
