//! The world outside of the cluster: named by people, named by its Service, or many addresses of which few are shown.

#![expect(clippy::expect_used, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    activity,
    archive::{Archive, Published},
    directory::Directory,
    edge::{Edge, EdgeCounters, EdgeKey, Identity, Peer},
    entity::{Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServiceRef, Workload},
    external::{ExternalGroup, ExternalGroups},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{Epoch, Ledger},
};

const NODE: &str = "node-1";
const WEB: &str = "10.244.1.2";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Outside of the cluster.
fn outer(number: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, number])
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000)
}

fn options(max_external: usize) -> Options {
    Options { now: now(), settle: Duration::ZERO, retention: Duration::from_hours(1), max_external }
}

/// A node with one pod, and another node.
fn directory() -> Directory {
    let mut directory = Directory::new();
    for number in [1, 2] {
        directory.upsert_node(Node {
            name: format!("node-{number}"),
            ips: vec![ip(&format!("172.18.0.{number}"))],
            pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
        });
    }
    let pod = Pod {
        uid: "uid".to_owned(),
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        node: NODE.to_owned(),
        host_network: false,
        ips: vec![ip(WEB)],
        ended: false,
        workload: workload(),
        containers: [("id".to_owned(), "main".to_owned())].into(),
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    };
    directory.upsert_pod(pod, SystemTime::UNIX_EPOCH);
    directory
}

fn workload() -> Workload {
    Workload {
        namespace: "shop".to_owned(),
        kind: "Deployment".to_owned(),
        name: "web".to_owned(),
        group: "apps".to_owned(),
    }
}

fn kubernetes(directory: &mut Directory, backends: &[(&str, u16)]) {
    let backends = backends.iter().map(|(at, port)| Backend { ip: ip(at), port: *port, pod_uid: None });
    let ports = vec![ServicePort { port: 443, protocol: Protocol::Tcp, node_port: None, backends: backends.collect() }];
    let name = ServiceRef { namespace: "default".to_owned(), name: "kubernetes".to_owned() };
    directory.upsert_service(Service { name, addresses: vec![ip("10.96.0.1")], ports }, SystemTime::UNIX_EPOCH);
}

/// Flows of the one pod, as its agent counts them.
type Flows = BTreeMap<(Role, IpAddr, u16), FlowCounters>;

fn report(ledger: &mut Ledger, epoch: u8, flows: impl IntoIterator<Item = ((Role, IpAddr, u16), FlowCounters)>) {
    let epoch = Epoch([epoch; 16]);
    ledger.enter(NODE, epoch).expect("the present epoch");
    let owner = CgroupOwner::PodContainer { pod_uid: "uid".to_owned(), container_id: "id".to_owned() };
    ledger.identify(NODE, epoch, 7, owner).expect("the present epoch");
    ledger.begin_snapshot(NODE, epoch).expect("the present epoch");
    for ((role, remote, port), counters) in flows {
        let key = FlowKey { cgroup_id: 7, netns: 4, role, local: ip(WEB), remote, port, protocol: Protocol::Tcp };
        ledger.apply(NODE, epoch, key, &counters, now()).expect("the present epoch");
    }
    ledger.end_snapshot(NODE, epoch, now()).expect("the present epoch");
}

fn graph_of(directory: &Directory, flows: &Flows, limit: usize) -> Graph {
    let mut ledger = Ledger::new();
    report(&mut ledger, 1, flows.clone());
    graph::build(&ledger, directory, &options(limit))
}

fn called(remote: &str, port: u16) -> Flows {
    let counters = FlowCounters { opened: 1, closed: 1, ..FlowCounters::default() };
    [((Role::Client, ip(remote), port), counters)].into()
}

#[test]
fn the_api_server_is_known_by_its_service_and_by_its_addresses() {
    let mut directory = directory();
    kubernetes(&mut directory, &[("192.0.2.1", 6443), ("172.18.0.2", 6443)]);
    let only = |flows: &Flows| {
        let mut edges = graph_of(&directory, flows, 10).edges;
        let edge = edges.pop().expect("an edge");
        assert_eq!(edges, []);
        let key = edge.key.clone();
        (key.server, key.service.map(|of| (of.service.name, of.port)), key.port)
    };
    let through_service = Some(("kubernetes".to_owned(), 443));
    assert_eq!(only(&called("10.96.0.1", 443)), (Peer::ApiServer, through_service, Some(6443)));
    assert_eq!(only(&called("192.0.2.1", 6443)), (Peer::ApiServer, None, Some(6443)));
    assert_eq!(only(&called("172.18.0.2", 6443)), (Peer::ApiServer, None, Some(6443)), "at a node's address");
    let node = Peer::Node { node: "node-2".to_owned() };
    let other = Peer::External { ip: ip("192.0.2.1") };
    assert_eq!(only(&called("192.0.2.1", 443)), (other, None, Some(443)), "it does not listen there");
    assert_eq!(only(&called("172.18.0.2", 10250)), (node, None, Some(10250)), "not all of a node is the API server");
}

#[test]
fn the_api_server_calls_from_its_address_if_that_is_no_nodes() {
    let mut directory = directory();
    kubernetes(&mut directory, &[("192.0.2.1", 6443), ("172.18.0.2", 6443)]);
    let counters = FlowCounters { opened: 2, closed: 2, ..FlowCounters::default() };
    let webhook = |from: &str| Flows::from([((Role::Server, ip(from), 8443), counters)]);
    let client = |from: &str| graph_of(&directory, &webhook(from), 10).edges.pop().expect("an edge").key.client.clone();
    assert_eq!(client("192.0.2.1"), Peer::ApiServer);
    assert_eq!(client("172.18.0.2"), Peer::Node { node: "node-2".to_owned() });
}

#[test]
fn a_static_pod_that_is_seen_to_answer_is_that_pod() {
    let mut directory = directory();
    kubernetes(&mut directory, &[("172.18.0.1", 6443)]);
    let workload = Workload {
        namespace: "kube-system".to_owned(),
        kind: "Pod".to_owned(),
        name: "api".to_owned(),
        group: String::new(),
    };
    let pod = Pod {
        uid: "api".to_owned(),
        namespace: "kube-system".to_owned(),
        name: "api".to_owned(),
        node: NODE.to_owned(),
        host_network: true,
        ips: vec![ip("172.18.0.1")],
        ended: false,
        workload: workload.clone(),
        containers: [("api-id".to_owned(), "api".to_owned())].into(),
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    };
    directory.upsert_pod(pod, SystemTime::UNIX_EPOCH);
    let mut ledger = Ledger::new();
    report(&mut ledger, 1, called("10.96.0.1", 443));
    let epoch = Epoch([1; 16]);
    let owner = CgroupOwner::PodContainer { pod_uid: "api".to_owned(), container_id: "api-id".to_owned() };
    ledger.identify(NODE, epoch, 8, owner).expect("the present epoch");
    let (role, local, remote) = (Role::Server, ip("172.18.0.1"), ip(WEB));
    let key = FlowKey { cgroup_id: 8, netns: 1, role, local, remote, port: 6443, protocol: Protocol::Tcp };
    let counters = FlowCounters { opened: 1, closed: 1, ..FlowCounters::default() };
    ledger.apply(NODE, epoch, key, &counters, now()).expect("the present epoch");
    let edges = graph::build(&ledger, &directory, &options(10)).edges;
    assert_eq!(edges.iter().map(|edge| &edge.key.server).collect::<Vec<_>>(), [&Peer::Workload(workload)]);
}

#[test]
fn external_groups_name_only_external_peers() {
    let mut directory = directory();
    let everything = ["0.0.0.0/0", "::/0"].iter().filter_map(|text| Network::parse(text)).collect();
    let partner = Network::parse("203.0.113.0/25").into_iter().collect();
    directory.name_external_groups(ExternalGroups::new([
        ExternalGroup { name: "world".to_owned(), networks: everything, dns_names: Vec::new() },
        ExternalGroup { name: "partner".to_owned(), networks: partner, dns_names: Vec::new() },
    ]));
    let server =
        |remote: &str| graph_of(&directory, &called(remote, 443), 1).edges.pop().expect("an edge").key.server.clone();
    let group = |name: &str| Peer::ExternalGroup { name: name.to_owned() };
    assert_eq!(server("203.0.113.9"), group("partner"));
    assert_eq!(server("203.0.113.200"), group("world"));
    assert_eq!(server("2001:db8::1"), group("world"));
    assert_eq!(server("172.18.0.2"), Peer::Node { node: "node-2".to_owned() });
    assert_eq!(server(WEB), Peer::Workload(workload()));
    // Many addresses of a group are one peer, and no edge of a group is shared.
    let counters = FlowCounters { opened: 1, closed: 1, ..FlowCounters::default() };
    let flows: Flows = (0..100).map(|number| ((Role::Server, outer(number), 80), counters)).collect();
    let edges = graph_of(&directory, &flows, 1).edges;
    let shown: Vec<_> = edges.iter().map(|edge| (&edge.key.client, edge.counters.opened, edge.addresses)).collect();
    assert_eq!(shown, [(&group("partner"), 100, 0)]);
}

#[test]
fn a_dns_name_is_told_from_an_address_that_several_lead_to() {
    let mut directory = directory();
    let counters = FlowCounters { opened: 1, closed: 1, ..FlowCounters::default() };
    let mut ledger = Ledger::new();
    let flows: Flows = (1..=3).map(|number| ((Role::Client, outer(number), 443), counters)).collect();
    report(&mut ledger, 1, flows.clone());
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for ((role, remote, port), names) in flows.keys().zip([
        named(&["api.example.com"]),
        named(&["b.example.com", "a.example.com"]),
        named(&["api.example.com"]),
    ]) {
        let (role, remote, port) = (*role, *remote, *port);
        let key = FlowKey { cgroup_id: 7, netns: 4, role, local: ip(WEB), remote, port, protocol: Protocol::Tcp };
        ledger.set_remote_names(NODE, Epoch([1; 16]), &key, &names).expect("the present epoch");
    }
    let shown = |directory: &Directory, limit: usize| -> Vec<(Peer, u64, Vec<String>)> {
        let edges = graph::build(&ledger, directory, &options(limit)).edges;
        edges.iter().map(|edge| (edge.key.server.clone(), edge.counters.opened, edge.dns_names.clone())).collect()
    };
    let address = (Peer::External { ip: outer(2) }, 1, named(&["a.example.com", "b.example.com"]));
    let name = (Peer::ExternalName { name: "api.example.com".to_owned() }, 2, Vec::new());
    assert_eq!(shown(&directory, 1), [address, name.clone()], "one edge for both addresses of a name");
    assert_eq!(shown(&directory, 0), [name, (Peer::OtherExternal, 1, Vec::new())]);
    // A person's word counts more.
    let networks = Network::parse("203.0.113.0/24").into_iter().collect();
    directory.name_external_groups(ExternalGroups::new([ExternalGroup {
        name: "partner".to_owned(),
        networks,
        dns_names: Vec::new(),
    }]));
    assert_eq!(shown(&directory, 1), [(Peer::ExternalGroup { name: "partner".to_owned() }, 3, Vec::new())]);
}

/// Returns the edges as a predecessor published them.
fn published(graph: &Graph) -> Vec<Published> {
    let of = |edge: &Edge| graph.earlier.get(&edge.key).cloned().unwrap_or_default();
    graph.edges.iter().map(|edge| Published { edge: Edge::clone(edge), earlier: of(edge) }).collect()
}

#[test]
fn address_that_gets_a_name_after_a_restart_keeps_only_its_history() {
    let directory = directory();
    let at = (Role::Client, outer(5), 443);
    let flows = |opened| -> Flows { [(at, FlowCounters { opened, closed: opened, ..FlowCounters::default() })].into() };
    let name = |ledger: &mut Ledger| {
        let (role, remote, port) = at;
        let key = FlowKey { cgroup_id: 7, netns: 4, role, local: ip(WEB), remote, port, protocol: Protocol::Tcp };
        ledger.set_remote_names(NODE, Epoch([2; 16]), &key, &["a.example".to_owned()]).expect("the present epoch");
    };
    let (mut ledger, mut archive) = (Ledger::new(), Archive::new());
    report(&mut ledger, 1, flows(3));
    report(&mut ledger, 2, flows(7));
    let graph = archive.build(&ledger, &directory, &options(10));

    (ledger, archive) = (Ledger::new(), Archive::new());
    archive.restore(published(&graph), now());
    report(&mut ledger, 2, flows(7));
    archive.settle(&ledger, &directory, now());
    assert_eq!(total(&archive.build(&ledger, &directory, &options(10))).opened, 10);
    report(&mut ledger, 2, flows(8));
    name(&mut ledger);
    let graph = archive.build(&ledger, &directory, &options(10));
    assert_eq!(total(&graph).opened, 11, "{:?}", graph.edges);

    (ledger, archive) = (Ledger::new(), Archive::new());
    archive.restore(published(&graph), now());
    report(&mut ledger, 2, flows(8));
    name(&mut ledger);
    archive.settle(&ledger, &directory, now());
    assert_eq!(total(&archive.build(&ledger, &directory, &options(10))).opened, 11);
}

#[test]
fn a_peer_at_a_loopback_address_is_known_by_its_network_namespace() {
    let graph = graph_of(&directory(), &called("127.0.0.1", 80), 10);
    let edge = &graph.edges[0];
    assert_eq!(edge.key.server, Peer::Workload(workload()));
    assert_eq!((edge.client_identity, edge.server_identity), (Identity::Cgroup, Identity::Netns));
    let graph = graph_of(&directory(), &called("203.0.113.9", 80), 10);
    assert_eq!(graph.edges[0].server_identity, Identity::Ip);
}

#[test]
fn a_client_that_calls_many_ports_of_many_addresses_does_not_make_many_edges() {
    let counters = FlowCounters { opened: 1, closed: 1, ..FlowCounters::default() };
    let calls = |number: u8| (1..=50).map(move |port| ((Role::Client, outer(number), port), counters));
    let flows: Flows = (0..60).flat_map(calls).collect();
    let graph = graph_of(&directory(), &flows, 10);
    let others: Vec<&Edge> = shared(&graph, Role::Client).collect();
    assert_eq!(others.iter().map(|edge| (edge.key.port, edge.addresses)).collect::<Vec<_>>(), [(None, 50)]);
    assert_eq!(graph.edges.iter().map(|edge| edge.counters.opened).sum::<u64>(), 60 * 50);
}

/// Remote address of a folded row.
const FOLDED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

fn opened(opened: u64, closed: u64) -> FlowCounters {
    FlowCounters { opened, closed, bytes_sent: 10 * opened, bytes_received: opened, ..FlowCounters::default() }
}

#[test]
fn folded_rows_are_other_external_peers() {
    let flows = Flows::from([
        ((Role::Server, FOLDED, 80), opened(1000, 900)),
        ((Role::Server, IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 80), opened(50, 50)),
        ((Role::Client, FOLDED, 443), opened(70, 70)),
        ((Role::Server, outer(1), 80), opened(3, 3)),
        ((Role::Server, outer(2), 80), opened(2, 2)),
        ((Role::Server, outer(3), 80), opened(1, 1)),
    ]);
    let with = |limit| {
        let edges = graph_of(&directory(), &flows, limit).edges;
        let of = |edge: &Arc<Edge>| {
            let EdgeKey { client, server, .. } = edge.key.clone();
            let counters = edge.counters;
            (
                if client == Peer::Workload(workload()) { server } else { client },
                counters.opened,
                counters.active,
                edge.addresses,
            )
        };
        edges.iter().map(of).collect::<BTreeSet<_>>()
    };
    let own = |number, opened| (Peer::External { ip: outer(number) }, opened, 0, 0);
    // No agent counts the addresses behind a folded row: one is there at least.
    let called = (Peer::OtherExternal, 70, 0, 1);
    let all = [own(1, 3), own(2, 2), own(3, 1), (Peer::OtherExternal, 1050, 100, 1), called.clone()];
    assert_eq!(with(10), BTreeSet::from(all));
    assert_eq!(with(1), BTreeSet::from([own(1, 3), (Peer::OtherExternal, 1053, 100, 2), called]));
}

#[test]
fn folded_row_is_not_the_other_end_of_another_flow() {
    let mut directory = directory();
    // A Service of this pod, which calls itself through it: a server's flow with another address may be the other end.
    let backend = Backend { ip: ip(WEB), port: 80, pod_uid: Some("uid".to_owned()) };
    let port = ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends: vec![backend] };
    let name = ServiceRef { namespace: "shop".to_owned(), name: "web".to_owned() };
    directory
        .upsert_service(Service { name, addresses: vec![ip("10.96.0.9")], ports: vec![port] }, SystemTime::UNIX_EPOCH);
    let flows =
        Flows::from([((Role::Client, ip("10.96.0.9"), 80), opened(5, 5)), ((Role::Server, FOLDED, 80), opened(5, 5))]);
    let edges = graph_of(&directory, &flows, 10).edges;
    let shown: BTreeMap<_, _> = edges.iter().map(|edge| (&edge.key.client, edge.counters.opened)).collect();
    assert_eq!(shown, BTreeMap::from([(&Peer::OtherExternal, 5), (&Peer::Workload(workload()), 5)]));
}

#[test]
fn a_hundred_thousand_callers_make_few_edges() {
    let flows: Flows = (0..100_000_u32)
        .map(|number| {
            let opened = 1 + u64::from(number % 7);
            let counters = FlowCounters { opened, closed: opened, ..FlowCounters::default() };
            ((Role::Server, IpAddr::from(std::net::Ipv4Addr::from(0xc612_0000 + number)), 443), counters)
        })
        .collect();
    let mut ledger = Ledger::new();
    let wanted = truth(&flows);
    report(&mut ledger, 1, flows);
    let begun = std::time::Instant::now();
    let graph = graph::build(&ledger, &directory(), &options(50));
    println!("the graph of 100,000 callers took {:?}", begun.elapsed());
    assert_eq!((graph.edges.len(), total(&graph)), (51, wanted));
    assert_eq!(shared(&graph, Role::Server).map(|edge| edge.addresses).sum::<u64>(), 100_000 - 50);
}

/// Returns the addresses with edges of their own, by direction.
fn shown(graph: &Graph, role: Role) -> BTreeSet<IpAddr> {
    let outer = |edge: &Arc<Edge>| match (role, &edge.key.client, &edge.key.server) {
        (Role::Client, _, Peer::External { ip }) | (Role::Server, Peer::External { ip }, _) => Some(*ip),
        _ => None,
    };
    graph.edges.iter().filter_map(outer).collect()
}

fn shared(graph: &Graph, role: Role) -> impl Iterator<Item = &Edge> {
    graph.edges.iter().map(Arc::as_ref).filter(move |edge| match role {
        Role::Client => edge.key.server == Peer::OtherExternal,
        Role::Server => edge.key.client == Peer::OtherExternal,
    })
}

fn total(graph: &Graph) -> EdgeCounters {
    let mut total = EdgeCounters::default();
    graph.edges.iter().for_each(|edge| total.add(&edge.counters));
    total
}

/// As the edges count, from the client's point of view.
fn truth(flows: &Flows) -> EdgeCounters {
    let mut total = EdgeCounters::default();
    for ((role, ..), counters) in flows {
        let (own, other) = (counters.bytes_sent, counters.bytes_received);
        let (bytes_sent, bytes_received) = if *role == Role::Client { (own, other) } else { (other, own) };
        let (opened, failed) = (counters.opened, counters.failed);
        total.add(&EdgeCounters { opened, failed, bytes_sent, bytes_received, ..EdgeCounters::default() });
    }
    total
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Client), Just(Role::Server)]
}

fn flows() -> impl Strategy<Value = Flows> {
    let flow = (role(), 0..40_u8, 0..3_u16, 0..300_u64, 0..3_u64, 0..1000_u64);
    prop::collection::vec(flow, 0..80).prop_map(|flows| {
        let of = |(role, number, port, opened, failed, bytes)| {
            let counters = FlowCounters {
                opened,
                closed: opened,
                failed: if role == Role::Client { failed } else { 0 },
                bytes_sent: bytes,
                bytes_received: 2 * bytes,
                ..FlowCounters::default()
            };
            ((role, outer(number), 80 + port), counters)
        };
        let is_something = |(_, counters): &(_, FlowCounters)| counters.opened + counters.failed > 0;
        flows.into_iter().map(of).filter(is_something).collect()
    })
}

/// Returns the activity of each address, in one direction.
fn busy(flows: &Flows, role: Role) -> BTreeMap<IpAddr, u64> {
    let mut busy = BTreeMap::new();
    for ((of, ip, _), counters) in flows {
        if *of == role {
            *busy.entry(*ip).or_default() += counters.opened + counters.failed;
        }
    }
    busy
}

/// Events between two readings.
#[derive(Clone, Debug)]
struct Round {
    grows: Vec<(Role, u8, u64)>,
    agent_begins_anew: bool,
    operator_begins_anew: bool,
}

fn round() -> impl Strategy<Value = Round> {
    let grows = prop::collection::vec((role(), 0..12_u8, 1..50_u64), 0..8);
    (grows, prop::bool::weighted(0.2), prop::bool::weighted(0.3)).prop_map(
        |(grows, agent_begins_anew, operator_begins_anew)| Round { grows, agent_begins_anew, operator_begins_anew },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn few_addresses_have_edges_of_their_own_and_the_sums_are_right(flows in flows(), limit in 1..10_usize) {
        let graph = graph_of(&directory(), &flows, limit);
        prop_assert_eq!(total(&graph), truth(&flows));
        for role in [Role::Client, Role::Server] {
            let (shown, busy) = (shown(&graph, role), busy(&flows, role));
            prop_assert_eq!(shown.len(), busy.len().min(limit));
            let class = |ip: &IpAddr| activity::class(busy[ip]);
            let hidden: BTreeSet<IpAddr> = busy.keys().filter(|ip| !shown.contains(*ip)).copied().collect();
            prop_assert!(shown.iter().map(class).min() >= hidden.iter().map(class).max() || hidden.is_empty());
            let mut behind: BTreeMap<Option<u16>, BTreeSet<IpAddr>> = BTreeMap::new();
            for (_, ip, port) in flows.keys().filter(|(of, ip, _)| *of == role && hidden.contains(ip)) {
                behind.entry(Some(*port)).or_default().insert(*ip);
            }
            if behind.len() > limit {
                behind = [(None, hidden)].into();
            }
            let wanted: Vec<(Option<u16>, u64)> = behind.iter().map(|(port, ips)| (*port, ips.len() as u64)).collect();
            let found: Vec<(Option<u16>, u64)> = shared(&graph, role).map(|edge| (edge.key.port, edge.addresses)).collect();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn the_order_of_reports_does_not_matter(flows in flows(), limit in 1..10_usize) {
        let mut ledger = Ledger::new();
        report(&mut ledger, 1, flows.clone().into_iter().rev());
        prop_assert_eq!(graph::build(&ledger, &directory(), &options(limit)), graph_of(&directory(), &flows, limit));
    }

    /// All go on growing, each at about its pace: who was shown is shown.
    #[test]
    fn noise_changes_nothing(flows in flows(), limit in 1..10_usize, noise in prop::collection::vec(100..150_u64, 80)) {
        let directory = directory();
        let mut archive = Archive::new();
        let mut ledger = Ledger::new();
        report(&mut ledger, 1, flows.clone());
        let before = archive.build(&ledger, &directory, &options(limit));
        let grown = flows.into_iter().zip(noise).map(|((flow, counters), percent)| {
            let opened = counters.opened * percent / 100;
            (flow, FlowCounters { opened, closed: opened, ..counters })
        });
        report(&mut ledger, 1, grown);
        let after = archive.build(&ledger, &directory, &options(limit));
        for role in [Role::Client, Role::Server] {
            prop_assert_eq!(shown(&before, role), shown(&after, role));
        }
    }

    /// Restarts of agents and operators, and replaced addresses, lose and duplicate nothing.
    #[test]
    fn sums_outlive_agents_and_operators(rounds in prop::collection::vec(round(), 1..12), limit in 1..6_usize) {
        let directory = directory();
        let (mut ledger, mut archive, mut epoch) = (Ledger::new(), Archive::new(), 1);
        let (mut flows, mut known, mut published) = (Flows::new(), Flows::new(), Graph::default());
        for round in rounds {
            for (role, number, opened) in round.grows {
                for flows in [&mut flows, &mut known] {
                    let counters = flows.entry((role, outer(number), 80)).or_default();
                    (counters.opened, counters.closed) = (counters.opened + opened, counters.closed + opened);
                    counters.bytes_sent += 10 * opened;
                }
            }
            report(&mut ledger, epoch, known.clone());
            let graph = archive.build(&ledger, &directory, &options(limit));
            prop_assert_eq!(total(&graph), truth(&flows));
            prop_assert!([Role::Client, Role::Server].iter().all(|role| shown(&graph, *role).len() <= limit));
            published = graph;
            if round.agent_begins_anew {
                known = Flows::new();
                epoch += 1;
                report(&mut ledger, epoch, known.clone());
                published = archive.build(&ledger, &directory, &options(limit));
            }
            if round.operator_begins_anew {
                (ledger, archive) = (Ledger::new(), Archive::new());
                archive.restore(
                    published.edges.iter().map(|edge| Published {
                        edge: Edge::clone(edge),
                        earlier: published.earlier.get(&edge.key).cloned().unwrap_or_default(),
                    }),
                    now(),
                );
                report(&mut ledger, epoch, known.clone());
                prop_assert_eq!(total(&archive.build(&ledger, &directory, &options(limit))), truth(&flows));
                archive.settle(&ledger, &directory, now());
                prop_assert_eq!(total(&archive.build(&ledger, &directory, &options(limit))), truth(&flows));
            }
        }
        prop_assert_eq!(total(&archive.build(&ledger, &directory, &options(limit))), truth(&flows));
        drop(published);
    }
}
