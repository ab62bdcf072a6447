//! Random histories of a node that forwards connections, and of processes of it that call the same server.

use std::time::Duration;

use proptest::prelude::*;
use scopeprobe_topology::{
    archive::Archive,
    edge::Peer,
    entity::CgroupOwner,
    flow::{FlowCounters, FlowKey, Role},
    graph::{Graph, Options},
    ledger::{ClientReport, Epoch},
    sighting::{Ages, Sighting},
};

use crate::world::{EPOCH, RETENTION, SETTLE, World, at, client_report, key};

const SEEN: (&str, &str, u16) = ("10.244.2.2", "172.18.0.1", 5432);
/// Longest time between two reports of an agent, in seconds.
const LONGEST: u64 = 4;

/// Number of seconds: a ledger keeps the times of at most 16 parts of a flow apart.
const MOST: usize = 16;

/// One second of the history.
#[derive(Clone, Copy, Debug)]
struct Second {
    /// Connections from outside of the cluster through the node.
    outside: u64,
    /// Connections of a process of the node.
    by_process: u64,
    /// The node's agent ends, and the next one begins its capture at the end of the second.
    restarts: bool,
    /// Agents that report: the server's, and the node's.
    reports: [bool; 2],
}

fn second() -> impl Strategy<Value = Second> {
    let count = || prop_oneof![3 => Just(0), 1 => 1..4_u64];
    (count(), count(), prop::bool::weighted(0.05), any::<[bool; 2]>())
        .prop_map(|(outside, by_process, restarts, reports)| Second { outside, by_process, restarts, reports })
}

/// Agents of the server and of the node, and what they have counted in their epochs.
struct Agents {
    world: World,
    by_server: FlowCounters,
    by_node: FlowCounters,
    epoch: u8,
    attached: u64,
    reported: [u64; 2],
}

impl Agents {
    fn report(&mut self, agent: usize, now: u64) {
        let (from, counters) = (self.reported[agent], [self.by_server, self.by_node][agent]);
        let (node, flow) = [
            ("node-2", key("db", Role::Server, SEEN)),
            ("node-1", FlowKey { cgroup_id: 99, ..key("web", Role::Client, ("172.18.0.1", "10.244.2.2", 5432)) }),
        ][agent];
        let epoch = if agent == 0 { EPOCH } else { Epoch([self.epoch; 16]) };
        let age = |since: u64| Duration::from_secs(now - since.min(now));
        let first = if agent == 0 { 0 } else { self.attached };
        let sighting = Sighting::new(&Ages::of(age(first), age(from), Duration::ZERO), at(now), at(now));
        let ledger = &mut self.world.ledger;
        ledger.enter(node, epoch).expect("the newest epoch");
        if !ledger.is_complete(node) {
            ledger.begin_snapshot(node, epoch).expect("the newest epoch");
        }
        if counters.opened > 0 {
            let owner = match agent {
                0 => CgroupOwner::PodContainer { pod_uid: "uid-db".to_owned(), container_id: "id-db".to_owned() },
                _ => CgroupOwner::HostProcess { name: "monitor".to_owned() },
            };
            ledger.identify(node, epoch, flow.cgroup_id, owner).expect("the newest epoch");
            ledger.apply(node, epoch, flow, &counters, sighting).expect("the newest epoch");
        }
        ledger.end_snapshot(node, epoch, at(now)).expect("the newest epoch");
        let report = ClientReport { complete_until: Some(at(now)), ..client_report(at(self.attached), at(now)) };
        if agent == 1 {
            ledger.record_clients(node, epoch, &report).expect("the newest epoch");
        }
        self.reported[agent] = now;
    }
}

fn opened(graph: &Graph, client: &Peer) -> u64 {
    graph.edges.iter().filter(|edge| edge.key.client == *client).map(|edge| edge.counters.opened).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn forwarded_connections_never_exceed_those_from_outside_and_never_decrease(
        seconds in prop::collection::vec(second(), 1..MOST)
    ) {
        let behind = Peer::BehindNode { node: "node-1".to_owned() };
        let mut world = World::new();
        world.ledger.begin_snapshot("node-2", EPOCH).expect("the present epoch");
        world.ledger.end_snapshot("node-2", EPOCH, at(0)).expect("the present epoch");
        let counters = FlowCounters::default();
        let (epoch, attached, reported) = (1, 0, [0; 2]);
        let mut agents = Agents { world, by_server: counters, by_node: counters, epoch, attached, reported };
        let mut archive = Archive::new();
        let (mut outside, mut certain, mut doubtful, mut all, mut shown) = (0, 0, 0, 0, 0);
        let quiet = Second { outside: 0, by_process: 0, restarts: false, reports: [true; 2] };
        let end = u64::try_from(seconds.len()).unwrap_or_default();
        for (now, second) in (1..).zip(seconds.iter().copied().chain([quiet; 20])) {
            let count = |counters: &mut FlowCounters, more| {
                counters.opened += more;
                counters.closed += more;
            };
            outside += second.outside;
            all += second.outside + second.by_process;
            count(&mut agents.by_server, second.outside + second.by_process);
            if second.restarts {
                // Connections of this second are unknown to both agents of the node.
                (agents.by_node, agents.attached) = (FlowCounters::default(), now);
                agents.epoch += 1;
            } else {
                count(&mut agents.by_node, second.by_process);
            }
            for agent in 0..2 {
                if second.reports[agent] || now - agents.reported[agent] >= LONGEST || (second.restarts && agent == 1) {
                    agents.report(agent, now);
                }
            }
            // Long enough after a start, and before the next one, for each of the reports to be clearly in it.
            let margin = LONGEST + 1;
            let restarts = |at: u64| seconds.get(usize::try_from(at).unwrap_or_default()).is_some_and(|it| it.restarts);
            let near = now.saturating_sub(margin + 1)..now + margin;
            if now > margin && !near.into_iter().any(restarts) {
                certain += second.outside;
            } else {
                // They may stand for as many of the others.
                doubtful += second.by_process;
            }
            let options = Options { now: at(now), settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
            let graph = archive.build_shown(&agents.world.ledger, &agents.world.directory, &options);
            let forwarded = opened(&graph, &behind);
            prop_assert!(forwarded <= outside, "{forwarded} of {outside} at {now}");
            prop_assert!(forwarded >= shown, "{forwarded} after {shown} at {now}");
            shown = forwarded;
            // An edge keeps for some seconds what another one has got.
            let sum = |graph: &Graph| graph.edges.iter().map(|edge| edge.counters.opened).sum::<u64>();
            let of_all = sum(&agents.world.graph(at(now)));
            prop_assert!(of_all <= all, "{of_all} of {all} at {now}");
            if now == end + 20 {
                prop_assert_eq!(sum(&graph), all);
                prop_assert!(forwarded + doubtful >= certain, "{} of {} certain ones", forwarded, certain);
            }
        }
    }
}
