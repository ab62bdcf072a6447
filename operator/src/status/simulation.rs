//! Compares the reported coverage with the true one of a simulation, which kills agents and operators and overflows
//! tables at random.

use crds::{Losses, Mode, NodeProbe, RequestedMode};
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::{
    coverage::{CoverageFacts, GRACE, NodeCoverage, assess},
    node_probe, restore,
};
use crate::{
    coverage::{MINUTE, share::Share},
    observation::NodeObservation,
    rollout::{
        assignment::Assignment,
        mode::{AgentMode, ModeCause},
    },
};

/// Step of the simulation, in milliseconds.
const STEP: u64 = 1_000;
/// Interval between writes of counters, in milliseconds.
const INTERVAL: u64 = 30_000;
/// Start of the simulation, in milliseconds since the Unix epoch.
const START: u64 = 1_000_000_000;

/// Generator of pseudo-random numbers: each seed has one sequence.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below.max(1)
    }

    /// Returns a number between 0.5 and 1.5 times the mean.
    fn about(&mut self, mean: u64) -> u64 {
        mean / 2 + self.roll(mean)
    }
}

#[derive(Clone, Copy, Debug)]
struct Scenario {
    seed: u64,
    /// Seconds before processes are killed, while they are killed, and afterwards.
    seconds: (u64, u64, u64),
    /// Factor of the connection rate while processes are killed.
    busier: u64,
    /// Maximum of the connection rate per second (the minimum is half of it), and seconds until the next random rate.
    rates: (u64, u64),
    /// Mean seconds for which an agent runs, and for which none runs.
    agent: (u64, u64),
    /// The same for the operator.
    operator: (u64, u64),
    /// Connections per thousand that find the table full.
    lost: u64,
}

/// A running agent.
struct Agent {
    epoch: [u8; 16],
    attached: u64,
    seen: u64,
    lost: u64,
}

/// Counts in Topology objects: of ended epochs, and of the last one, which may be reported again.
#[derive(Clone, Copy, Default)]
struct Stored {
    earlier: u64,
    epoch: [u8; 16],
    current: u64,
}

impl Stored {
    fn report(&mut self, epoch: [u8; 16], seen: u64) {
        if self.epoch != epoch {
            self.earlier += self.current;
            self.epoch = epoch;
        }
        self.current = seen;
    }

    fn sum(&self) -> u64 {
        self.earlier + self.current
    }
}

struct SimulatedOperator {
    observation: Option<NodeObservation>,
    stored: Stored,
    connects_at: u64,
    topology_written: Option<u64>,
    node_probe_written: u64,
}

struct SimulatedWorld {
    dice: Dice,
    scenario: Scenario,
    now: u64,
    /// Connections of each step, by the step's end.
    happened: Vec<(u64, u64)>,
    /// Time at which the first agent that an operator has heard of was attached.
    first_heard: Option<u64>,
    rate: u64,
    agent: Option<Agent>,
    agent_turn: u64,
    operator: Option<SimulatedOperator>,
    operator_turn: u64,
    /// State in the API server.
    topology: Stored,
    node_probe: NodeProbe,
}

impl SimulatedWorld {
    fn new(scenario: Scenario) -> Self {
        let dice = Dice(scenario.seed);
        let created = Timestamp::from_millisecond(i64::try_from(START).unwrap()).unwrap();
        let metadata = json!({"name": "n", "creationTimestamp": created});
        Self {
            dice,
            scenario,
            now: START,
            happened: Vec::new(),
            first_heard: None,
            rate: scenario.rates.0,
            agent: None,
            agent_turn: START,
            operator: None,
            operator_turn: START,
            topology: Stored::default(),
            node_probe: serde_json::from_value(json!({"metadata": metadata, "spec": {}})).unwrap(),
        }
    }

    /// Runs the scenario to its end, when everything was reported.
    fn run(&mut self) {
        let (before, bad, good) = self.scenario.seconds;
        let change = self.scenario.rates.1 * 1000;
        let (bad, end) =
            ((START + before * 1000)..(START + (before + bad) * 1000), START + (before + bad + good) * 1000);
        // Ends at a full minute: the windows of young nodes have this resolution.
        while self.now < end || !self.now.is_multiple_of(MINUTE) {
            self.now += STEP;
            if self.now.is_multiple_of(change) {
                let most = self.scenario.rates.0;
                self.rate = most.div_ceil(2) + self.dice.roll(most / 2 + 1);
            }
            let kills = bad.contains(&self.now);
            self.turn_agent(kills);
            self.turn_operator(kills);
            self.connect(if kills { self.scenario.busier } else { 1 });
            self.report();
            self.write();
        }
    }

    fn turn_agent(&mut self, kills: bool) {
        if self.now < self.agent_turn || (self.agent.is_some() && !kills) {
            return;
        }
        let (lives, is_away) = self.scenario.agent;
        if self.agent.take().is_none() {
            let epoch = std::array::from_fn(|_| u8::try_from(self.dice.roll(256)).unwrap());
            self.agent = Some(Agent { epoch, attached: self.now - STEP, seen: 0, lost: 0 });
            self.agent_turn = self.now + self.dice.about(lives * 1000);
        } else {
            self.agent_turn = self.now + self.dice.about(is_away * 1000);
        }
    }

    fn turn_operator(&mut self, kills: bool) {
        if self.now < self.operator_turn || (self.operator.is_some() && !kills) {
            return;
        }
        let (lives, is_away) = self.scenario.operator;
        if self.operator.take().is_none() {
            let node_probe = serde_json::to_value(&self.node_probe).unwrap();
            let restored = restore::observation(&serde_json::from_value(node_probe).unwrap(), self.now);
            self.operator = Some(SimulatedOperator {
                observation: restored,
                stored: self.topology,
                connects_at: self.now + self.dice.roll(3_000),
                topology_written: None,
                node_probe_written: 0,
            });
            self.operator_turn = self.now + self.dice.about(lives * 1000);
        } else {
            self.operator_turn = self.now + self.dice.about(is_away * 1000);
        }
    }

    fn connect(&mut self, times: u64) {
        let number = self.rate * times;
        self.happened.push((self.now, number));
        let Some(agent) = &mut self.agent else { return };
        for _ in 0..number {
            if self.dice.roll(1000) < self.scenario.lost {
                agent.lost += 1;
            } else {
                agent.seen += 1;
            }
        }
    }

    fn report(&mut self) {
        let Some(operator) = self.operator.as_mut().filter(|it| self.now >= it.connects_at) else { return };
        let Some(agent) = &self.agent else {
            if let Some(observation) = &mut operator.observation {
                observation.disconnect();
            }
            return;
        };
        self.first_heard.get_or_insert(agent.attached);
        let observation = operator.observation.get_or_insert_default();
        observation.begin_epoch(&agent.epoch);
        observation.connected = true;
        observation.mode = Some(Mode::Ebpf);
        observation.last_report_unix_ms = self.now;
        observation.seen = agent.seen;
        observation.losses = Losses { opened: agent.lost, ..Losses::default() };
        observation.note_capture(agent.attached, self.now);
        operator.stored.report(agent.epoch, agent.seen);
    }

    fn coverage(&self, operator: &SimulatedOperator) -> NodeCoverage {
        let settled = self.now - INTERVAL - 5_000;
        let observation = operator.observation.as_ref();
        assess(&CoverageFacts { observation, created: Some(START), settled, now: self.now })
    }

    fn write(&mut self) {
        let Some(mut operator) = self.operator.take() else { return };
        let coverage = self.coverage(&operator);
        let previous = self.node_probe.status.clone();
        let assignment = Assignment {
            probe: "p".to_owned(),
            requested: RequestedMode::Auto,
            mode: AgentMode::Ebpf,
            cause: ModeCause::Supported,
        };
        let inputs = node_probe::NodeProbeInputs {
            assignment: &assignment,
            node_kernel: "",
            fallback: None,
            observation: operator.observation.as_ref(),
            coverage: &coverage,
            previous: previous.as_ref(),
        };
        let at = Timestamp::from_millisecond(i64::try_from(self.now).unwrap()).unwrap();
        let status = node_probe::desired(&inputs, at);
        let differs = previous.as_ref().is_none_or(|previous| node_probe::differs_in_structure(previous, &status));
        if differs || self.now >= operator.node_probe_written + INTERVAL {
            self.node_probe.status = Some(status);
            operator.node_probe_written = self.now;
        }
        if operator.topology_written.is_none_or(|written| self.now >= written + INTERVAL)
            && operator.stored.sum() != self.topology.sum()
        {
            self.topology = operator.stored;
            operator.topology_written = Some(self.now);
        }
        self.operator = Some(operator);
    }

    /// Returns the reported coverage, and the share of the connections that are published, in thousandths.
    fn end(&self) -> (Share, u64) {
        let operator = self.operator.as_ref().expect("all is well in the end");
        let shown = operator.stored.sum();
        // A new node is due to be observed after a while, or from its first agent on that an operator hears of.
        let due = (START + GRACE).min(self.first_heard.unwrap_or(u64::MAX));
        let happened: u64 = self.happened.iter().filter(|(at, _)| *at > due).map(|(_, number)| number).sum();
        assert!(shown <= happened, "{shown} of {happened}");
        let share = self.coverage(operator).shares.total;
        let truth = shown * 1000 / happened.max(1);
        (share, truth)
    }
}

fn end_of(scenario: Scenario) -> (Share, u64) {
    let mut world = SimulatedWorld::new(scenario);
    world.run();
    world.end()
}

fn scenarios(changes: impl Strategy<Value = u64>) -> impl Strategy<Value = Scenario> {
    let lives = || (3_u64..120, 1_u64..40);
    let seconds = (Just(0), 60_u64..600, 45_u64..200);
    (any::<u64>(), seconds, (2_u64..60, changes), lives(), lives(), 0_u64..300).prop_map(
        |(seed, seconds, rates, agent, operator, lost)| Scenario {
            seed,
            seconds,
            busier: 1,
            rates,
            agent,
            operator,
            lost,
        },
    )
}

/// Agents that end before any operator hears of them, while a node is new, are no part of what is due.
#[test]
fn coverage_begins_with_the_first_agent_that_is_heard() {
    let scenario = Scenario {
        seed: 1_267_234_227_954_868_488,
        seconds: (0, 60, 45),
        busier: 1,
        rates: (6, 1_000_000),
        agent: (3, 3),
        operator: (3, 6),
        lost: 0,
    };
    let (claimed, truth) = end_of(scenario);
    assert!(claimed.permille() <= truth + 10, "{claimed:?}: {} of {truth}", claimed.permille());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// At a constant connection rate, the reported coverage exceeds the true one by a hundredth at most, whichever
    /// processes are killed and when.
    #[test]
    fn coverage_does_not_exceed_the_truth(scenario in scenarios(Just(1_000_000))) {
        let (claimed, truth) = end_of(scenario);
        prop_assert!(claimed.permille() <= truth + 10, "{claimed:?}: {} of {truth}", claimed.permille());
    }

    /// If the rate doubles or halves, coverage may exceed the true one by 0.172: the rate within a gap is unknown.
    #[test]
    fn coverage_hardly_exceeds_the_truth_where_rates_change(scenario in scenarios(20_u64..300)) {
        let (claimed, truth) = end_of(scenario);
        prop_assert!(claimed.permille() <= truth + 172, "{claimed:?}: {} of {truth}", claimed.permille());
    }

    /// Kills both during a short, busy time between quiet ones: the share of time is not that of connections.
    #[test]
    fn coverage_hardly_exceeds_the_truth_where_gaps_are_busier_than_the_rest(seed in any::<u64>(), busier in 10_u64..50) {
        let seconds = (60, 120, 60);
        let scenario = Scenario { seed, seconds, busier, rates: (2, 1_000_000), agent: (6, 4), operator: (6, 4), lost: 0 };
        let (claimed, truth) = end_of(scenario);
        prop_assert!(claimed.permille() <= truth + 100, "{claimed:?}: {} of {truth}", claimed.permille());
    }

    /// While the operator runs, it observes every gap: the reported coverage is at most 0.02 below the true one.
    #[test]
    fn coverage_is_close_to_the_truth_where_agents_alone_are_killed(scenario in scenarios(Just(1_000_000))) {
        let (claimed, truth) = end_of(Scenario { operator: (1_000_000, 1), ..scenario });
        prop_assert!(claimed.permille() + 20 >= truth, "{claimed:?}: {} of {truth}", claimed.permille());
    }

    /// An agent that runs all the time observes everything: the operator's restarts are no unobserved time.
    #[test]
    fn operators_that_come_and_go_are_no_gap(scenario in scenarios(20_u64..200)) {
        let (claimed, _) = end_of(Scenario { agent: (1_000_000, 1), ..scenario });
        prop_assert_eq!((claimed.shortfall.unobserved_ms, claimed.shortfall.missed), (0, 0), "{:?}", claimed);
    }
}
