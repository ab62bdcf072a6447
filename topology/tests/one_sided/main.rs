//! Conversations of which one end is hidden, late or nowhere: each must be on one edge, or wait, and never be on two.

#![expect(clippy::expect_used, reason = "a test")]

mod called_addresses;
mod changing_addresses;
mod forwarded;
mod forwarded_histories;
mod measured;
mod nat_peers;
mod next_operator;
mod pending;
mod proxies;
mod rewritten_source;
mod shared;
mod times;
mod world;

use scopeprobe_topology::{
    archive::{Archive, Published},
    counts::Earlier,
    edge::{Edge, Identity, Seen},
    entity::{Backend, Pod, Service, ServicePort, ServiceRef},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::Options,
};

use world::{EPOCH, RETENTION, SETTLE, World, at, edges, ip, key, pod, workload};

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
    assert_eq!(edges(&joined.graph(at(11))), ["web -> db:5432 via db:80 3+0"]);
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
    assert_eq!(edges(&shown), ["web -> db:5353 via dns:53 3+0", "web -> other:5353/UDP via dns:53 3+0"]);
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
    assert_eq!(edges(&world.graph(at(60))), ["web -> service db via db:80 0+4"]);
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
        let expected = ["web -> db:5432 via former:80 3+0", "node-1 -> other-db:5432 3+0"];
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
    world.ledger.record_heartbeat("node-1", at(70));
    world.ledger.record_heartbeat("node-2", at(1));
    // The other three went to the other node, which may yet tell of them.
    let waiting = world.graph(at(60));
    assert_eq!((edges(&waiting), waiting.unsettled), (vec!["web -> cache:5432 via db:80 2+0".to_owned()], 3));
    let alone = ["web -> cache:5432 via db:80 2+0", "web -> service db via db:80 3+0"];
    assert_eq!(edges(&world.graph(at(71))), alone);
    // It says something, and nothing of them: they are not to come.
    world.ledger.record_heartbeat("node-2", at(72));
    assert_eq!(edges(&world.graph(at(73))), alone);
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 3, at(72));
    assert_eq!(edges(&world.graph(at(73))), ["web -> cache:5432 via db:80 2+0", "web -> db:5432 via db:80 3+0"]);
}

#[test]
fn graph_drops_edge_of_silent_agent_after_retention() {
    let mut world = World::new();
    let open = FlowCounters { opened: 1, ..FlowCounters::default() };
    world.counters("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), &open, at(0));
    world.ledger.record_heartbeat("node-1", at(1_000));
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

/// The address is neither the node's nor external: the peer is an unknown pod.
#[test]
fn an_address_of_a_pods_network_is_some_pods_where_it_is_not_known_whose() {
    let mut world = World::new();
    for (client, opened) in [("10.244.1.77", 3), ("10.244.1.1", 2), ("10.245.1.1", 1)] {
        world.flow("db", Role::Server, ("10.244.2.2", client, 5432), opened, at(0));
    }
    let expected = ["some pod 10.244.1.77 -> db:5432 3+0", "node-1 -> db:5432 2+0", "10.245.1.1 -> db:5432 1+0"];
    assert_eq!(edges(&world.graph(at(60))), expected);
    // Whose it was is known, and that it was not any more.
    world.directory.upsert_pod(pod("gone", "node-1", "10.244.1.9"), at(60));
    world.directory.remove_pod("uid-gone", at(70));
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.1.9", 80), 1, at(100));
    assert_eq!(edges(&world.graph(at(110)))[0], "web -> some pod 10.244.1.9:80 1+0");
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
fn what_a_server_still_counts_of_a_client_that_was_let_go_of_is_not_counted_again() {
    let mut world = World::new();
    world.service(None, &["db"]);
    let mut archive = Archive::new();
    world.directory.upsert_pod(Pod { workload: workload("web"), ..pod("web-2", "node-1", "10.244.1.3") }, at(0));
    let counts = |world: &mut World, pod: &str, address: &str, opened: [u64; 2], seconds: u64| {
        world.flow(pod, Role::Client, (address, "10.96.0.5", 80), opened[0], at(seconds));
        world.flow("db", Role::Server, ("10.244.2.2", address, 5432), opened[1], at(seconds));
    };
    counts(&mut world, "web", "10.244.1.2", [100, 100], 0);
    counts(&mut world, "web-2", "10.244.1.3", [50, 50], 900);
    // The clients' agent has let go of the first pod's flow, the server's has not.
    world.ledger.begin_snapshot("node-1", EPOCH).expect("the present epoch");
    counts(&mut world, "web-2", "10.244.1.3", [51, 51], 900);
    world.ledger.end_snapshot("node-1", EPOCH, at(900)).expect("the present epoch");
    assert_eq!(archive.retire(&mut world.ledger, &world.directory, at(901), RETENTION), 1);
    let shown = |archive: &mut Archive, world: &World, seconds| {
        let options = Options { now: at(seconds), settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
        edges(&archive.build(&world.ledger, &world.directory, &options))
    };
    assert_eq!(shown(&mut archive, &world, 903), ["web -> db:5432 via db:80 151+0"]);
    // It comes back and counts from zero, and its server goes on.
    counts(&mut world, "web", "10.244.1.2", [5, 105], 910);
    assert_eq!(shown(&mut archive, &world, 920), ["web -> db:5432 via db:80 156+0"]);
}

#[test]
fn what_only_a_server_has_counted_is_not_said_to_be_forgotten() {
    let mut world = World::new();
    let mut archive = Archive::new();
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 5, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 8, at(0));
    // What agents know is compared only where something may be gone.
    world.directory.upsert_pod(pod("gone", "node-1", "10.244.1.9"), at(0));
    world.directory.remove_pod("uid-gone", at(1));
    let options = Options { now: at(60), settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
    let graph = archive.build(&world.ledger, &world.directory, &options);
    assert_eq!(edges(&graph), ["web -> db:5432 8+0"]);
    assert!(graph.earlier.is_empty(), "{:?}", graph.earlier);
}

/// An operator has published what only the server had counted; the next one sees the client, through a Service.
#[test]
fn what_becomes_known_as_a_clients_is_not_shown_as_it_was_published_as_well() {
    let mut world = World::new();
    world.service(None, &["db"]);
    let options = Options { now: at(60), settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 1, at(0));
    let graph = Archive::new().build(&world.ledger, &world.directory, &options);
    assert_eq!(edges(&graph), ["web -> db:5432 1+0"]);
    let mut archive = Archive::new();
    let published = graph.edges.iter().map(|edge| Published { edge: Edge::clone(edge), earlier: Earlier::default() });
    archive.restore(published, at(60));
    archive.settle(&world.ledger, &world.directory, at(60));
    world.flow("web", Role::Client, ("10.244.1.2", "10.96.0.5", 80), 1, at(61));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 2, at(61));
    let options = Options { now: at(70), ..options };
    assert_eq!(edges(&archive.build(&world.ledger, &world.directory, &options)), ["web -> db:5432 via db:80 2+0"]);
}
