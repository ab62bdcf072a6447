//! Tests Services that share backends: a server does not observe which of them its client called.

use scopeprobe_topology::{
    archive::Archive,
    edge::{EdgeCounters, Identity, Seen},
    entity::{Backend, Pod, Service, ServicePort, ServiceRef},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{Graph, Options},
};

use crate::world::{EPOCH, RETENTION, SETTLE, World, at, edges, ip, key, pod, workload};

const FIRST: (&str, &str, u16) = ("10.244.1.2", "10.96.0.6", 80);
const SECOND: (&str, &str, u16) = ("10.244.1.2", "10.96.0.7", 80);
/// Address of the client as each server sees it.
const SEEN: [(&str, (&str, &str, u16)); 3] = [
    ("one", ("10.244.2.3", "10.244.1.2", 5432)),
    ("two", ("10.244.2.4", "10.244.1.2", 5432)),
    ("three", ("10.244.2.5", "10.244.1.2", 5432)),
];

impl World {
    /// Three workloads, and two Services that lead to some of them.
    fn with_services(first: &[usize], second: &[usize]) -> Self {
        let mut world = Self::new();
        for (name, (address, ..)) in SEEN {
            world.directory.upsert_pod(pod(name, "node-2", address), at(0));
        }
        for (name, address, leads_to) in [("first", FIRST.1, first), ("second", SECOND.1, second)] {
            let backends = leads_to.iter().map(|server| {
                let (name, (address, _, port)) = SEEN[*server];
                Backend { ip: ip(address), port, pod_uid: Some(format!("uid-{name}")) }
            });
            let ports =
                vec![ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends: backends.collect() }];
            let name = ServiceRef { namespace: "shop".to_owned(), name: name.to_owned() };
            world.directory.upsert_service(Service { name, addresses: vec![ip(address)], ports }, at(0));
        }
        world
    }

    fn counts(&mut self, clients: [u64; 2], servers: [u64; 3], seconds: u64) {
        for (called, opened) in [FIRST, SECOND].into_iter().zip(clients) {
            self.flow("web", Role::Client, called, opened, at(seconds));
        }
        for ((name, seen), opened) in SEEN.into_iter().zip(servers) {
            self.flow(name, Role::Server, seen, opened, at(seconds));
        }
    }
}

#[test]
fn where_counts_fit_in_one_way_only_each_edge_is_exact() {
    for [first, second] in [[&[0, 1], &[1, 2]], [&[1, 2], &[0, 1]]] {
        let mut world = World::with_services(first, second);
        let swapped = first[0] > 0;
        // Of the second server's nine, six came by the Service that also leads to the first one.
        world.counts([10, 10], [4, 9, 7], 0);
        let [by, other] = if swapped { ["second", "first"] } else { ["first", "second"] };
        let mut expected = [
            format!("web -> one:5432 via {by}:80 4+0"),
            format!("web -> three:5432 via {other}:80 7+0"),
            format!("web -> two:5432 via {by}:80 6+0"),
            format!("web -> two:5432 via {other}:80 3+0"),
        ];
        expected[2..].sort_by_key(|edge| edge.contains("second"));
        let graph = world.graph(at(60));
        assert_eq!((edges(&graph), graph.unsettled), (expected.to_vec(), 0));
        assert!(graph.edges.iter().all(|edge| edge.server_identity == Identity::Cgroup && edge.seen == Seen::Both));
    }
}

#[test]
fn where_counts_leave_a_choice_the_division_is_a_guess() {
    let mut world = World::with_services(&[0, 1], &[0, 1]);
    world.counts([10, 20], [18, 12, 0], 0);
    let graph = world.graph(at(60));
    let expected = [
        "web -> one:5432 via first:80 6+0",
        "web -> one:5432 via second:80 12+0",
        "web -> two:5432 via first:80 4+0",
        "web -> two:5432 via second:80 8+0",
    ];
    assert_eq!(edges(&graph), expected);
    assert!(graph.edges.iter().all(|edge| edge.server_identity == Identity::Ip));
}

#[test]
fn what_no_server_has_counted_waits_and_is_the_services_then() {
    let mut world = World::with_services(&[0, 1], &[2]);
    world.counts([10, 7], [4, 6, 7], 0);
    world.flow("web", Role::Client, FIRST, 13, at(30));
    let [one, two, three] =
        ["web -> one:5432 via first:80 4+0", "web -> two:5432 via first:80 6+0", "web -> three:5432 via second:80 7+0"];
    let early = world.graph(at(31));
    assert_eq!(
        (edges(&early), early.unsettled, early.settles_at),
        (vec![one.into(), three.into(), two.into()], 3, Some(at(32)))
    );
    let late = world.graph(at(32));
    assert_eq!(late.unsettled, 0);
    assert_eq!(edges(&late), [one, three, two, "web -> service first via first:80 3+0"]);
    let at_service = &late.edges[3];
    assert_eq!((at_service.seen, at_service.server_identity), (Seen::Client, Identity::Ip));
    assert!(late.edges[..3].iter().all(|edge| edge.server_identity == Identity::Cgroup));
    // The server's report comes late.
    world.flow("one", Role::Server, SEEN[0].1, 7, at(33));
    assert_eq!(edges(&world.graph(at(60))), ["web -> one:5432 via first:80 7+0", three, two]);
}

#[test]
fn estimated_bytes_do_not_shrink_from_one_shown_graph_to_the_next() {
    let mut world = World::with_services(&[0], &[]);
    let direct = ("10.244.1.2", "10.244.2.3", 5432);
    // The client's agent does not know the bytes of one connection each, and has missed ten.
    let bytes = |opened, closed, bytes_sent| FlowCounters {
        opened,
        closed,
        bytes_sent,
        without_bytes: 1,
        ..FlowCounters::default()
    };
    let exactly = |opened, closed, bytes_sent| FlowCounters { without_bytes: 0, ..bytes(opened, closed, bytes_sent) };
    world.counters("web", Role::Client, direct, &bytes(20, 20, 1900), at(0));
    world.counters("web", Role::Client, FIRST, &bytes(30, 30, 2900), at(0));
    world.counters("one", Role::Server, SEEN[0].1, &exactly(60, 60, 6000), at(0));
    let mut archive = Archive::new();
    let received = |graph: &Graph| {
        let edge =
            graph.edges.iter().find(|edge| edge.from_servers.opened > 0).expect("what the client's agent missed");
        assert_eq!(edge.from_servers.opened, 10);
        edge.counters.bytes_received
    };
    let mut shown = |world: &World, now| {
        let options = Options { now, settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
        received(&archive.build_shown(&world.ledger, &world.directory, &options))
    };
    let before = shown(&world, at(60));
    assert_eq!(before, received(&world.graph(at(60))));
    // Other connections have begun, and have sent nothing yet.
    world.counters("web", Role::Client, direct, &bytes(50, 20, 1900), at(61));
    world.counters("one", Role::Server, SEEN[0].1, &exactly(90, 60, 6000), at(61));
    assert!(received(&world.graph(at(120))) < before, "the estimate itself has become less");
    assert_eq!(shown(&world, at(120)), before);
}

/// The capture of the client's node has begun anew and missed ends of connections.
#[test]
fn bytes_that_a_client_lacks_are_those_that_its_backends_have() {
    let mut world = World::with_services(&[], &[]);
    let backends = [("a", "10.244.2.7", 20), ("b", "10.244.2.8", 30)];
    for (name, address, _) in backends {
        let workload = workload("db");
        world.directory.upsert_pod(Pod { workload, ..pod(name, "node-2", address) }, at(0));
    }
    world.service(None, &["a", "b"]);
    let bytes = |opened, bytes_sent, without_bytes| FlowCounters {
        opened,
        closed: opened,
        bytes_sent,
        without_bytes,
        ..FlowCounters::default()
    };
    let shown = |world: &World| {
        let graph = world.graph(at(60));
        let [edge] = graph.edges.as_slice() else { panic!("{:?}", edges(&graph)) };
        let EdgeCounters { opened, bytes_sent, bytes_received, without_bytes, .. } = edge.counters;
        (opened, [bytes_sent, bytes_received], without_bytes)
    };
    for (name, address, opened) in backends {
        let reversed = FlowCounters { bytes_received: opened * 300, ..bytes(opened, opened * 5000, 0) };
        world.counters(name, Role::Server, (address, "10.244.1.2", 5432), &reversed, at(0));
    }
    let called = ("10.244.1.2", "10.96.0.5", 80);
    world.counters("web", Role::Client, called, &bytes(50, 43 * 300, 7), at(0));
    assert_eq!(shown(&world), (50, [50 * 300, 50 * 5000], 0));
    // One of them may be another client's.
    world.counters("web", Role::Client, called, &bytes(51, 43 * 300, 8), at(1));
    assert_eq!(shown(&world), (51, [50 * 300, 50 * 5000], 8));
}

#[test]
fn where_an_agent_has_missed_some_the_division_is_a_guess() {
    let mut world = World::with_services(&[0, 1], &[1, 2]);
    world.counts([13, 10], [4, 9, 7], 0);
    let graph = world.graph(at(60));
    let shown: u64 = graph.edges.iter().map(|edge| edge.counters.opened).sum();
    assert_eq!((shown, graph.unsettled), (23, 0));
    assert!(graph.edges.iter().all(|edge| edge.server_identity == Identity::Ip), "{:?}", edges(&graph));
}

#[test]
fn what_a_clients_agent_has_not_counted_waits_and_is_on_the_edge_then() {
    let mut world = World::new();
    world.service(None, &["db"]);
    let (called, seen) = (("10.244.1.2", "10.96.0.5", 80), ("10.244.2.2", "10.244.1.2", 5432));
    world.flow("web", Role::Client, called, 5, at(0));
    world.flow("db", Role::Server, seen, 5, at(0));
    world.flow("db", Role::Server, seen, 8, at(30));
    let early = world.graph(at(31));
    assert_eq!((edges(&early), early.unsettled), (vec!["web -> db:5432 via db:80 5+0".to_owned()], 3));
    let late = world.graph(at(32));
    assert_eq!((edges(&late), late.unsettled), (vec!["web -> db:5432 via db:80 8+0".to_owned()], 0));
    assert_eq!((late.edges[0].from_servers.opened, late.edges[0].seen), (3, Seen::Both));
    // It has only come late.
    world.flow("web", Role::Client, called, 8, at(33));
    assert_eq!(world.graph(at(60)).edges[0].from_servers.opened, 0);
}

/// Both ends delimit UDP conversations differently.
#[test]
fn over_udp_the_clients_count_is_the_one() {
    let mut world = World::new();
    for (who, role, addresses, opened) in [
        ("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 5),
        ("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 8),
    ] {
        let counters = FlowCounters { opened, closed: opened, ..FlowCounters::default() };
        world.report(who, FlowKey { protocol: Protocol::Udp, ..key(who, role, addresses) }, &counters, at(0));
    }
    let graph = world.graph(at(60));
    assert_eq!((edges(&graph), graph.unsettled), (vec!["web -> db:5432/UDP 5+0".to_owned()], 0));
}

/// Conntrack reports a client that calls without pause: only its newest connections wait for names.
#[test]
fn what_connection_tracking_knows_is_shown_although_the_client_goes_on() {
    let mut world = World::with_a_dark_node();
    world.service(None, &["dark-a", "dark-b"]);
    let called = ("10.244.1.2", "10.96.0.5", 80);
    for second in 0..60 {
        world.flow("web", Role::Client, called, 2 * (second + 1), at(second));
    }
    let nat_peers = ["10.244.3.2", "10.244.3.3"]
        .map(|address| (scopeprobe_topology::nat_peer::NatPeer { ip: ip(address), port: 5432 }, 60));
    world
        .ledger
        .record_nat_peers("node-1", EPOCH, &key("web", Role::Client, called), &nat_peers)
        .expect("the present epoch");
    let graph = world.graph(at(59));
    let shown: u64 = graph.edges.iter().map(|edge| edge.counters.opened).sum();
    assert_eq!(shown + graph.unsettled, 120);
    assert!(graph.unsettled <= 3 * 2 && graph.edges.len() == 2, "{:?}, {} wait", edges(&graph), graph.unsettled);
}

/// A pod takes over the address of another one, and a client calls the one through a Service and the other directly.
#[test]
fn a_call_through_a_service_keeps_its_server_where_the_address_is_handed_on() {
    let (address, caller) = ("10.244.2.9", "10.244.1.2");
    let mut world = World::new();
    world.directory.upsert_pod(pod("old", "node-2", address), at(0));
    world.service(None, &["db", "old"]);
    world.flow("web", Role::Client, (caller, "10.96.0.5", 80), 1, at(30));
    world.flow("old", Role::Server, (address, caller, 5432), 1, at(30));
    world.directory.remove_pod("uid-old", at(30));
    world.directory.upsert_pod(pod("new", "node-2", address), at(30));
    world.flow("web", Role::Client, (caller, address, 5432), 1, at(30));
    world.flow("new", Role::Server, (address, caller, 5432), 1, at(30));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> new:5432 1+0", "web -> old:5432 via db:80 1+0"]);
    assert_eq!(graph.unsettled, 0);
}
