//! Tests events while no agent runs: the roles are known afterwards, or marked as a guess.

use std::collections::BTreeMap;

use scopeprobe_agent::capture::Attach;
use topology::flow::{FlowCounters, FlowKey, Role};
use traffic::script::step::StreamAction;

use crate::{
    counted,
    lab::{Process, can_list, foreign, key, list_or_skip, node_or_skip, short, socket_address},
};

const HERE: &str = "127.0.0.1";

/// Server that does not answer until [`Waiting::let_in`]. Clients retransmit their SYN after 1, 2 and 4 seconds.
pub struct Waiting {
    pub port: u16,
}

impl Waiting {
    pub fn new(server: &mut Process) -> Self {
        let port = server.listen("l", "127.0.0.1:0");
        server.drop_syns("l");
        Self { port }
    }

    /// The first one's port is chosen by `connect()`, that of the others before: such sockets do not show where they come
    /// from.
    pub fn dial(&self, client: &mut Process, names: &[&str]) {
        for (name, from) in names.iter().zip(std::iter::once(None).chain(std::iter::repeat(Some("127.0.0.1:0")))) {
            client.start_connect(name, format_args!("{HERE}:{}", self.port), from);
        }
    }

    pub fn let_in(client: &mut Process, server: &mut Process, names: &[&str]) {
        server.accept_syns("l");
        for name in names {
            assert!(client.await_handshake(name));
            server.accept(name, "l");
        }
    }

    fn end(client: &mut Process, server: &mut Process, names: &[&str]) {
        // In the order in which they were accepted, which may be another one: an end is no peer of the other's name.
        for name in names {
            client.close(name);
        }
        for name in names {
            server.await_end(name);
            server.close(name);
        }
    }

    fn keys(&self, client: &mut Process, server: &mut Process) -> [FlowKey; 2] {
        [key(client, Role::Client, HERE, HERE, self.port), key(server, Role::Server, HERE, HERE, self.port)]
    }
}

fn before(preexisting: u64, closed: u64) -> FlowCounters {
    FlowCounters { preexisting, closed, ..FlowCounters::default() }
}

fn both(keys: [FlowKey; 2], counters: FlowCounters) -> BTreeMap<FlowKey, FlowCounters> {
    keys.into_iter().map(|key| (key, counters)).collect()
}

/// Their SYNs are sent under an agent, and answered after its end.
#[test]
fn handshakes_that_outlive_an_agent_are_the_clients() {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let waiting = Waiting::new(&mut server);
    let early = node.capture(Attach::SockOps);
    waiting.dial(&mut client, &NAMES);
    drop(early);
    Waiting::let_in(&mut client, &mut server, &NAMES);
    let mut watched = node.capture(Attach::SockOps);
    let keys = waiting.keys(&mut client, &mut server);
    if can_list() {
        watched.expect(&both(keys, before(3, 0)));
    }
    Waiting::end(&mut client, &mut server, &NAMES);
    let mut expected = both(keys, before(3, 3));
    if !can_list() {
        // The clients' ends show by themselves; of the servers' no agent has ever seen anything.
        expected.remove(&keys[1]);
    }
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

/// An agent's version that does not mark clients before they are connected: what is left to know it by is the port that
/// `connect()` chose. Where that is not the case, nothing shows it.
#[test]
fn sockets_with_an_older_agents_flags_have_their_role_or_say_that_it_is_a_guess() {
    const NAMES: [&str; 2] = ["chosen", "bound"];
    const STATE: u8 = 4;
    let node = node_or_skip!();
    list_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let waiting = Waiting::new(&mut server);
    let older = foreign::flags_setter(node.root(), STATE);
    waiting.dial(&mut client, &NAMES);
    drop(older);
    Waiting::let_in(&mut client, &mut server, &NAMES);
    let mut watched = node.capture(Attach::SockOps);
    let keys = waiting.keys(&mut client, &mut server);
    let bound = client.local_port("bound");
    let guessed = key(&mut client, Role::Server, HERE, HERE, bound);
    let expected = |closed: bool| {
        let all = |preexisting| before(preexisting, if closed { preexisting } else { 0 });
        BTreeMap::from([(keys[0], all(1)), (keys[1], all(2)), (guessed, FlowCounters { inferred: 1, ..all(1) })])
    };
    watched.expect(&expected(false));
    Waiting::end(&mut client, &mut server, &NAMES);
    watched.expect(&expected(true));
    watched.assert_nothing_lost();
}

/// Another program that sets callback flags does not reverse the direction of connections.
#[test]
fn capture_keeps_direction_despite_callback_flags_of_another_program() {
    const ALL_OF_OURS: u8 = 7;
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut watched = node.capture(Attach::SockOps);
    // Called after ours.
    let _foreign = foreign::flags_setter(node.root(), ALL_OF_OURS);
    let port = server.listen("l", "127.0.0.1:0");
    server.begin_serve("l", short(30, 100, 200));
    client.call(format_args!("{HERE}:{port}"), short(30, 100, 200));
    server.finish();
    let ours = counted(30, 30, 3_000, 6_000);
    watched.expect(&BTreeMap::from([
        (key(&mut client, Role::Client, HERE, HERE, port), ours),
        (key(&mut server, Role::Server, HERE, HERE, port), crate::mirrored(ours)),
    ]));
}

/// By each way to attach: a server whose listener is gone, with room for waiting connections and without, and their
/// clients, whose ports were chosen by `connect()` and before.
pub fn connections_that_no_agent_saw_have_their_role_or_say_that_it_is_a_guess(attach: Attach) {
    let node = node_or_skip!();
    list_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut expected = BTreeMap::new();
    for (room, from, listens) in
        [(8, None, true), (8, None, false), (8, Some("127.0.0.1:0"), false), (0, None, true), (0, None, false)]
    {
        let name = &format!("{room}-{}-{listens}", from.is_some());
        let port = server.listen_with_backlog(name, "127.0.0.1:0", room);
        client.start_connect(name, format_args!("{HERE}:{port}"), from);
        assert!(client.await_handshake(name));
        server.accept(name, name);
        if !listens {
            server.unlisten(name);
        }
        let guess = |is_guess| FlowCounters { inferred: u64::from(is_guess), ..before(1, 0) };
        let is_known_client = from.is_none();
        expected.insert(key(&mut client, Role::Client, HERE, HERE, port), guess(!is_known_client));
        let server_end = if room > 0 || listens {
            (key(&mut server, Role::Server, HERE, HERE, port), guess(false))
        } else {
            // Nothing tells it from a client whose port was chosen before.
            let there = client.local_port(name);
            (key(&mut server, Role::Client, HERE, HERE, there), guess(true))
        };
        expected.insert(server_end.0, server_end.1);
    }
    let mut watched = node.capture(attach);
    watched.expect(&expected);
    drop(watched);
    // The second capture finds the connections that the first one observed.
    let mut watched = node.capture(attach);
    watched.expect(&expected);
    watched.assert_nothing_lost();
}

/// A socket whose attempt has failed, or whose connection has ended, is used again while no agent is there.
#[test]
fn sockets_that_are_used_again_without_an_agent_are_found() {
    let node = node_or_skip!();
    list_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let gone = server.listen("gone", "127.0.0.1:0");
    server.unlisten("gone");
    let port = server.listen("l", "127.0.0.1:0");
    let early = node.capture(Attach::SockOps);
    client.start_connect("failed", format_args!("{HERE}:{gone}"), None);
    assert!(!client.await_handshake("failed"));
    client.connect("ended", format_args!("{HERE}:{port}"));
    server.accept("first", "l");
    client.act("ended", StreamAction::Disconnect);
    server.close("first");
    drop(early);
    for name in ["failed", "ended"] {
        client.act(name, StreamAction::StartConnect(socket_address(format_args!("{HERE}:{port}"))));
        assert!(client.await_handshake(name));
        server.accept(name, "l");
    }
    let mut watched = node.capture(Attach::SockOps);
    let keys = [key(&mut client, Role::Client, HERE, HERE, port), key(&mut server, Role::Server, HERE, HERE, port)];
    watched.expect(&both(keys, before(2, 0)));
    for name in ["failed", "ended"] {
        client.close(name);
        server.close(name);
    }
    watched.expect(&both(keys, before(2, 2)));
    watched.assert_nothing_lost();
}

/// Attempts that were under way when the capture began: one fails, one succeeds.
pub fn preexisting_attempts_are_counted_on_success_and_failure(attach: Attach) {
    let node = node_or_skip!();
    if attach == Attach::SockOps {
        list_or_skip!();
    }
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let mut stranger = node.process("stranger");
    let (hopeless, hopeful) = (Waiting::new(&mut stranger), Waiting::new(&mut server));
    hopeless.dial(&mut client, &["a", "b"]);
    hopeful.dial(&mut client, &["c", "d"]);
    let mut watched = node.capture(attach);
    stranger.unlisten("l");
    for name in ["a", "b"] {
        assert!(!client.await_handshake(name));
    }
    Waiting::let_in(&mut client, &mut server, &["c", "d"]);
    let failed = FlowCounters { failed: 2, ..FlowCounters::default() };
    let expected = |client: &mut Process, server: &mut Process, closed| {
        let mut expected = both(hopeful.keys(client, server), counted(2, closed, 0, 0));
        expected.insert(key(client, Role::Client, HERE, HERE, hopeless.port), failed);
        expected
    };
    watched.expect(&expected(&mut client, &mut server, 0));
    Waiting::end(&mut client, &mut server, &["c", "d"]);
    watched.expect(&expected(&mut client, &mut server, 2));
    watched.assert_nothing_lost();
}
