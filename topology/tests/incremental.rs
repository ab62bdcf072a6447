//! A graph that follows what has changed is the graph of all flows, for random histories.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    archive::{Archive, Published},
    clock::NodeClock,
    directory::{Directory, RecordedPod},
    edge::Edge,
    entity::{
        Backend, CgroupOwner, HostPort, Network, Node, Pod, PodLifetime, Service, ServicePort, ServiceRef, Workload,
    },
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
    graph::{Graph, Options, Pace},
    ledger::{ClientReport, Epoch, Ledger},
    nat_peer::NatPeer,
};

const NODES: usize = 3;
const PODS: usize = 8;
const WORKLOADS: usize = 4;
const SERVICES: usize = 3;
const CGROUPS: u64 = 5;
const PORTS: [u16; 4] = [80, 8080, 9000, 30_080];

const RETENTION: Duration = Duration::from_mins(10);
const SETTLE: Duration = Duration::from_secs(2);
/// Pace of counts, where they have one.
const PACE: Pace = Pace { interval: Duration::from_secs(30), pause: Duration::from_secs(5) };

/// Addresses: of pods, of a bridge, of Services, of nodes, of the outside, link-local, and of no interface.
const ADDRESSES: [[u8; 4]; 16] = [
    [10, 244, 1, 2],
    [10, 244, 1, 3],
    [10, 244, 1, 4],
    [10, 244, 2, 2],
    [10, 244, 2, 3],
    [10, 244, 3, 2],
    [10, 244, 1, 1],
    [10, 96, 0, 1],
    [10, 96, 0, 2],
    [10, 96, 0, 3],
    [192, 168, 0, 1],
    [192, 168, 0, 2],
    [203, 0, 113, 1],
    [169, 254, 1, 1],
    [127, 0, 0, 1],
    [0, 0, 0, 0],
];
const LOOPBACK: usize = 14;
/// Number of a pod's proxy, less that of the pod.
const PROXY: usize = 100;
/// Ports of proxies, for outgoing and incoming connections.
const REDIRECTED_TO: [u16; 2] = [15_001, 15_006];
/// Port of a node that leads to every other pod there.
const HOST_PORT: HostPort = HostPort { ip: None, port: PORTS[2], container_port: 8080, protocol: Protocol::Tcp };
const PODS_ADDRESSES: usize = 6;
const BRIDGE: usize = 6;
const FIRST_SERVICE: usize = 7;
const FIRST_NODE: usize = 10;

fn address(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(ADDRESSES[number]))
}

/// A TCP flow between two of the addresses, by their numbers.
fn flow(cgroup_id: u64, role: Role, local: usize, remote: usize, port: u16) -> FlowKey {
    FlowKey {
        cgroup_id,
        // Two cgroups share a network namespace, as containers of a pod do.
        netns: u32::try_from(cgroup_id / 2).unwrap_or_default(),
        role,
        local: address(local),
        remote: address(remote),
        port,
        protocol: Protocol::Tcp,
    }
}

#[derive(Clone, Debug)]
struct Report {
    node: usize,
    key: FlowKey,
    opened: u64,
    closed: u64,
    failed: u64,
    /// Number of attempts that are pending now.
    pending: u64,
    bytes: u64,
    without_bytes: bool,
    methods: Methods,
}

#[derive(Clone, Debug)]
enum Event {
    /// An agent reports that something happened.
    Report(Report),
    /// Something more happens to a flow that was reported, by its number.
    Again(usize, u64, bool),
    /// Connection tracking knows where a flow leads to.
    Track(usize, usize, u64),
    Identify(usize, u64, usize),
    /// An agent's capture begins anew.
    Restart(usize),
    Heartbeat(usize),
    /// An agent that began so many seconds ago reports that it has observed all clients up to some seconds ago.
    Clients {
        node: usize,
        attached: u64,
        complete: Option<u64>,
        lost: u64,
        is_exact: bool,
    },
    /// An agent reports whether its node has the bridge's address.
    Bridge(usize, bool),
    Pod {
        number: usize,
        address: Option<usize>,
        workload: usize,
        node: usize,
    },
    RemovePod(usize),
    Service {
        number: usize,
        backends: Vec<(usize, u16)>,
        node_port: bool,
    },
    RemoveService(usize),
    Node(usize, bool),
    /// A node's clock turns out to be ahead by so many milliseconds.
    Clock(usize, i64),
    Pass(u64),
    /// Flows that are over and removed objects are forgotten.
    CleanUp,
    RestartOperator,
    /// Removed pods are forgotten, and restored from checkpoints.
    RestorePods,
    Look,
}

fn report() -> impl Strategy<Value = Report> {
    let key = (
        1..=CGROUPS,
        prop_oneof![Just(Role::Client), Just(Role::Server)],
        0..ADDRESSES.len(),
        0..ADDRESSES.len(),
        prop::sample::select(PORTS.as_slice()),
        prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)],
    )
        .prop_map(|(cgroup_id, role, local, remote, port, protocol)| FlowKey {
            protocol,
            ..flow(cgroup_id, role, local, remote, port)
        });
    let methods = prop_oneof![3 => Just(Methods::EBPF), 1 => Just(Methods::SOCK_DIAG)];
    let attempts = (0..2_u64, prop_oneof![2 => Just(0), 1 => 1..3_u64]);
    (0..NODES, key, 0..4_u64, 0..4_u64, attempts, 0..900_u64, any::<bool>(), methods).prop_map(
        |(node, key, opened, closed, (failed, pending), bytes, without_bytes, methods)| {
            let closed = closed.min(opened);
            Report { node, key, opened, closed, failed, pending, bytes, without_bytes, methods }
        },
    )
}

/// Calls of Services, host ports and pods, with what their servers see of them: reports that fit together.
fn call() -> impl Strategy<Value = Vec<Event>> {
    // The last one is a host port.
    let ends = (0..PODS_ADDRESSES, 0..PODS_ADDRESSES, prop::option::of(0..=SERVICES), 1..=CGROUPS, 1..=CGROUPS);
    (ends, 0..NODES, 0..NODES, 1..5_u64, 0..5_u64, any::<bool>(), 0..3_u64).prop_map(
        |((client, server, service, one, other), from, to, opened, closed, is_rewritten, more)| {
            let (called, port) = match service {
                None => (server, 8080),
                Some(SERVICES) => (FIRST_NODE + to % 2, HOST_PORT.port),
                Some(service) => (FIRST_SERVICE + service, 80),
            };
            let seen = if is_rewritten { FIRST_NODE } else { client };
            let report = |node, key, opened: u64| {
                let (bytes, methods, closed) = (opened * 100, Methods::EBPF, closed.min(opened));
                let report =
                    Report { node, key, opened, closed, failed: 0, pending: 0, bytes, without_bytes: false, methods };
                Event::Report(report)
            };
            vec![
                report(from, flow(one, Role::Client, client, called, port), opened),
                // A part of it may be of another client.
                report(to, flow(other, Role::Server, server, seen, 8080), opened + more),
            ]
        },
    )
}

/// Calls between pods of which either may have a transparent proxy, with what both ends see of them.
fn mesh() -> impl Strategy<Value = Vec<Event>> {
    let ends = (0..PODS, 0..PODS, 0..PODS_ADDRESSES, 0..PODS_ADDRESSES, prop::option::of(0..SERVICES));
    let counts = (1..6_u64, 0..3_u64, 0..3_u64);
    (ends, 0..NODES, 0..NODES, counts, any::<[bool; 6]>()).prop_map(
        |((client, server, from_address, to_address, service), from, to, (opened, less, more), flags)| {
            let [has_clients, has_servers, chooses_pod, calls_own_address, are_new, is_late] = flags;
            let mut events = Vec::new();
            if are_new {
                for (number, address, node, cgroup) in [(client, from_address, from, 2), (server, to_address, to, 4)] {
                    let workload = number % WORKLOADS;
                    events.push(Event::Pod { number, address: Some(address), workload, node });
                    events.extend(
                        [(0, number), (1, PROXY + number)].map(|(at, of)| Event::Identify(node, cgroup + at, of)),
                    );
                }
            }
            let report = |node, key, opened: u64| {
                let (bytes, methods) = (opened * 100, Methods::EBPF);
                let (failed, pending, without_bytes, closed) = (0, 0, false, opened);
                let one = Report { node, key, opened, closed, failed, pending, bytes, without_bytes, methods };
                Event::Report(one)
            };
            let (called, port) = service.map_or((to_address, 8080), |service| (FIRST_SERVICE + service, 80));
            events.push(report(from, flow(2, Role::Client, from_address, called, port), opened));
            let upstream = if has_clients { opened.saturating_sub(less) } else { opened };
            if has_clients {
                let (called, port) = if chooses_pod { (to_address, 8080) } else { (called, port) };
                events.push(report(from, flow(3, Role::Client, from_address, called, port), upstream));
            }
            if has_servers {
                events.push(report(to, flow(5, Role::Server, to_address, from_address, REDIRECTED_TO[1]), upstream));
                let own = if calls_own_address { to_address } else { LOOPBACK };
                events.push(report(to, flow(5, Role::Client, own, own, 8080), upstream + more));
                events.push(report(to, flow(4, Role::Server, own, own, 8080), upstream + more));
            } else {
                events.push(report(to, flow(4, Role::Server, to_address, from_address, 8080), upstream));
            }
            if has_clients {
                // That the network redirects its calls may become known after all else.
                let pause =
                    if is_late { vec![Event::Pass(2_500), Event::Look, Event::Pass(2_500)] } else { Vec::new() };
                events.extend(pause);
                events.push(report(from, flow(3, Role::Server, LOOPBACK, from_address, REDIRECTED_TO[0]), opened));
            }
            events
        },
    )
}

/// Clients outside of the cluster call through a node, which puts its own address in the place of theirs.
fn call_through_node() -> impl Strategy<Value = Vec<Event>> {
    let address = prop_oneof![3 => FIRST_NODE..FIRST_NODE + 2, 1 => Just(BRIDGE)];
    (0..NODES, 0..PODS_ADDRESSES, address, 1..=CGROUPS, 1..5_u64, 0..5_u64).prop_map(
        |(node, server, seen, cgroup, opened, closed)| {
            let report = Report {
                node,
                key: flow(cgroup, Role::Server, server, seen, 8080),
                opened,
                closed: closed.min(opened),
                failed: 0,
                pending: 0,
                bytes: opened * 100,
                without_bytes: false,
                methods: Methods::EBPF,
            };
            vec![Event::Report(report)]
        },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = |event: BoxedStrategy<Event>| event.prop_map(|event| vec![event]).boxed();
    let pod = (0..PODS, prop::option::weighted(0.8, 0..PODS_ADDRESSES), 0..WORKLOADS, 0..NODES)
        .prop_map(|(number, address, workload, node)| Event::Pod { number, address, workload, node });
    let backends = prop::collection::vec((0..PODS, prop::sample::select([8080, 9000].as_slice())), 0..4);
    let service = (0..SERVICES, backends, any::<bool>()).prop_map(|(number, backends, node_port)| Event::Service {
        number,
        backends,
        node_port,
    });
    let complete = prop::option::weighted(0.9, prop::sample::select([0, 1, 5, 90].as_slice()));
    let attached = prop::sample::select([0, 3, 100, 5_000].as_slice());
    let clients = (0..NODES, attached, complete, prop_oneof![5 => Just(0), 1 => 1..3_u64], prop::bool::weighted(0.9));
    let clients = clients.prop_map(|(node, attached, complete, lost, is_exact)| Event::Clients {
        node,
        attached,
        complete,
        lost,
        is_exact,
    });
    let pause = prop::sample::select([5, 300, 1_000, 2_500, 12_000, 70_000, 700_000].as_slice());
    let some = prop_oneof![
        6 => call(),
        4 => mesh(),
        4 => call_through_node(),
        4 => one(clients.boxed()),
        3 => one(report().prop_map(Event::Report).boxed()),
        8 => one((any::<usize>(), 0..4_u64, any::<bool>()).prop_map(|(flow, more, ends)| Event::Again(flow, more, ends)).boxed()),
        1 => one((any::<usize>(), 0..ADDRESSES.len(), 0..5_u64).prop_map(|(flow, at, count)| Event::Track(flow, at, count)).boxed()),
        2 => one((0..NODES, 1..=CGROUPS, 0..PODS + 2).prop_map(|(node, cgroup, owner)| Event::Identify(node, cgroup, owner)).boxed()),
        1 => one((0..NODES).prop_map(Event::Restart).boxed()),
        2 => one((0..NODES).prop_map(Event::Heartbeat).boxed()),
        1 => one((0..NODES, any::<bool>()).prop_map(|(node, has)| Event::Bridge(node, has)).boxed()),
        3 => one(pod.boxed()),
        2 => one((0..PODS).prop_map(Event::RemovePod).boxed()),
        3 => one(service.boxed()),
        1 => one((0..SERVICES).prop_map(Event::RemoveService).boxed()),
        1 => one((0..NODES, any::<bool>()).prop_map(|(node, is_there)| Event::Node(node, is_there)).boxed()),
        1 => one((0..NODES, prop::sample::select([-90_000, -3_000, 0, 3_000, 90_000].as_slice())).prop_map(|(node, ahead)| Event::Clock(node, ahead)).boxed()),
        5 => one(pause.prop_map(Event::Pass).boxed()),
        1 => one(Just(Event::CleanUp).boxed()),
        1 => one(Just(Event::RestartOperator).boxed()),
        1 => one(Just(Event::RestorePods).boxed()),
        10 => one(Just(Event::Look).boxed()),
    ];
    prop::collection::vec(some, 0..80).prop_map(|events| events.concat())
}

struct World {
    now: SystemTime,
    ledger: Ledger,
    directory: Directory,
    archive: Archive,
    epochs: [u8; NODES],
    /// Counters of each agent's flows since its epoch began.
    flows: BTreeMap<(usize, FlowKey), FlowCounters>,
    graph: Graph,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: SystemTime::UNIX_EPOCH + Duration::from_hours(1),
            ledger: Ledger::new(),
            directory: Directory::new(),
            archive: Archive::new(),
            epochs: [0; NODES],
            flows: BTreeMap::new(),
            graph: Graph::default(),
        };
        (0..NODES).for_each(|node| world.take_place(&Event::Node(node, true)));
        world
    }

    fn epoch(&self, node: usize) -> Epoch {
        Epoch([u8::try_from(node).unwrap_or_default() + 1, self.epochs[node]].repeat(8).try_into().unwrap_or([0; 16]))
    }

    fn options(&self) -> Options {
        Options { now: self.now, settle: SETTLE, retention: RETENTION, max_external: 1 }
    }

    fn take_place(&mut self, event: &Event) {
        let now = self.now;
        match event {
            Event::Report(report) => self.report(report),
            Event::Again(flow, more, ends) => self.report_again(*flow, *more, *ends),
            Event::Track(flow, at, count) => {
                let Some((node, key)) = self.nth(*flow) else { return };
                let peer = NatPeer { ip: address(*at), port: 8080 };
                let epoch = self.epoch(node);
                self.ledger.record_nat_peers(&name(node), epoch, &key, &[(peer, *count)]).expect("the present epoch");
            }
            Event::Identify(node, cgroup, owner) => {
                let (epoch, owner) = (self.epoch(*node), owner_of(*owner));
                self.ledger.identify(&name(*node), epoch, *cgroup, owner).expect("the present epoch");
            }
            Event::Restart(node) => {
                self.epochs[*node] = self.epochs[*node].wrapping_add(1);
                self.flows.retain(|(of, _), _| of != node);
                let epoch = self.epoch(*node);
                self.ledger.enter(&name(*node), epoch).expect("a new epoch");
            }
            Event::Clients { node, attached, complete, lost, is_exact } => {
                self.report_clients(*node, [Some(*attached), *complete], *lost, *is_exact);
            }
            Event::Bridge(node, has) => {
                let (epoch, addresses) = (self.epoch(*node), has.then(|| address(BRIDGE)));
                self.ledger.set_node_addresses(&name(*node), epoch, addresses.as_slice()).expect("the present epoch");
            }
            Event::Heartbeat(node) => self.ledger.record_heartbeat(&name(*node), now),
            Event::Pod { number, address: at, workload, node } => {
                self.directory.upsert_pod(pod(*number, *at, *workload, *node, now), now);
            }
            Event::RemovePod(number) => _ = self.directory.remove_pod(&format!("uid-{number}"), now),
            Event::Service { number, backends, node_port } => {
                let backends = backends.iter().filter_map(|(pod, port)| self.backend(*pod, *port)).collect();
                let node_port = node_port.then_some(PORTS[3]);
                let port = ServicePort { port: 80, protocol: Protocol::Tcp, node_port, backends };
                let addresses = vec![address(FIRST_SERVICE + number)];
                self.directory.upsert_service(Service { name: service(*number), addresses, ports: vec![port] }, now);
            }
            Event::RemoveService(number) => _ = self.directory.remove_service(&service(*number), now),
            Event::Node(node, true) => {
                let ips = vec![address(FIRST_NODE + node % 2)];
                let pod_networks = Network::parse(&format!("10.244.{}.0/24", node + 1)).into_iter().collect();
                self.directory.upsert_node(Node { name: name(*node), ips, pod_networks });
            }
            Event::Node(node, false) => {
                self.directory.remove_node(&name(*node));
                self.ledger.remove_node(&name(*node), now);
            }
            Event::Clock(node, ahead) => {
                let ahead_by = Duration::from_millis(ahead.unsigned_abs());
                let mut clock = NodeClock::default();
                clock.observe(if *ahead < 0 { now - ahead_by } else { now + ahead_by }, now);
                self.directory.set_clocks(&BTreeMap::from([(name(*node).as_str(), clock)]));
            }
            Event::Pass(milliseconds) => self.now += Duration::from_millis(*milliseconds),
            Event::CleanUp => {
                self.archive.retire(&mut self.ledger, &self.directory, now, RETENTION);
                self.directory.forget_removed(now, RETENTION);
            }
            Event::RestartOperator => {
                let graph = &self.graph;
                let published = graph.edges.iter().map(|edge| Published {
                    edge: Edge::clone(edge),
                    earlier: graph.earlier.get(&edge.key).cloned().unwrap_or_default(),
                });
                self.archive = Archive::new();
                self.archive.restore(published, now);
            }
            Event::RestorePods => {
                let backends = self.directory.backends_by_pod();
                let removed = self.directory.removed_pods().map(|pod| pod.uid.clone());
                let recorded: Vec<RecordedPod<'static>> =
                    removed.filter_map(|uid| Some(self.directory.recorded(&uid, &backends)?.into_owned())).collect();
                self.directory.forget_removed(now, Duration::ZERO);
                for pod in recorded {
                    self.directory.restore_pod(pod, now);
                }
            }
            Event::Look => {}
        }
    }

    fn report(&mut self, report: &Report) {
        let Report { node, key, opened, closed, failed, pending, bytes, without_bytes, methods } = *report;
        let counters = self.flows.entry((node, key)).or_default();
        counters.opened += opened;
        counters.closed += closed;
        counters.failed += failed;
        let before = counters.pending();
        counters.pending_begun += pending.saturating_sub(before);
        counters.pending_ended += before.saturating_sub(pending);
        counters.bytes_sent += bytes;
        counters.bytes_received += 2 * bytes;
        counters.without_bytes += if without_bytes { opened } else { 0 };
        counters.methods = counters.methods.union(methods);
        self.apply(node, key);
    }

    fn report_clients(&mut self, node: usize, ages: [Option<u64>; 2], lost: u64, is_exact: bool) {
        let (epoch, now) = (self.epoch(node), self.now);
        self.ledger.enter(&name(node), epoch).expect("the present epoch");
        self.ledger.record_heartbeat(&name(node), now);
        if !self.ledger.is_complete(&name(node)) {
            self.ledger.begin_snapshot(&name(node), epoch).expect("the present epoch");
            let keys: Vec<FlowKey> = self.flows.keys().filter(|(of, _)| *of == node).map(|(_, key)| *key).collect();
            for key in keys {
                self.apply(node, key);
            }
            self.ledger.end_snapshot(&name(node), epoch, now).expect("the present epoch");
        }
        let [attached, complete_until] = ages.map(|age| age.map(|age| now - Duration::from_secs(age)));
        let attached = attached.unwrap_or(now);
        let report = ClientReport { attached, complete_until, made: now, lost, is_exact, observes_udp: true };
        self.ledger.record_clients(&name(node), epoch, &report).expect("the present epoch");
    }

    fn report_again(&mut self, flow: usize, more: u64, ends: bool) {
        let Some((node, key)) = self.nth(flow) else { return };
        let Some(counters) = self.flows.get_mut(&(node, key)) else { return };
        if ends {
            counters.closed = counters.opened;
        } else {
            counters.opened += more;
            counters.bytes_sent += 10;
        }
        self.apply(node, key);
    }

    fn apply(&mut self, node: usize, key: FlowKey) {
        let (epoch, counters) = (self.epoch(node), self.flows[&(node, key)]);
        self.ledger.apply(&name(node), epoch, key, &counters, self.now).expect("the present epoch");
    }

    fn nth(&self, number: usize) -> Option<(usize, FlowKey)> {
        self.flows.keys().nth(number.checked_rem(self.flows.len())?).copied()
    }

    fn backend(&self, number: usize, port: u16) -> Option<Backend> {
        let uid = format!("uid-{number}");
        let pod = self.directory.pod(&uid)?;
        let ip = pod.ips.first().copied().unwrap_or(address(FIRST_NODE));
        Some(Backend { ip, port, pod_uid: Some(uid) })
    }

    /// Returns the graph as it follows from the last one, and that of all flows.
    fn look(&mut self) -> [Graph; 2] {
        let options = self.options();
        let mut from_all = self.archive.clone();
        from_all.forget_joins();
        from_all.set_pace(Pace::default());
        let graphs = [&mut self.archive, &mut from_all].map(|archive| {
            archive.settle_in_time(&self.ledger, &self.directory, &options);
            archive.build_shown(&self.ledger, &self.directory, &options)
        });
        self.graph.clone_from(&graphs[0]);
        graphs
    }
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

fn service(number: usize) -> ServiceRef {
    ServiceRef { namespace: "shop".to_owned(), name: format!("service-{number}") }
}

fn owner_of(number: usize) -> CgroupOwner {
    if number == PODS {
        return CgroupOwner::HostProcess { name: "kubelet".to_owned() };
    }
    let container_id = format!("id-{number}");
    CgroupOwner::PodContainer { pod_uid: format!("uid-{}", number % PROXY), container_id }
}

fn pod(number: usize, at: Option<usize>, workload: usize, node: usize, now: SystemTime) -> Pod {
    Pod {
        uid: format!("uid-{number}"),
        namespace: "shop".to_owned(),
        name: format!("pod-{number}"),
        node: name(node),
        ips: vec![at.map_or(address(FIRST_NODE), address)],
        host_network: at.is_none(),
        workload: Workload {
            namespace: "shop".to_owned(),
            kind: "Deployment".to_owned(),
            name: format!("workload-{workload}"),
            group: "apps".to_owned(),
        },
        containers: BTreeMap::from([
            (format!("id-{number}"), "main".to_owned()),
            (format!("id-{}", PROXY + number), "proxy".to_owned()),
        ]),
        ended: false,
        host_ports: number.is_multiple_of(2).then_some(HOST_PORT).into_iter().collect(),
        life: PodLifetime { started: Some(now), ..PodLifetime::default() },
    }
}

/// Describes the parts that differ.
fn difference(one: &Graph, other: &Graph) -> String {
    let edges = |graph: &Graph, of: &Graph| -> Vec<_> {
        graph.edges.iter().filter(|edge| !of.edges.contains(edge)).cloned().collect()
    };
    let rest = |graph: &Graph| Graph { edges: Vec::new(), ..graph.clone() };
    let sides = [(one, other), (other, one)].map(|(graph, of)| (edges(graph, of), rest(graph)));
    format!("follows {:#?}\nof all {:#?}", sides[0], sides[1])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn graph_that_follows_changes_is_the_graph_of_all_flows(events in events()) {
        let mut world = World::new();
        for event in events.iter().chain([&Event::Look]) {
            world.take_place(event);
            if matches!(event, Event::Look) {
                let [follows, of_all] = world.look();
                prop_assert!(follows == of_all, "{}", difference(&follows, &of_all));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// In debug builds, each graph is compared with that of all flows, as they were when their groups were joined.
    #[test]
    fn counts_that_wait_are_shown_after_their_interval(events in events()) {
        let mut world = World::new();
        for event in &events {
            world.archive.set_pace(PACE);
            world.take_place(event);
            if matches!(event, Event::Look) {
                world.look();
            }
        }
        world.archive.set_pace(PACE);
        world.look();
        world.now += PACE.interval;
        let [follows, of_all] = world.look();
        prop_assert!(follows == of_all, "{}", difference(&follows, &of_all));
    }
}

/// Two clients with a server each, and the ends of their conversations.
fn two_conversations() -> (World, impl Fn(u64, Role, usize, usize, u16) -> Report) {
    let mut world = World::new();
    let pods = [(0, 0), (1, 1), (3, 2), (4, 3)];
    for (number, workload) in pods {
        world.take_place(&Event::Pod { number, address: Some(number), workload, node: number / 3 });
    }
    let ends = |cgroup_id, role, local, remote, port| Report {
        node: local / 3,
        key: flow(cgroup_id, role, local, remote, port),
        opened: 1,
        closed: 0,
        failed: 0,
        pending: 0,
        bytes: 100,
        without_bytes: false,
        methods: Methods::EBPF,
    };
    for (client, server, port) in [(0, 3, 8080), (1, 4, 9000)] {
        world.report(&ends(1 + u64::from(port == 9000), Role::Client, client, server, port));
        world.report(&ends(3 + u64::from(port == 9000), Role::Server, server, client, port));
    }
    (world, ends)
}

impl World {
    /// Returns the number of flows that are joined for a graph after so many seconds and this report.
    fn joined(&mut self, pause: u64, report: Option<&Report>) -> usize {
        self.now += Duration::from_secs(pause);
        if let Some(report) = report {
            self.report(report);
        }
        self.look();
        self.archive.joined_flows()
    }

    fn opened(&self) -> Vec<u64> {
        self.graph.edges.iter().map(|edge| edge.counters.opened).collect()
    }
}

#[test]
fn only_groups_of_changed_flows_are_joined() {
    let (mut world, ends) = two_conversations();
    assert_eq!(world.joined(1, None), 4, "all are new");
    assert_eq!(world.joined(3, None), 4, "the other ends had to be waited for");
    assert_eq!(world.joined(60, None), 0);
    assert_eq!(world.joined(1, Some(&ends(1, Role::Client, 0, 3, 8080))), 2);
    assert_eq!(world.joined(60, None), 2);
    assert_eq!(world.joined(1, None), 0);
}

#[test]
fn counts_wait_for_their_turn_and_new_flows_do_not() {
    let (mut world, ends) = two_conversations();
    world.archive.set_pace(PACE);
    assert_eq!(world.joined(1, None), 4);
    assert_eq!(world.joined(5, None), 4);
    let again = ends(1, Role::Client, 0, 3, 8080);
    assert_eq!((world.joined(1, Some(&again)), world.opened()), (0, vec![1, 1]));
    let due = world.graph.settles_at.map(|at| at.duration_since(world.now).expect("it is later"));
    assert_eq!(due, Some(Duration::from_secs(29)));
    // Another client of the other server.
    let other = ends(1, Role::Client, 0, 4, 9000);
    assert_eq!(world.joined(1, Some(&other)), 3);
    assert_eq!((world.joined(3, None), world.opened()), (3, vec![1, 1, 1]), "its other end had to be waited for");
    let failed = Report { opened: 0, failed: 1, ..again.clone() };
    assert_eq!((world.joined(1, Some(&failed)), world.opened()), (2, vec![1, 2, 1]), "attempts begin to fail");
    assert_eq!(world.joined(6, None), 2, "names may come late");
    assert_eq!((world.joined(29, Some(&again)), world.opened()), (0, vec![1, 2, 1]));
    assert_eq!((world.joined(1, None), world.opened()), (2, vec![1, 3, 1]));
}

#[test]
fn first_and_last_pending_attempt_do_not_wait_for_their_turn() {
    let (mut world, ends) = two_conversations();
    world.archive.set_pace(PACE);
    world.joined(1, None);
    world.joined(10, None);
    let with = |pending| Report { opened: 0, pending, ..ends(1, Role::Client, 0, 3, 8080) };
    let mut joined = |pending| {
        let flows = world.joined(1, Some(&with(pending)));
        (flows, world.graph.edges.iter().map(|edge| edge.counters.pending).sum())
    };
    assert_eq!(joined(1), (2, 1));
    assert_eq!(joined(3), (2, 3), "names may come late");
    assert_eq!(joined(0), (2, 0));
}

/// A proxy accepts nothing but what its pod calls: the pod's own calls and those of the proxy depend on each other.
#[test]
fn calls_of_a_pod_with_itself_are_joined_with_those_of_its_proxy() {
    let mut world = World::new();
    let mut report = |cgroup_id, role, [local, remote]: [&str; 2], port, opened| {
        let [local, remote] = [local, remote].map(|ip| ip.parse().expect("an address"));
        let key = FlowKey { cgroup_id, netns: 2, role, local, remote, port, protocol: Protocol::Tcp };
        let (closed, failed, pending, bytes, without_bytes) = (0, 0, 0, 100, false);
        let methods = Methods::default();
        let report = Report { node: 2, key, opened, closed, failed, pending, bytes, without_bytes, methods };
        world.take_place(&Event::Report(report));
    };
    let (loopback, of_pod, elsewhere) = ("127.0.0.1", "10.244.3.2", "10.244.1.2");
    report(4, Role::Server, [loopback, elsewhere], 80, 0);
    report(4, Role::Client, [of_pod; 2], 8080, 1);
    report(5, Role::Client, [loopback; 2], 8080, 1);
    report(4, Role::Server, [loopback; 2], 8080, 1);
    world.take_place(&Event::Identify(2, 4, 0));
    let [follows, of_all] = world.look();
    assert_eq!(follows, of_all);
}
