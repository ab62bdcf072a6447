//! Epochs that others end although their agents still run, against a simulated truth: the agents go on under new
//! epochs, and nothing is missing or counts twice.
#![expect(clippy::expect_used, reason = "a test")]

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    flow::{FlowCounters, FlowKey, FlowTotals, Protocol, Role},
    ledger::{Epoch, Ledger, RESUMABLE},
    nat_peer::NatPeer,
};

const NODE: &str = "node-1";

fn key() -> FlowKey {
    let ip = |last| IpAddr::from([10, 0, 0, last]);
    FlowKey {
        cgroup_id: 5,
        netns: 7,
        role: Role::Client,
        local: ip(1),
        remote: ip(2),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

fn nat_peer() -> NatPeer {
    NatPeer { ip: IpAddr::from([10, 0, 0, 9]), port: 80 }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// An agent that sees everything from its start on.
#[derive(Clone, Copy, Debug)]
struct Agent {
    epoch: u8,
    origin: u8,
    counters: FlowCounters,
    /// True if the operator has ended its epoch.
    is_ended: bool,
    /// Under its present epoch.
    has_reported_flows: bool,
    led: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Close,
    Send(u64),
    Fail,
    /// An agent reports; one whose epoch has ended draws a new one first.
    Report(usize),
    /// Another program without any flows reports for the node, once or more often.
    Stranger(u8),
    /// The agent evicts its flow if it has no open connection and is fully reported.
    LetGo(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Open),
        3 => Just(Step::Close),
        4 => (1..1000_u64).prop_map(Step::Send),
        1 => Just(Step::Fail),
        4 => (0..2_usize).prop_map(Step::Report),
        1 => prop_oneof![3 => Just(1_u8), 1 => Just(70)].prop_map(Step::Stranger),
        1 => (0..2_usize).prop_map(Step::LetGo),
    ]
}

/// Two agents of one node, of which the second begins when the first has reported everything.
struct World {
    ledger: Ledger,
    agents: Vec<Agent>,
    truth: FlowTotals,
    open: Vec<u64>,
    epochs: u8,
    led: u64,
}

impl World {
    fn new() -> Self {
        let (ledger, truth) = (Ledger::new(), FlowTotals::default());
        Self { ledger, agents: Vec::new(), truth, open: Vec::new(), epochs: 0, led: 0 }
    }

    fn draw(&mut self) -> u8 {
        self.epochs = self.epochs.checked_add(1).expect("a test needs fewer epochs");
        self.epochs
    }

    fn start(&mut self) {
        let epoch = self.draw();
        let before = self.open.iter().sum();
        let counters = FlowCounters {
            preexisting: self.open.len() as u64,
            preexisting_bytes_sent: before,
            bytes_sent: before,
            preexisting_retransmits: before,
            retransmits: Some(before),
            ..FlowCounters::default()
        };
        self.agents.push(Agent { epoch, origin: epoch, counters, is_ended: false, has_reported_flows: false, led: 0 });
        self.report(self.agents.len() - 1);
    }

    fn report(&mut self, which: usize) {
        if self.agents[which].is_ended {
            let late = Epoch([self.agents[which].epoch; 16]);
            // Of one without flows, a late report counts nothing twice.
            let may_count_twice = self.agents[which].has_reported_flows;
            assert!(!may_count_twice || self.ledger.enter(NODE, late).is_err(), "an epoch that has ended stays ended");
            let epoch = self.draw();
            let agent = &mut self.agents[which];
            (agent.epoch, agent.is_ended, agent.has_reported_flows) = (epoch, false, false);
        }
        let agent = self.agents[which];
        let open: u64 = self.open.iter().sum();
        let counters = FlowCounters { open_bytes_sent: open, open_retransmits: open, ..agent.counters };
        let epoch = Epoch([agent.epoch; 16]);
        self.ledger.resume(NODE, epoch, Epoch([agent.origin; 16])).expect("a new epoch, or the present one");
        self.ledger.record_heartbeat(NODE, at(1));
        self.ledger.begin_snapshot(NODE, epoch).expect("the present epoch");
        // The snapshot does not contain a flow that the agent has evicted.
        if counters.opened + counters.preexisting + counters.failed > 0 {
            self.ledger.apply(NODE, epoch, key(), &counters, at(1)).expect("the present epoch");
            self.agents[which].has_reported_flows = true;
            self.ledger.record_nat_peers(NODE, epoch, &key(), &[(nat_peer(), agent.led)]).expect("the present epoch");
        }
        self.ledger.end_snapshot(NODE, epoch, at(1)).expect("the present epoch");
        for (other, agent) in self.agents.iter_mut().enumerate() {
            agent.is_ended |= other != which;
        }
    }

    fn each(&mut self, change: impl Fn(&mut FlowCounters)) {
        self.agents.iter_mut().for_each(|agent| change(&mut agent.counters));
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Open => {
                self.truth.opened += 1;
                self.open.push(0);
                self.led += 1;
                self.agents.iter_mut().for_each(|agent| agent.led += 1);
                self.each(|counters| counters.opened += 1);
            }
            Step::Close if self.open.pop().is_some() => self.each(|counters| counters.closed += 1),
            Step::Send(bytes) => {
                let Some(last) = self.open.last_mut() else { return };
                *last += bytes;
                self.truth.bytes_sent += bytes;
                // As if every byte had to be sent again: both are accounts of the same kind.
                self.each(|counters| {
                    counters.bytes_sent += bytes;
                    counters.retransmits = Some(counters.bytes_sent);
                });
            }
            Step::Fail => {
                self.truth.failed += 1;
                self.each(|counters| counters.failed += 1);
            }
            Step::Report(which) => self.report(which % self.agents.len()),
            Step::Stranger(times) => {
                for _ in 0..times {
                    let Some(epoch) = self.epochs.checked_add(1) else { return };
                    self.epochs = epoch;
                    let epoch = Epoch([epoch; 16]);
                    self.ledger.enter(NODE, epoch).expect("a new epoch");
                    self.ledger.begin_snapshot(NODE, epoch).expect("the present epoch");
                    self.ledger.end_snapshot(NODE, epoch, at(1)).expect("the present epoch");
                    self.ledger.retire(at(1_000_000), Duration::from_mins(1));
                }
                self.agents.iter_mut().for_each(|agent| agent.is_ended = true);
            }
            Step::LetGo(which) if self.open.is_empty() => {
                let which = which % self.agents.len();
                self.report(which);
                let agent = &mut self.agents[which];
                agent.counters = FlowCounters { run: agent.counters.run + 1, ..FlowCounters::default() };
                agent.led = 0;
            }
            Step::Close | Step::LetGo(_) => {}
        }
    }

    fn totals(&self) -> FlowTotals {
        self.ledger.flows().next().map(|flow| flow.totals).unwrap_or_default()
    }

    fn led(&self) -> u64 {
        self.ledger.flows().flat_map(|flow| flow.nat_peers.iter()).map(|(_, count)| count).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Never more than the truth, never backwards, and the truth itself when the agent has reported again.
    #[test]
    fn resumed_epochs_against_truth(
        before in prop::collection::vec(step(), 0..20),
        steps in prop::collection::vec(step(), 0..40),
        has_second in any::<bool>(),
    ) {
        let mut world = World::new();
        world.start();
        let second_at = before.len();
        let mut shown = world.totals();
        for (index, step) in before.into_iter().chain(steps).enumerate() {
            if world.epochs > 170 {
                break;
            }
            if has_second && index == second_at {
                world.report(0);
                world.start();
            }
            // More than are remembered leave no room for a second agent that has not reported a flow yet.
            let step = if let (Step::Stranger(_), true) = (&step, has_second) { Step::Stranger(1) } else { step };
            world.run(&step);
            let now = world.totals();
            prop_assert!(now.opened >= shown.opened && now.failed >= shown.failed, "{shown:?} -> {now:?}");
            prop_assert!(now.bytes_sent >= shown.bytes_sent, "{shown:?} -> {now:?}");
            prop_assert!(now.opened <= world.truth.opened, "{now:?}, truth {:?}", world.truth);
            prop_assert!(now.failed <= world.truth.failed, "{now:?}, truth {:?}", world.truth);
            prop_assert!(now.bytes_sent <= world.truth.bytes_sent, "{now:?}, truth {:?}", world.truth);
            shown = now;
        }
        for which in 0..world.agents.len() {
            world.report(which);
            let now = world.totals();
            let retransmits = now.retransmits;
            let active = world.open.len() as u64;
            prop_assert_eq!(now, FlowTotals { active, retransmits, ..world.truth });
            prop_assert!(retransmits.is_none_or(|count| count == world.truth.bytes_sent));
            if !has_second {
                prop_assert_eq!(world.led(), world.led);
            }
        }
    }
}

#[test]
fn agent_that_comes_back_late_counts_nothing_twice() {
    let mut ledger = Ledger::new();
    let epoch = |number| Epoch([number; 16]);
    let apply = |ledger: &mut Ledger, number, origin, opened| {
        ledger.resume(NODE, epoch(number), epoch(origin)).expect("a new epoch");
        ledger
            .apply(NODE, epoch(number), key(), &FlowCounters { opened, ..FlowCounters::default() }, at(1))
            .expect("the present epoch");
    };
    apply(&mut ledger, 1, 1, 10);
    ledger.enter(NODE, epoch(9)).expect("a new epoch");
    ledger.record_heartbeat(NODE, at(1));
    ledger.record_heartbeat(NODE, at(1) + RESUMABLE);
    let opened = |ledger: &Ledger| ledger.flows().map(|flow| flow.totals.opened).sum::<u64>();
    apply(&mut ledger, 2, 1, 15);
    assert_eq!(opened(&ledger), 15, "nothing came before the first epoch");
    apply(&mut ledger, 2, 1, 17);
    assert_eq!(opened(&ledger), 17);
}

#[test]
fn operator_that_never_heard_of_the_first_epoch_counts_all() {
    let mut ledger = Ledger::new();
    ledger.enter(NODE, Epoch([9; 16])).expect("a new epoch");
    ledger.resume(NODE, Epoch([2; 16]), Epoch([1; 16])).expect("a new epoch");
    let counters = FlowCounters { opened: 5, ..FlowCounters::default() };
    ledger.apply(NODE, Epoch([2; 16]), key(), &counters, at(1)).expect("the present epoch");
    assert_eq!(ledger.flows().map(|flow| flow.totals.opened).sum::<u64>(), 5);
}
