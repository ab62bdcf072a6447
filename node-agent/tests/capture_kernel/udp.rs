//! Datagrams: every conversation and every byte against those of the processes that exchanged them.

use std::{collections::BTreeMap, time::Duration};

use scopeprobe_agent::{
    capture::{Attach, Capture, Feature, Losses, Settings},
    names::Answer,
};
use topology::flow::{FlowCounters, FlowKey, Protocol, Role};

use crate::lab::{
    self, Node, Process, Watched, can_list, node_or_skip, requests,
    routed::{Routed, addresses},
};

/// Returns counters of conversations; none is open, since UDP has no end.
pub fn counted(opened: u64, sent: u64, received: u64) -> FlowCounters {
    FlowCounters { opened, closed: opened, bytes_sent: sent, bytes_received: received, ..FlowCounters::default() }
}

/// As seen from the other end.
pub fn mirrored(counters: FlowCounters) -> FlowCounters {
    FlowCounters { bytes_sent: counters.bytes_received, bytes_received: counters.bytes_sent, ..counters }
}

pub fn key(process: &mut Process, role: Role, local: &str, remote: &str, port: u16) -> FlowKey {
    FlowKey { protocol: Protocol::Udp, ..lab::key(process, role, local, remote, port) }
}

/// A process in a network namespace of its own.
pub fn alone(node: &Node, name: &str) -> Process {
    node.process_in_own_netns(name, false)
}

/// Conversations that begin from now on are known to be new.
pub fn settings(node: &Node) -> Settings {
    Settings { conversations_settle: Duration::ZERO, ..node.settings(Attach::SockOps) }
}

pub fn watch(settings: &Settings) -> Watched {
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
    for (index, (bound, asked, from, to)) in (0..).zip(ways) {
        let port = server.bind_udp(format_args!("s{index}"), bound);
        server.begin_serve_datagrams(format_args!("s{index}"), 12, 300);
        assert_eq!(
            client.call_datagrams(format_args!("{asked}:{port}"), requests(4, 3, 100, 61_000 + 10 * index)),
            12 * 300
        );
        assert_eq!(server.finish_number(), 12 * 100);
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
        let port = server.bind_udp("s", format_args!("{any}:0"));
        client.bind_udp("c", format_args!("{any}:0"));
        client.connect_udp("c", format_args!("{target}:{port}"));
        let (mut sent, mut received) = (0_u64, 0_u64);
        // Empty ones, and ones in many fragments.
        for size in [0, 1, 1200, 1400, 1473, 9000, 40_000, 65_000, 0].into_iter().cycle().take(450) {
            client.send_datagram("c", size);
            server.receive_datagram("s", size);
            server.respond_datagram("s", size / 2);
            client.receive_datagram("c", size / 2);
            (sent, received) = (sent + size as u64, received + size as u64 / 2);
        }
        let of_client = counted(1, sent, received);
        expected.insert(key(&mut client, Role::Client, &from, &to, port), of_client);
        expected.insert(key(&mut server, Role::Server, &to, &from, port), mirrored(of_client));
    }
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

/// A conversation remembers the slot of its flow. Here the slot is taken from the silent flow and given to another one.
#[test]
fn conversation_does_not_count_in_a_slot_that_another_flow_has_now() {
    let node = node_or_skip!();
    let mut watched = watch(&Settings { max_flows: 2, ..settings(&node) });
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let (udp, tcp) = (server.bind_udp("s", "127.0.0.1:0"), server.listen("l", "127.0.0.1:0"));
    client.bind_udp("c", "127.0.0.1:0");
    client.connect_udp("c", format_args!("127.0.0.1:{udp}"));
    let exchange = |client: &mut Process, server: &mut Process| {
        client.send_datagram("c", 100);
        server.receive_datagram("s", 100);
        server.respond_datagram("s", 200);
        client.receive_datagram("c", 200);
    };
    let conversation = [
        key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", udp),
        key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", udp),
    ];
    let of_conversation = |sent, received| {
        let counters = counted(1, sent, received);
        conversation.into_iter().zip([counters, mirrored(counters)])
    };
    exchange(&mut client, &mut server);
    let mut expected: BTreeMap<_, _> = of_conversation(100, 200).collect();
    watched.expect(&expected);
    watched.wait_for_free_slots(2);

    client.connect("b", format_args!("127.0.0.1:{tcp}"));
    server.accept("b", "l");
    // No slot is free for it.
    exchange(&mut client, &mut server);
    client.close("b");
    server.close("b");
    let connection = FlowCounters { opened: 1, closed: 1, ..FlowCounters::default() };
    for (process, role) in [(&mut client, Role::Client), (&mut server, Role::Server)] {
        expected.insert(lab::key(process, role, "127.0.0.1", "127.0.0.1", tcp), connection);
    }
    watched.expect(&expected);
    assert_eq!(watched.losses, Losses { closed: 4, ..Losses::default() }, "two datagrams, at both ends");

    watched.wait_for_free_slots(2);
    exchange(&mut client, &mut server);
    expected.extend(of_conversation(200, 400));
    watched.expect(&expected);
}

#[test]
fn capture_reports_original_destination_of_client() {
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
    server.bind_udp("s", "0.0.0.0:5353");
    let mut expected = BTreeMap::new();
    // A pod's sockets and the node's, connected or not.
    server.begin_serve_datagrams("s", 12, 200);
    assert_eq!(client.call_datagrams("10.96.0.1:53", requests(4, 3, 50, 61_000)), 12 * 200);
    assert_eq!(server.finish_number(), 12 * 50);
    let of_pod = counted(4, 12 * 50, 12 * 200);
    expected.insert(key(&mut client, Role::Client, "10.201.1.2", "10.96.0.1", 53), of_pod);
    expected.insert(key(&mut server, Role::Server, "10.201.2.2", "10.201.1.2", 5353), mirrored(of_pod));
    server.begin_serve_datagrams("s", 12, 200);
    assert_eq!(host.call_datagrams("10.96.0.1:53", requests(4, 3, 50, 61_000)), 12 * 200);
    assert_eq!(server.finish_number(), 12 * 50);
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
    let port = server.bind_udp("s", "0.0.0.0:0");
    server.begin_serve_datagrams("s", 8 * 60 * 2, 10);
    for (index, client) in (0..).zip(&mut clients) {
        client.begin_call_datagrams(format_args!("127.0.0.1:{port}"), requests(60, 2, 30, 61_000 + 100 * index));
    }
    let mut expected = BTreeMap::new();
    for client in &mut clients {
        assert_eq!(client.finish_number(), 60 * 2 * 10);
        let of_client = counted(60, 60 * 2 * 30, 60 * 2 * 10);
        expected.insert(key(client, Role::Client, "127.0.0.1", "127.0.0.1", port), of_client);
    }
    assert_eq!(server.finish_number(), 8 * 60 * 2 * 30);
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
    let port = server.bind_udp("s", "127.0.0.1:0");
    let asked = 10 * u64::from(ROOM);
    server.begin_serve_datagrams("s", asked, 10);
    client.call_datagrams(format_args!("127.0.0.1:{port}"), requests(u16::try_from(asked).unwrap(), 1, 30, 61_000));
    server.finish_number();
    // Both ends begin one each time, and again where one was forgotten before its answer: then it may look as if the other
    // end had begun. The first ones are certain, and none of the others claims to be.
    watched.read();
    let sum = |field: fn(&FlowCounters) -> u64| watched.flows.values().map(field).sum::<u64>();
    let opened = sum(|counters| counters.opened);
    assert!(opened >= 2 * asked, "{opened} of {asked}: {:?}", watched.flows);
    let certain = opened - sum(|counters| counters.inferred);
    // Without a listing, more of them have a guessed direction.
    assert!(certain == u64::from(ROOM / 2) || certain < u64::from(ROOM / 2) && !can_list(), "{certain}");
    assert_eq!(sum(|counters| counters.bytes_sent), (30 + 10) * asked);
    assert_eq!(sum(|counters| counters.bytes_received), (30 + 10) * asked);
    watched.assert_nothing_lost();
}

/// The kernel's tables are small at first. What goes on meanwhile stays one conversation.
#[test]
fn tables_grow_while_conversations_go_on() {
    /// More than the first tables have room for, of flows and of conversations.
    const FLOWS: u16 = 20_000;
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    let port = server.bind_udp("s", "127.0.0.1:0");
    client.bind_udp("c", "127.0.0.1:0");
    client.connect_udp("c", format_args!("127.0.0.1:{port}"));
    client.bind_udp("others", "127.0.0.1:0");
    let ports: Vec<u16> = (10_000..).filter(|other| *other != port).take(FLOWS.into()).collect();
    let mut exchanges = 0;
    for some in ports.chunks(1000) {
        client.send_datagram("c", 100);
        server.receive_datagram("s", 100);
        exchanges += 1;
        for other in some {
            client.send_datagram_to("others", 10, format_args!("127.0.0.1:{other}"));
        }
        watched.read();
    }
    let one = counted(1, 100 * exchanges, 0);
    let mut expected = BTreeMap::from([
        (key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port), one),
        (key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", port), mirrored(one)),
    ]);
    let of_client = key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", port);
    expected.extend(ports.iter().map(|other| (FlowKey { port: *other, ..of_client }, counted(1, 10, 0))));
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

#[test]
fn what_may_be_older_than_the_capture_says_so() {
    let node = node_or_skip!();
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    let port = server.bind_udp("s", "127.0.0.1:0");
    client.bind_udp("c", "127.0.0.1:0");
    client.send_datagram_to("c", 100, format_args!("127.0.0.1:{port}"));
    server.receive_datagram("s", 100);
    // The capture's first datagram is the answer: it takes the one who answers for the one who asked.
    let hour = Duration::from_hours(1);
    let mut watched = watch(&Settings { conversations_settle: hour, ..node.settings(Attach::SockOps) });
    server.respond_datagram("s", 10);
    client.receive_datagram("c", 10);
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
    let port = server.bind_udp("s", "127.0.0.1:0");
    client.bind_udp("c", "127.0.0.1:0");
    client.connect_udp("c", format_args!("127.0.0.1:{port}"));
    for _ in 0..2 {
        client.send_datagram("c", 70);
        server.receive_datagram("s", 70);
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
    process.bind_udp("a", "0.0.0.0:0");
    process.bind_udp("b", "[::]:0");
    process.send_datagram_to("a", 10, "224.0.0.251:5353");
    process.send_datagram_to("b", 10, "[ff02::fb%1]:5353");
    // Something that is counted, to know that the capture has seen what came before.
    let port = process.bind_udp("s", "127.0.0.1:0");
    process.send_datagram_to("a", 10, format_args!("127.0.0.1:{port}"));
    process.receive_datagram("s", 10);
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
        let port = server.bind_udp(format_args!("s{number}"), "127.0.0.1:0");
        server.begin_serve_datagrams(format_args!("s{number}"), 2, 10);
        client.call_datagrams(format_args!("127.0.0.1:{port}"), requests(1, 2, 30, 61_000));
        server.finish_number();
    }
    watched.read();
    let opened: u64 = watched.flows.values().map(|counters| counters.opened).sum();
    assert_eq!((opened, watched.losses.opened), (4, 6));
    // The later datagrams of these six: three each, one of which at each end began the conversation.
    assert_eq!(watched.losses.closed, 6 * 3);
}

/// A name server's answer to a question for the address of `a.example`: 192.0.2.1, for a minute.
pub const DNS_ANSWER: &[u8] = b"\x07\x07\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01\
    \xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01";

fn answers_of(watched: &mut Watched, node: &Node) -> (u64, u64) {
    let mut server = alone(node, "server");
    let mut client = node.process_beside("client", &server);
    server.bind_udp("s", "127.0.0.1:53");
    server.bind_udp("other", "127.0.0.1:54");
    client.bind_udp("c", "127.0.0.1:0");
    for (socket, port) in [("s", 53), ("other", 54)] {
        client.send_datagram_to("c", 40, format_args!("127.0.0.1:{port}"));
        server.receive_datagram(socket, 40);
        server.respond_datagram_with(socket, DNS_ANSWER);
        client.receive_datagram("c", 43);
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
    server.bind_udp("s", "127.0.0.1:53");
    client.bind_udp("c", "127.0.0.1:0");
    client.send_datagram_to("c", 40, "127.0.0.1:53");
    server.receive_datagram("s", 40);
    for _ in 0..200 {
        server.respond_datagram_with("s", DNS_ANSWER);
        client.receive_datagram("c", 43);
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
