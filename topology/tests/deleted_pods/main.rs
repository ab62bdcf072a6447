//! Pods that are deleted and replaced while the operator is restarted: it resolves their flows by what was published, as an
//! operator would that ran all the time.

#![expect(clippy::expect_used, reason = "a test")]

mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;
use scopeprobe_topology::edge::{EdgeKey, Peer};

use self::world::{PLACES, Step, World, counts, edge, step};

fn opened(shown: &world::Shown) -> BTreeMap<EdgeKey, u64> {
    shown.iter().map(|(key, (counters, ..))| (key.clone(), counters.opened)).filter(|(_, opened)| *opened > 0).collect()
}

/// Runs the steps and returns the graphs of the operator that ran all the time and of the other one.
fn run(observed: [bool; 2], steps: &[Step]) -> (World, [world::Shown; 2]) {
    let mut world = World::new(observed);
    for step in steps {
        world.run(step);
    }
    world.rest();
    let shown = world.shown().map(|graph| counts(&graph));
    (world, shown)
}

const CALLS: [(usize, usize, Option<usize>); 5] =
    [(0, 3, None), (1, 2, Some(0)), (0, 3, Some(1)), (2, 5, None), (1, 4, Some(1))];

fn calls(opened: u64) -> Vec<Step> {
    CALLS
        .iter()
        .map(|(client, server, service)| Step::Call { client: *client, server: *server, service: *service, opened })
        .collect()
}

/// Replaces each pod, then restarts the operator at once.
fn replaced(keeps_address: bool) -> Vec<Step> {
    let replace = (0..PLACES.len()).map(|place| Step::Replace { place, keeps_address });
    let mut steps = calls(3);
    steps.push(Step::Publish);
    steps.extend(replace);
    steps.extend(calls(2));
    steps.push(Step::RestartOperator);
    steps.extend(calls(4));
    steps
}

#[test]
fn connections_of_deleted_pods_stay_on_their_edges() {
    let (world, [old, new]) = run([true, true], &replaced(false));
    assert_eq!(opened(&new), world.truth);
    assert_eq!(new, old);
}

#[test]
fn connections_of_deleted_pods_stay_on_their_edges_where_addresses_are_reused() {
    let (world, [old, new]) = run([true, true], &replaced(true));
    assert_eq!(opened(&new), world.truth);
    assert_eq!(new, old);
}

#[test]
fn deleted_pods_keep_their_names_where_one_end_is_observed() {
    for observed in [[true, false], [false, true]] {
        let (_, [old, new]) = run(observed, &replaced(false));
        assert_eq!(new, old);
        assert!(new.contains_key(&edge(0, 3, None)), "{new:#?}");
    }
}

/// The next operator records the pods again.
#[test]
fn deleted_pods_keep_their_names_over_several_restarts() {
    let mut steps = replaced(false);
    for _ in 0..3 {
        steps.extend([Step::Publish, Step::RestartOperator, Step::RestartOperator]);
        steps.extend(calls(1));
    }
    let (world, [old, new]) = run([true, true], &steps);
    assert_eq!(opened(&new), world.truth);
    assert_eq!(new, old);
}

#[test]
fn connections_of_deleted_pods_count_once_if_their_agents_restart() {
    // Once the servers' agents have restarted, no report has the backend of a Service with several workloads.
    let is_certain = |step: &Step| !matches!(step, Step::Call { service: Some(1), .. });
    for node in [0, 1] {
        let restarts = [Step::RestartAgent(node), Step::RestartOperator, Step::Publish, Step::RestartOperator];
        let steps = [replaced(false), restarts.to_vec(), calls(1)].concat();
        let (world, [_, new]) = run([true, true], &steps);
        assert_eq!(opened(&new).values().sum::<u64>(), world.truth.values().sum::<u64>());
        let steps: Vec<Step> = steps.into_iter().filter(is_certain).collect();
        let (world, [_, new]) = run([true, true], &steps);
        assert_eq!(opened(&new), world.truth);
    }
}

/// The first operator names the backend of the Service's only connection. Then the backend's agent drops it, and another one
/// reports a connection from the same client.
#[test]
fn connection_of_dropped_backend_takes_no_other_one() {
    let call = |server, service| Step::Call { client: 3, server, service, opened: 1 };
    let steps = [
        call(5, Some(1)),
        Step::Replace { place: 5, keeps_address: false },
        Step::DropFlows(1),
        Step::RestartOperator,
        call(2, None),
        Step::Publish,
        Step::RestartOperator,
    ];
    let (world, [_, new]) = run([true, true], &steps);
    assert_eq!(opened(&new), world.truth);
}

/// Later connections of the client are of other backends.
#[test]
fn forgotten_connection_of_dropped_backend_takes_no_other_one() {
    let call = |server, opened| Step::Call { client: 3, server, service: Some(1), opened };
    let mut world = World::new([true, true]);
    let gone = Step::Replace { place: 5, keeps_address: false };
    for step in [call(5, 1), gone, Step::DropFlows(1), Step::RestartOperator] {
        world.run(&step);
    }
    world.rest();
    world.forget(3);
    world.run(&call(2, 2));
    world.rest();
    let [_, graph] = world.shown();
    let of_client = graph.edges.iter().find(|shown| shown.key == edge(3, 2, Some(1))).expect("the edge");
    let counts = (of_client.counters.opened, of_client.from_servers.opened);
    assert_eq!(counts, (2, 0), "all of them are the client's");
    assert!(!graph.edges.iter().any(|edge| matches!(edge.key.server, Peer::Service(_))));
}

/// Runs the steps, and compares with the operator that ran all the time.
fn check(steps: &[Step]) -> Result<(), TestCaseError> {
    let (world, [old, new]) = run([true, true], steps);
    let is_unknown = |peer: &Peer| matches!(peer, Peer::UnknownPod { .. });
    let all = opened(&new);
    // Parts of pods with the same address are a guess, and each end publishes its own one.
    prop_assert_eq!(&all, &opened(&old));
    prop_assert!(!all.keys().any(|key| is_unknown(&key.client) || is_unknown(&key.server)), "{all:#?}");
    prop_assert_eq!(all.values().sum::<u64>(), world.truth.values().sum::<u64>(), "{:#?} {:#?}", all, world.truth);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn restarted_operator_shows_each_connection_once(steps in prop::collection::vec(step(), 0..40)) {
        let steps: Vec<Step> = steps.into_iter().filter(|step| !matches!(step, Step::DropFlows(_))).collect();
        check(&steps)?;
    }

    /// The edge is certain if addresses are not reused and no Service leads to several workloads.
    #[test]
    fn restarted_operator_keeps_what_agents_have_dropped(steps in prop::collection::vec(step(), 0..40)) {
        let certain = |step| match step {
            Step::Replace { place, .. } => Step::Replace { place, keeps_address: false },
            Step::Call { client, server, opened, .. } => Step::Call { client, server, service: Some(0), opened },
            step => step,
        };
        let steps: Vec<Step> = steps.into_iter().map(certain).collect();
        check(&steps)?;
    }

    #[test]
    fn restarted_operator_shows_dropped_connections_once(steps in prop::collection::vec(step(), 0..40)) {
        let fresh = |step| match step {
            Step::Replace { place, .. } => Step::Replace { place, keeps_address: false },
            step => step,
        };
        let steps: Vec<Step> = steps.into_iter().map(fresh).collect();
        let (world, [_, new]) = run([true, true], &steps);
        let all = opened(&new);
        prop_assert_eq!(all.values().sum::<u64>(), world.truth.values().sum::<u64>(), "{:#?} {:#?}", all, world.truth);
    }
}
