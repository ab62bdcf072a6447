//! The ledger against a simulated truth: agents that start and stop, reports that are repeated and reordered.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, FlowTotals, Protocol, Role},
    ledger::{Epoch, Ledger, News},
    rtt::RttHistogram,
};

const NODE: &str = "node-1";

fn key(cgroup_id: u64) -> FlowKey {
    let ip = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
    FlowKey { cgroup_id, netns: 7, role: Role::Client, local: ip(1), remote: ip(2), port: 80, protocol: Protocol::Tcp }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn totals(ledger: &Ledger) -> FlowTotals {
    ledger.flows().next().map(|flow| flow.totals).unwrap_or_default()
}

fn opened(opened: u64, closed: u64) -> FlowCounters {
    FlowCounters { opened, closed, ..FlowCounters::default() }
}

#[test]
fn names_stay_with_their_flow_until_others_are_known() {
    let mut ledger = Ledger::new();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let name = |ledger: &mut Ledger, epoch, of: &[&str]| {
        ledger.set_remote_names(NODE, Epoch([epoch; 16]), &key(1), &names(of)).expect("the present epoch")
    };
    let known = |ledger: &Ledger| ledger.flows().next().map(|flow| flow.remote_names.to_vec()).unwrap_or_default();
    assert!(!name(&mut ledger, 1, &["a.example"]), "the flow is not known yet");
    ledger.apply(NODE, Epoch([1; 16]), key(1), &opened(1, 0), at(0)).expect("the first epoch");
    assert!(name(&mut ledger, 1, &["a.example"]));
    assert!(!name(&mut ledger, 1, &["a.example"]), "it is known");
    assert!(!name(&mut ledger, 2, &[]), "a new agent has not seen the answer");
    assert_eq!(known(&ledger), ["a.example"]);
    assert!(name(&mut ledger, 2, &["1", "2", "3", "4", "5"]));
    assert_eq!(known(&ledger), ["1", "2", "3", "4"]);
    assert!(
        ledger.set_remote_names(NODE, Epoch([1; 16]), &key(1), &names(&["a.example"])).is_err(),
        "that epoch is over"
    );
}

/// Counters alone can wait, what makes edges come or go cannot.
#[test]
fn report_of_a_known_flow_is_news_of_counters() {
    let mut ledger = Ledger::new();
    let mut news = |counters: &FlowCounters, seconds| {
        ledger.apply(NODE, Epoch([1; 16]), key(1), counters, at(seconds)).expect("the first epoch")
    };
    assert_eq!(news(&opened(1, 0), 0), News::Structure);
    assert_eq!(news(&opened(1, 0), 1), News::Nothing);
    assert_eq!(news(&opened(2, 0), 59), News::Counters);
    assert_eq!(news(&opened(2, 2), 60), News::Counters);
    assert_eq!(news(&opened(3, 2), 120), News::Structure, "its edge may have left the graph");
    assert_eq!([News::Counters, News::Structure, News::Nothing].into_iter().max(), Some(News::Structure));
}

/// Returns the counters of a flow whose numbers of pending attempts were these, one after the other.
fn pending(numbers: &[u64]) -> FlowCounters {
    let mut counters = FlowCounters::default();
    for number in numbers {
        let before = counters.pending();
        counters.pending_begun += number.saturating_sub(before);
        counters.pending_ended += before.saturating_sub(*number);
    }
    counters
}

#[test]
fn first_and_last_pending_attempt_are_news_of_structure() {
    let mut ledger = Ledger::new();
    let mut news = |numbers: &[u64]| {
        ledger.apply(NODE, Epoch([1; 16]), key(1), &pending(numbers), at(0)).expect("the first epoch")
    };
    assert_eq!(news(&[1]), News::Structure, "it is new");
    assert_eq!(news(&[1, 2]), News::Counters);
    assert_eq!(news(&[1, 2, 0]), News::Structure);
    assert_eq!(news(&[1, 2]), News::Nothing, "it is late");
    assert_eq!(news(&[1, 2, 0, 1]), News::Structure);
}

#[test]
fn pending_attempts_end_with_their_epoch_and_flow() {
    let mut ledger = Ledger::new();
    let first = Epoch([1; 16]);
    let counters = FlowCounters { failed: 5, ..pending(&[2]) };
    ledger.apply(NODE, first, key(1), &counters, at(0)).expect("the first epoch");
    assert_eq!(totals(&ledger), FlowTotals { failed: 5, pending: 2, ..FlowTotals::default() });
    ledger.enter(NODE, Epoch([2; 16])).expect("a new epoch");
    assert_eq!(totals(&ledger), FlowTotals { failed: 5, ..FlowTotals::default() });
    ledger.apply(NODE, Epoch([2; 16]), key(1), &pending(&[3]), at(1)).expect("the present epoch");
    assert_eq!(totals(&ledger), FlowTotals { failed: 5, pending: 3, ..FlowTotals::default() });
    // A snapshot without the flow.
    ledger.begin_snapshot(NODE, Epoch([2; 16])).expect("the present epoch");
    assert!(ledger.end_snapshot(NODE, Epoch([2; 16]), at(2)).expect("the present epoch"));
    assert_eq!(totals(&ledger), FlowTotals { failed: 5, ..FlowTotals::default() });
}

proptest! {
    #[test]
    fn pending_attempts_are_the_last_number_in_any_order_of_reports(
        (numbers, order) in prop::collection::vec(0..5_u64, 1..10).prop_flat_map(|numbers| {
            let order = prop::collection::vec(0..numbers.len(), 0..20);
            (Just(numbers), order)
        }),
    ) {
        let mut ledger = Ledger::new();
        for last in order.into_iter().chain([numbers.len() - 1]) {
            ledger.apply(NODE, Epoch([1; 16]), key(1), &pending(&numbers[..=last]), at(0)).expect("the first epoch");
        }
        prop_assert_eq!(totals(&ledger).pending, *numbers.last().expect("there is one"));
    }
}

/// Reports a snapshot of a new epoch: connections that are open, by the number of their remote address; all of them in the
/// folded row for the addresses that `is_folded` selects.
#[expect(clippy::expect_used, reason = "a test")]
fn report_open(
    ledger: &mut Ledger,
    epoch: u8,
    open: &[u8],
    is_folded: impl Fn(u8) -> bool,
    counts: fn(u64) -> FlowCounters,
) {
    let epoch = Epoch([epoch; 16]);
    ledger.enter(NODE, epoch).expect("a new epoch");
    ledger.begin_snapshot(NODE, epoch).expect("the present epoch");
    let mut flows = std::collections::BTreeMap::new();
    for number in open {
        let remote = IpAddr::V4(Ipv4Addr::new(203, 0, 113, *number));
        let own = FlowKey { remote, role: Role::Server, ..key(1) };
        *flows.entry(if is_folded(*number) { own.folded() } else { own }).or_insert(0) += 1;
    }
    for (key, connections) in flows {
        ledger.apply(NODE, epoch, key, &counts(connections), at(epoch.0[0].into())).expect("the present epoch");
    }
    ledger.end_snapshot(NODE, epoch, at(epoch.0[0].into())).expect("the present epoch");
}

fn is_preexisting(preexisting: u64) -> FlowCounters {
    let bytes = 100 * preexisting;
    FlowCounters {
        preexisting,
        bytes_sent: bytes,
        preexisting_bytes_sent: bytes,
        open_bytes_sent: bytes,
        ..FlowCounters::default()
    }
}

proptest! {
    /// Connections that stay open while agents replace one another, each of which folds some of the addresses.
    #[test]
    fn connections_count_once_in_folded_rows_and_in_their_own(
        open in prop::collection::vec(0..6_u8, 0..12),
        folds in prop::collection::vec(any::<u8>(), 1..6),
    ) {
        let mut ledger = Ledger::new();
        for (epoch, folded) in (1..).zip(&folds) {
            report_open(&mut ledger, epoch, &open, |number| folded >> number & 1 == 1, is_preexisting);
            let sum = |of: fn(&FlowTotals) -> u64| ledger.flows().map(|flow| of(&flow.totals)).sum::<u64>();
            prop_assert_eq!(sum(|totals| totals.opened), open.len() as u64);
            prop_assert_eq!(sum(|totals| totals.bytes_sent), 100 * open.len() as u64);
            prop_assert!(sum(|totals| totals.active) <= open.len() as u64);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    /// Closes the connection at this index (modulo how many are open).
    Close(usize),
    Send(usize, u64),
    Fail,
    Report,
    /// Repeats the report at this index of the current epoch's.
    Repeat(usize),
    /// Repeats a report of an epoch that is over.
    Late(usize),
    Snapshot,
    StopAgent,
    StartAgent,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Open),
        3 => any::<usize>().prop_map(Step::Close),
        4 => (any::<usize>(), 1..1000_u64).prop_map(|(which, bytes)| Step::Send(which, bytes)),
        1 => Just(Step::Fail),
        3 => Just(Step::Report),
        1 => any::<usize>().prop_map(Step::Repeat),
        1 => any::<usize>().prop_map(Step::Late),
        1 => Just(Step::Snapshot),
        1 => Just(Step::StopAgent),
        2 => Just(Step::StartAgent),
    ]
}

#[derive(Default)]
struct World {
    /// The bytes of each open connection.
    open: Vec<u64>,
    truth: FlowTotals,
    ledger: Ledger,
    epoch: u8,
    watching: bool,
    /// The agent's counters since its start, those of closed connections.
    agent: FlowCounters,
    closed_bytes: u64,
    reports: Vec<FlowCounters>,
    late: Vec<(u8, FlowCounters)>,
    /// Something happened after the last report or while no agent watched.
    unwatched: bool,
    unreported: bool,
}

#[expect(clippy::expect_used, reason = "a test")]
impl World {
    fn happens(&mut self) {
        self.unreported = true;
        self.unwatched |= !self.watching;
    }

    fn counters(&self) -> FlowCounters {
        let open_bytes: u64 = self.open.iter().sum();
        let bytes_sent = self.closed_bytes + open_bytes;
        // As if every byte had to be sent again: both are accounts of the same kind.
        let (retransmits, open_retransmits) = (Some(bytes_sent), open_bytes);
        FlowCounters { bytes_sent, open_bytes_sent: open_bytes, retransmits, open_retransmits, ..self.agent }
    }

    fn apply(&mut self, epoch: u8, counters: &FlowCounters) {
        let _ = self.ledger.apply(NODE, Epoch([epoch; 16]), key(5), counters, at(0));
    }

    fn report(&mut self) {
        let counters = self.counters();
        self.apply(self.epoch, &counters);
        self.reports.push(counters);
        self.unreported = false;
    }

    fn snapshot(&mut self) {
        let epoch = Epoch([self.epoch; 16]);
        self.ledger.begin_snapshot(NODE, epoch).expect("the epoch is the current one");
        self.report();
        self.ledger.end_snapshot(NODE, epoch, at(0)).expect("the epoch is the current one");
    }

    fn start(&mut self) {
        self.epoch += 1;
        self.watching = true;
        let before: u64 = self.open.iter().sum();
        self.agent = FlowCounters {
            preexisting: self.open.len() as u64,
            preexisting_bytes_sent: before,
            preexisting_retransmits: before,
            ..FlowCounters::default()
        };
        self.closed_bytes = 0;
        self.snapshot();
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Open => {
                self.happens();
                self.truth.opened += 1;
                self.agent.opened += u64::from(self.watching);
                self.open.push(0);
            }
            Step::Close(which) if !self.open.is_empty() => {
                self.happens();
                let bytes_of_it = self.open.remove(which % self.open.len());
                if self.watching {
                    self.agent.closed += 1;
                    self.closed_bytes += bytes_of_it;
                }
            }
            Step::Send(which, bytes) if !self.open.is_empty() => {
                self.happens();
                self.truth.bytes_sent += bytes;
                let which = which % self.open.len();
                self.open[which] += bytes;
            }
            Step::Fail => {
                self.happens();
                self.truth.failed += 1;
                self.agent.failed += u64::from(self.watching);
            }
            Step::Report if self.watching => self.report(),
            Step::Snapshot if self.watching => self.snapshot(),
            Step::Repeat(which) if !self.reports.is_empty() && self.watching => {
                let repeated = self.reports[which % self.reports.len()];
                self.apply(self.epoch, &repeated);
            }
            Step::Late(which) if !self.late.is_empty() => {
                let (epoch, counters) = self.late[which % self.late.len()];
                self.apply(epoch, &counters);
            }
            Step::StopAgent if self.watching => {
                // What was not reported before the end is lost to the ledger.
                self.unwatched |= self.unreported;
                self.watching = false;
                let epoch = self.epoch;
                self.late.extend(self.reports.drain(..).map(|counters| (epoch, counters)));
            }
            Step::StartAgent if !self.watching => self.start(),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Never more than the truth, never backwards, and the truth itself if everything was watched and reported.
    #[test]
    fn account_against_truth(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::default();
        world.start();
        let mut before = totals(&world.ledger);
        for step in &steps {
            world.run(step);
            let now = totals(&world.ledger);
            prop_assert!(now.opened >= before.opened && now.failed >= before.failed, "{before:?} -> {now:?}");
            prop_assert!(now.bytes_sent >= before.bytes_sent, "{before:?} -> {now:?}");
            prop_assert!(now.opened <= world.truth.opened, "{now:?}, truth {:?}", world.truth);
            prop_assert!(now.failed <= world.truth.failed, "{now:?}, truth {:?}", world.truth);
            prop_assert!(now.bytes_sent <= world.truth.bytes_sent, "{now:?}, truth {:?}", world.truth);
            prop_assert_eq!(now.retransmits, Some(now.bytes_sent));
            if !world.unreported && world.watching {
                prop_assert_eq!(now.active, world.open.len() as u64);
            }
            before = now;
        }
        if !world.unwatched && !world.unreported {
            let (active, retransmits) = (world.open.len() as u64, Some(world.truth.bytes_sent));
            let expected = FlowTotals { active, retransmits, ..world.truth };
            prop_assert_eq!(totals(&world.ledger), expected);
        }
    }

    /// The account of an epoch does not depend on order and repetition.
    #[test]
    fn order_does_not_matter(
        increments in prop::collection::vec((0..5_u64, 0..5_u64, 0..100_u64), 1..20),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let mut counters = FlowCounters::default();
        let reports: Vec<FlowCounters> = increments.iter().map(|(opened, closed, bytes)| {
            counters.opened += opened;
            counters.closed = (counters.closed + closed).min(counters.opened);
            counters.bytes_sent += bytes;
            counters.open_bytes_sent = if counters.active() > 0 { counters.bytes_sent / 2 } else { 0 };
            counters
        }).collect();
        let mut in_order = Ledger::new();
        let mut shuffled = Ledger::new();
        for report in &reports {
            in_order.apply(NODE, Epoch([1; 16]), key(5), report, at(0)).unwrap();
        }
        for index in &order {
            shuffled.apply(NODE, Epoch([1; 16]), key(5), index.get(&reports), at(0)).unwrap();
        }
        shuffled.apply(NODE, Epoch([1; 16]), key(5), reports.last().unwrap(), at(0)).unwrap();
        prop_assert_eq!(totals(&in_order), totals(&shuffled));
        // The next epoch finds the same open connections with the same bytes in both.
        let next = FlowCounters {
            preexisting: counters.active(),
            bytes_sent: counters.open_bytes_sent,
            preexisting_bytes_sent: counters.open_bytes_sent,
            open_bytes_sent: counters.open_bytes_sent,
            ..FlowCounters::default()
        };
        for ledger in [&mut in_order, &mut shuffled] {
            let before = totals(ledger);
            ledger.apply(NODE, Epoch([2; 16]), key(5), &next, at(1)).unwrap();
            prop_assert_eq!(totals(ledger), before);
        }
    }
}

#[test]
fn what_a_snapshot_does_not_name_is_over() {
    let mut ledger = Ledger::new();
    let epoch = Epoch([1; 16]);
    ledger.apply(NODE, epoch, key(1), &opened(3, 1), at(0)).unwrap();
    ledger.apply(NODE, epoch, key(2), &opened(4, 0), at(0)).unwrap();
    ledger.begin_snapshot(NODE, epoch).unwrap();
    ledger.apply(NODE, epoch, key(2), &opened(5, 0), at(1)).unwrap();
    assert!(ledger.end_snapshot(NODE, epoch, at(1)).unwrap());
    let active: Vec<(u64, u64)> = ledger.flows().map(|flow| (flow.totals.opened, flow.totals.active)).collect();
    assert_eq!(active, [(3, 0), (5, 5)]);
}

#[test]
fn counters_that_begin_again_in_a_greater_run_are_added() {
    let mut ledger = Ledger::new();
    let epoch = Epoch([1; 16]);
    let run = |run, opened| FlowCounters { run, opened, closed: opened, ..FlowCounters::default() };
    for (counters, account) in [(run(0, 3), 3), (run(4, 2), 5), (run(4, 4), 7), (run(0, 9), 7), (run(9, 1), 8)] {
        ledger.apply(NODE, epoch, key(1), &counters, at(0)).unwrap();
        assert_eq!(totals(&ledger).opened, account, "{counters:?}");
    }
    // Left out of a snapshot in between or not.
    ledger.begin_snapshot(NODE, epoch).unwrap();
    ledger.end_snapshot(NODE, epoch, at(1)).unwrap();
    ledger.apply(NODE, epoch, key(1), &run(10, 1), at(2)).unwrap();
    assert_eq!(totals(&ledger).opened, 9);
}

#[test]
fn an_agent_that_goes_on_after_its_node_seemed_gone_is_not_counted_again() {
    let mut ledger = Ledger::new();
    let epoch = Epoch([1; 16]);
    ledger.apply(NODE, epoch, key(1), &opened(3, 1), at(0)).unwrap();
    ledger.remove_node(NODE, at(1));
    ledger.apply(NODE, epoch, key(1), &opened(4, 1), at(2)).unwrap();
    assert!(ledger.observes(NODE, at(0)));
    assert_eq!(totals(&ledger), FlowTotals { opened: 4, active: 3, ..FlowTotals::default() });
}

#[test]
fn a_cgroup_id_that_changes_hands_leaves_its_flows_with_the_former_owner() {
    let owner = |uid: &str| CgroupOwner::PodContainer { pod_uid: uid.to_owned(), container_id: "c".to_owned() };
    let mut ledger = Ledger::new();
    ledger.identify(NODE, Epoch([1; 16]), 5, owner("a")).unwrap();
    ledger.apply(NODE, Epoch([1; 16]), key(5), &opened(3, 0), at(0)).unwrap();
    ledger.identify(NODE, Epoch([2; 16]), 5, owner("b")).unwrap();
    ledger.apply(NODE, Epoch([2; 16]), key(5), &opened(1, 0), at(1)).unwrap();
    let mut seen: Vec<(String, u64, u64)> = ledger
        .flows()
        .map(|flow| match flow.owner {
            Some(CgroupOwner::PodContainer { pod_uid, .. }) => {
                (pod_uid.clone(), flow.totals.opened, flow.totals.active)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    seen.sort();
    assert_eq!(seen, [("a".to_owned(), 3, 0), ("b".to_owned(), 1, 1)]);
}

#[test]
fn owners_of_cgroups_without_flows_are_forgotten_at_the_end_of_a_snapshot() {
    let mut ledger = Ledger::new();
    let epoch = Epoch([1; 16]);
    let owner = |name: &str| CgroupOwner::HostProcess { name: name.to_owned() };
    let snapshot = |ledger: &mut Ledger, cgroups: &[u64]| {
        ledger.begin_snapshot(NODE, epoch).unwrap();
        for cgroup in cgroups {
            ledger.apply(NODE, epoch, key(*cgroup), &opened(1, 1), at(0)).unwrap();
        }
        ledger.end_snapshot(NODE, epoch, at(0)).unwrap();
    };
    ledger.identify(NODE, epoch, 1, owner("one")).unwrap();
    ledger.identify(NODE, epoch, 2, owner("two")).unwrap();
    snapshot(&mut ledger, &[1, 2]);
    snapshot(&mut ledger, &[2]);
    let owners = |ledger: &Ledger| ledger.flows().map(|flow| flow.owner.cloned()).collect::<Vec<_>>();
    assert_eq!(owners(&ledger), [Some(owner("one")), Some(owner("two"))], "until its flows retire");
    assert_eq!(ledger.retire(at(9), Duration::from_secs(1)), 1);
    snapshot(&mut ledger, &[2]);
    snapshot(&mut ledger, &[1, 2]);
    assert_eq!(owners(&ledger), [None, Some(owner("two"))], "not told again");
}

#[test]
fn only_what_is_over_for_long_enough_retires() {
    let mut ledger = Ledger::new();
    let epoch = Epoch([1; 16]);
    ledger.apply(NODE, epoch, key(1), &opened(1, 1), at(0)).unwrap();
    ledger.apply(NODE, epoch, key(2), &opened(1, 1), at(0)).unwrap();
    ledger.begin_snapshot(NODE, epoch).unwrap();
    ledger.apply(NODE, epoch, key(2), &opened(1, 1), at(0)).unwrap();
    ledger.end_snapshot(NODE, epoch, at(0)).unwrap();
    assert_eq!(ledger.retire(at(9), Duration::from_secs(10)), 0);
    assert_eq!(ledger.retire(at(10), Duration::from_secs(10)), 1);
    assert_eq!(ledger.flows().map(|flow| flow.key.cgroup_id).collect::<Vec<_>>(), [2]);
}

#[test]
fn snapshot_stays_as_it_is_while_the_ledger_changes() {
    let mut ledger = Ledger::new();
    let (first, second) = (Epoch([1; 16]), Epoch([2; 16]));
    let owner = |name: &str| CgroupOwner::HostProcess { name: name.to_owned() };
    let addresses = |last| [IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))];
    for cgroup in [1, 2, 3] {
        ledger.identify(NODE, first, cgroup, owner("one")).unwrap();
        ledger.apply(NODE, first, key(cgroup), &opened(2, 1), at(0)).unwrap();
    }
    ledger.set_node_addresses(NODE, first, &addresses(1)).unwrap();
    let seen = |ledger: &Ledger| -> Vec<String> {
        let flows = ledger.flows().map(|flow| format!("{flow:?}"));
        let addresses = ledger.node_addresses().map(|address| format!("{address:?}"));
        flows.chain(addresses).chain([format!("{:?}", ledger.observes(NODE, at(0)))]).collect()
    };
    let (snapshot, before) = (ledger.snapshot(), seen(&ledger));
    let changes: [fn(&mut Ledger, Epoch, Epoch); 7] = [
        |ledger, first, _| _ = ledger.apply(NODE, first, key(1), &opened(9, 1), at(1)).unwrap(),
        |ledger, first, _| _ = ledger.apply(NODE, first, key(4), &opened(1, 0), at(1)).unwrap(),
        |ledger, first, _| _ = ledger.set_remote_names(NODE, first, &key(2), &["a.example".to_owned()]).unwrap(),
        |ledger, first, _| {
            let other = CgroupOwner::PodContainer { pod_uid: "p".to_owned(), container_id: "c".to_owned() };
            ledger.identify(NODE, first, 1, other).unwrap();
        },
        |ledger, first, _| _ = ledger.set_node_addresses(NODE, first, &[]).unwrap(),
        |ledger, _, second| ledger.enter(NODE, second).unwrap(),
        |ledger, _, _| {
            ledger.remove_node(NODE, at(2));
            assert_eq!(ledger.retire(at(9), Duration::ZERO), 4);
        },
    ];
    for change in changes {
        let unchanged = seen(&ledger);
        change(&mut ledger, first, second);
        assert_ne!(seen(&ledger), unchanged);
        assert_eq!(seen(&snapshot), before);
    }
}

#[test]
fn a_node_that_is_gone_has_no_open_connections() {
    let mut ledger = Ledger::new();
    ledger.apply(NODE, Epoch([1; 16]), key(1), &opened(2, 0), at(0)).unwrap();
    assert!(ledger.observes(NODE, at(0)));
    assert!(ledger.remove_node(NODE, at(1)));
    assert!(!ledger.observes(NODE, at(0)));
    assert_eq!(totals(&ledger), FlowTotals { opened: 2, ..FlowTotals::default() });
    ledger.retire(at(100), Duration::from_secs(10));
    assert_eq!(ledger.flows().count(), 0);
}

#[test]
fn bytes_that_come_with_the_end_are_missing_until_then() {
    let mut ledger = Ledger::new();
    let apply = |ledger: &mut Ledger, epoch, counters| {
        ledger.apply(NODE, Epoch([epoch; 16]), key(1), &counters, at(0)).unwrap();
        let totals = totals(ledger);
        (totals.opened, totals.bytes_sent, totals.without_bytes)
    };
    let open = |opened| FlowCounters { opened, open_without_bytes: opened, ..FlowCounters::default() };
    assert_eq!(apply(&mut ledger, 1, open(2)), (2, 0, 2));
    let one_ended =
        FlowCounters { opened: 2, closed: 1, bytes_sent: 30, open_without_bytes: 1, ..FlowCounters::default() };
    assert_eq!(apply(&mut ledger, 1, one_ended), (2, 30, 1));
    // The next agent does not know the one connection that is left: it stays unknown.
    assert_eq!(apply(&mut ledger, 2, open(1)), (3, 30, 2));
    // On another kernel, connections from before are known with their bytes.
    let whole = FlowCounters { preexisting: 1, bytes_sent: 50, preexisting_bytes_sent: 50, ..FlowCounters::default() };
    assert_eq!(apply(&mut ledger, 3, whole), (3, 80, 1));
}

#[test]
fn retransmits_are_unknown_until_an_agent_knows_them() {
    let mut ledger = Ledger::new();
    let apply = |ledger: &mut Ledger, epoch, counters: FlowCounters| {
        ledger.apply(NODE, Epoch([epoch; 16]), key(1), &counters, at(0)).unwrap();
        totals(ledger).retransmits
    };
    assert_eq!(apply(&mut ledger, 1, opened(2, 1)), None);
    let known = FlowCounters { retransmits: Some(3), preexisting: 1, preexisting_retransmits: 3, ..opened(0, 0) };
    assert_eq!(apply(&mut ledger, 2, known), Some(3));
    assert_eq!(apply(&mut ledger, 3, opened(1, 0)), Some(3), "what was known stays known");
}

#[test]
fn round_trip_times_are_of_the_connections_that_the_agent_knows() {
    let mut ledger = Ledger::new();
    let rtt = |counts: &[u32]| RttHistogram::from_counts(counts).unwrap();
    let mut apply = |epoch, run, counts: &[u32]| {
        let counters = FlowCounters { run, rtt: rtt(counts), ..opened(3, 1) };
        ledger.apply(NODE, Epoch([epoch; 16]), key(1), &counters, at(0)).unwrap();
        totals(&ledger).rtt
    };
    assert_eq!(apply(1, 0, &[1, 2]), rtt(&[1, 2]));
    assert_eq!(apply(1, 0, &[1, 0, 2]), rtt(&[1, 0, 2]), "they change while connections are open");
    assert_eq!(apply(2, 0, &[]), rtt(&[1, 0, 2]), "nothing better is known");
    assert_eq!(apply(2, 1, &[0, 1]), rtt(&[0, 1]));
}
