//! Datagrams: every conversation and every byte against those of the processes that exchanged them.

use std::{collections::BTreeMap, time::Duration};

use scopeprobe_agent::{
    capture::{Attach, Capture, Feature, Losses, Settings},
    names::Answer,
};
use topology::flow::{FlowCounters, FlowKey, Protocol, Role};

use crate::lab::{
    self, Node, Process, Watched, node_or_skip,
    routed::{Routed, addresses},
};

/// Returns counters of conversations; none is open, since UDP has no end.
fn counted(opened: u64, sent: u64, received: u64) -> FlowCounters {
    FlowCounters { opened, closed: opened, bytes_sent: sent, bytes_received: received, ..FlowCounters::default() }
}

/// As seen from the other end.
fn mirrored(counters: FlowCounters) -> FlowCounters {
    FlowCounters { bytes_sent: counters.bytes_received, bytes_received: counters.bytes_sent, ..counters }
}

fn key(process: &mut Process, role: Role, local: &str, remote: &str, port: u16) -> FlowKey {
    FlowKey { protocol: Protocol::Udp, ..lab::key(process, role, local, remote, port) }
}

/// A process in a network namespace of its own, which it has when this returns.
fn alone(node: &Node, name: &str) -> Process {
    let mut process = node.process_in_own_netns(name, false);
    process.netns();
    process
}

/// Conversations that begin from now on are known to be new.
fn settings(node: &Node) -> Settings {
    Settings { conversations_settle: Duration::ZERO, ..node.settings(Attach::SockOps) }
}

fn watch(settings: &Settings) -> Watched {
    let mut watched = Watched::start(settings);
    let degradations = &watched.capture.description().degradations;
    assert!(watched.capture.description().has(Feature::Datagrams), "{degradations:?}");
    assert!(watched.capture.description().has(Feature::OriginalDestinations), "{degradations:?}");
    watched.read();
    watched
}

#[test]
fn both_ends_are_counted_over_every_kind_of_address() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut client = alone(&node, "client");
    let mut server = node.process_beside("server", &client);
    let mut expected = BTreeMap::new();
    // Where the server is bound, where it is asked, and the two addresses that are seen.
    let ways = [
        ("127.0.0.1:0", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("[::]:0", "[::1]", "::1", "::1"),
        ("[::]:0", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("[::]:0", "[::ffff:127.0.0.1]", "127.0.0.1", "127.0.0.1"),
    ];
    for (index, (bound, asked, from, to)) in ways.into_iter().enumerate() {
        let port: u16 = server.tell(&format!("udp-bind s{index} {bound}")).parse().unwrap();
        server.begin(&format!("udp-serve s{index} 12 300"));
        assert_eq!(
            client.tell(&format!("udp-ask {asked}:{port} 4 3 100 {}", 20_000 + 10 * index)),
            (12 * 300).to_string()
        );
        assert_eq!(server.finish(), (12 * 100).to_string());
        let of_client = counted(4, 12 * 100, 12 * 300);
        expected.insert(key(&mut client, Role::Client, from, to, port), of_client);
        expected.insert(key(&mut server, Role::Server, to, from, port), mirrored(of_client));
    }
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

#[test]
fn capture_counts_long_exchange_as_one_conversation_for_each_datagram_size() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let Routed { host: _host, pods: [mut client, mut server] } = Routed::new(&node, ["client", "server"]);
    let mut expected = BTreeMap::new();
    for (family, any) in [(0, "0.0.0.0"), (1, "[::]")] {
        let (from, to) = (addresses(0)[family].clone(), addresses(1)[family].clone());
        let target = if family == 0 { to.clone() } else { format!("[{to}]") };
        let port: u16 = server.tell(&format!("udp-bind s {any}:0")).parse().unwrap();
        client.tell(&format!("udp-bind c {any}:0"));
        client.tell(&format!("udp-connect c {target}:{port}"));
        let (mut sent, mut received) = (0_u64, 0_u64);
        // Empty ones, and ones in many fragments.
        for size in [0, 1, 1200, 1400, 1473, 9000, 40_000, 65_000, 0].into_iter().cycle().take(450) {
            client.tell(&format!("udp-send c {size}"));
            server.tell(&format!("udp-receive s {size}"));
            server.tell(&format!("udp-answer s {}", size / 2));
            client.tell(&format!("udp-receive c {}", size / 2));
            (sent, received) = (sent + size, received + size / 2);
        }
        let of_client = counted(1, sent, received);
        expected.insert(key(&mut client, Role::Client, &from, &to, port), of_client);
        expected.insert(key(&mut server, Role::Server, &to, &from, port), mirrored(of_client));
    }
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

#[test]
fn a_client_is_seen_with_the_address_that_it_dialled() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let Routed { mut host, pods: [mut client, mut server] } = Routed::new(&node, ["client", "server"]);
    // As kube-proxy does: for pods on their way in, for the node's own processes on their way out.
    host.in_netns(
        "nft add rule inet lab pre ip daddr 10.96.0.1 udp dport 53 dnat ip to 10.201.2.2:5353\n\
         nft add chain inet lab out '{ type nat hook output priority -100; }'\n\
         nft add rule inet lab out ip daddr 10.96.0.1 udp dport 53 dnat ip to 10.201.2.2:5353\n\
         ip route add 10.96.0.0/16 dev pod1",
    );
    server.tell("udp-bind s 0.0.0.0:5353");
    let mut expected = BTreeMap::new();
    // A pod's sockets and the node's, connected or not.
    server.begin("udp-serve s 12 200");
    assert_eq!(client.tell("udp-ask 10.96.0.1:53 4 3 50 20000"), (12 * 200).to_string());
    assert_eq!(server.finish(), (12 * 50).to_string());
    let of_pod = counted(4, 12 * 50, 12 * 200);
    expected.insert(key(&mut client, Role::Client, "10.201.1.2", "10.96.0.1", 53), of_pod);
    expected.insert(key(&mut server, Role::Server, "10.201.2.2", "10.201.1.2", 5353), mirrored(of_pod));
    server.begin("udp-serve s 12 200");
    assert_eq!(host.tell("udp-ask 10.96.0.1:53 4 3 50 20000"), (12 * 200).to_string());
    assert_eq!(server.finish(), (12 * 50).to_string());
    let of_host = counted(4, 12 * 50, 12 * 200);
    expected.insert(key(&mut host, Role::Client, "10.201.1.1", "10.96.0.1", 53), of_host);
    expected.insert(key(&mut server, Role::Server, "10.201.2.2", "10.201.1.1", 5353), mirrored(of_host));
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

#[test]
fn many_clients_of_one_server_are_told_apart() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut server = alone(&node, "server");
    let mut clients: Vec<_> = (0..8).map(|number| node.process_beside(&format!("client-{number}"), &server)).collect();
    let port: u16 = server.tell("udp-bind s 0.0.0.0:0").parse().unwrap();
    server.begin(&format!("udp-serve s {} 10", 8 * 60 * 2));
    for (index, client) in clients.iter_mut().enumerate() {
        client.begin(&format!("udp-ask 127.0.0.1:{port} 60 2 30 {}", 20_000 + 100 * index));
    }
    let mut expected = BTreeMap::new();
    for client in &mut clients {
        assert_eq!(client.finish(), (60 * 2 * 10).to_string());
        let of_client = counted(60, 60 * 2 * 30, 60 * 2 * 10);
        expected.insert(key(client, Role::Client, "127.0.0.1", "127.0.0.1", port), of_client);
    }
    assert_eq!(server.finish(), (8 * 60 * 2 * 30).to_string());
    let of_server = counted(8 * 60, 8 * 60 * 2 * 10, 8 * 60 * 2 * 30);
    expected.insert(key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port), of_server);
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

#[test]
fn more_conversations_than_can_be_remembered_say_that_they_may_be_older() {
    const ROOM: u32 = 256;
    let node = node_or_skip!();
    let mut watched = watch(&Settings { max_conversations: ROOM, ..settings(&node) });
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    let port: u16 = server.tell("udp-bind s 127.0.0.1:0").parse().unwrap();
    let asked = 10 * u64::from(ROOM);
    server.begin(&format!("udp-serve s {asked} 10"));
    client.tell(&format!("udp-ask 127.0.0.1:{port} {asked} 1 30 20000"));
    server.finish();
    // Both ends begin one each time, and again where one was forgotten before its answer: then it may look as if the other
    // end had begun. The first ones are certain, and none of the others claims to be.
    watched.read();
    let sum = |field: fn(&FlowCounters) -> u64| watched.flows.values().map(field).sum::<u64>();
    let opened = sum(|counters| counters.opened);
    assert!(opened >= 2 * asked, "{opened} of {asked}: {:?}", watched.flows);
    assert_eq!(opened - sum(|counters| counters.inferred), u64::from(ROOM / 2), "{:?}", watched.flows);
    assert_eq!(sum(|counters| counters.bytes_sent), (30 + 10) * asked);
    assert_eq!(sum(|counters| counters.bytes_received), (30 + 10) * asked);
    watched.assert_nothing_lost();
}

#[test]
fn what_may_be_older_than_the_capture_says_so() {
    let node = node_or_skip!();
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    let port: u16 = server.tell("udp-bind s 127.0.0.1:0").parse().unwrap();
    client.tell("udp-bind c 127.0.0.1:0");
    client.tell(&format!("udp-send-to c 100 127.0.0.1:{port}"));
    server.tell("udp-receive s 100");
    // The capture's first datagram is the answer: it takes the one who answers for the one who asked.
    let hour = Duration::from_hours(1);
    let mut watched = watch(&Settings { conversations_settle: hour, ..node.settings(Attach::SockOps) });
    server.tell("udp-answer s 10");
    client.tell("udp-receive c 10");
    watched.read();
    assert_eq!(watched.flows.len(), 2);
    assert!(
        watched.flows.values().all(|counters| (counters.opened, counters.inferred) == (1, 1)),
        "{:?}",
        watched.flows
    );
}

#[test]
fn a_conversation_that_was_silent_for_long_counts_anew() {
    let node = node_or_skip!();
    let silence = Duration::from_secs(2);
    let mut watched = watch(&Settings { conversation_silence: silence, ..settings(&node) });
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    let port: u16 = server.tell("udp-bind s 127.0.0.1:0").parse().unwrap();
    client.tell("udp-bind c 127.0.0.1:0");
    client.tell(&format!("udp-connect c 127.0.0.1:{port}"));
    for _ in 0..2 {
        client.tell("udp-send c 70");
        server.tell("udp-receive s 70");
        std::thread::sleep(silence + Duration::from_millis(200));
    }
    let of_client = counted(2, 140, 0);
    let expected = BTreeMap::from([
        (key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port), of_client),
        (key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(of_client)),
    ]);
    watched.expect(&expected);
}

#[test]
fn datagrams_to_several_at_once_are_nobodys_conversation() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut process = alone(&node, "process");
    process.in_netns("ip route add 224.0.0.0/4 dev lo; ip -6 route add ff00::/8 dev lo table local");
    process.tell("udp-bind a 0.0.0.0:0");
    process.tell("udp-bind b [::]:0");
    process.tell("udp-send-to a 10 224.0.0.251:5353");
    process.tell("udp-send-to b 10 [ff02::fb%1]:5353");
    // Something that is counted, to know that the capture has seen what came before.
    let port: u16 = process.tell("udp-bind s 127.0.0.1:0").parse().unwrap();
    process.tell(&format!("udp-send-to a 10 127.0.0.1:{port}"));
    process.tell("udp-receive s 10");
    let of_client = counted(1, 10, 0);
    let expected = BTreeMap::from([
        (key(&mut process, Role::Client, "127.0.0.1", "127.0.0.1", port), of_client),
        (key(&mut process, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(of_client)),
    ]);
    watched.expect(&expected);
}

#[test]
fn conversations_without_a_slot_are_counted_as_lost() {
    let node = node_or_skip!();
    let mut watched = watch(&Settings { max_flows: 4, ..settings(&node) });
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    for number in 0..5 {
        let port: u16 = server.tell(&format!("udp-bind s{number} 127.0.0.1:0")).parse().unwrap();
        server.begin(&format!("udp-serve s{number} 2 10"));
        client.tell(&format!("udp-ask 127.0.0.1:{port} 1 2 30 20000"));
        server.finish();
    }
    watched.read();
    let opened: u64 = watched.flows.values().map(|counters| counters.opened).sum();
    assert_eq!((opened, watched.losses.opened), (4, 6));
    // The later datagrams of these six: three each, one of which at each end began the conversation.
    assert_eq!(watched.losses.closed, 6 * 3);
}

/// A name server's answer to a question for the address of `a.example`: 192.0.2.1, for a minute.
const DNS_ANSWER: &str =
    concat!("0707818000010001000000000161076578616d706c650000010001", "c00c000100010000003c0004c0000201");

fn answers_of(watched: &mut Watched, node: &Node) -> (u64, u64) {
    let mut server = alone(node, "server");
    let mut client = node.process_beside("client", &server);
    server.tell("udp-bind s 127.0.0.1:53");
    server.tell("udp-bind other 127.0.0.1:54");
    client.tell("udp-bind c 127.0.0.1:0");
    for (socket, port) in [("s", 53), ("other", 54)] {
        client.tell(&format!("udp-send-to c 40 127.0.0.1:{port}"));
        server.tell(&format!("udp-receive {socket} 40"));
        server.tell(&format!("udp-answer-with {socket} {DNS_ANSWER}"));
        client.tell("udp-receive c 43");
    }
    watched.read();
    (client.cgroup(), watched.flows.values().map(|counters| counters.opened).sum())
}

#[test]
fn answers_of_name_servers_are_passed_on_with_whom_they_were_for() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let (client, conversations) = answers_of(&mut watched, &node);
    let address = std::net::IpAddr::from([192, 0, 2, 1]);
    let answer = Answer { name: "a.example".into(), addresses: vec![address], ttl: Duration::from_mins(1) };
    assert_eq!((watched.answers.clone(), conversations), (vec![(client, answer)], 4), "and nothing from other ports");
    watched.assert_nothing_lost();
}

#[test]
fn that_answers_did_not_fit_is_said() {
    let node = node_or_skip!();
    // Room for a page.
    let mut watched = watch(&Settings { answer_ring_bytes: 4096, ..settings(&node) });
    assert!(watched.capture.description().has(Feature::RemoteNames));
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    server.tell("udp-bind s 127.0.0.1:53");
    client.tell("udp-bind c 127.0.0.1:0");
    client.tell("udp-send-to c 40 127.0.0.1:53");
    server.tell("udp-receive s 40");
    for _ in 0..200 {
        server.tell(&format!("udp-answer-with s {DNS_ANSWER}"));
        client.tell("udp-receive c 43");
    }
    watched.read();
    assert!((1..200).contains(&watched.answers.len()), "{}", watched.answers.len());
    assert!(!watched.capture.description().has(Feature::RemoteNames));
    assert_eq!(watched.losses, Losses::default(), "a name is no connection");
}

#[test]
fn no_answers_are_read_where_they_are_not_wanted() {
    let node = node_or_skip!();
    let mut watched = watch(&Settings { dns_names: false, ..settings(&node) });
    let (_, conversations) = answers_of(&mut watched, &node);
    assert_eq!((watched.answers.clone(), conversations), (Vec::new(), 4));
}
