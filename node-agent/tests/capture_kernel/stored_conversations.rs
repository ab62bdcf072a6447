//! Conversations with so many datagrams that the kernel programs store them with their sockets.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use scopeprobe_agent::capture::{Losses, Settings};
use topology::flow::{FlowCounters, FlowKey, Role};

use crate::{
    lab::{
        Node, Process, node_or_skip,
        routed::{Routed, addresses},
    },
    udp::{DNS_ANSWER, alone, counted, key, mirrored, settings, watch},
};

/// Number of datagrams that suffices to store a conversation, also in place of another one.
const MANY: u64 = 100;

/// Counts of what the ends of conversations sent and received, by their own calls.
#[derive(Default)]
struct Oracle(BTreeMap<FlowKey, FlowCounters>);

impl Oracle {
    /// Adds a datagram, which begins `opened` conversations.
    fn add(&mut self, [from, to]: [FlowKey; 2], opened: u64, bytes: usize) {
        for (key, (sent, received)) in [(from, (bytes as u64, 0)), (to, (0, bytes as u64))] {
            let sum = self.0.entry(key).or_default();
            let opened = sum.opened + opened;
            *sum = counted(opened, sum.bytes_sent + sent, sum.bytes_received + received);
        }
    }
}

/// Client's socket `c` and the sockets of servers, which it calls with addresses.
struct Callers {
    client: Process,
    server: Process,
    oracle: Oracle,
    /// Keys of both ends of each server that was called.
    known: BTreeMap<String, [FlowKey; 2]>,
}

impl Callers {
    /// The two processes share a network namespace.
    fn new(node: &Node) -> Self {
        let server = alone(node, "server");
        let mut client = node.process_beside("client", &server);
        client.bind_udp("c", "[::]:0");
        Self { client, server, oracle: Oracle::default(), known: BTreeMap::new() }
    }

    /// Binds the server's socket of this name.
    fn serve(&mut self, name: &str, address: &str) -> u16 {
        let port = self.server.bind_udp(name, format_args!("{address}:0"));
        let shown = address.trim_matches(['[', ']']);
        let keys = [
            key(&mut self.client, Role::Client, shown, shown, port),
            key(&mut self.server, Role::Server, shown, shown, port),
        ];
        self.known.insert(name.to_owned(), keys);
        port
    }

    /// Sends a datagram to a server's socket, which begins `opened` conversations.
    fn send(&mut self, to: &str, port: u16, opened: u64, bytes: usize) {
        let keys = self.known[to];
        let address = if keys[0].remote.is_ipv6() { "[::1]" } else { "[::ffff:127.0.0.1]" };
        self.client.send_datagram_to("c", bytes, format_args!("{address}:{port}"));
        self.server.receive_datagram(to, bytes);
        self.oracle.add(keys, opened, bytes);
    }

    /// As [`Self::send`], where the time since the last datagram decides whether it begins a conversation. Returns whether it
    /// does.
    fn send_after(&mut self, last: &mut Datagram, silence: Duration, to: &str, port: u16) -> bool {
        let begun = Instant::now();
        self.send(to, port, 0, 3);
        let now = Datagram { begun, ended: Instant::now() };
        let [shortest, longest] = [now.begun - last.ended, now.ended - last.begun];
        assert!(
            longest < silence || shortest > silence,
            "from {shortest:?} to {longest:?}: the silence of {silence:?} is in between"
        );
        *last = now;
        let begins = shortest > silence;
        for key in self.known[to] {
            let sum = self.oracle.0.entry(key).or_default();
            *sum = counted(sum.opened + u64::from(begins), sum.bytes_sent, sum.bytes_received);
        }
        begins
    }

    /// The server's socket answers its last datagram.
    fn respond(&mut self, from: &str, bytes: usize) {
        let [client, server] = self.known[from];
        self.server.respond_datagram(from, bytes);
        self.client.receive_datagram("c", bytes);
        self.oracle.add([server, client], 0, bytes);
    }
}

/// Times between which a datagram was sent and received.
struct Datagram {
    begun: Instant,
    ended: Instant,
}

#[test]
fn socket_that_alternates_between_remotes_counts_each() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut callers = Callers::new(&node);
    let servers = ["a", "b", "six"].map(|name| {
        let address = if name == "six" { "[::1]" } else { "127.0.0.1" };
        (name, callers.serve(name, address))
    });
    // One at a time, few, as many as displace another one, and again.
    for (turn, run) in [1, 20, 1, MANY, 3, MANY, 1].into_iter().enumerate() {
        for (index, (name, port)) in servers.into_iter().enumerate() {
            for datagram in 0..run {
                let opened = u64::from(turn == 0 && datagram == 0);
                callers.send(name, port, opened, 10 + 100 * index + turn);
                if datagram % 2 == 0 {
                    callers.respond(name, 1000 + 10 * index);
                }
            }
        }
        watched.read();
    }
    watched.expect(&callers.oracle.0);
    watched.assert_nothing_lost();
}

/// Packets show the same address for both Services.
#[test]
fn unconnected_socket_counts_services_with_one_backend_apart() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let Routed { mut host, pods: [mut client, mut server] } = Routed::new(&node, ["client", "server"]);
    host.in_netns(
        "nft add chain inet lab out '{ type nat hook output priority -100; }'\n\
         for service in 10.96.0.1 10.96.0.2; do \
             nft add rule inet lab out ip daddr $service udp dport 53 dnat ip to 10.201.2.2:5353; \
             nft add rule inet lab pre ip daddr $service udp dport 53 dnat ip to 10.201.2.2:5353; \
         done\n\
         ip route add 10.96.0.0/16 dev pod1",
    );
    server.bind_udp("s", "0.0.0.0:5353");
    let backend = "10.201.2.2";
    let mut oracle = Oracle::default();
    // Own addresses on the way to the Services, and to the backend.
    for (caller, own, own_direct) in
        [(&mut host, "10.201.1.1", "10.201.2.1"), (&mut client, "10.201.1.2", "10.201.1.2")]
    {
        let of_server = key(&mut server, Role::Server, backend, own, 5353);
        let services = ["10.96.0.1", "10.96.0.2"].map(|service| {
            let of_caller = key(caller, Role::Client, own, service, 53);
            (service, [of_caller, of_server])
        });
        // The backend itself, too: its packets look like those to the Services.
        let direct = [
            key(caller, Role::Client, own_direct, backend, 5353),
            key(&mut server, Role::Server, backend, own_direct, 5353),
        ];
        let direct = (backend, direct);
        let targets = [services[0], services[1], direct];
        caller.bind_udp("c", "0.0.0.0:0");
        let mut is_first = [true; 3];
        for (run, responds) in [(1, true), (20, true), (1, false), (MANY, true), (2, true), (MANY, false), (1, true)] {
            for (index, (target, keys)) in targets.into_iter().enumerate() {
                let port = if target == backend { 5353 } else { 53 };
                for _ in 0..run {
                    let bytes = 50 + index;
                    caller.send_datagram_to("c", bytes, format_args!("{target}:{port}"));
                    server.receive_datagram("s", bytes);
                    oracle.add(keys, u64::from(std::mem::take(&mut is_first[index])), bytes);
                    if responds {
                        server.respond_datagram("s", 200 + index);
                        caller.receive_datagram("c", 200 + index);
                        oracle.add([keys[1], keys[0]], 0, 200 + index);
                    }
                }
            }
        }
        // A connected socket, whose destination is not given with each datagram.
        let (service, keys) = services[0];
        caller.bind_udp("connected", "0.0.0.0:0");
        caller.connect_udp("connected", format_args!("{service}:53"));
        for turn in 0..MANY {
            caller.send_datagram("connected", 7);
            server.receive_datagram("s", 7);
            oracle.add(keys, u64::from(turn == 0), 7);
            server.respond_datagram("s", 8);
            caller.receive_datagram("connected", 8);
            oracle.add([keys[1], keys[0]], 0, 8);
        }
        // Then it is connected to the other one.
        let (service, keys) = services[1];
        caller.connect_udp("connected", format_args!("{service}:53"));
        for turn in 0..MANY {
            caller.send_datagram("connected", 9);
            server.receive_datagram("s", 9);
            oracle.add(keys, u64::from(turn == 0), 9);
        }
    }
    watched.expect(&oracle.0);
    watched.assert_nothing_lost();
}

/// Without NAT, the packet shows where it goes; the address that the socket is connected to is another one.
#[test]
fn connected_socket_counts_datagrams_to_another_address_apart() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut callers = Callers::new(&node);
    let (a, b) = (callers.serve("a", "127.0.0.1"), callers.serve("b", "127.0.0.1"));
    callers.client.connect_udp("c", format_args!("[::ffff:127.0.0.1]:{a}"));
    for turn in 0..MANY {
        callers.client.send_datagram("c", 11);
        callers.server.receive_datagram("a", 11);
        callers.oracle.add(callers.known["a"], u64::from(turn == 0), 11);
    }
    for turn in 0..MANY {
        callers.send("b", b, u64::from(turn == 0), 13);
        callers.client.send_datagram("c", 12);
        callers.server.receive_datagram("a", 12);
        callers.oracle.add(callers.known["a"], 0, 12);
    }
    watched.expect(&callers.oracle.0);
    watched.assert_nothing_lost();
}

#[test]
fn busy_conversation_ends_after_silence_only() {
    let node = node_or_skip!();
    let silence = Duration::from_secs(3);
    let mut watched = watch(&Settings { conversation_silence: silence, ..settings(&node) });
    let mut callers = Callers::new(&node);
    let port = callers.serve("a", "127.0.0.1");
    for turn in 0..3 {
        for datagram in 0..MANY {
            callers.send("a", port, u64::from(datagram == 0), 30 + turn);
        }
        // It lasts longer than the silence, with the storage alone in between.
        let begun = Instant::now();
        let mut last = Datagram { begun, ended: begun };
        while begun.elapsed() < 2 * silence {
            callers.send_after(&mut last, silence, "a", port);
            thread::sleep(silence / 20);
        }
        thread::sleep(silence + Duration::from_millis(200));
    }
    watched.expect(&callers.oracle.0);
    watched.assert_nothing_lost();
}

/// The storage alone has the time of the last datagram; another conversation takes its place.
#[test]
fn displaced_conversation_goes_on_from_its_last_datagram() {
    let node = node_or_skip!();
    let mut callers = Callers::new(&node);
    // Datagrams from before the capture, to know how long as many of them take here.
    let begun = Instant::now();
    let before = callers.serve("before", "127.0.0.1");
    for _ in 0..MANY {
        callers.send("before", before, 0, 1);
    }
    let silence = Duration::from_secs(5).max(40 * begun.elapsed());
    let mut watched = watch(&Settings { conversation_silence: silence, ..settings(&node) });
    callers.oracle = Oracle::default();
    // Of sockets from before, the direction is a guess.
    callers.client.bind_udp("c", "[::]:0");
    let (a, b) = (callers.serve("a", "127.0.0.1"), callers.serve("b", "127.0.0.1"));
    let begun = Instant::now();
    for datagram in 0..MANY {
        callers.send("a", a, u64::from(datagram == 0), 30);
    }
    let stored = Instant::now();
    let mut last = Datagram { begun: stored, ended: stored };
    // Before a quarter of the silence, after which the table would be brought up to date.
    thread::sleep((silence / 5).saturating_sub(begun.elapsed()));
    callers.send_after(&mut last, silence, "a", a);
    for datagram in 0..MANY {
        callers.send("b", b, u64::from(datagram == 0), 20);
    }
    // Longer than the silence since it was stored, but not since its last datagram.
    thread::sleep((silence + silence / 50).saturating_sub(stored.elapsed()));
    if callers.send_after(&mut last, silence, "a", a) {
        println!("this machine was too slow: the conversation was silent for longer");
    }
    for _ in 0..MANY {
        callers.send("a", a, 0, 33);
    }
    watched.expect(&callers.oracle.0);
    watched.assert_nothing_lost();
}

#[test]
fn stored_conversation_does_not_count_in_a_slot_that_was_taken_back() {
    let node = node_or_skip!();
    let mut watched = watch(&Settings { max_flows: 2, ..settings(&node) });
    let mut callers = Callers::new(&node);
    let (a, b) = (callers.serve("a", "127.0.0.1"), callers.serve("b", "127.0.0.1"));
    let exchange = |callers: &mut Callers, name, port, opened| {
        callers.send(name, port, opened, 40);
        callers.respond(name, 60);
    };
    for turn in 0..MANY {
        exchange(&mut callers, "a", a, u64::from(turn == 0));
    }
    watched.expect(&callers.oracle.0);
    watched.wait_for_free_slots(2);
    // Another conversation has the slots now.
    exchange(&mut callers, "b", b, 1);
    watched.expect(&callers.oracle.0);
    let known = callers.oracle.0.clone();
    for _ in 0..MANY {
        exchange(&mut callers, "a", a, 0);
    }
    watched.read();
    assert_eq!(watched.losses, Losses { closed: 4 * MANY, ..Losses::default() }, "both ends of both datagrams");
    callers.oracle.0 = known;
    watched.expect(&callers.oracle.0);

    watched.wait_for_free_slots(2);
    for _ in 0..3 * MANY {
        exchange(&mut callers, "a", a, 0);
    }
    watched.expect(&callers.oracle.0);
    assert_eq!(watched.losses.closed, 4 * MANY, "nothing else was lost");
}

/// The kernel limits the memory that a socket may have beside its buffers.
#[test]
fn conversations_are_counted_without_memory_for_storage() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut callers = Callers::new(&node);
    // Kernels before 6.8 have one limit for all network namespaces, which is not for a test to change.
    callers.server.in_netns("limit=/proc/sys/net/core/optmem_max; if [ -e $limit ]; then echo 1 > $limit; fi");
    let port = callers.serve("a", "127.0.0.1");
    for datagram in 0..3 * MANY {
        callers.send("a", port, u64::from(datagram == 0), 30);
        callers.respond("a", 40);
    }
    watched.expect(&callers.oracle.0);
    watched.assert_nothing_lost();
}

#[test]
fn answers_in_a_stored_conversation_are_passed_on() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let mut server = alone(&node, "server");
    let mut client = node.process_beside("client", &server);
    server.bind_udp("s", "127.0.0.1:53");
    client.bind_udp("c", "127.0.0.1:0");
    let queries = usize::try_from(MANY).unwrap();
    for _ in 0..queries {
        client.send_datagram_to("c", 40, "127.0.0.1:53");
        server.receive_datagram("s", 40);
        server.respond_datagram_with("s", DNS_ANSWER);
        client.receive_datagram("c", DNS_ANSWER.len());
        watched.read();
    }
    let of_client = counted(1, 40 * MANY, DNS_ANSWER.len() as u64 * MANY);
    let expected = BTreeMap::from([
        (key(&mut client, Role::Client, "127.0.0.1", "127.0.0.1", 53), of_client),
        (key(&mut server, Role::Server, "127.0.0.1", "127.0.0.1", 53), mirrored(of_client)),
    ]);
    watched.expect(&expected);
    assert_eq!(watched.answers.len(), queries);
    assert!(watched.answers.iter().all(|(cgroup, _)| *cgroup == client.cgroup()));
    watched.assert_nothing_lost();
}

/// Several processors count in one conversation, and in those that take each other's place.
#[test]
fn socket_with_packets_on_every_processor_counts_all() {
    let node = node_or_skip!();
    let mut watched = watch(&settings(&node));
    let routed = Routed::new(&node, ["client", "other", "server"]);
    routed.steer();
    let Routed { host: _host, pods: [mut client, mut other, mut server] } = routed;
    server.bind_udp("s", "0.0.0.0:9000");
    let (times, [to, _]) = (20 * MANY, addresses(2));
    let mut expected = BTreeMap::new();
    for (index, process) in [&mut client, &mut other].into_iter().enumerate() {
        let [from, _] = addresses(index);
        let of_client = counted(1, 10 * times, 20 * times);
        expected.insert(key(process, Role::Client, &from, &to, 9000), of_client);
        expected.insert(key(&mut server, Role::Server, &to, &from, 9000), mirrored(of_client));
    }
    server.begin_serve_datagrams("s", 2 * times, 20);
    for (process, port) in [(&mut client, 61_000), (&mut other, 62_000)] {
        process.begin_call_datagrams(format_args!("{to}:9000"), crate::lab::requests(1, times, 10, port));
    }
    for process in [&mut client, &mut other] {
        assert_eq!(process.finish_number(), 20 * times);
    }
    assert_eq!(server.finish_number(), 2 * 10 * times);
    watched.expect(&expected);
    watched.assert_nothing_lost();
}
