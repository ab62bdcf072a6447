//! Conversations of which one end is hidden, late or nowhere: each must be on one edge, or wait, and never be on two.

#![expect(clippy::expect_used, reason = "a test")]

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use scopeprobe_topology::{
    archive::Archive,
    directory::Directory,
    edge::{Edge, Endpoint, Identity, Peer, Seen},
    entity::{Backend, CgroupOwner, Life, Network, Node, Pod, Service, ServicePort, ServiceRef, Workload},
    far_end::FarEnd,
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{Epoch, Ledger},
    rtt::{RttBucket, RttHistogram},
};

const EPOCH: Epoch = Epoch([1; 16]);
const SETTLE: Duration = Duration::from_secs(2);
const RETENTION: Duration = Duration::from_mins(10);

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + seconds)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn workload(name: &str) -> Workload {
    Workload { namespace: "shop".to_owned(), kind: "Deployment".to_owned(), name: name.to_owned() }
}

fn pod(name: &str, node: &str, address: &str) -> Pod {
    Pod {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        host_network: false,
        ips: vec![ip(address)],
        ended: false,
        workload: workload(name),
        containers: [(format!("id-{name}"), "app".to_owned())].into(),
        life: Life::default(),
    }
}

struct World {
    ledger: Ledger,
    directory: Directory,
}

impl World {
    /// Two nodes with agents; a pod on each.
    fn new() -> Self {
        let mut world = Self { ledger: Ledger::new(), directory: Directory::new() };
        for number in [1, 2] {
            world.directory.upsert_node(Node {
                name: format!("node-{number}"),
                ips: vec![ip(&format!("172.18.0.{number}"))],
                pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
            });
            world.ledger.enter(&format!("node-{number}"), EPOCH).expect("the first epoch");
        }
        world.directory.upsert_pod(pod("web", "node-1", "10.244.1.2"), at(0));
        world.directory.upsert_pod(pod("db", "node-2", "10.244.2.2"), at(0));
        world
    }

    fn service(&mut self, node_port: Option<u16>, backends: &[&str]) {
        let backends = backends.iter().map(|name| {
            let pod = self.directory.pod(&format!("uid-{name}")).expect("the pod is known");
            Backend { ip: pod.ips[0], port: 5432, pod_uid: Some(pod.uid.clone()) }
        });
        let ports = vec![ServicePort { port: 80, protocol: Protocol::Tcp, node_port, backends: backends.collect() }];
        let name = ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() };
        self.directory.upsert_service(Service { name, addresses: vec![ip("10.96.0.5")], ports }, at(0));
    }

    fn flow(&mut self, who: &str, role: Role, (local, remote, port): (&str, &str, u16), opened: u64, now: SystemTime) {
        let counters = FlowCounters { opened, closed: opened, ..FlowCounters::default() };
        self.counters(who, role, (local, remote, port), &counters, now);
    }

    fn counters(
        &mut self,
        who: &str,
        role: Role,
        addresses: (&str, &str, u16),
        counters: &FlowCounters,
        now: SystemTime,
    ) {
        self.report(who, key(who, role, addresses), counters, now);
    }

    fn report(&mut self, who: &str, key: FlowKey, counters: &FlowCounters, now: SystemTime) {
        let (node, owner) = match self.directory.pod(&format!("uid-{who}")) {
            Some(pod) => (
                pod.node.clone(),
                CgroupOwner::PodContainer { pod_uid: pod.uid.clone(), container_id: format!("id-{who}") },
            ),
            None => ("node-2".to_owned(), CgroupOwner::HostProcess { name: who.to_owned() }),
        };
        self.ledger.identify(&node, EPOCH, key.cgroup_id, owner).expect("the present epoch");
        self.ledger.apply(&node, EPOCH, key, counters, now).expect("the present epoch");
    }

    fn graph(&self, now: SystemTime) -> Graph {
        graph::build(
            &self.ledger,
            &self.directory,
            &Options { now, settle: SETTLE, retention: RETENTION, max_external: usize::MAX },
        )
    }
}

fn key(who: &str, role: Role, (local, remote, port): (&str, &str, u16)) -> FlowKey {
    let cgroup_id = who.bytes().map(u64::from).sum();
    FlowKey { cgroup_id, netns: 4, role, local: ip(local), remote: ip(remote), port, protocol: Protocol::Tcp }
}

/// Client, server, Service, port, opened, failed of each edge.
fn edges(graph: &Graph) -> Vec<String> {
    let name = |peer: &Peer| match peer {
        Peer::Workload(workload) => workload.name.clone(),
        Peer::Service(service) => format!("service {}", service.name),
        Peer::HostProcess { node, name } => format!("{node}/{name}"),
        Peer::Node { node } => node.clone(),
        Peer::UnknownPod { uid } => format!("pod {uid}"),
        Peer::External { ip } => ip.to_string(),
        Peer::ExternalGroup { name } | Peer::ExternalName { name } => name.clone(),
        Peer::ApiServer => "kubernetes-api".to_owned(),
        Peer::OtherExternal => "others".to_owned(),
    };
    graph
        .edges
        .iter()
        .map(|edge| {
            let key = &edge.key;
            let via = key.service.as_ref().map(|service| format!(" via {}", service.name)).unwrap_or_default();
            let counters = &edge.counters;
            let (client, server) = (name(&key.client), name(&key.server));
            let protocol = if key.protocol == Protocol::Udp { "/UDP" } else { "" };
            format!("{client} -> {server}:{}{protocol}{via} {}+{}", key.port, counters.opened, counters.failed)
        })
        .collect()
}

#[test]
fn a_servers_report_waits_for_the_clients() {
    let mut world = World::new();
    world.service(None, &["db"]);
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 3, at(10));
    let early = world.graph(at(11));
    assert_eq!((edges(&early).len(), early.unsettled), (0, 3));
    assert_eq!(early.settles_at, Some(at(12)));
    // The client's report says that it went through the Service.
    let mut joined = World { ledger: world.ledger.clone(), directory: world.directory.clone() };
    joined.flow("web", Role::Client, ("10.244.1.2", "10.96.0.5", 80), 3, at(11));
    assert_eq!(edges(&joined.graph(at(11))), ["web -> db:5432 via db 3+0"]);
    // It does not come: what the server has seen is all there is.
    let late = world.graph(at(12));
    assert_eq!(edges(&late), ["web -> db:5432 3+0"]);
    assert_eq!(late.edges[0].seen, Seen::Server);
    assert_eq!(late.edges[0].client_identity, Identity::Ip);
}

#[test]
fn a_services_port_leads_elsewhere_for_each_protocol() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("other", "node-2", "10.244.2.3"), at(0));
    let port = |protocol, name: &str, address: &str| ServicePort {
        port: 53,
        protocol,
        node_port: None,
        backends: vec![Backend { ip: ip(address), port: 5353, pod_uid: Some(format!("uid-{name}")) }],
    };
    let name = ServiceRef { namespace: "shop".to_owned(), name: "dns".to_owned() };
    let ports = vec![port(Protocol::Tcp, "db", "10.244.2.2"), port(Protocol::Udp, "other", "10.244.2.3")];
    world.directory.upsert_service(Service { name, addresses: vec![ip("10.96.0.10")], ports }, at(0));
    let counters = FlowCounters { opened: 3, closed: 3, ..FlowCounters::default() };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let key = key("web", Role::Client, ("10.244.1.2", "10.96.0.10", 53));
        world.report("web", FlowKey { protocol, ..key }, &counters, at(0));
    }
    let shown = world.graph(at(60));
    assert_eq!(edges(&shown), ["web -> db:5353 via dns 3+0", "web -> other:5353/UDP via dns 3+0"]);
}

#[test]
fn loopback_is_within_the_pod() {
    let mut world = World::new();
    for (role, opened) in [(Role::Client, 2), (Role::Server, 2)] {
        world.flow("web", role, ("127.0.0.1", "127.0.0.1", 6379), opened, at(0));
    }
    // The same addresses on another node are other conversations.
    world.flow("sshd", Role::Client, ("127.0.0.1", "127.0.0.1", 6379), 5, at(0));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> web:6379 2+0", "node-2/sshd -> node-2:6379 5+0"]);
    assert_eq!(graph.edges[0].servers[0].container, "app");
}

#[test]
fn attempts_at_a_service_without_backends_stay_with_the_service() {
    let mut world = World::new();
    world.service(None, &[]);
    let failed = FlowCounters { failed: 4, ..FlowCounters::default() };
    world.counters("web", Role::Client, ("10.244.1.2", "10.96.0.5", 80), &failed, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> service db:80 via db 0+4"]);
}

#[test]
fn a_node_port_leads_to_its_service_and_is_not_counted_twice() {
    let mut world = World::new();
    world.service(Some(30_080), &["db"]);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 30_080), 7, at(0));
    // The server sees the bridge's address instead of the pod's.
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 7, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 via db 7+0"]);
}

#[test]
fn a_bridge_that_only_the_agent_knows_is_the_nodes() {
    let mut world = World::new();
    world.service(Some(30_080), &["db"]);
    for number in [1, 2] {
        let ips = vec![ip(&format!("172.18.0.{number}"))];
        world.directory.upsert_node(Node { name: format!("node-{number}"), ips, pod_networks: Vec::new() });
    }
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 30_080), 7, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 7, at(0));
    let unknown = edges(&world.graph(at(60)));
    assert_eq!(unknown, ["web -> db:5432 via db 7+0", "10.244.2.1 -> db:5432 7+0"]);
    // An address that all nodes have names none of them.
    for (node, addresses) in [("node-1", vec![ip("172.17.0.1")]), ("node-2", vec![ip("172.17.0.1"), ip("10.244.2.1")])]
    {
        assert_eq!(world.ledger.set_node_addresses(node, EPOCH, &addresses), Ok(true));
        assert_eq!(world.ledger.set_node_addresses(node, EPOCH, &addresses), Ok(false));
    }
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 via db 7+0"]);
    world.flow("db", Role::Server, ("10.244.2.2", "172.17.0.1", 5432), 3, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 via db 7+0", "172.17.0.1 -> db:5432 3+0"]);
}

#[test]
fn what_comes_from_outside_through_a_node_is_not_hidden_by_the_nodes_own_probes() {
    let mut world = World::new();
    world.flow("kubelet", Role::Client, ("10.244.2.1", "10.244.2.2", 5432), 10, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 110, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["node-2/kubelet -> db:5432 10+0", "node-2 -> db:5432 100+0"]);
}

#[test]
fn a_host_network_pod_is_known_by_its_cgroup_and_never_by_its_address() {
    let mut world = World::new();
    let proxy = Pod { host_network: true, ..pod("proxy", "node-2", "172.18.0.2") };
    world.directory.upsert_pod(proxy, at(0));
    world.flow("proxy", Role::Client, ("172.18.0.2", "10.244.1.2", 80), 2, at(0));
    world.flow("web", Role::Server, ("10.244.1.2", "172.18.0.2", 80), 2, at(0));
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 22), 1, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["proxy -> web:80 2+0", "web -> node-2:22 1+0"]);
}

#[test]
fn who_comes_later_to_the_same_addresses_and_port_has_edges_of_its_own() {
    let on = |node: &str, address: &str, name: &str| Pod { host_network: true, ..pod(name, node, address) };
    // Their cgroups' ids are in this order, or in the other one, at either end.
    for servers in [["a", "b"], ["b", "a"]] {
        let mut world = World::new();
        for ((client, server), since) in ["a", "b"].into_iter().zip(servers).zip([0, 40]) {
            let (client, server) = (format!("client-{client}"), format!("server-{server}"));
            world.directory.upsert_pod(on("node-1", "172.18.0.1", &client), at(since));
            world.directory.upsert_pod(on("node-2", "172.18.0.2", &server), at(since));
            world.flow(&client, Role::Client, ("172.18.0.1", "172.18.0.2", 80), 3, at(since));
            world.flow(&server, Role::Server, ("172.18.0.2", "172.18.0.1", 80), 3, at(since + 1));
        }
        let [first, second] = servers.map(|server| format!("server-{server}:80"));
        let shown = edges(&world.graph(at(60)));
        assert_eq!(shown, [format!("client-a -> {first} 3+0"), format!("client-b -> {second} 3+0")]);
        // Of the third only the client is seen: the one who listened last answers.
        world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 80), 1, at(50));
        let shown = edges(&world.graph(at(60)));
        assert!(shown.contains(&format!("web -> {second} 1+0")), "{shown:?}");
    }
}

#[test]
fn an_address_that_another_service_gets_is_not_the_former_clients_way_to_it() {
    let service = |name: &str, backend: &str, address: &str| Service {
        name: ServiceRef { namespace: "shop".to_owned(), name: name.to_owned() },
        addresses: vec![ip("203.0.113.1")],
        ports: vec![ServicePort {
            port: 80,
            protocol: Protocol::Tcp,
            node_port: None,
            backends: vec![Backend { ip: ip(address), port: 5432, pod_uid: Some(format!("uid-{backend}")) }],
        }],
    };
    // Long after the last call, or right after it.
    for removed in [50, 12] {
        let mut world = World::new();
        world.directory.upsert_pod(pod("other-db", "node-2", "10.244.2.3"), at(0));
        world.directory.upsert_service(service("former", "db", "10.244.2.2"), at(0));
        world.flow("web", Role::Client, ("10.244.1.2", "203.0.113.1", 80), 3, at(10));
        world
            .directory
            .remove_service(&ServiceRef { namespace: "shop".to_owned(), name: "former".to_owned() }, at(removed));
        world.directory.upsert_service(service("latter", "other-db", "10.244.2.3"), at(100));
        world.flow("other-db", Role::Server, ("10.244.2.3", "172.18.0.1", 5432), 3, at(110));
        let shown = edges(&world.graph(at(120)));
        let expected = ["web -> db:5432 via former 3+0", "node-1 -> other-db:5432 3+0"];
        assert_eq!(shown, expected, "removed at {removed}");
    }
}

#[test]
fn an_agent_that_has_fallen_silent_is_not_waited_for() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("cache", "node-1", "10.244.1.3"), at(0));
    world.directory.upsert_service(
        Service {
            name: ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() },
            addresses: vec![ip("10.96.0.5")],
            ports: vec![ServicePort {
                port: 80,
                protocol: Protocol::Tcp,
                node_port: None,
                backends: [("db", "10.244.2.2"), ("cache", "10.244.1.3")]
                    .map(|(name, address)| Backend {
                        ip: ip(address),
                        port: 5432,
                        pod_uid: Some(format!("uid-{name}")),
                    })
                    .into(),
            }],
        },
        at(0),
    );
    world.flow("web", Role::Client, ("10.244.1.2", "10.96.0.5", 80), 5, at(0));
    world.flow("cache", Role::Server, ("10.244.1.3", "10.244.1.2", 5432), 2, at(0));
    world.ledger.hear("node-1", at(70));
    world.ledger.hear("node-2", at(10));
    // The other three went to the other node, which may yet tell of them.
    assert_eq!(edges(&world.graph(at(60))), ["web -> cache:5432 via db 2+0"]);
    let alone = ["web -> cache:5432 via db 2+0", "web -> service db:80 via db 3+0"];
    assert_eq!(edges(&world.graph(at(71))), alone);
    world.ledger.hear("node-2", at(72));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 3, at(72));
    assert_eq!(edges(&world.graph(at(73))), ["web -> cache:5432 via db 2+0", "web -> db:5432 via db 3+0"]);
}

#[test]
fn an_edge_of_an_agent_that_has_fallen_silent_goes_with_time_although_nobody_saw_its_end() {
    let mut world = World::new();
    let open = FlowCounters { opened: 1, ..FlowCounters::default() };
    world.counters("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), &open, at(0));
    world.ledger.hear("node-1", at(1_000));
    assert_eq!(edges(&world.graph(at(1_030))), ["web -> db:5432 1+0"]);
    assert_eq!(edges(&world.graph(at(1_599))), ["web -> db:5432 1+0"]);
    assert_eq!(edges(&world.graph(at(1_600))), [] as [&str; 0]);
}

#[test]
fn a_pod_that_is_gone_keeps_its_name_until_another_has_its_address() {
    let mut world = World::new();
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 1, at(0));
    world.directory.remove_pod("uid-db", at(5));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 1+0"]);
    world.directory.upsert_pod(pod("other", "node-2", "10.244.2.2"), at(30));
    // What happened before the other pod was there stays where it was; what goes on now is the other's.
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 1+0"]);
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.2.2", 80), 1, at(40));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 1+0", "web -> other:80 1+0"]);
    world.directory.forget_removed(at(10_000), RETENTION);
    assert!(world.directory.pod("uid-db").is_none());
}

#[test]
fn an_edge_keeps_its_counters_when_its_oldest_flows_go() {
    let mut world = World::new();
    let mut archive = Archive::new();
    world.directory.upsert_pod(Pod { workload: workload("web"), ..pod("web-2", "node-1", "10.244.1.3") }, at(0));
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 4, at(0));
    world.flow("web-2", Role::Client, ("10.244.1.3", "10.244.2.2", 5432), 1, at(900));
    // The first pod is gone: its agent's next snapshot does not name it.
    world.ledger.begin_snapshot("node-1", EPOCH).expect("the present epoch");
    world.flow("web-2", Role::Client, ("10.244.1.3", "10.244.2.2", 5432), 2, at(900));
    world.ledger.end_snapshot("node-1", EPOCH, at(900)).expect("the present epoch");
    assert_eq!(archive.retire(&mut world.ledger, &world.directory, at(901), RETENTION), 1);
    let options = Options { now: at(902), settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
    assert_eq!(edges(&archive.build(&world.ledger, &world.directory, &options)), ["web -> db:5432 6+0"]);
    // Nothing happens for long: the edge goes, with all that it has counted.
    let options = Options { now: at(2_000), ..options };
    assert_eq!(edges(&archive.build(&world.ledger, &world.directory, &options)), [] as [&str; 0]);
}

#[test]
fn a_nodes_own_calls_through_a_service_are_seen_with_its_address_and_with_its_bridges() {
    let mut world = World::new();
    world.directory.upsert_pod(Pod { workload: workload("db"), ..pod("db-too", "node-1", "10.244.1.3") }, at(0));
    world.service(None, &["db", "db-too"]);
    world.flow("monitor", Role::Client, ("172.18.0.2", "10.96.0.5", 80), 7, at(0));
    world.flow("db-too", Role::Server, ("10.244.1.3", "172.18.0.2", 5432), 4, at(0));
    // The backend on the same node.
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 3, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["node-2/monitor -> db:5432 via db 7+0"]);
    // Another node's bridge is nothing of its own, and what is beyond its count is somebody else's.
    world.flow("db-too", Role::Server, ("10.244.1.3", "10.244.1.1", 5432), 2, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["node-2/monitor -> db:5432 via db 7+0", "node-1 -> db:5432 2+0"]);
}

/// Connections of one flow that all had this round-trip time, and what was sent again on them.
fn measured(opened: u64, rtt: u32, retransmits: u64) -> FlowCounters {
    let mut histogram = RttHistogram::default();
    (0..opened).for_each(|_| histogram.add(RttBucket::of(rtt)));
    FlowCounters { opened, retransmits: Some(retransmits), rtt: histogram, ..FlowCounters::default() }
}

/// The server, retransmits where they are known, and the round-trip time's bound.
fn measures(graph: &Graph) -> Vec<(String, Option<u64>, Option<u32>)> {
    let of = |edge: &Edge| {
        let retransmits = edge.knows_retransmits.then_some(edge.counters.retransmits);
        let Peer::Workload(server) = &edge.key.server else { return (String::new(), retransmits, None) };
        (server.name.clone(), retransmits, edge.rtt.map(RttBucket::below))
    };
    graph.edges.iter().map(of).collect()
}

#[test]
fn round_trips_are_the_clients_and_retransmits_are_both_ends() {
    let (to_db, from_web) = (("10.244.1.2", "10.244.2.2", 5432), ("10.244.2.2", "10.244.1.2", 5432));
    let mut world = World::new();
    world.counters("db", Role::Server, from_web, &measured(3, 5_000, 1), at(0));
    assert_eq!(measures(&world.graph(at(10))), [("db".to_owned(), Some(1), Some(8_192))]);
    world.counters("web", Role::Client, to_db, &measured(3, 300, 2), at(10));
    assert_eq!(measures(&world.graph(at(20))), [("db".to_owned(), Some(3), Some(512))]);
}

#[test]
fn what_nobody_has_measured_is_not_shown() {
    let mut world = World::new();
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 3, at(0));
    assert_eq!(measures(&world.graph(at(10))), [("db".to_owned(), None, None)]);
}

#[test]
fn behind_a_service_of_two_workloads_each_server_tells_its_own_round_trips() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("replica", "node-1", "10.244.1.3"), at(0));
    world.service(None, &["db", "replica"]);
    world.counters("web", Role::Client, ("10.244.1.2", "10.96.0.5", 80), &measured(4, 300, 8), at(0));
    world.counters("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), &measured(1, 900, 1), at(0));
    world.counters("replica", Role::Server, ("10.244.1.3", "10.244.1.2", 5432), &measured(3, 50, 0), at(0));
    let expected = [("db".to_owned(), Some(2 + 1), Some(1_024)), ("replica".to_owned(), Some(6), Some(64))];
    assert_eq!(measures(&world.graph(at(10))), expected);
}

impl World {
    /// With two workloads' pods on a node of which nobody reports.
    fn with_a_dark_node() -> Self {
        let mut world = Self::new();
        world.directory.upsert_node(Node {
            name: "node-3".to_owned(),
            ips: vec![ip("172.18.0.3")],
            pod_networks: Network::parse("10.244.3.0/24").into_iter().collect(),
        });
        world.directory.upsert_pod(pod("dark-a", "node-3", "10.244.3.2"), at(0));
        world.directory.upsert_pod(pod("dark-b", "node-3", "10.244.3.3"), at(0));
        world
    }

    /// What connection tracking of the node says of a flow.
    fn lead(&mut self, who: &str, role: Role, addresses: (&str, &str, u16), far_ends: &[(&str, u16, u64)]) {
        let node = self.directory.pod(&format!("uid-{who}")).expect("the pod is known").node.clone();
        let far_ends: Vec<(FarEnd, u64)> =
            far_ends.iter().map(|(address, port, count)| (FarEnd { ip: ip(address), port: *port }, *count)).collect();
        self.ledger.lead_to(&node, EPOCH, &key(who, role, addresses), &far_ends).expect("the present epoch");
    }
}

const DIALLED: (&str, &str, u16) = ("10.244.1.2", "10.96.0.5", 80);

#[test]
fn connection_tracking_knows_the_backends_that_no_agent_sees() {
    let mut world = World::with_a_dark_node();
    world.service(None, &["dark-a", "dark-b"]);
    world.flow("web", Role::Client, DIALLED, 6, at(0));
    world.lead("web", Role::Client, DIALLED, &[("10.244.3.2", 5432, 3), ("10.244.3.3", 5432, 2)]);
    let graph = world.graph(at(10));
    let known = |edge: &Edge| match &edge.key.server {
        Peer::Workload(workload) => (workload.name.clone(), edge.counters.opened, edge.server_identity),
        _ => ("?".to_owned(), edge.counters.opened, edge.server_identity),
    };
    let expected = [
        ("dark-a".to_owned(), 3, Identity::Conntrack),
        ("dark-b".to_owned(), 2, Identity::Conntrack),
        ("?".to_owned(), 1, Identity::Ip),
    ];
    assert_eq!(graph.edges.iter().map(known).collect::<Vec<_>>(), expected);
    assert!(graph.edges.iter().all(|edge| edge.seen == Seen::Client && edge.key.service.is_some()));
    assert_eq!(graph.edges[0].servers[0].pod, "dark-a");
}

#[test]
fn what_an_agent_sees_is_not_taken_from_connection_tracking() {
    let mut world = World::with_a_dark_node();
    world.service(None, &["db", "dark-a"]);
    world.flow("web", Role::Client, DIALLED, 5, at(0));
    world.lead("web", Role::Client, DIALLED, &[("10.244.2.2", 5432, 3), ("10.244.3.2", 5432, 2)]);
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 1, at(0));
    let opened = |graph: &Graph| {
        let of = |edge: &Edge| (edge.counters.opened, edge.seen, edge.server_identity);
        graph.edges.iter().map(of).collect::<Vec<_>>()
    };
    let (both, tracked) = ((1, Seen::Both, Identity::Cgroup), (2, Seen::Client, Identity::Conntrack));
    assert_eq!(opened(&world.graph(at(10))), [tracked, both, (2, Seen::Client, Identity::Ip)]);
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 3, at(11));
    assert_eq!(opened(&world.graph(at(20))), [tracked, (3, Seen::Both, Identity::Cgroup)]);
}

#[test]
fn connection_tracking_knows_the_pods_of_the_only_workload() {
    let mut world = World::with_a_dark_node();
    world.service(None, &["dark-a"]);
    world.flow("web", Role::Client, DIALLED, 4, at(0));
    let found = |world: &World| {
        let graph = world.graph(at(10));
        (graph.edges.len(), graph.edges[0].server_identity, graph.edges[0].servers.clone())
    };
    assert_eq!(found(&world), (1, Identity::Ip, Vec::new()));
    world.lead("web", Role::Client, DIALLED, &[("10.244.3.2", 5432, 9)]);
    let pod = Endpoint { pod: "dark-a".to_owned(), container: String::new(), opened: 4, failed: 0 };
    assert_eq!(found(&world), (1, Identity::Conntrack, vec![pod]));
}

#[test]
fn connection_tracking_knows_the_client_behind_a_nodes_address() {
    let seen = ("10.244.2.2", "172.18.0.1", 5432);
    let mut world = World::with_a_dark_node();
    world.flow("db", Role::Server, seen, 5, at(0));
    world.lead("db", Role::Server, seen, &[("10.244.3.2", 0, 4)]);
    let graph = world.graph(at(10));
    let known = |edge: &Edge| (edge.key.client.clone(), edge.counters.opened, edge.client_identity, edge.seen);
    let expected = [
        (Peer::Workload(workload("dark-a")), 4, Identity::Conntrack, Seen::Server),
        (Peer::Node { node: "node-1".to_owned() }, 1, Identity::Ip, Seen::Server),
    ];
    assert_eq!(graph.edges.iter().map(known).collect::<Vec<_>>(), expected);
}
