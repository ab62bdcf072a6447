//! Pending attempts: a SYN without an answer shows before the attempt fails or opens, and counts once.

use std::time::{Duration, Instant};

use scopeprobe_agent::capture::Attach;
use topology::flow::{FlowCounters, Role};

use crate::{
    lab::{Process, Watched, key, list_or_skip, node_or_skip, short},
    restarts::Waiting,
};

/// Upper bound of the time from a SYN to the reading that shows it.
const SOON: Duration = Duration::from_secs(5);

/// Numbers of attempts that are pending, opened and failed.
fn states(watched: &Watched) -> [u64; 3] {
    [
        watched.sum(FlowCounters::pending),
        watched.sum(|counters| counters.opened),
        watched.sum(|counters| counters.failed),
    ]
}

/// Reads until the numbers are these. At each reading, each of `all` attempts has one state.
fn until_states(watched: &mut Watched, all: u64, expected: [u64; 3]) {
    watched.until(&format!("{expected:?}"), |watched| {
        let states = states(watched);
        assert_eq!(states.iter().sum::<u64>(), all, "{states:?}");
        states == expected
    });
}

/// Reads until so many attempts are pending, which were made at `begun`, and no other number was reported.
fn until_pending(watched: &mut Watched, begun: Instant, pending: u64) {
    watched.until("pending attempts", |watched| {
        let states = states(watched);
        assert_eq!(states[1..], [0, 0]);
        assert!(states[0] == 0 || begun.elapsed() >= Duration::from_secs(2), "attempts are pending too early");
        states[0] == pending
    });
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

/// The client's flows alone.
fn flow_of(watched: &Watched, client: &mut Process, remote: &str, local: &str, port: u16) -> FlowCounters {
    watched.flows[&key(client, Role::Client, local, remote, port)]
}

#[test]
fn attempt_without_answer_is_pending_until_it_is_given_up_or_opens() {
    const HERE: &str = "127.0.0.1";
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let waiting = Waiting::new(&mut server);
    let begun = Instant::now();
    waiting.dial(&mut client, &["a", "b", "c"]);
    until_pending(&mut watched, begun, 3);
    client.close("a");
    until_states(&mut watched, 3, [2, 0, 1]);
    Waiting::let_in(&mut client, &mut server, &["b", "c"]);
    watched.until("both ends", |watched| watched.sum(|counters| counters.opened) == 4);
    let ours = flow_of(&watched, &mut client, HERE, HERE, waiting.port);
    assert_eq!([ours.pending(), ours.opened, ours.failed, ours.pending_begun], [0, 2, 1, 3]);
    watched.assert_nothing_lost();
}

/// The kernel gives up by itself. The packets go to an address of the link layer that no interface has.
#[test]
fn attempt_whose_packets_are_dropped_is_pending_until_it_times_out() {
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let mut client = node.process_in_own_netns("client", false);
    client.in_netns(
        "ip link add v0 type veth peer name v1 && ip addr add 192.0.2.1/24 dev v0 && ip link set v0 up && \
         ip link set v1 up && ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent && \
         echo 2 > /proc/sys/net/ipv4/tcp_syn_retries",
    );
    let begun = Instant::now();
    client.begin_fail_to_connect("192.0.2.9:80", 1);
    until_pending(&mut watched, begun, 1);
    until_states(&mut watched, 1, [0, 0, 1]);
    client.finish();
    let ours = flow_of(&watched, &mut client, "192.0.2.9", "192.0.2.1", 80);
    assert_eq!([ours.opened, ours.failed, ours.pending_begun, ours.pending_ended], [0, 1, 1, 1]);
    watched.assert_nothing_lost();
}

/// Their answers come while the capture is read.
#[test]
fn many_attempts_are_pending_or_opened_at_each_reading() {
    const ATTEMPTS: u64 = 40;
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let waiting = Waiting::new(&mut server);
    let names: Vec<String> = (0..ATTEMPTS).map(|number| number.to_string()).collect();
    for name in &names {
        waiting.dial(&mut client, &[name]);
    }
    let client_flow = key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", waiting.port);
    watched.until("all are pending", |watched| watched.sum(FlowCounters::pending) == ATTEMPTS);
    server.accept_syns("l");
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        watched.read();
        let ours = watched.flows[&client_flow];
        assert_eq!(ours.pending() + ours.opened, ATTEMPTS);
        if ours.opened == ATTEMPTS {
            break;
        }
        assert!(Instant::now() < deadline, "{ours:?}");
    }
    watched.assert_nothing_lost();
}

#[test]
fn ordinary_connections_are_never_pending() {
    const CONNECTIONS: u64 = 10_000;
    let node = node_or_skip!();
    let mut watched = node.capture(Attach::SockOps);
    let mut process = node.process("both");
    process.begin_serve_and_call("127.0.0.1:0", 1, short(CONNECTIONS, 10, 10), None);
    watched.until("all ends", |watched| {
        assert_eq!(watched.sum(|counters| counters.pending_begun), 0);
        watched.sum(|counters| counters.closed) == 2 * CONNECTIONS
    });
    process.finish();
    watched.assert_nothing_lost();
}

/// Another agent has seen the SYN, or none has.
#[test]
fn attempts_from_before_the_capture_are_pending() {
    for is_first in [true, false] {
        let node = node_or_skip!();
        list_or_skip!();
        let (mut client, mut server) = (node.process("client"), node.process("server"));
        let waiting = Waiting::new(&mut server);
        let early = (!is_first).then(|| node.capture(Attach::SockOps));
        let begun = Instant::now();
        waiting.dial(&mut client, &["a", "b"]);
        if let Some(mut early) = early {
            until_pending(&mut early, begun, 2);
        }
        let mut watched = node.capture(Attach::SockOps);
        until_pending(&mut watched, Instant::now().checked_sub(Duration::from_secs(2)).unwrap(), 2);
        client.close("a");
        until_states(&mut watched, 2, [1, 0, 1]);
        Waiting::let_in(&mut client, &mut server, &["b"]);
        watched.until("both ends", |watched| watched.sum(|counters| counters.opened) == 2);
        assert_eq!(states(&watched), [0, 2, 1]);
        watched.assert_nothing_lost();
    }
}
