//! Direction of conversations in which the server sends the first datagram after a silence, or the first observed one.

use std::{collections::BTreeMap, thread, time::Duration};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use scopeprobe_agent::capture::Settings;
use topology::flow::{FlowCounters, FlowKey, Role};

use crate::{
    lab::{Node, Process, Watched, can_list, list_or_skip, node_or_skip},
    udp::{alone, counted, key, mirrored, settings, watch},
};

const HERE: &str = "127.0.0.1";
/// Port that a process chooses, not the kernel.
const PORT: u16 = 5000;
const CLIENT_PORT: u16 = 4000;
/// Time after which a conversation is over.
const SILENCE: Duration = Duration::from_secs(2);
const BYTES: usize = 50;
/// Maximum number of conversations in a small table.
const ROOM: u16 = 256;

/// Clients that a server answers, and to which it speaks first after a silence.
struct Callers {
    client: Process,
    server: Process,
}

impl Callers {
    /// Connected, unconnected, and with a port of its own choice.
    const NAMES: [&'static str; 3] = ["connected", "unconnected", "named"];

    /// Both processes have one processor: the kernel has lists of a table's newest entries for each, and an entry in another
    /// one's list is not displaced.
    fn new(node: &Node) -> Self {
        let mut first = CpuSet::new();
        first.set(0).unwrap();
        // Of this thread, which starts the processes.
        sched_setaffinity(Pid::from_raw(0), &first).unwrap();
        let mut server = alone(node, "server");
        let mut client = node.process_beside("client", &server);
        server.bind_udp("s", format_args!("{HERE}:{PORT}"));
        for name in Self::NAMES {
            client.bind_udp(name, format_args!("{HERE}:{}", if name == "named" { CLIENT_PORT } else { 0 }));
        }
        client.connect_udp("connected", format_args!("{HERE}:{PORT}"));
        Self { client, server }
    }

    fn call(&mut self, name: &str) {
        self.client.send_datagram_to(name, BYTES, format_args!("{HERE}:{PORT}"));
        self.server.receive_datagram("s", BYTES);
    }

    /// The server sends a datagram to the last client that called.
    fn push(&mut self, name: &str) {
        self.server.respond_datagram("s", BYTES);
        self.client.receive_datagram(name, BYTES);
    }

    /// Makes the table forget conversations, and waits until the time of many beginnings is over.
    fn make_table_forget(&mut self, watched: &mut Watched) {
        /// Interval of the agent's notes of beginnings.
        const NOTES: Duration = Duration::from_secs(5);
        for other in 10_000..10_000 + 4 * ROOM {
            // The table keeps conversations of several datagrams longer than those of one.
            for _ in 0..2 {
                self.client.send_datagram_to("others", 10, format_args!("{HERE}:{other}"));
            }
        }
        for pause in [NOTES, SILENCE + Duration::from_millis(200)] {
            thread::sleep(pause);
            watched.read();
        }
    }

    /// The flows of both ends if the server is taken for the client of the client whose process chose its port.
    fn reversed_keys(&mut self) -> [FlowKey; 2] {
        let client = key(&mut self.client, Role::Server, HERE, HERE, CLIENT_PORT);
        [client, key(&mut self.server, Role::Client, HERE, HERE, CLIENT_PORT)]
    }

    fn keys(&mut self) -> [FlowKey; 2] {
        let client = key(&mut self.client, Role::Client, HERE, HERE, PORT);
        [client, key(&mut self.server, Role::Server, HERE, HERE, PORT)]
    }
}

fn with_silence(node: &Node) -> Settings {
    Settings { conversation_silence: SILENCE, ..settings(node) }
}

/// Returns the flows of both ends after conversations with a datagram for each call and each push.
fn expected(keys: [FlowKey; 2], conversations: u64, calls: u64, pushes: u64) -> BTreeMap<FlowKey, FlowCounters> {
    let bytes = |datagrams| datagrams * BYTES as u64;
    let of_client = counted(conversations, bytes(calls), bytes(pushes));
    BTreeMap::from([(keys[0], of_client), (keys[1], mirrored(of_client))])
}

#[test]
fn server_that_speaks_first_after_a_silence_stays_the_server() {
    /// So many datagrams store a conversation with its socket.
    const MANY: u64 = 40;
    let node = node_or_skip!();
    let mut watched = watch(&with_silence(&node));
    let mut callers = Callers::new(&node);
    let (mut conversations, mut calls, mut pushes) = (0, 0, 0);
    for exchanges in [1, MANY] {
        for name in Callers::NAMES {
            for _ in 0..exchanges {
                callers.call(name);
                callers.push(name);
            }
            thread::sleep(SILENCE + Duration::from_millis(200));
            callers.push(name);
            // Within the conversation that the push began.
            callers.call(name);
            (conversations, calls, pushes) = (conversations + 2, calls + exchanges + 1, pushes + exchanges + 1);
            thread::sleep(SILENCE + Duration::from_millis(200));
        }
    }
    watched.expect(&expected(callers.keys(), conversations, calls, pushes));
    watched.assert_nothing_lost();
}

/// The table forgets the conversation meanwhile. What is left is the sockets themselves.
#[test]
fn server_that_speaks_first_after_its_conversation_was_forgotten_is_a_guess() {
    let node = node_or_skip!();
    let mut watched = watch(&Settings { max_conversations: ROOM.into(), ..with_silence(&node) });
    let mut callers = Callers::new(&node);
    callers.client.bind_udp("others", format_args!("{HERE}:0"));
    for name in Callers::NAMES {
        callers.call(name);
        callers.push(name);
        callers.make_table_forget(&mut watched);
        callers.push(name);
    }
    watched.read();
    let reversed = callers.reversed_keys();
    let found = |key: FlowKey| {
        let counters = watched.flows[&key];
        (counters.opened, counters.inferred, counters.bytes_sent, counters.bytes_received)
    };
    // Kernels that cannot list sockets do not show that the two clients without `connect()` are younger than the capture.
    let unlisted = if can_list() { 0 } else { 2 };
    let [client, server] = callers.keys();
    // Of the connected client, `connect()` shows the role. Of the second, the ports are a clue.
    assert_eq!(found(client), (5, 1 + unlisted, 150, 250));
    assert_eq!(found(server), (5, 2, 250, 150));
    // Where both processes chose their ports, the first sender counts as the client.
    assert_eq!(reversed.map(found), [(1, 1, 0, 50), (1, 1, 50, 0)]);
    watched.assert_nothing_lost();
}

/// Only where the server's process chose its port can a socket that sends first be a server.
#[test]
fn client_stays_certain_when_the_table_has_forgotten_others() {
    let node = node_or_skip!();
    list_or_skip!();
    let mut watched = watch(&Settings { max_conversations: ROOM.into(), ..with_silence(&node) });
    let mut callers = Callers::new(&node);
    callers.client.bind_udp("others", format_args!("{HERE}:0"));
    callers.call("connected");
    callers.make_table_forget(&mut watched);
    for name in &Callers::NAMES[1..] {
        callers.call(name);
        callers.push(name);
    }
    watched.read();
    for (key, expected) in expected(callers.keys(), 3, 3, 2) {
        assert_eq!(FlowCounters { methods: expected.methods, ..watched.flows[&key] }, expected);
    }
}

/// The capture has not seen that the client called.
#[test]
fn server_that_speaks_first_after_the_capture_began_is_a_guess() {
    let node = node_or_skip!();
    for name in Callers::NAMES {
        let mut callers = Callers::new(&node);
        callers.call(name);
        let mut watched = watch(&settings(&node));
        callers.push(name);
        watched.read();
        let [client, server] = if name == "named" { callers.reversed_keys() } else { callers.keys() };
        let found = |key: FlowKey| (watched.flows[&key].opened, watched.flows[&key].inferred);
        let is_guess = u64::from(name != "connected");
        assert_eq!([client, server].map(found), [(1, is_guess), (1, 1)], "{name}: {:?}", watched.flows);
        assert_eq!(watched.flows.len(), 2);
    }
}
