//! The capture on the running kernel: every count against that of the processes which made the connections.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod balancers;
mod closing;
mod cost;
mod crowds;
#[allow(dead_code, reason = "shared with the tests of the fallback")]
mod lab;
mod lost_flags;
mod measures;
mod misses;
mod pending;
mod refusals;
mod restarts;
mod sockmaps;
mod stored_conversations;
mod udp;
mod udp_roles;
mod unlisted;

use std::collections::BTreeMap;

use closing::bytes_are_payload_in_every_order_of_closing;
use crowds::more_old_connections_than_can_be_watched_are_counted;
use lab::{
    Watched, can_list, key, list_or_skip, node_or_skip, run_scripted_process, short, storm_size, with_methods,
    without_measures,
};
use measures::what_tcp_has_measured_is_what_the_sockets_say;
use prerequisites::{Prerequisite, skip};
use restarts::{
    connections_that_no_agent_saw_have_their_role_or_say_that_it_is_a_guess,
    preexisting_attempts_are_counted_on_success_and_failure,
};
use scopeprobe_agent::capture::{Attach, Capture, Losses, Settings};
use topology::flow::{FlowCounters, Role};

/// Not a test: what [`lab::Process`] starts.
#[test]
#[ignore = "the process that other tests start"]
fn scripted_process() {
    run_scripted_process();
}

/// The same by each way to attach that this kernel has: each name is a module of tests.
macro_rules! by_each_way_to_attach {
    ($($test:ident),+ $(,)?) => {
        mod sock_ops {
            $(#[test] fn $test() { super::$test(super::Attach::SockOps); })+
        }
        mod tp_btf {
            $(#[test] fn $test() { super::$test(super::Attach::TpBtf); })+
        }
        mod classic {
            $(#[test] fn $test() {
                match crate::lab::no_classic_tracepoint() {
                    Some(reason) => prerequisites::skip(prerequisites::Prerequisite::ClassicTracepoint, &reason),
                    None => super::$test(super::Attach::Tracepoint),
                }
            })+
        }
    };
}
mod folding;

by_each_way_to_attach!(
    both_ends_of_short_connections_are_counted_over_every_kind_of_address,
    refused_attempts_are_counted_at_the_client_alone,
    bytes_are_payload_in_every_order_of_closing,
    a_long_connection_shows_its_bytes_while_it_is_open,
    connections_from_before_are_known_with_their_bytes_and_their_end,
    what_does_not_fit_is_counted,
    nodes_on_one_kernel_see_their_own,
    slots_come_back_and_totals_stay,
    a_server_that_listens_for_mptcp_is_a_server,
    what_tcp_has_measured_is_what_the_sockets_say,
    connections_that_no_agent_saw_have_their_role_or_say_that_it_is_a_guess,
    preexisting_attempts_are_counted_on_success_and_failure,
    more_old_connections_than_can_be_watched_are_counted,
);

fn counted(opened: u64, closed: u64, sent: u64, received: u64) -> FlowCounters {
    FlowCounters { opened, closed, bytes_sent: sent, bytes_received: received, ..FlowCounters::default() }
}

/// As seen from the other end.
fn mirrored(counters: FlowCounters) -> FlowCounters {
    FlowCounters {
        bytes_sent: counters.bytes_received,
        bytes_received: counters.bytes_sent,
        preexisting_bytes_sent: counters.preexisting_bytes_received,
        preexisting_bytes_received: counters.preexisting_bytes_sent,
        open_bytes_sent: counters.open_bytes_received,
        open_bytes_received: counters.open_bytes_sent,
        ..counters
    }
}

fn both_ends_of_short_connections_are_counted_over_every_kind_of_address(attach: Attach) {
    let node = node_or_skip!();
    let mut watched = node.capture(attach);
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut expected = BTreeMap::new();
    let cases = [
        ("127.0.0.1:0", "127.0.0.1", "127.0.0.1"),
        ("[::1]:0", "[::1]", "::1"),
        // A socket of IPv6 that speaks IPv4: both ends are shown as IPv4.
        ("[::]:0", "127.0.0.1", "127.0.0.1"),
        ("[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.1]", "127.0.0.1"),
    ];
    for (listen, dial, shown) in cases {
        let port = server.listen("l", listen);
        server.begin_serve("l", short(30, 1000, 70_000));
        client.call(format_args!("{dial}:{port}"), short(30, 1000, 70_000));
        server.finish();
        let ours = counted(30, 30, 30_000, 2_100_000);
        expected.insert(key(&mut client, Role::Client, shown, shown, port), ours);
        expected.insert(key(&mut server, Role::Server, shown, shown, port), mirrored(ours));
    }
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

fn refused_attempts_are_counted_at_the_client_alone(attach: Attach) {
    let node = node_or_skip!();
    let mut watched = node.capture(attach);
    let mut client = node.process("client");
    let port = client.listen("l", "127.0.0.1:0");
    client.unlisten("l");
    client.fail_to_connect(format_args!("127.0.0.1:{port}"), 25);
    client.fail_to_connect(format_args!("[::1]:{port}"), 5);
    let failed = |failed| FlowCounters { failed, ..FlowCounters::default() };
    let expected = BTreeMap::from([
        (key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port), failed(25)),
        (key(&mut client, Role::Client, "::1", "::1", port), failed(5)),
    ]);
    watched.expect(&expected);
}

fn a_long_connection_shows_its_bytes_while_it_is_open(attach: Attach) {
    let node = node_or_skip!();
    list_or_skip!();
    let mut watched = node.capture(attach);
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "0.0.0.0:0");
    client.connect("c", format_args!("127.0.0.1:{port}"));
    server.accept("s", "l");
    let keys = [
        key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port),
        key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port),
    ];
    let expect = |watched: &mut Watched, counters: FlowCounters| {
        watched.expect(&BTreeMap::from([(keys[0], counters), (keys[1], mirrored(counters))]));
    };
    expect(&mut watched, counted(1, 0, 0, 0));
    client.send_bytes("c", 12_345);
    server.receive_bytes("s", 12_345);
    let open = FlowCounters { open_bytes_sent: 12_345, ..counted(1, 0, 12_345, 0) };
    expect(&mut watched, open);
    // Held by two processes and two descriptors, it is still one connection.
    client.share("c");
    expect(&mut watched, open);
    client.close("c");
    expect(&mut watched, open);
    client.unshare("c");
    server.await_end("s");
    server.close("s");
    expect(&mut watched, counted(1, 1, 12_345, 0));
}

/// Connections from before, with a length of service: opened under no capture, and under one that is gone.
fn connections_from_before_are_known_with_their_bytes_and_their_end(attach: Attach) {
    let node = node_or_skip!();
    list_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "0.0.0.0:0");
    let open = |client: &mut lab::Process, server: &mut lab::Process, name: &str| {
        client.connect(name, format_args!("127.0.0.1:{port}"));
        server.accept(name, "l");
        client.send_bytes(name, 100);
        server.receive_bytes(name, 100);
        server.send_bytes(name, 40);
        client.receive_bytes(name, 40);
    };
    for name in ["a", "b", "shared"] {
        open(&mut client, &mut server, name);
    }
    client.share("shared");
    let keys = [
        key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port),
        key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port),
    ];
    let expect = |watched: &mut Watched, counters: FlowCounters| {
        watched.expect(&BTreeMap::from([(keys[0], counters), (keys[1], mirrored(counters))]));
    };

    let mut watched = node.capture(attach);
    let before = FlowCounters {
        preexisting: 3,
        preexisting_bytes_sent: 300,
        preexisting_bytes_received: 120,
        open_bytes_sent: 300,
        open_bytes_received: 120,
        ..counted(0, 0, 300, 120)
    };
    expect(&mut watched, before);
    open(&mut client, &mut server, "c");
    client.send_bytes("a", 7);
    server.receive_bytes("a", 7);
    client.close("a");
    server.await_end("a");
    server.close("a");
    let later = FlowCounters {
        opened: 1,
        closed: 1,
        bytes_sent: 407,
        bytes_received: 160,
        open_bytes_sent: 300,
        open_bytes_received: 120,
        ..before
    };
    expect(&mut watched, later);
    watched.assert_nothing_lost();
    drop(watched);

    // Without a capture, one ends, one begins, one continues.
    client.close("b");
    server.await_end("b");
    server.close("b");
    open(&mut client, &mut server, "d");
    client.send_bytes("c", 50);
    server.receive_bytes("c", 50);
    let mut watched = node.capture(attach);
    let again = FlowCounters {
        preexisting: 3,
        preexisting_bytes_sent: 350,
        preexisting_bytes_received: 120,
        open_bytes_sent: 350,
        open_bytes_received: 120,
        ..counted(0, 0, 350, 120)
    };
    expect(&mut watched, again);
    client.unshare("shared");
    for name in ["shared", "c", "d"] {
        client.close(name);
        server.await_end(name);
        server.close(name);
    }
    expect(&mut watched, FlowCounters { closed: 3, open_bytes_sent: 0, open_bytes_received: 0, ..again });
    watched.assert_nothing_lost();
}

#[test]
fn nothing_is_missed_at_full_speed_where_softirqs_come_from_another_cpu() {
    const THREADS: u64 = 4;
    let times = storm_size(16_000);
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let mut storm = node.process_in_own_netns("storm", true);
    storm.begin_serve_and_call("127.0.0.1:0", THREADS, short(times, 20, 30), None);
    for _ in 0..50 {
        // Looking meanwhile must not disturb the counts.
        watched.capture.list_again();
        watched.read();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    storm.finish();
    watched.capture.list_again();
    watched.read();
    let netns = storm.netns();
    let ports: std::collections::BTreeSet<u16> = watched.flows.keys().map(|key| key.port).collect();
    assert_eq!(ports.len() as u64, THREADS);
    let mut expected = BTreeMap::new();
    for port in ports {
        let ours = counted(times, times, 20 * times, 30 * times);
        expected.insert(key(&mut storm, Role::Client, "127.0.0.1", "127.0.0.1", port), ours);
        expected.insert(key(&mut storm, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(ours));
    }
    assert!(expected.keys().all(|key| key.netns == netns));
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

fn what_does_not_fit_is_counted(attach: Attach) {
    let node = node_or_skip!();
    let mut watched = Watched::start(&Settings { max_flows: 4, ring_bytes: 4096, ..node.settings(attach) });
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut made = 0_u64;
    for _ in 0..10 {
        let port = server.listen("l", "127.0.0.1:0");
        server.begin_serve("l", short(5, 10, 10));
        client.call(format_args!("127.0.0.1:{port}"), short(5, 10, 10));
        server.finish();
        made += 2 * 5;
        server.unlisten("l");
        client.fail_to_connect(format_args!("127.0.0.1:{port}"), 3);
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        watched.read();
        let sum = |field: fn(&FlowCounters) -> u64| watched.flows.values().map(field).sum::<u64>();
        let (opened, closed, failed) = (sum(|c| c.opened), sum(|c| c.closed), sum(|c| c.failed));
        let lost = watched.losses;
        let totals = (opened + lost.opened, closed + lost.closed, failed + lost.failed);
        let lacks = [made.checked_sub(totals.0), made.checked_sub(totals.1), 30_u64.checked_sub(totals.2)];
        if lacks.iter().all(|lack| lack.is_some_and(|lack| lack <= lost.missed_runs)) {
            assert!(lost.opened > 0 && lost.closed > 0 && lost.failed > 0, "{lost:?}");
            assert_eq!(watched.flows.len(), 4);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{totals:?} of {made} {lost:?} {:?}", watched.flows);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn nodes_on_one_kernel_see_their_own(attach: Attach) {
    let (one, two) = (node_or_skip!(), node_or_skip!());
    let (mut client, mut server) = (one.process("client"), two.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    client.connect("old", format_args!("127.0.0.1:{port}"));
    server.accept("old", "l");
    let (mut first, mut second) = (one.capture(attach), two.capture(attach));
    server.begin_serve("l", short(9, 10, 20));
    client.call(format_args!("127.0.0.1:{port}"), short(9, 10, 20));
    server.finish();
    let ours = FlowCounters { preexisting: u64::from(can_list()), ..counted(9, 9, 90, 180) };
    first.expect(&BTreeMap::from([(key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port), ours)]));
    second.expect(&BTreeMap::from([(key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(ours))]));
}

#[test]
fn a_node_without_ipv6_is_captured_as_any_other() {
    let node = node_or_skip!();
    for attach in [Attach::SockOps, Attach::TpBtf] {
        let mut watched = node.capture(attach);
        let (mut both, times) = (node.process_without_ipv6("both"), 20);
        both.serve_and_call("127.0.0.1:0", 1, short(times, 20, 30));
        watched.read();
        let port = watched.flows.keys().next().unwrap().port;
        let ours = counted(times, times, 20 * times, 30 * times);
        watched.expect(&BTreeMap::from([
            (key(&mut both, Role::Client, "127.0.0.1", "127.0.0.1", port), ours),
            (key(&mut both, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(ours)),
        ]));
    }
}

#[test]
fn new_flow_wakes_the_reader() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    watched.read();
    let mut client = node.process("client");
    client.listen("l", "127.0.0.1:0");
    let port = client.listen("l", "127.0.0.1:0");
    client.connect("c", format_args!("127.0.0.1:{port}"));
    let notifications = watched.capture.new_flow_notifications().unwrap();
    let ready = poll(&mut [PollFd::new(notifications, PollFlags::POLLIN)], PollTimeout::from(30_000_u16)).unwrap();
    assert_eq!(ready, 1);
}

fn slots_come_back_and_totals_stay(attach: Attach) {
    let node = node_or_skip!();
    let mut watched = Watched::start(&Settings { max_flows: 6, ..node.settings(attach) });
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut expected = BTreeMap::new();
    // Three rounds of three connections, two flows each: 18 flows in 6 slots.
    for round in 0..3 {
        let mut ports = Vec::new();
        for number in 0..3 {
            let port = server.listen(format_args!("l{round}{number}"), "127.0.0.1:0");
            server.begin_serve(format_args!("l{round}{number}"), short(2, 10, 20));
            client.call(format_args!("127.0.0.1:{port}"), short(2, 10, 20));
            server.finish();
            ports.push(port);
        }
        for port in ports {
            let ours = counted(2, 2, 20, 40);
            expected.insert(key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port), ours);
            expected.insert(key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(ours));
        }
        watched.expect(&expected);
        watched.wait_for_free_slots(6);
    }
    watched.assert_nothing_lost();
}

#[test]
fn forgotten_flows_free_their_slots_and_begin_at_zero_when_they_come_back() {
    let node = node_or_skip!();
    // So many that none is taken back for want of slots.
    let mut watched = Watched::start(&Settings { max_flows: 64, ..node.settings(Attach::SockOps) });
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    let ends = [
        key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port),
        key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port),
    ];
    let mut call = |times: u64| {
        server.begin_serve("l", short(times, 10, 20));
        client.call(format_args!("127.0.0.1:{port}"), short(times, 10, 20));
        server.finish();
        let ours = counted(times, times, 10 * times, 20 * times);
        BTreeMap::from([(ends[0], ours), (ends[1], mirrored(ours))])
    };
    let first = call(3);
    assert_eq!(watched.capture.forget(&ends), [], "they have not been read yet");
    watched.expect(&first);
    let mut dropped = watched.capture.forget(&ends);
    dropped.sort();
    assert_eq!(dropped, ends);
    watched.flows.clear();
    watched.wait_for_free_slots(64);
    let second = with_methods(&call(2));
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while without_measures(&watched.flows) != second {
        assert!(std::time::Instant::now() < deadline, "{:?}", watched.flows);
        watched.read();
    }
    assert_eq!((watched.seen, watched.losses), (5 * 2, Losses::default()));
}

/// Starts a capture under load, once with connections that no capture has observed, and once with flags of a capture
/// that ends just then. Each connection that counted as open ends, with all of its bytes.
#[test]
fn a_capture_that_starts_in_a_storm_counts_nothing_twice_and_nothing_by_halves() {
    const THREADS: u64 = 4;
    let node = node_or_skip!();
    list_or_skip!();
    let stop = tempfile::tempdir().unwrap();
    let stop = stop.path().join("stop");
    let mut storm = node.process_in_own_netns("storm", true);
    storm.begin_serve_and_call("127.0.0.1:0", THREADS, short(50, 20, 30), Some(stop.clone()));
    let mut early = node.capture(Attach::SockOps);
    while early.seen < 1_000 {
        early.read();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut watched = node.capture(Attach::SockOps);
    drop(early);
    while watched.seen < 1_000 {
        watched.read();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::fs::write(&stop, "").unwrap();
    storm.finish();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(2);
    let at_rest = |counters: &FlowCounters| counters.active() == 0;
    while watched.flows.len() < 8 || !watched.flows.values().all(at_rest) {
        watched.capture.list_again();
        watched.read();
        assert!(std::time::Instant::now() < deadline, "{:?}", watched.flows);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    for (key, counters) in &watched.flows {
        assert_eq!(counters.opened + counters.preexisting, counters.closed, "{counters:?}");
        assert_eq!(counters.open_bytes_sent + counters.open_bytes_received, 0, "{counters:?}");
        if watched.losses.closes_unseen == 0 {
            let bytes = (20 * counters.closed, 30 * counters.closed);
            let sent_received = match key.role {
                Role::Client => (counters.bytes_sent, counters.bytes_received),
                Role::Server => (counters.bytes_received, counters.bytes_sent),
            };
            assert_eq!(sent_received, bytes, "{counters:?}");
        }
    }
    assert_eq!(watched.losses, Losses { closes_unseen: watched.losses.closes_unseen, ..Losses::default() });
}

#[test]
fn captures_of_a_node_and_of_the_machine_around_it_do_not_disturb_each_other() {
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let inner_root = node.cgroup("client");
    let mut outer = node.capture(Attach::SockOps);
    let mut inner = Watched::start(&Settings { cgroup_root: inner_root, ..node.settings(Attach::SockOps) });
    let port = server.listen("l", "127.0.0.1:0");
    server.begin_serve("l", short(30, 100, 200));
    client.call(format_args!("127.0.0.1:{port}"), short(30, 100, 200));
    server.finish();
    let ours = counted(30, 30, 3_000, 6_000);
    let client_end = key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port);
    let server_end = key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port);
    inner.expect(&BTreeMap::from([(client_end, ours)]));
    outer.expect(&BTreeMap::from([(client_end, ours), (server_end, mirrored(ours))]));
}

fn a_server_that_listens_for_mptcp_is_a_server(attach: Attach) {
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = match server.listen_mptcp("l") {
        Ok(port) => port,
        Err(error) => return skip(Prerequisite::Mptcp, &format!("this kernel has no MPTCP: {error}")),
    };
    client.connect("old", format_args!("127.0.0.1:{port}"));
    server.accept("old", "l");
    let mut watched = node.capture(attach);
    server.begin_serve("l", short(3, 10, 20));
    client.call(format_args!("127.0.0.1:{port}"), short(3, 10, 20));
    server.finish();
    let ours = FlowCounters { preexisting: u64::from(can_list()), ..counted(3, 3, 30, 60) };
    watched.expect(&BTreeMap::from([
        (key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port), ours),
        (key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(ours)),
    ]));
}
