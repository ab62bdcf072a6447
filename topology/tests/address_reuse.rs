//! Tests the graph with addresses that are reused by several pods, against known calls. Agents read periodically; their
//! reports are late, repeated and reordered among nodes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    directory::Directory,
    edge::Peer,
    entity::{CgroupOwner, Pod, PodLifetime, Workload},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{Epoch, Ledger},
    sighting::{Ages, Sighting},
};

const BEGIN_MS: u64 = 1_000_000_000;
const END_MS: u64 = BEGIN_MS + 400_000;
const EPOCH: Epoch = Epoch([1; 16]);
const CLIENTS: usize = 3;
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 2, 9));
const PORT: u16 = 80;

#[derive(Clone, Debug)]
struct World {
    /// Time for which each server holds the address, and the pause after it.
    stays: Vec<(u64, u64)>,
    /// Clients and times of their calls, in milliseconds from the start.
    calls: Vec<(usize, u64)>,
    /// Interval between two readings of an agent.
    period_ms: u64,
    /// True if the servers' node has an agent.
    servers_seen: bool,
    /// Interval, in messages, at which everything is reported again from the start.
    anew_every: usize,
}

fn world() -> impl Strategy<Value = World> {
    let stay = (prop_oneof![500..3_000_u64, 15_000..60_000_u64], prop_oneof![0..20_u64, 0..20_000_u64]);
    (
        prop::collection::vec(stay, 1..8),
        prop::collection::vec((0..CLIENTS, 0..250_000_u64), 0..120),
        prop_oneof![Just(200_u64), Just(1_500), Just(5_000)],
        any::<bool>(),
        2..20_usize,
    )
        .prop_map(|(stays, mut calls, period_ms, servers_seen, anew_every)| {
            calls.sort_by_key(|(_, ms)| *ms);
            World { stays, calls, period_ms, servers_seen, anew_every }
        })
}

fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

fn client_ip(client: usize) -> IpAddr {
    Ipv4Addr::new(10, 244, 1, 2 + u8::try_from(client).unwrap_or(0)).into()
}

fn pod(name: &str, node: &str, ip: IpAddr, from_ms: u64) -> Pod {
    let cut = Some(at(from_ms / 1000 * 1000));
    Pod {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        host_network: false,
        ips: vec![ip],
        ended: false,
        workload: Workload {
            namespace: "shop".to_owned(),
            kind: "Pod".to_owned(),
            name: name.to_owned(),
            group: String::new(),
        },
        containers: [(format!("id-{name}"), "main".to_owned())].into(),
        host_ports: Vec::new(),
        life: PodLifetime { created: cut, started: cut, ran: cut, ..PodLifetime::default() },
    }
}

/// Node of the agent, owner of the sockets, flow.
type Flow = (&'static str, String, FlowKey);

/// Report of one agent on one flow at one time.
#[derive(Clone, Debug)]
struct Report {
    node: &'static str,
    owner: String,
    key: FlowKey,
    counters: FlowCounters,
    look_ms: u64,
    ages: Ages,
}

impl World {
    /// Returns the range of time for which each server holds the address; both bounds are included.
    fn servers(&self) -> Vec<(u64, u64)> {
        let mut free_ms = BEGIN_MS;
        self.stays
            .iter()
            .map(|(lasts_ms, gap_ms)| {
                let stay = (free_ms, free_ms + lasts_ms);
                free_ms = stay.1 + 1 + gap_ms;
                stay
            })
            .collect()
    }

    fn server_at(&self, ms: u64) -> Option<usize> {
        self.servers().iter().position(|(from_ms, until_ms)| (*from_ms..=*until_ms).contains(&ms))
    }

    /// Returns the number of connections by client and server.
    fn truth(&self) -> BTreeMap<(String, String), u64> {
        let mut truth = BTreeMap::new();
        for (client, ms) in &self.calls {
            if let Some(server) = self.server_at(BEGIN_MS + ms) {
                *truth.entry((format!("client-{client}"), format!("server-{server}"))).or_default() += 1;
            }
        }
        truth
    }

    fn directory(&self) -> Directory {
        let mut directory = Directory::new();
        for client in 0..CLIENTS {
            let pod = pod(&format!("client-{client}"), "node-1", client_ip(client), BEGIN_MS);
            directory.upsert_pod(pod, at(BEGIN_MS));
        }
        for (number, (from_ms, until_ms)) in self.servers().into_iter().enumerate() {
            let pod = pod(&format!("server-{number}"), "node-2", SERVER, from_ms);
            directory.upsert_pod(pod.clone(), at(from_ms + 300));
            let life = PodLifetime { finished: Some(at(until_ms / 1000 * 1000)), ..pod.life };
            directory.note_life(&pod.uid, life, false, at(until_ms + 300));
            directory.remove_pod(&pod.uid, at(until_ms + 300));
        }
        directory
    }

    /// Returns the agents' reports, in the order of each agent.
    fn reports(&self) -> Vec<Report> {
        let mut flows: BTreeMap<Flow, Vec<(u64, bool)>> = BTreeMap::new();
        for (client, ms) in &self.calls {
            let ms = BEGIN_MS + ms;
            let server = self.server_at(ms);
            let key = |cgroup_id, role, local, remote| FlowKey {
                cgroup_id,
                netns: 1,
                role,
                local,
                remote,
                port: PORT,
                protocol: Protocol::Tcp,
            };
            let ours = key(*client as u64, Role::Client, client_ip(*client), SERVER);
            flows.entry(("node-1", format!("client-{client}"), ours)).or_default().push((ms, server.is_some()));
            if let Some(server) = server.filter(|_| self.servers_seen) {
                let theirs = key(100 + server as u64, Role::Server, SERVER, client_ip(*client));
                flows.entry(("node-2", format!("server-{server}"), theirs)).or_default().push((ms, true));
            }
        }
        let mut reports = Vec::new();
        for ((node, owner, key), events) in flows {
            let mut counters = FlowCounters::default();
            let mut first_ms = None;
            let mut looks: BTreeMap<u64, Vec<bool>> = BTreeMap::new();
            for (ms, opened) in events {
                looks.entry(ms.div_ceil(self.period_ms) * self.period_ms).or_default().push(opened);
            }
            for (number, (look_ms, events)) in looks.into_iter().enumerate() {
                for opened in events {
                    counters.opened += u64::from(opened);
                    counters.closed += u64::from(opened);
                    counters.failed += u64::from(!opened);
                    counters.bytes_sent += 10 * u64::from(opened);
                }
                let before_ms = look_ms - self.period_ms;
                let first_ms = *first_ms.get_or_insert(before_ms);
                let news_ms = if number % self.anew_every == 0 { first_ms } else { before_ms };
                let age = |ms: u64| Duration::from_millis(look_ms - ms);
                let ages = Ages::of(age(first_ms), age(news_ms), Duration::ZERO);
                reports.push(Report { node, owner: owner.clone(), key, counters, look_ms, ages });
            }
        }
        reports.sort_by_key(|report| report.look_ms);
        reports
    }

    /// Returns the graph after all reports. In turn, they are late by `late_ms`, and arrive twice if `twice` is true.
    fn graph(&self, late_ms: &[u64], twice: &[bool]) -> Graph {
        let mut coming: Vec<(u64, Report)> = Vec::new();
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for (number, report) in self.reports().into_iter().enumerate() {
            // A node's messages keep their order.
            let late = report.look_ms + late_ms[number % late_ms.len()];
            let due = last.entry(report.node).or_default();
            *due = late.max(*due);
            coming.push((*due, report.clone()));
            if twice[number % twice.len()] {
                coming.push((*due, report));
            }
        }
        coming.sort_by_key(|(due, _)| *due);
        let mut ledger = Ledger::new();
        for (due, report) in coming {
            let owner = CgroupOwner::PodContainer {
                pod_uid: format!("uid-{}", report.owner),
                container_id: format!("id-{}", report.owner),
            };
            // Ages refer to the time at which the report was made.
            let sighting = Sighting::new(&report.ages, at(report.look_ms), at(due));
            let applied = ledger
                .identify(report.node, EPOCH, report.key.cgroup_id, owner)
                .and_then(|_| ledger.apply(report.node, EPOCH, report.key, &report.counters, sighting));
            assert!(applied.is_ok(), "there is only one epoch");
        }
        for flow in ledger.flows() {
            assert!(flow.parts.len() <= 16 && flow.parts.iter().all(|part| part.since <= part.until));
            assert_eq!(flow.parts.iter().map(|part| part.counted.opened).sum::<u64>(), flow.totals.opened);
            assert_eq!(flow.parts.iter().map(|part| part.counted.failed).sum::<u64>(), flow.totals.failed);
        }
        let options = Options {
            now: at(END_MS),
            settle: Duration::from_secs(2),
            retention: Duration::from_hours(1),
            max_external: usize::MAX,
        };
        graph::build(&ledger, &self.directory(), &options)
    }
}

fn name(peer: &Peer) -> Option<&str> {
    match peer {
        Peer::Workload(workload) => Some(&workload.name),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    /// No edge between two pods has more connections than they made, and every connection is on one edge.
    #[test]
    fn who_is_named_has_answered(
        world in world(),
        late_ms in prop::collection::vec(prop_oneof![0..300_u64, 0..120_000_u64], 1..20),
        twice in prop::collection::vec(any::<bool>(), 1..5),
    ) {
        let (graph, truth) = (world.graph(&late_ms, &twice), world.truth());
        let mut opened = 0;
        for edge in &graph.edges {
            opened += edge.counters.opened;
            let (Some(client), Some(server)) = (name(&edge.key.client), name(&edge.key.server)) else { continue };
            let happened = truth.get(&(client.to_owned(), server.to_owned())).copied().unwrap_or_default();
            prop_assert!(edge.counters.opened <= happened, "{client} -> {server}: {edge:?}, {happened} happened");
            for end in &edge.servers {
                prop_assert_eq!(end.pod.as_str(), server);
            }
        }
        prop_assert_eq!(opened + graph.unsettled, truth.values().sum::<u64>());
        let failed: u64 = graph.edges.iter().map(|edge| edge.counters.failed).sum();
        prop_assert_eq!(failed, world.calls.len() as u64 - truth.values().sum::<u64>());
        // If servers change slowly, the counts of both ends leave one assignment only.
        if world.servers_seen && world.stays.iter().all(|(lasts_ms, gap_ms)| *lasts_ms > 15_000 && *gap_ms > 6_000) {
            let named: u64 = graph
                .edges
                .iter()
                .filter(|edge| name(&edge.key.server).is_some())
                .map(|edge| edge.counters.opened)
                .sum();
            prop_assert_eq!(named, truth.values().sum::<u64>());
        }
    }

    /// Late and repeated reports lead to the same graph in the end.
    #[test]
    fn delay_and_repetition_change_nothing(
        world in world(),
        late_ms in prop::collection::vec(0..120_000_u64, 1..20),
        twice in prop::collection::vec(any::<bool>(), 1..5),
    ) {
        let graph = world.graph(&late_ms, &twice);
        prop_assert_eq!(graph.edges, world.graph(&[0], &[false]).edges);
    }
}

/// A client's agent reports a second call before the agent of the server, and before the API reports the pod that has got the
/// server's address.
#[test]
fn call_that_no_server_has_counted_waits_for_news_of_a_successor() {
    let (first, second) = (BEGIN_MS + 1_000, BEGIN_MS + 30_000);
    let mut ledger = Ledger::new();
    let mut directory = Directory::new();
    // The address has been reused before.
    directory.upsert_pod(pod("first", "node-2", SERVER, BEGIN_MS - 60_000), at(BEGIN_MS - 60_000));
    directory.remove_pod("uid-first", at(BEGIN_MS - 30_000));
    for (name, node, ip) in [("client", "node-1", client_ip(0)), ("old", "node-2", SERVER)] {
        directory.upsert_pod(pod(name, node, ip, BEGIN_MS), at(BEGIN_MS));
    }
    let mut report = |owner: &str, cgroup_id, opened: u64, [from_ms, until_ms]: [u64; 2]| {
        let (node, role, local, remote) = match owner {
            "client" => ("node-1", Role::Client, client_ip(0), SERVER),
            _ => ("node-2", Role::Server, SERVER, client_ip(0)),
        };
        let key = FlowKey { cgroup_id, netns: 1, role, local, remote, port: PORT, protocol: Protocol::Tcp };
        let counters = FlowCounters { opened, closed: opened, ..FlowCounters::default() };
        let [first_seen, news] = [from_ms, until_ms].map(|ms| Duration::from_millis(until_ms + 100 - ms));
        let sighting = Sighting::new(&Ages::of(first_seen, news, news), at(until_ms + 100), at(until_ms + 100));
        let owner = CgroupOwner::PodContainer { pod_uid: format!("uid-{owner}"), container_id: format!("id-{owner}") };
        let identified = ledger.identify(node, EPOCH, cgroup_id, owner);
        assert!(identified.and_then(|_| ledger.apply(node, EPOCH, key, &counters, sighting)).is_ok());
        ledger.clone()
    };
    let shown = |ledger: &Ledger, directory: &Directory, now_ms| {
        let (settle, retention) = (Duration::from_secs(2), Duration::from_hours(1));
        let graph = graph::build(ledger, directory, &Options { now: at(now_ms), settle, retention, max_external: 1 });
        let edge =
            |edge: &scopeprobe_topology::edge::Edge| (name(&edge.key.server).map(str::to_owned), edge.counters.opened);
        (graph.edges.iter().map(|it| edge(it)).collect::<Vec<_>>(), graph.unsettled)
    };
    let old = |opened| (Some("old".to_owned()), opened);
    report("client", 1, 1, [first, first]);
    report("old", 2, 1, [first, first]);
    let ahead = report("client", 1, 2, [first, second]);
    assert_eq!(shown(&ahead, &directory, second + 200), (vec![old(1)], 1));
    // No other report follows: the server's agent has missed it.
    assert_eq!(shown(&ahead, &directory, second + 3_000), (vec![old(2)], 0));
    let both = report("new", 3, 1, [second, second]);
    assert_eq!(shown(&both, &directory, second + 300).0.first(), Some(&old(1)));
    directory.remove_pod("uid-old", at(second + 400));
    directory.upsert_pod(pod("new", "node-2", SERVER, second - 1_000), at(second + 400));
    assert_eq!(shown(&both, &directory, second + 500), (vec![(Some("new".to_owned()), 1), old(1)], 0));
}
