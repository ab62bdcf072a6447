//! A node forwards connections with its own address in the place of the client's.

use std::time::Duration;

use scopeprobe_topology::{
    archive::{Archive, Published},
    edge::{Edge, EdgeCounters, Identity, Peer, Seen},
    entity::{CgroupOwner, HostPort, Node, Pod},
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
    graph::{Graph, Options},
    ledger::{ClientReport, Epoch},
    nat_peer::NatPeer,
    sighting::{Ages, Sighting},
};

use crate::world::{EPOCH, RETENTION, SETTLE, World, at, client_report, edges, ip, key, pod};

/// Flow of the server with the first node's address as its client's.
const SEEN: (&str, &str, u16) = ("10.244.2.2", "172.18.0.1", 5432);

/// Returns a world in which both agents observe their nodes since second 0.
fn observed_since_0(until: u64) -> World {
    let mut world = World::new();
    for node in ["node-1", "node-2"] {
        world.observe(node, at(0), at(until));
    }
    world
}

#[test]
fn connections_that_no_client_of_the_node_opened_were_forwarded() {
    let mut world = observed_since_0(30);
    world.flow("db", Role::Server, SEEN, 20, at(20));
    let graph = world.graph(at(30));
    assert_eq!(edges(&graph), ["via node-1 -> db:5432 20+0"]);
    let Edge { seen, client_identity, .. } = *graph.edges[0];
    assert_eq!((seen, client_identity), (Seen::Server, Identity::Ip));
    // A client of the node has opened some of them.
    let sshd = key("web", Role::Client, ("172.18.0.1", "10.244.2.2", 5432));
    let host = FlowKey { cgroup_id: 99, ..sshd };
    let counters = FlowCounters { opened: 5, closed: 5, ..FlowCounters::default() };
    world.ledger.apply("node-1", EPOCH, host, &counters, at(20)).expect("the present epoch");
    assert_eq!(edges(&world.graph(at(30))), ["node-1 -> db:5432 5+0", "via node-1 -> db:5432 15+0"]);
}

#[test]
fn kubelets_probes_are_the_nodes_and_other_connections_were_forwarded() {
    let mut world = observed_since_0(30);
    world.flow("kubelet", Role::Client, ("10.244.2.1", "10.244.2.2", 5432), 10, at(20));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 110, at(20));
    assert_eq!(edges(&world.graph(at(30))), ["node-2/kubelet -> db:5432 10+0", "via node-2 -> db:5432 100+0"]);
    // The newest probe is reported, and the time of it is not observed yet: nothing of the rest changes.
    world.flow("kubelet", Role::Client, ("10.244.2.1", "10.244.2.2", 5432), 11, at(40));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 111, at(40));
    let shown = ["node-2/kubelet -> db:5432 11+0", "via node-2 -> db:5432 100+0"];
    for now in [40, 41, 45] {
        assert_eq!(edges(&world.graph(at(now))), shown, "at {now}");
    }
    world.observe("node-2", at(0), at(50));
    assert_eq!(edges(&world.graph(at(50))), shown);
}

#[test]
fn connections_wait_until_the_nodes_agent_has_reported_their_time() {
    let mut world = observed_since_0(15);
    world.flow("db", Role::Server, SEEN, 20, at(20));
    let nothing: [&str; 0] = [];
    for now in [21, 25, 40] {
        let graph = world.graph(at(now));
        assert_eq!(
            (edges(&graph), graph.unsettled),
            (nothing.iter().map(ToString::to_string).collect(), 20),
            "at {now}"
        );
        assert!(graph.settles_at.is_some());
    }
    world.observe("node-1", at(0), at(22));
    assert_eq!(edges(&world.graph(at(40))), ["via node-1 -> db:5432 20+0"]);
    // More of them, of which the first ones stay.
    world.flow("db", Role::Server, SEEN, 23, at(41));
    let graph = world.graph(at(60));
    assert_eq!((edges(&graph), graph.unsettled), (vec!["via node-1 -> db:5432 20+0".to_owned()], 3));
    world.observe("node-1", at(0), at(62));
    assert_eq!(edges(&world.graph(at(62))), ["via node-1 -> db:5432 23+0"]);
}

#[test]
fn nothing_is_expected_of_a_silent_agent() {
    let mut world = observed_since_0(15);
    world.ledger.record_heartbeat("node-1", at(15));
    world.flow("db", Role::Server, SEEN, 20, at(20));
    assert_eq!(world.graph(at(74)).unsettled, 20);
    assert_eq!(edges(&world.graph(at(75))), ["node-1 -> db:5432 20+0"]);
    // It was cut off, and has counted all the time.
    world.ledger.record_heartbeat("node-1", at(80));
    world.observe("node-1", at(0), at(80));
    assert_eq!(edges(&world.graph(at(80))), ["via node-1 -> db:5432 20+0"]);
}

#[test]
fn connections_are_the_nodes_where_its_agent_may_have_missed_clients() {
    let reports = [
        ("no agent observes all clients", None),
        ("it observes samples", Some(ClientReport { is_exact: false, ..client_report(at(0), at(40)) })),
        ("it began later", Some(client_report(at(20), at(40)))),
        ("it has lost some", Some(ClientReport { lost: 1, ..client_report(at(0), at(40)) })),
    ];
    for (case, report) in reports {
        let mut world = World::new();
        if let Some(report) = report {
            world.observe_with("node-1", EPOCH, &ClientReport { complete_until: Some(at(40)), ..report });
        }
        world.flow("db", Role::Server, SEEN, 20, at(20));
        assert_eq!(edges(&world.graph(at(40))), ["node-1 -> db:5432 20+0"], "{case}");
    }
}

#[test]
fn connections_before_and_after_the_agents_start_are_on_two_edges() {
    let mut world = World::new();
    world.flow("db", Role::Server, SEEN, 20, at(10));
    world.observe("node-1", at(20), at(50));
    world.flow("db", Role::Server, SEEN, 27, at(30));
    let shown = ["node-1 -> db:5432 20+0", "via node-1 -> db:5432 7+0"];
    assert_eq!(edges(&world.graph(at(50))), shown);
    // The agent's capture begins again.
    world.ledger.enter("node-1", Epoch([2; 16])).expect("a new epoch");
    world.flow("db", Role::Server, SEEN, 28, at(55));
    let next = ClientReport { complete_until: Some(at(80)), ..client_report(at(60), at(80)) };
    world.observe_with("node-1", Epoch([2; 16]), &next);
    world.flow("db", Role::Server, SEEN, 30, at(70));
    let shown = ["node-1 -> db:5432 21+0", "via node-1 -> db:5432 9+0"];
    assert_eq!(edges(&world.graph(at(80))), shown);
    // The times of connections that were judged alike make no difference.
    let directory = world.directory.clone();
    world.ledger.set_node_addresses("node-1", Epoch([2; 16]), &[ip("172.18.0.1")]).expect("the present epoch");
    let observed = world.ledger.observed_times();
    world.ledger.condense("node-2", |flow, one, next| {
        let is_one = directory.are_one(flow.remote, one, next, at(10_000));
        is_one && observed.are_one("node-2", flow, one, next)
    });
    assert_eq!(edges(&world.graph(at(80))), shown);
}

/// A Service's client without an agent, or one outside of the cluster.
#[test]
fn forwarded_connections_of_all_ways_to_a_node_are_shown_behind_it() {
    let mut world = World::with_a_dark_node();
    for node in ["node-1", "node-2"] {
        world.observe(node, at(0), at(30));
    }
    world.service(Some(30_080), &["db"]);
    let addresses = [ip("172.18.0.1"), ip("10.9.9.9"), ip("fd00::1")];
    world.ledger.set_node_addresses("node-1", EPOCH, &addresses).expect("the present epoch");
    // A client of the cluster, through a node port of the first node.
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.1", 30_080), 3, at(20));
    world.flow("db", Role::Server, SEEN, 7, at(20));
    world.flow("db", Role::Server, ("10.244.2.2", "10.9.9.9", 5432), 5, at(20));
    world.flow("db", Role::Server, ("fd00::2:2", "fd00::1", 5432), 2, at(20));
    // At the same node, and in its network.
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 4, at(20));
    world.flow("exporter", Role::Server, ("172.18.0.2", "172.18.0.1", 9100), 6, at(20));
    // From the node without an agent.
    world.flow("exporter", Role::Server, ("172.18.0.2", "172.18.0.3", 9100), 8, at(20));
    let shown = [
        "web -> db:5432 via db:80 3+0",
        "node-3 -> node-2/exporter:9100 8+0",
        "via node-1 -> db:5432 11+0",
        "via node-1 -> node-2/exporter:9100 6+0",
        "via node-2 -> db:5432 4+0",
    ];
    assert_eq!(edges(&world.graph(at(30))), shown);
}

#[test]
fn client_in_another_network_of_the_node_is_found_behind_its_address() {
    let mut world = observed_since_0(30);
    // As Docker does.
    world.flow("builder", Role::Client, ("172.30.0.2", "10.244.1.2", 80), 5, at(20));
    world.flow("web", Role::Server, ("10.244.1.2", "172.18.0.2", 80), 5, at(20));
    assert_eq!(edges(&world.graph(at(30))), ["node-2/builder -> web:80 5+0"]);
}

/// A network plugin may replace addresses between pods.
#[test]
fn connections_that_an_unexplained_call_may_have_made_are_the_nodes() {
    let mut world = observed_since_0(30);
    world.flow("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 5, at(20));
    world.flow("db", Role::Server, SEEN, 8, at(20));
    let shown = ["web -> db:5432 5+0", "node-1 -> db:5432 5+0", "via node-1 -> db:5432 3+0"];
    assert_eq!(edges(&world.graph(at(30))), shown);
}

#[test]
fn outside_client_that_connection_tracking_knows_is_shown_by_its_address() {
    let mut world = observed_since_0(30);
    world.flow("db", Role::Server, SEEN, 5, at(20));
    let outside = NatPeer { ip: ip("203.0.113.7"), port: 0 };
    let of = key("db", Role::Server, SEEN);
    world.ledger.record_nat_peers("node-2", EPOCH, &of, &[(outside, 4)]).expect("the present epoch");
    assert_eq!(edges(&world.graph(at(30))), ["via node-1 -> db:5432 1+0", "203.0.113.7 -> db:5432 4+0"]);
}

#[test]
fn udp_is_judged_only_where_all_of_it_is_observed_and_no_client_is_known() {
    let udp = |addresses, role, who| FlowKey { protocol: Protocol::Udp, ..key(who, role, addresses) };
    let conversations = |opened| FlowCounters { opened, closed: opened, ..FlowCounters::default() };
    let world = |observes_udp| {
        let mut world = World::new();
        let report = ClientReport { complete_until: Some(at(30)), observes_udp, ..client_report(at(0), at(30)) };
        world.observe_with("node-2", EPOCH, &report);
        let seen = udp(("10.244.2.2", "172.18.0.2", 53), Role::Server, "db");
        world.report("db", seen, &conversations(9), at(20));
        world
    };
    assert_eq!(edges(&world(true).graph(at(30))), ["via node-2 -> db:53/UDP 9+0"]);
    assert_eq!(edges(&world(false).graph(at(30))), ["node-2 -> db:53/UDP 9+0"]);
    let mut world = world(true);
    let call = udp(("172.18.0.2", "10.244.2.2", 53), Role::Client, "resolver");
    world.report("resolver", call, &conversations(3), at(20));
    assert_eq!(edges(&world.graph(at(30))), ["node-2/resolver -> db:53/UDP 3+0", "node-2 -> db:53/UDP 6+0"]);
}

#[test]
fn connections_whose_direction_is_a_guess_are_the_nodes() {
    let mut world = observed_since_0(30);
    let counters = FlowCounters { opened: 5, closed: 5, inferred: 2, ..FlowCounters::default() };
    world.counters("db", Role::Server, SEEN, &counters, at(20));
    assert_eq!(edges(&world.graph(at(30))), ["node-1 -> db:5432 2+0", "via node-1 -> db:5432 3+0"]);
}

#[test]
fn host_process_that_called_a_host_port_at_loopback_is_not_outside() {
    let mut world = observed_since_0(30);
    let port = HostPort { ip: None, port: 8080, container_port: 5432, protocol: Protocol::Tcp };
    world.directory.upsert_pod(Pod { host_ports: vec![port], ..pod("db", "node-2", "10.244.2.2") }, at(0));
    world.flow("curl", Role::Client, ("127.0.0.1", "127.0.0.1", 8080), 4, at(20));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 4, at(20));
    assert_eq!(edges(&world.graph(at(30))), ["node-2/curl -> node-2:8080 4+0", "node-2 -> db:5432 4+0"]);
}

/// Payload of the connections that wait is not shown, and no open connection closes because of them.
#[test]
fn bytes_and_open_connections_follow_the_connections() {
    let mut world = observed_since_0(30);
    let counters = |opened, closed, bytes| FlowCounters {
        opened,
        closed,
        bytes_sent: bytes,
        bytes_received: 2 * bytes,
        ..FlowCounters::default()
    };
    world.counters("db", Role::Server, SEEN, &counters(3, 2, 300), at(20));
    let of = |graph: &Graph| -> Vec<EdgeCounters> { graph.edges.iter().map(|edge| edge.counters).collect() };
    let first = of(&world.graph(at(30)));
    let shown = |opened, active, bytes| EdgeCounters {
        opened,
        active,
        bytes_sent: 2 * bytes,
        bytes_received: bytes,
        ..EdgeCounters::default()
    };
    assert_eq!(first, [shown(3, 1, 300)]);
    world.counters("db", Role::Server, SEEN, &counters(4, 3, 400), at(40));
    assert_eq!(of(&world.graph(at(45))), [shown(3, 1, 300)]);
    world.observe("node-1", at(0), at(50));
    assert_eq!(of(&world.graph(at(50))), [shown(4, 1, 400)]);
}

fn options(now: u64) -> Options {
    Options { now: at(now), settle: SETTLE, retention: RETENTION, max_external: usize::MAX }
}

fn published(graph: &Graph) -> Vec<Published> {
    let one = |edge: &Edge| Published {
        edge: edge.clone(),
        earlier: graph.earlier.get(&edge.key).cloned().unwrap_or_default(),
    };
    graph.edges.iter().map(|edge| one(edge)).collect()
}

/// Reports to a new operator, all of it in one message per agent at second 100: the times of single connections are lost.
fn reported_anew(attached: u64, complete_until: Option<u64>) -> World {
    let mut world = World::new();
    for node in ["node-1", "node-2"] {
        world.observe_with(node, EPOCH, &client_report(at(attached), at(99)));
    }
    let counters = FlowCounters { opened: 30, closed: 30, methods: Methods::EBPF, ..FlowCounters::default() };
    let ages = Ages::of(Duration::from_secs(90), Duration::from_secs(90), Duration::from_secs(30));
    let flow = key("db", Role::Server, SEEN);
    let owner = CgroupOwner::PodContainer { pod_uid: "uid-db".to_owned(), container_id: "id-db".to_owned() };
    world.ledger.identify("node-2", EPOCH, flow.cgroup_id, owner).expect("the present epoch");
    let sighting = Sighting::new(&ages, at(100), at(100));
    world.ledger.apply("node-2", EPOCH, flow, &counters, sighting).expect("the present epoch");
    for node in ["node-1", "node-2"] {
        let complete_until = complete_until.map(at);
        world.observe_with(node, EPOCH, &ClientReport { complete_until, ..client_report(at(attached), at(100)) });
    }
    world
}

/// Operators that restart show the same, although the times of single connections are lost.
#[test]
fn restarted_operator_shows_each_connection_once_and_where_it_was() {
    // Before: 21 connections while the agent did not observe the node, and 9 that were forwarded.
    let mut world = World::new();
    world.flow("db", Role::Server, SEEN, 21, at(10));
    world.observe("node-1", at(20), at(90));
    world.flow("db", Role::Server, SEEN, 30, at(70));
    let mut archive = Archive::new();
    let before = archive.build_shown(&world.ledger, &world.directory, &options(90));
    let shown = ["node-1 -> db:5432 21+0", "via node-1 -> db:5432 9+0"];
    assert_eq!(edges(&before), shown);
    let mut published_edges = published(&before);
    // Several operators, one after the other.
    for start in [100, 200, 300] {
        let world = reported_anew(20, Some(99));
        let mut archive = Archive::new();
        archive.restore(published_edges.clone(), at(start));
        for now in [start, start + 1, start + 5, start + 12, start + 25] {
            let options = Options { now: at(now), ..options(0) };
            archive.settle_in_time(&world.ledger, &world.directory, &options);
            let graph = archive.build_shown(&world.ledger, &world.directory, &options);
            assert_eq!(edges(&graph), shown, "at {now}");
            published_edges = published(&graph);
        }
        assert!(archive.is_settled());
    }
}

/// The new operator hears of the node's agent, and later that it has observed all clients.
#[test]
fn restarted_operator_waits_for_the_nodes_agent() {
    let key_of = |peer: Peer, graph: &Graph| -> u64 {
        graph.edges.iter().filter(|edge| edge.key.client == peer).map(|edge| edge.counters.opened).sum()
    };
    let mut first = World::new();
    first.observe("node-1", at(0), at(90));
    first.flow("db", Role::Server, SEEN, 30, at(70));
    let before = Archive::new().build_shown(&first.ledger, &first.directory, &options(90));
    assert_eq!(edges(&before), ["via node-1 -> db:5432 30+0"]);
    let mut world = reported_anew(0, None);
    let mut archive = Archive::new();
    archive.restore(published(&before), at(100));
    for now in 100..140 {
        if now == 112 {
            world.observe("node-1", at(0), at(112));
        }
        let options = options(now);
        archive.settle_in_time(&world.ledger, &world.directory, &options);
        let graph = archive.build_shown(&world.ledger, &world.directory, &options);
        assert_eq!(key_of(Peer::BehindNode { node: "node-1".to_owned() }, &graph), 30, "at {now}: {:?}", edges(&graph));
        assert_eq!(key_of(Peer::Node { node: "node-1".to_owned() }, &graph), 0, "at {now}: {:?}", edges(&graph));
    }
    assert!(archive.is_settled());
}

/// The former operator, or an earlier version, did not know what the node's agent observes.
#[test]
fn connections_that_were_published_as_the_nodes_are_not_added_to_forwarded_ones() {
    let mut first = World::new();
    first.flow("db", Role::Server, SEEN, 30, at(70));
    let before = Archive::new().build_shown(&first.ledger, &first.directory, &options(90));
    assert_eq!(edges(&before), ["node-1 -> db:5432 30+0"]);
    let world = reported_anew(0, Some(99));
    let mut archive = Archive::new();
    archive.restore(published(&before), at(100));
    for now in 100..130 {
        archive.settle_in_time(&world.ledger, &world.directory, &options(now));
        let _ = archive.build_shown(&world.ledger, &world.directory, &options(now));
    }
    let graph = archive.build_shown(&world.ledger, &world.directory, &options(130));
    assert_eq!(edges(&graph), ["via node-1 -> db:5432 30+0"]);
}

#[test]
fn clients_behind_many_nodes_share_an_edge() {
    let mut world = World::new();
    for number in 1..=5_u8 {
        let node = format!("node-{number}");
        let ips = vec![ip(&format!("172.18.0.{number}"))];
        world.directory.upsert_node(Node { name: node.clone(), ips, pod_networks: Vec::new() });
        world.ledger.enter(&node, EPOCH).expect("the first epoch");
        world.observe(&node, at(0), at(30));
        let seen = format!("172.18.0.{number}");
        world.flow("db", Role::Server, ("10.244.2.2", &seen, 5432), 10 * u64::from(number), at(20));
    }
    let options = Options { max_external: 2, ..options(30) };
    let graph = Archive::new().build(&world.ledger, &world.directory, &options);
    assert_eq!(edges(&graph), ["via node-4 -> db:5432 40+0", "via node-5 -> db:5432 50+0", "others -> db:5432 60+0"]);
    assert_eq!(graph.edges[2].addresses, 3);
}

/// The client's agent evicts its flow, and the server's goes on with the others behind the same address.
#[test]
fn connections_of_an_evicted_client_are_not_forwarded_ones() {
    let mut world = observed_since_0(30);
    let mut archive = Archive::new();
    world.flow("curl", Role::Client, ("10.244.2.1", "10.244.2.2", 5432), 5, at(20));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 25, at(20));
    let shown = |archive: &mut Archive, world: &World, now| {
        edges(&archive.build_shown(&world.ledger, &world.directory, &options(now)))
    };
    let both = ["node-2/curl -> db:5432 5+0", "via node-2 -> db:5432 20+0"];
    assert_eq!(shown(&mut archive, &world, 30), both);
    let again = |world: &mut World, opened, now| {
        world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), opened, at(now));
    };
    again(&mut world, 26, 900);
    world.ledger.begin_snapshot("node-2", EPOCH).expect("the present epoch");
    again(&mut world, 26, 900);
    world.ledger.end_snapshot("node-2", EPOCH, at(900)).expect("the present epoch");
    world.observe("node-2", at(0), at(910));
    assert_eq!(archive.retire(&mut world.ledger, &world.directory, at(911), RETENTION), 1);
    assert_eq!(shown(&mut archive, &world, 912), ["via node-2 -> db:5432 21+0"]);
    again(&mut world, 30, 920);
    world.observe("node-2", at(0), at(930));
    assert_eq!(shown(&mut archive, &world, 930), ["via node-2 -> db:5432 25+0"]);
}
