//! Agents that report at different times while connections go on and operators restart.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use scopeprobe_topology::edge::{EdgeCounters, EdgeKey};

use crate::{
    counters, exceeding,
    world::{Step, World, step},
};

/// Time between two events while agents report one after the other.
const PACE: Duration = Duration::from_millis(300);

/// An event while agents report at different times.
#[derive(Clone, Debug)]
enum Event {
    Happens(Step),
    Reports(usize),
    Publishes,
    OperatorRestarts,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (any::<bool>(), 0..1000_u64).prop_map(|(service, bytes)| Event::Happens(Step::Open(service, bytes))),
        2 => (any::<bool>(), 0..1000_u64).prop_map(|(service, bytes)| Event::Happens(Step::Send(service, bytes))),
        4 => any::<bool>().prop_map(|service| Event::Happens(Step::Close(service))),
        6 => (0..2_usize).prop_map(Event::Reports),
        2 => Just(Event::Publishes),
        1 => Just(Event::OperatorRestarts),
    ]
}

impl World {
    /// Waits until nothing has to wait any more, and returns what is shown then.
    fn rest(&mut self) -> BTreeMap<EdgeKey, EdgeCounters> {
        self.report();
        self.now += Duration::from_secs(9) + self.interval;
        self.published = self.build_shown();
        self.record_pods();
        self.unpublished = false;
        counters(&self.published)
    }

    /// Lets the events happen, and checks that no counter shrinks. Each agent reports at least every second.
    fn go_on(&mut self, events: &[Event]) -> Result<(), TestCaseError> {
        let mut reported = [self.now; 2];
        let mut before = counters(&self.published);
        for event in events {
            self.now += PACE;
            for node in [0, 1] {
                if self.now.duration_since(reported[node]).unwrap_or_default() > self.interval {
                    self.snapshot(node);
                    reported[node] = self.now;
                    before = self.grown(&before, event)?;
                }
            }
            match event {
                Event::Happens(step) => self.happen(step),
                Event::Reports(node) => {
                    self.snapshot(*node);
                    reported[*node] = self.now;
                }
                Event::Publishes => {
                    self.published = self.build_shown();
                    self.record_pods();
                }
                Event::OperatorRestarts => {
                    self.restart_operator();
                    reported = [self.now; 2];
                    before = counters(&self.published);
                }
            }
            before = self.grown(&before, event)?;
        }
        Ok(())
    }

    /// Returns what is shown, which must not be less than before.
    fn grown(
        &mut self,
        before: &BTreeMap<EdgeKey, EdgeCounters>,
        event: &Event,
    ) -> Result<BTreeMap<EdgeKey, EdgeCounters>, TestCaseError> {
        let now = counters(&self.build_shown());
        prop_assert_eq!(exceeding(before, &now), None, "after {:?}", event);
        Ok(now)
    }
}

/// Returns by how much each edge has grown.
fn growth(
    before: &BTreeMap<EdgeKey, EdgeCounters>,
    now: &BTreeMap<EdgeKey, EdgeCounters>,
) -> BTreeMap<EdgeKey, EdgeCounters> {
    let before = |key: &EdgeKey| before.get(key).copied().unwrap_or_default();
    let growth =
        |(key, now): (&EdgeKey, &EdgeCounters)| (key.clone(), EdgeCounters { active: 0, ..now.without(&before(key)) });
    now.iter().map(growth).filter(|(_, growth)| *growth != EdgeCounters::default()).collect()
}

/// Runs the steps, lets the events happen, and compares by how much each edge has grown with the truth.
fn check_growth(before: &[Step], events: &[Event]) -> Result<(), TestCaseError> {
    check_growth_at(Duration::from_secs(1), before, events)
}

fn check_growth_at(interval: Duration, before: &[Step], events: &[Event]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    world.interval = interval;
    let known =
        [Step::Open(true, 7), Step::Open(false, 9), Step::Close(true), Step::Close(false), Step::Report, Step::Publish];
    // Which connections a server's agent has forgotten of those that a client's agent had forgotten before is not known.
    let is_known = |step: &&Step| !matches!(step, Step::ReplacePod | Step::RestartAgent(1, _));
    for step in known.iter().chain(before.iter().filter(is_known)) {
        if world.unpublished && matches!(step, Step::RestartOperator(_)) {
            // What an agent had counted that crashed is lost if the operator crashes before it publishes.
            world.publish();
        }
        world.run(step);
    }
    let (shown, truth) = (world.rest(), world.truth.clone());
    world.go_on(events)?;
    let now = world.rest();
    prop_assert_eq!(
        growth(&shown, &now),
        growth(&truth, &world.truth),
        "shown before {:?}, truth before {:?}",
        shown,
        truth
    );
    Ok(())
}

/// The client's agent has missed calls with bytes. Their server's first report is recent when it opens others: its bytes are
/// no news.
#[test]
fn bytes_of_a_servers_first_report_are_counted_once_across_a_restart() -> Result<(), TestCaseError> {
    use Event::{Happens, OperatorRestarts, Publishes, Reports};
    use Step::{Close, Open, RestartAgent, RestartOperator};
    let missed = [Open(false, 360), Open(false, 573), Close(false), RestartAgent(0, false), RestartOperator(false)];
    let ahead = [Happens(Open(false, 0)), Reports(0), Happens(Open(true, 0)), Happens(Open(false, 0))];
    check_growth(&missed, &[ahead.as_slice(), &[Publishes, Publishes, OperatorRestarts]].concat())
}

/// The client's agent is ahead of the server's by one byte when the graph is published: the byte that the server's account
/// lacks is no history.
#[test]
fn bytes_that_a_server_has_not_reported_yet_are_counted_once_across_a_restart() -> Result<(), TestCaseError> {
    use Event::{Happens, OperatorRestarts, Publishes, Reports};
    use Step::{Close, Open, RestartAgent, RestartOperator};
    let missed = [Open(false, 0), Open(true, 263), Open(true, 462), Close(true), RestartAgent(0, false)];
    let ahead = [Happens(Open(true, 0)), Reports(1), Reports(0), Happens(Open(false, 0)), Happens(Open(false, 0))];
    let published = [Happens(Open(false, 1)), Publishes, OperatorRestarts];
    check_growth(&[missed.as_slice(), &[RestartOperator(false)]].concat(), &[ahead.as_slice(), &published].concat())
}

/// The server's agent reports after the client's at each look of the new operator, for longer than others have to wait. What
/// only the server had counted is not taken for forgotten.
#[test]
fn connections_of_a_server_that_lags_behind_are_counted_once_across_a_restart() {
    use Step::{Close, Open, Publish, Report, RestartAgent};
    for service in [false, true] {
        let mut world = World::new();
        let known = [Open(true, 7), Open(false, 9), Close(true), Close(false), Report, Publish];
        let missed = [Open(false, 10), Close(false), RestartAgent(0, false), Publish];
        known.iter().chain(&missed).for_each(|step| world.run(step));
        let (shown, truth) = (world.rest(), world.truth.clone());
        world.restart_operator();
        world.happen(&Open(service, 0));
        for _ in 0..8 {
            world.snapshot(0);
            let _ = world.build_shown();
            world.now += Duration::from_millis(500);
        }
        world.snapshot(1);
        let _ = world.build_shown();
        let now = world.rest();
        assert_eq!(
            growth(&shown, &now),
            growth(&truth, &world.truth),
            "through the Service: {service}, {shown:?}, {now:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn edges_grow_by_what_happens_while_agents_report_one_after_the_other(
        steps in prop::collection::vec(step(), 0..30),
        events in prop::collection::vec(event(), 0..200),
    ) {
        check_growth(&steps, &events)?;
    }

    /// In a large cluster agents report counters less often.
    #[test]
    fn edges_grow_by_what_happens_while_agents_report_rarely(
        steps in prop::collection::vec(step(), 0..30),
        events in prop::collection::vec(event(), 0..200),
        seconds in 2..30_u64,
    ) {
        check_growth_at(Duration::from_secs(seconds), &steps, &events)?;
    }
}
