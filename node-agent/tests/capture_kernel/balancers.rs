//! A load balancer at the sockets replaces destinations before a packet exists: clients are known by the Service that they
//! called, and each of their connections counts once.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use scopeprobe_agent::capture::{Attach, Capture, Feature, Settings};
use topology::flow::{FlowCounters, FlowKey, Role};
use traffic::script::step::StreamAction;

use crate::{
    counted,
    lab::{
        Node, Process, Watched,
        foreign::{Balancer, Balancing, programs_at},
        key, list_or_skip, node_or_skip, requests,
        routed::{Routed, addresses},
        short, socket_address,
    },
    mirrored,
    restarts::Waiting,
    udp,
};

const SERVICE: &str = "10.96.0.1:80";
const SERVICE_IP: &str = "10.96.0.1";
const HERE: &str = "127.0.0.1";

fn balance(node: &Node, service: &str, backend: impl std::fmt::Display) -> Balancer {
    Balancing::USUAL.attach(node.root(), socket_address(service), socket_address(backend))
}

/// Reads until the capture's programs run beside the others for sockets of this cgroup, or do not any more.
fn until_programs(watched: &mut Watched, cgroup: &Path, expected: [usize; 4]) {
    watched.until(&format!("programs at {}", cgroup.display()), |_| programs_at(cgroup) == expected);
}

/// Programs of one load balancer alone, with the capture's own on `sendmsg()`.
const OF_ONE: [usize; 4] = [1, 1, 2, 2];
/// The same with the capture's.
const OF_BOTH: [usize; 4] = [2, 2, 3, 3];
/// None but the capture's own on `sendmsg()`.
const NONE: [usize; 4] = [0, 0, 1, 1];

/// A node with a client and a server in one network namespace, and a load balancer between them.
struct Testbed {
    client: Process,
    server: Process,
    port: u16,
    balancer: Option<Balancer>,
    watched: Watched,
    node: Node,
}

impl Testbed {
    fn new(node: Node, settings: impl Fn(&Node) -> Settings, is_balanced_first: bool) -> Self {
        let mut client = node.process_in_own_netns("client", false);
        let mut server = node.process_beside("server", &client);
        // So that a destination without a backend is reachable as well.
        client.in_netns("ip route add 10.96.0.0/16 dev lo");
        let port = server.listen("l", "0.0.0.0:0");
        let mut attach = || balance(&node, SERVICE, format_args!("{HERE}:{port}"));
        let first = is_balanced_first.then(&mut attach);
        let mut watched = Watched::start(&settings(&node));
        let balancer = first.unwrap_or_else(attach);
        until_programs(&mut watched, &node.cgroup("client"), OF_BOTH);
        client.netns();
        Self { client, server, port, balancer: Some(balancer), watched, node }
    }

    fn usual(node: Node) -> Self {
        Self::new(node, |node| node.settings(Attach::SockOps), true)
    }

    fn through_service(&mut self) -> FlowKey {
        key(&mut self.client, Role::Client, HERE, SERVICE_IP, 80)
    }

    fn directly(&mut self) -> FlowKey {
        key(&mut self.client, Role::Client, HERE, HERE, self.port)
    }

    fn of_server(&mut self) -> FlowKey {
        key(&mut self.server, Role::Server, HERE, HERE, self.port)
    }

    fn open(&mut self, name: &str, target: &str) {
        self.client.connect(name, target);
        self.server.accept(name, "l");
    }

    fn close(&mut self, name: &str) {
        self.client.close(name);
        self.server.await_end(name);
        self.server.close(name);
    }

    fn call(&mut self, target: &str, times: u64) {
        self.server.begin_serve("l", short(times, 100, 200));
        self.client.call(target, short(times, 100, 200));
        self.server.finish();
    }

    fn end_balancer(&mut self) {
        self.balancer = None;
        until_programs(&mut self.watched, &self.node.cgroup("client"), NONE);
    }
}

fn tcp_is_known_by_service(settings: impl Fn(&Node) -> Settings) {
    for is_balanced_first in [true, false] {
        let node = node_or_skip!();
        let mut testbed = Testbed::new(node, &settings, is_balanced_first);
        testbed.call(SERVICE, 30);
        testbed.call("[::ffff:10.96.0.1]:80", 20);
        let direct = format!("{HERE}:{}", testbed.port);
        testbed.call(&direct, 7);
        // A Service without a server behind it.
        let _closed = balance(&testbed.node, "10.96.0.2:80", "127.0.0.1:1");
        testbed.client.fail_to_connect("10.96.0.2:80", 5);
        testbed.client.fail_to_connect("127.0.0.1:1", 3);
        let bytes = |times: u64| counted(times, times, 100 * times, 200 * times);
        let failed = |failed| FlowCounters { failed, ..FlowCounters::default() };
        let expected = BTreeMap::from([
            (testbed.through_service(), bytes(50)),
            (testbed.directly(), bytes(7)),
            (testbed.of_server(), mirrored(bytes(57))),
            (key(&mut testbed.client, Role::Client, HERE, "10.96.0.2", 80), failed(5)),
            (key(&mut testbed.client, Role::Client, HERE, HERE, 1), failed(3)),
        ]);
        testbed.watched.expect(&expected);
        testbed.watched.assert_nothing_lost();
        let degradations = &testbed.watched.capture.description().degradations;
        assert!(testbed.watched.capture.description().has(Feature::BalancedDestinations), "{degradations:?}");
    }
}

#[test]
fn tcp_client_is_known_by_service_with_load_balancer_before_and_after_capture() {
    tcp_is_known_by_service(|node| node.settings(Attach::SockOps));
}

/// As kernels do whose links have no positions.
#[test]
fn tcp_client_is_known_by_service_by_order_of_cgroups() {
    tcp_is_known_by_service(|node| Settings { hook_positions: false, ..node.settings(Attach::SockOps) });
}

#[test]
fn load_balancer_below_the_root_is_found() {
    for hook_positions in [true, false] {
        let node = node_or_skip!();
        let (mut client, mut server) = (node.process("pods/client"), node.process("pods/server"));
        let port = server.listen("l", "127.0.0.1:0");
        let backend = socket_address(format_args!("{HERE}:{port}"));
        let _balancer = Balancing::USUAL.attach(&node.cgroup("pods"), socket_address(SERVICE), backend);
        let mut watched = Watched::start(&Settings { hook_positions, ..node.settings(Attach::SockOps) });
        until_programs(&mut watched, &node.cgroup("pods/client"), OF_BOTH);
        server.begin_serve("l", short(20, 100, 200));
        client.call(SERVICE, short(20, 100, 200));
        server.finish();
        let ours = counted(20, 20, 2_000, 4_000);
        watched.expect(&BTreeMap::from([
            (key(&mut client, Role::Client, HERE, SERVICE_IP, 80), ours),
            (key(&mut server, Role::Server, HERE, HERE, port), mirrored(ours)),
        ]));
        watched.assert_nothing_lost();
    }
}

#[test]
fn connections_over_ipv6_are_known_by_service_without_getpeername() {
    let node = node_or_skip!();
    let (mut client, mut watched) = (node.process_in_own_netns("client", false), node.capture(Attach::SockOps));
    let mut server = node.process_beside("server", &client);
    let port = server.listen("l", "[::]:0");
    let balancing = Balancing { renames_peers: false, ..Balancing::USUAL };
    let service: SocketAddr = socket_address("[fd96::1]:443");
    let _balancer = balancing.attach(node.root(), service, socket_address(format_args!("[::1]:{port}")));
    // No programs of IPv4 but the capture's.
    until_programs(&mut watched, &node.cgroup("client"), [1, 2, 2, 3]);
    server.begin_serve("l", short(20, 100, 200));
    client.call(service, short(20, 100, 200));
    server.finish();
    let ours = counted(20, 20, 2_000, 4_000);
    watched.expect(&BTreeMap::from([
        (key(&mut client, Role::Client, "::1", "fd96::1", 443), ours),
        (key(&mut server, Role::Server, "::1", "::1", port), mirrored(ours)),
    ]));
    watched.assert_nothing_lost();
}

/// A connection keeps its flow from `connect()` to its end: over the load balancer's end, and over the agent's.
#[test]
fn connection_ends_in_the_flow_in_which_it_was_opened() {
    let node = node_or_skip!();
    list_or_skip!();
    let mut testbed = Testbed::usual(node);
    for name in ["a", "b", "c"] {
        testbed.open(name, SERVICE);
        testbed.client.send_bytes(name, 100);
        testbed.server.receive_bytes(name, 100);
    }
    let [ours, direct, theirs] = [testbed.through_service(), testbed.directly(), testbed.of_server()];
    let open = |opened: u64, closed: u64| FlowCounters {
        open_bytes_sent: 100 * (opened - closed),
        ..counted(opened, closed, 100 * opened, 0)
    };
    testbed.watched.expect(&BTreeMap::from([(ours, open(3, 0)), (theirs, mirrored(open(3, 0)))]));
    testbed.close("a");
    testbed.watched.expect(&BTreeMap::from([(ours, open(3, 1)), (theirs, mirrored(open(3, 1)))]));
    testbed.end_balancer();
    testbed.close("b");
    testbed.watched.expect(&BTreeMap::from([(ours, open(3, 2)), (theirs, mirrored(open(3, 2)))]));
    testbed.watched.assert_nothing_lost();

    // The next capture does not know the Service. It counts the connection once, at its backend.
    let before = |closed: u64| FlowCounters {
        preexisting: 1,
        preexisting_bytes_sent: 100,
        open_bytes_sent: 100 * (1 - closed),
        ..counted(0, closed, 100, 0)
    };
    testbed.balancer = Some(balance(&testbed.node, SERVICE, format_args!("{HERE}:{}", testbed.port)));
    testbed.watched = testbed.node.capture(Attach::SockOps);
    testbed.watched.expect(&BTreeMap::from([(direct, before(0)), (theirs, mirrored(before(0)))]));
    testbed.close("c");
    testbed.watched.expect(&BTreeMap::from([(direct, before(1)), (theirs, mirrored(before(1)))]));
    testbed.watched.assert_nothing_lost();
    assert!(!testbed.watched.capture.description().has(Feature::BalancedDestinations), "it is declared");
}

/// Connections from before the load balancer, and sockets that are used again for another destination.
#[test]
fn note_of_one_connection_is_not_that_of_another() {
    let node = node_or_skip!();
    let mut testbed = Testbed::usual(node);
    let direct = format!("{HERE}:{}", testbed.port);
    testbed.open("again", SERVICE);
    let reuse = |testbed: &mut Testbed, target: &str| {
        testbed.client.act("again", StreamAction::Disconnect);
        testbed.server.close("again");
        testbed.client.act("again", StreamAction::StartConnect(socket_address(target)));
        assert!(testbed.client.await_handshake("again"));
        testbed.server.accept("again", "l");
    };
    reuse(&mut testbed, &direct);
    reuse(&mut testbed, SERVICE);
    testbed.end_balancer();
    reuse(&mut testbed, &direct);
    testbed.balancer = Some(balance(&testbed.node, SERVICE, &direct));
    let client = testbed.node.cgroup("client");
    until_programs(&mut testbed.watched, &client, OF_BOTH);
    reuse(&mut testbed, SERVICE);
    testbed.close("again");
    let expected = BTreeMap::from([
        (testbed.through_service(), counted(3, 3, 0, 0)),
        (testbed.directly(), counted(2, 2, 0, 0)),
        (testbed.of_server(), counted(5, 5, 0, 0)),
    ]);
    testbed.watched.expect(&expected);
    testbed.watched.assert_nothing_lost();
}

#[test]
fn pending_attempt_is_known_by_service() {
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let waiting = Waiting::new(&mut server);
    let _balancer = balance(&node, SERVICE, format_args!("{HERE}:{}", waiting.port));
    let mut watched = node.capture(Attach::SockOps);
    until_programs(&mut watched, &node.cgroup("client"), OF_BOTH);
    for name in ["a", "b"] {
        client.start_connect(name, SERVICE, None);
    }
    let ours = key(&mut client, Role::Client, HERE, SERVICE_IP, 80);
    watched.until("pending attempts", |watched| watched.flows.get(&ours).is_some_and(|ours| ours.pending() == 2));
    client.close("a");
    Waiting::let_in(&mut client, &mut server, &["b"]);
    let theirs = key(&mut server, Role::Server, HERE, HERE, waiting.port);
    client.close("b");
    server.await_end("b");
    server.close("b");
    let ended = counted(1, 1, 0, 0);
    watched.expect(&BTreeMap::from([(ours, FlowCounters { failed: 1, ..ended }), (theirs, ended)]));
    watched.assert_nothing_lost();
}

/// From a pod's network, without connection tracking, and from the host's, which tracks and translates. Sockets are
/// connected and not, by turns.
#[test]
fn udp_client_is_known_by_service_in_both_orders() {
    for is_balanced_first in [true, false] {
        let node = node_or_skip!();
        let mut testbed = Routed::new(&node, ["client", "server"]);
        let balancers = || {
            [("10.97.0.1:53", "10.201.2.2:5353"), ("[fd97::1]:53", "[fd02::2]:5353")]
                .map(|(service, backend)| balance(&node, service, backend))
        };
        let first = is_balanced_first.then(balancers);
        let mut watched = udp::watch(&udp::settings(&node));
        let _balancers = first.unwrap_or_else(balancers);
        // Of IPv4: one of the two balancers and the capture; of IPv6: both, since IPv4 is mapped there.
        until_programs(&mut watched, &node.cgroup("client"), [2, 3, 3, 4]);
        let [_, server] = &mut testbed.pods;
        server.bind_udp("s", "0.0.0.0:5353");
        server.bind_udp("s6", "[fd02::2]:5353");
        let mut expected = BTreeMap::new();
        for is_pod in [true, false] {
            let [v4, v6] = if is_pod { addresses(0) } else { ["10.201.2.1".into(), "fd02::1".into()] };
            for (socket, service, backend, local) in
                [("s", "10.97.0.1", "10.201.2.2", v4), ("s6", "fd97::1", "fd02::2", v6)]
            {
                let target: SocketAddr = SocketAddr::new(service.parse().unwrap(), 53);
                let [client, server] = &mut testbed.pods;
                let client = if is_pod { client } else { &mut testbed.host };
                server.begin_serve_datagrams(socket, 12, 200);
                assert_eq!(client.call_datagrams(target, requests(4, 3, 50, 20_000)), 12 * 200);
                assert_eq!(server.finish_number(), 12 * 50);
                let ours = udp::counted(4, 12 * 50, 12 * 200);
                expected.insert(udp::key(client, Role::Client, &local, service, 53), ours);
                expected.insert(udp::key(server, Role::Server, backend, &local, 5353), udp::mirrored(ours));
            }
        }
        watched.expect(&expected);
        watched.assert_nothing_lost();
    }
}

/// One unconnected socket uses several Services and their backends by turns, and stays busy.
#[test]
fn socket_with_several_destinations_has_a_conversation_with_each() {
    let node = node_or_skip!();
    let mut testbed = Routed::new(&node, ["client", "server"]);
    let _balancers = [("10.97.0.1:53", "10.201.2.2:5353"), ("10.97.0.2:53", "10.201.2.2:5354")]
        .map(|(service, backend)| balance(&node, service, backend));
    let mut watched = udp::watch(&udp::settings(&node));
    until_programs(&mut watched, &node.cgroup("client"), [3, 3, 4, 4]);
    let mut expected = BTreeMap::new();
    let [client, server] = &mut testbed.pods;
    for (port, socket) in [(5353, "s3"), (5354, "s4"), (5355, "s5")] {
        server.bind_udp(socket, format_args!("0.0.0.0:{port}"));
    }
    for (client, local) in [(client, "10.201.1.2"), (&mut testbed.host, "10.201.2.1")] {
        client.bind_udp("c", "0.0.0.0:0");
        let targets = [("10.97.0.1", 53, "s3", 5353), ("10.97.0.2", 53, "s4", 5354), ("10.201.2.2", 5355, "s5", 5355)];
        let times = 100;
        for _ in 0..times {
            // All are asked before one answers.
            for (service, port, socket, _) in targets {
                client.send_datagram_to("c", 30, format_args!("{service}:{port}"));
                server.receive_datagram(socket, 30);
            }
            for (_, _, socket, _) in targets {
                server.respond_datagram(socket, 60);
                client.receive_datagram("c", 60);
            }
        }
        let ours = udp::counted(1, 30 * times, 60 * times);
        for (service, port, _, own_port) in targets {
            expected.insert(udp::key(client, Role::Client, local, service, port), ours);
            let theirs = udp::key(server, Role::Server, "10.201.2.2", local, own_port);
            expected.insert(theirs, udp::mirrored(ours));
        }
    }
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

/// Without memory for notes, connections are known by their backend, from the first event to the last one.
#[test]
fn no_connection_is_lost_or_doubled_without_memory_for_notes() {
    const ROUNDS: u64 = 40;
    let node = node_or_skip!();
    let mut testbed = Testbed::usual(node);
    let optmem = "/proc/sys/net/core/optmem_max";
    // Kernels before 6.8 have one limit for all network namespaces, which is not for a test to change.
    let has_limit = testbed.client.succeeds_in_netns(&format!("test -e {optmem}"));
    let direct = format!("{HERE}:{}", testbed.port);
    let (mut balanced, mut plain) = (0, 0);
    for round in 0..ROUNDS {
        let has_memory = !has_limit || round % 4 < 2;
        if has_limit {
            testbed.client.in_netns(&format!("echo {} > {optmem}", if has_memory { 131_072 } else { 0 }));
        }
        for (target, name) in [(SERVICE, format!("s{round}")), (direct.as_str(), format!("d{round}"))] {
            testbed.open(&name, target);
            if has_memory && target == SERVICE { balanced += 1 } else { plain += 1 }
        }
        // Ends come later, with the other limit.
        if let Some(earlier) = round.checked_sub(3) {
            testbed.close(&format!("s{earlier}"));
            testbed.close(&format!("d{earlier}"));
        }
    }
    for round in ROUNDS - 3..ROUNDS {
        testbed.close(&format!("s{round}"));
        testbed.close(&format!("d{round}"));
    }
    let ended = |times| counted(times, times, 0, 0);
    let expected = BTreeMap::from([
        (testbed.through_service(), ended(balanced)),
        (testbed.directly(), ended(plain)),
        (testbed.of_server(), ended(2 * ROUNDS)),
    ]);
    testbed.watched.expect(&expected);
    testbed.watched.assert_nothing_lost();
    // It is declared.
    assert_eq!(testbed.watched.capture.description().has(Feature::BalancedDestinations), !has_limit);
}

/// Programs below such a load balancer's would replace it.
#[test]
fn capture_leaves_a_load_balancer_alone_that_allows_no_other_program() {
    for hook_positions in [true, false] {
        let node = node_or_skip!();
        let mut client = node.process_in_own_netns("client", false);
        let mut server = node.process_beside("server", &client);
        let port = server.listen("l", "127.0.0.1:0");
        let backend = socket_address(format_args!("{HERE}:{port}"));
        let balancing = Balancing { is_shared: false, ..Balancing::USUAL };
        let settings = Settings { datagrams: false, hook_positions, ..node.settings(Attach::SockOps) };
        let _balancer = balancing.attach(node.root(), socket_address(SERVICE), backend);
        let mut watched = Watched::start(&settings);
        assert!(!watched.capture.description().has(Feature::BalancedDestinations));
        assert_eq!(programs_at(&node.cgroup("client")), [1; 4]);
        server.begin_serve("l", short(9, 100, 200));
        client.call(SERVICE, short(9, 100, 200));
        server.finish();
        let ours = counted(9, 9, 900, 1_800);
        watched.expect(&BTreeMap::from([
            (key(&mut client, Role::Client, HERE, HERE, port), ours),
            (key(&mut server, Role::Server, HERE, HERE, port), mirrored(ours)),
        ]));
    }
}

#[test]
fn programs_are_attached_only_while_there_is_a_load_balancer() {
    for hook_positions in [true, false] {
        let node = node_or_skip!();
        let cgroup = node.cgroup("client");
        let mut watched = Watched::start(&Settings { hook_positions, ..node.settings(Attach::SockOps) });
        watched.read();
        assert_eq!(programs_at(&cgroup), NONE);
        let balancer = balance(&node, SERVICE, "127.0.0.1:1");
        assert_eq!(programs_at(&cgroup), OF_ONE);
        until_programs(&mut watched, &cgroup, OF_BOTH);
        // A cgroup that is made afterwards.
        until_programs(&mut watched, &node.cgroup("later"), OF_BOTH);
        drop(balancer);
        until_programs(&mut watched, &cgroup, NONE);
        drop(watched);
        assert_eq!(programs_at(&cgroup), [0; 4]);
    }
}
