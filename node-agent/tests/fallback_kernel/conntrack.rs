//! Connections that end between two scans, as connection tracking shows them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use scopeprobe_agent::capture::{Capture, FallbackSettings, Losses};
use topology::{flow::Role, nat_peer::NatPeer};

use super::{
    PATIENCE, Watched, counts,
    lab::{Node, key, node_or_skip, routed::Routed, short},
    settings,
};

const SERVICE: &str = "10.96.0.1";
const PODS: [&str; 2] = ["10.201.1.2", "10.201.2.2"];
const PODS_V6: [&str; 2] = ["fd01::2", "fd02::2"];

/// Looks from the host of these pods.
fn settings_of(lab: &Routed<2>, node: &Node) -> FallbackSettings {
    FallbackSettings { host_pid: lab.host.pid(), ..settings(node) }
}

#[test]
fn short_connections_between_pods_are_known_by_conntrack() {
    let node = node_or_skip!();
    let mut lab = Routed::new(&node, ["one", "two"]);
    let mut watched = Watched::start(&settings_of(&lab, &node));
    assert_eq!(watched.capture.description().attach, "SockDiag+Conntrack");
    let [client, server] = &mut lab.pods;
    let mut expected = BTreeMap::new();
    let mut call = |listen: &str, dial: &str, local: [&str; 2], remote: &str| {
        let port = server.listen("l", listen);
        let (dial, called) =
            if dial == SERVICE { (format!("{dial}:80"), 80) } else { (format!("{dial}:{port}"), port) };
        server.begin_serve("l", short(20, 10, 20));
        client.call_slowly(dial, 20);
        server.finish();
        expected.insert(key(client, Role::Client, local[0], remote, called), (20, 20, 0, 0, 0));
        expected.insert(key(server, Role::Server, local[1], local[0], port), (20, 20, 0, 0, 0));
    };
    call("0.0.0.0:0", PODS[1], PODS, PODS[1]);
    call("[::]:0", "[fd02::2]", PODS_V6, PODS_V6[1]);
    call("10.201.2.2:8080", SERVICE, PODS, SERVICE);
    client.fail_to_connect("10.201.2.2:9", 7);
    expected.insert(key(client, Role::Client, PODS[0], PODS[1], 9), (0, 0, 7, 0, 0));
    watched.expect(&expected, counts);
    assert_eq!(watched.losses, Losses::default());
    assert_eq!(watched.seen, 2 * 3 * 20 + 7);
}

#[test]
fn attempts_on_a_service_that_are_refused_are_known_by_conntrack() {
    let node = node_or_skip!();
    let mut lab = Routed::new(&node, ["one", "two"]);
    // So seldom that no scan shows any of them.
    let settings = FallbackSettings { interval: Duration::from_secs(2), ..settings_of(&lab, &node) };
    let mut watched = Watched::start(&settings);
    let [client, _] = &mut lab.pods;
    client.fail_to_connect(format_args!("{SERVICE}:80"), 7);
    let refused = (key(client, Role::Client, PODS[0], SERVICE, 80), (0, 0, 7, 0, 0));
    watched.expect(&BTreeMap::from([refused]), counts);
    assert_eq!(watched.losses, Losses::default());
}

#[test]
fn conntrack_tells_where_connections_really_led() {
    /// Its clients' addresses are replaced, too.
    const HIDING: &str = "10.96.0.2";
    let node = node_or_skip!();
    let mut lab = Routed::new(&node, ["one", "two"]);
    let mut watched = Watched::start(&settings_of(&lab, &node));
    let [client, server] = &mut lab.pods;
    let (mut expected, mut nat_peers) = (BTreeMap::new(), BTreeMap::new());
    for (service, seen_client, port) in [(SERVICE, PODS[0], 8080), (HIDING, "10.201.2.1", 8081)] {
        server.listen(service, format_args!("{}:{port}", PODS[1]));
        // Short connections, which no scan shows, and a long one.
        server.begin_serve(service, short(20, 10, 20));
        client.call_slowly(format_args!("{service}:80"), 20);
        server.finish();
        client.connect(service, format_args!("{service}:80"));
        server.accept(service, service);
        let ours = key(client, Role::Client, PODS[0], service, 80);
        let theirs = key(server, Role::Server, PODS[1], seen_client, port);
        expected.extend([(ours, (21, 20, 0, 0, 0)), (theirs, (21, 20, 0, 0, 0))]);
        let end = |ip: &str, port| vec![(NatPeer { ip: ip.parse().unwrap(), port }, 21)];
        nat_peers.insert(ours, end(PODS[1], port));
        if service == HIDING {
            nat_peers.insert(theirs, end(PODS[0], 0));
        }
    }
    watched.expect(&expected, counts);
    assert_eq!(watched.nat_peers, nat_peers);
}

#[test]
fn edges_of_a_hundred_short_connections_a_second_are_known_beside_long_ones() {
    const EDGES: u16 = 40;
    let node = node_or_skip!();
    let mut lab = Routed::new(&node, ["one", "two"]);
    // As in production, but for the budget.
    let settings = FallbackSettings { interval: Duration::from_millis(1500), ..settings_of(&lab, &node) };
    let mut watched = Watched::start(&settings);
    let [client, server] = &mut lab.pods;
    let mut expected = BTreeMap::new();
    for number in 0..EDGES {
        let port = server.listen(format_args!("l{number}"), "0.0.0.0:0");
        client.begin_call_slowly(format_args!("{}:{port}", PODS[1]), 5);
        server.serve(format_args!("l{number}"), short(5, 10, 20));
        client.finish();
        let mut counts = (5, 5, 0, 0, 0);
        if number % 8 == 0 {
            client.connect(format_args!("c{number}"), format_args!("{}:{port}", PODS[1]));
            server.accept(format_args!("c{number}"), format_args!("l{number}"));
            counts.0 += 1;
        }
        expected.insert(key(client, Role::Client, PODS[0], PODS[1], port), counts);
        expected.insert(key(server, Role::Server, PODS[1], PODS[0], port), counts);
    }
    watched.expect(&expected, counts);
    assert_eq!(watched.losses, Losses::default());
}

#[test]
fn bytes_that_conntrack_counts_are_a_lower_bound() {
    const CALLS: u64 = 20;
    let (request, answer) = (3000, 60_000);
    let node = node_or_skip!();
    let mut lab = Routed::new(&node, ["one", "two"]);
    // The kernel tells an entry's bytes when it drops it.
    lab.host
        .in_netns("sysctl -qw net.netfilter.nf_conntrack_acct=1 net.netfilter.nf_conntrack_tcp_timeout_time_wait=1");
    // So seldom that no look shows any of them.
    let settings = FallbackSettings { interval: Duration::from_secs(5), ..settings_of(&lab, &node) };
    let mut watched = Watched::start(&settings);
    let [client, server] = &mut lab.pods;
    let port = server.listen("l", "0.0.0.0:0");
    server.begin_serve("l", short(CALLS, request, answer));
    client.call(format_args!("{}:{port}", PODS[1]), short(CALLS, request, answer));
    server.finish();
    let ends = [
        (key(client, Role::Client, PODS[0], PODS[1], port), request as u64, answer as u64),
        (key(server, Role::Server, PODS[1], PODS[0], port), answer as u64, request as u64),
    ];
    watched.expect(&ends.iter().map(|(key, ..)| (*key, (CALLS, CALLS, 0, 0, 0))).collect(), counts);
    let deadline = Instant::now() + PATIENCE;
    for (key, sent, received) in ends {
        loop {
            let known = watched.flows[&key];
            assert_eq!(known.without_bytes, CALLS, "{known:?}");
            assert!(known.bytes_sent <= CALLS * sent && known.bytes_received <= CALLS * received, "{known:?}");
            if known.bytes_sent >= CALLS * sent / 2 && known.bytes_received >= CALLS * received / 2 {
                break;
            }
            assert!(Instant::now() < deadline, "{known:?}");
            // A list drops what is due.
            lab.host.in_netns("cat /proc/net/nf_conntrack > /dev/null || :");
            watched.wait_for_passes(1);
        }
    }
}

#[test]
fn events_that_do_not_fit_into_the_queue_are_counted_and_made_up_for_by_a_list() {
    const CALLS: u64 = 300;
    let node = node_or_skip!();
    let mut lab = Routed::new(&node, ["one", "two"]);
    // As little as the kernel allows: two or three messages.
    let settings = FallbackSettings { event_bytes: 1, ..settings_of(&lab, &node) };
    let mut watched = Watched::start(&settings);
    let [client, server] = &mut lab.pods;
    let port = server.listen("l", "0.0.0.0:0");
    client.connect("c", format_args!("{}:{port}", PODS[1]));
    server.accept("c", "l");
    server.begin_serve("l", short(CALLS, 10, 20));
    client.call(format_args!("{}:{port}", PODS[1]), short(CALLS, 10, 20));
    server.finish();
    let expected = BTreeMap::from([
        (key(client, Role::Client, PODS[0], PODS[1], port), (CALLS + 1, CALLS, 0, 0, 0)),
        (key(server, Role::Server, PODS[1], PODS[0], port), (CALLS + 1, CALLS, 0, 0, 0)),
    ]);
    watched.expect(&expected, counts);
    assert!(watched.losses.event_overflows > 0, "{:?}", watched.losses);
    assert_eq!((watched.losses.opened, watched.losses.failed), (0, 0), "{:?}", watched.losses);
}
