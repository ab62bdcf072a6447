//! Tests that the operator's ledger is right while flows appear, expire and return, and streams break.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use proptest::prelude::*;
use report::v1alpha1::{AgentReport, Flow};
use scopeprobe_agent::{
    attribution::Attribution,
    capture::{Description, Mode, Reading},
    flow_store::Bounds,
    observation::Observation,
    report::session::Session,
};
use topology::{
    flow::{FlowCounters, FlowKey, Protocol, Role},
    ledger::{Epoch, Ledger},
};

const NODE: &str = "node-1";

/// Connections and failed attempts by port.
type Counts = BTreeMap<u16, (u64, u64)>;

fn key(port: u16) -> FlowKey {
    let ip = IpAddr::from([10, 0, 0, 1]);
    FlowKey { cgroup_id: 7, netns: 1, role: Role::Client, local: ip, remote: ip, port, protocol: Protocol::Tcp }
}

/// Capture with scripted counts, which drops requested flows if nothing of them is open.
#[derive(Default)]
struct Capture {
    accounts: BTreeMap<FlowKey, FlowCounters>,
    reported: BTreeMap<FlowKey, FlowCounters>,
}

impl Capture {
    fn count(&mut self, port: u16, change: impl Fn(&mut FlowCounters)) {
        change(self.accounts.entry(key(port)).or_default());
    }

    fn read(&mut self) -> Reading {
        let changed = self.accounts.iter().filter(|(key, counters)| self.reported.get(key) != Some(counters));
        let flows: Vec<_> = changed.map(|(key, counters)| (*key, *counters)).collect();
        self.reported.extend(flows.iter().copied());
        Reading { flows, ..Reading::default() }
    }

    fn forget(&mut self, keys: Vec<FlowKey>) -> Vec<FlowKey> {
        let at_rest = |key: &FlowKey| {
            let counters = self.accounts.get(key);
            counters.is_none_or(|counters| counters.active() == 0) && counters == self.reported.get(key)
        };
        let dropped: Vec<FlowKey> = keys.into_iter().filter(at_rest).collect();
        for key in &dropped {
            self.accounts.remove(key);
            self.reported.remove(key);
        }
        dropped
    }
}

/// Fate of a message.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Acknowledged,
    /// The operator has taken it in, and the stream broke before its reply.
    ReplyLost,
    /// The stream broke before it arrived.
    Lost,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open(u16),
    Close(u16),
    Fail(u16),
    Read,
    Expire,
    Send(Fate),
}

struct World {
    capture: Capture,
    observation: Observation,
    session: Session,
    ledger: Ledger,
    truth: Counts,
    start: Instant,
    _cgroups: tempfile::TempDir,
}

impl World {
    fn new(most_flows: usize) -> Self {
        let cgroups = tempfile::tempdir().unwrap();
        // All cgroups are dead and all times are over: each quiet flow leaves when it can.
        let bounds = Bounds { flows: most_flows, retention: Duration::ZERO };
        let mut observation = Observation::new([0; 16], bounds, "6.12".into());
        let attached_at = SystemTime::UNIX_EPOCH;
        let kernel = "6.12".into();
        observation.begin_epoch(
            [1; 16],
            &Description { mode: Mode::Ebpf, attach: "SockOps", attached_at, kernel, degradations: Vec::new() },
        );
        observation.attribution = Some(Attribution::open(cgroups.path()).unwrap());
        Self {
            capture: Capture::default(),
            observation,
            session: Session::new(NODE),
            ledger: Ledger::new(),
            truth: Counts::new(),
            start: Instant::now(),
            _cgroups: cgroups,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Open(port) => {
                self.truth.entry(port).or_default().0 += 1;
                self.capture.count(port, |counters| counters.opened += 1);
            }
            Step::Close(port) => {
                if self.capture.accounts.get(&key(port)).is_some_and(|counters| counters.active() > 0) {
                    self.capture.count(port, |counters| counters.closed += 1);
                }
            }
            Step::Fail(port) => {
                self.truth.entry(port).or_default().1 += 1;
                self.capture.count(port, |counters| counters.failed += 1);
            }
            Step::Read => {
                let reading = self.capture.read();
                self.observation.absorb(reading, self.start);
            }
            Step::Expire => {
                let dispensable = self.observation.dispensable(self.start);
                let dropped = self.capture.forget(dispensable);
                self.observation.drop_flows(&dropped, self.start);
            }
            Step::Send(fate) => self.send(fate),
        }
    }

    fn send(&mut self, fate: Fate) {
        let report = self.session.next(&mut self.observation, self.start);
        if !matches!(fate, Fate::Lost) {
            self.take_in(&report);
        }
        if !matches!(fate, Fate::Acknowledged) {
            self.session = Session::new(NODE);
        }
    }

    /// As the operator does.
    fn take_in(&mut self, report: &AgentReport) {
        let (epoch, now) = (Epoch(report.epoch.clone().try_into().unwrap()), SystemTime::UNIX_EPOCH);
        if report.sequence == 1 {
            self.ledger.begin_stream(NODE);
        }
        if report.begins_snapshot {
            self.ledger.begin_snapshot(NODE, epoch).unwrap();
        }
        for flow in &report.flows {
            self.ledger.apply(NODE, epoch, key(u16::try_from(flow.port).unwrap()), &counters(flow), now).unwrap();
        }
        if report.ends_snapshot {
            self.ledger.end_snapshot(NODE, epoch, now).unwrap();
        }
    }

    fn told(&self) -> Counts {
        self.ledger.flows().map(|flow| (flow.key.port, (flow.totals.opened, flow.totals.failed))).collect()
    }

    /// Returns what the ledger lacks in total; it never has too much.
    fn missing(&self) -> Result<(u64, u64), TestCaseError> {
        let told = self.told();
        let mut missing = (0, 0);
        for (port, truth) in &self.truth {
            let told = told.get(port).copied().unwrap_or_default();
            prop_assert!(told.0 <= truth.0 && told.1 <= truth.1, "{port}: {told:?} told, {truth:?} happened");
            missing.0 += truth.0 - told.0;
            missing.1 += truth.1 - told.1;
        }
        Ok(missing)
    }
}

fn counters(flow: &Flow) -> FlowCounters {
    let counters = flow.counters.as_ref().unwrap();
    FlowCounters {
        run: flow.run,
        opened: counters.opened,
        closed: counters.closed,
        failed: counters.failed,
        ..FlowCounters::default()
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = || 0u16..12;
    let step = prop_oneof![
        4 => port().prop_map(Step::Open),
        5 => port().prop_map(Step::Close),
        1 => port().prop_map(Step::Fail),
        4 => Just(Step::Read),
        3 => Just(Step::Expire),
        6 => Just(Step::Send(Fate::Acknowledged)),
        1 => Just(Step::Send(Fate::ReplyLost)),
        1 => Just(Step::Send(Fate::Lost)),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// Nothing is counted twice. In the end, no more connections are missing than are reported as lost.
    #[test]
    fn the_ledger_knows_the_truth_in_the_end(most_flows in prop_oneof![Just(6usize), Just(100)], steps in steps()) {
        let mut world = World::new(most_flows);
        for step in steps {
            world.run(step);
            world.missing()?;
        }
        world.run(Step::Read);
        world.run(Step::Send(Fate::Acknowledged));
        while world.session.has_news(&world.observation, Instant::now()) {
            world.run(Step::Send(Fate::Acknowledged));
        }
        let missing = world.missing()?;
        let losses = world.observation.capture.losses;
        prop_assert!(missing.0 <= losses.opened && missing.1 <= losses.failed, "{missing:?} missing, {losses:?}");
        if most_flows == 100 {
            prop_assert_eq!(missing, (0, 0));
        }
    }
}

#[test]
fn flows_that_have_left_are_over_for_the_operator() {
    let mut world = World::new(100);
    let acknowledged = Step::Send(Fate::Acknowledged);
    for step in [Step::Open(1), Step::Close(1), Step::Open(2), Step::Read, acknowledged, acknowledged, Step::Expire] {
        world.run(step);
    }
    assert_eq!(world.observation.flows.len(), 1);
    assert!(world.session.has_news(&world.observation, Instant::now()), "a snapshot without the flow that has left");
    world.run(acknowledged);
    assert!(!world.session.has_news(&world.observation, Instant::now()));
    let now = SystemTime::UNIX_EPOCH;
    assert_eq!(world.ledger.retire(now, Duration::ZERO), 1);
    assert_eq!(world.told(), BTreeMap::from([(2, (1, 0))]));
}
