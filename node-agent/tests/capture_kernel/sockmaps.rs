//! Connections whose payload goes past TCP: programs of other owners redirect it from socket to socket.

use scopeprobe_agent::capture::Attach;
use topology::flow::{FlowKey, Role};

use crate::lab::{Process, Watched, can_list, foreign, key, list_or_skip, node_or_skip, short};

const HERE: &str = "127.0.0.1";
const BYTES: usize = 100_000;

fn exchange(client: &mut Process, server: &mut Process, name: &str) {
    client.send_bytes(name, BYTES);
    server.receive_bytes(name, BYTES);
    server.send_bytes(name, BYTES);
    client.receive_bytes(name, BYTES);
}

/// By flow: opened, closed, connections without known bytes that ended, and that are open.
fn counts(watched: &Watched, key: FlowKey) -> Option<[u64; 4]> {
    let it = watched.flows.get(&key)?;
    Some([it.opened, it.closed, it.without_bytes, it.open_without_bytes])
}

fn redirected_connections_have_unknown_bytes(is_attached_before: bool) {
    let node = node_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let (past, plain) = (server.listen("past", "127.0.0.1:0"), server.listen("plain", "127.0.0.1:0"));
    let attach = || foreign::shortcut(node.root(), past);
    let mut other = is_attached_before.then(attach);
    let mut watched = node.capture(Attach::SockOps);
    other.get_or_insert_with(attach);
    // Goes behind the other program.
    watched.read();
    for (port, listener) in [(past, "past"), (plain, "plain")] {
        client.connect(listener, format_args!("{HERE}:{port}"));
        server.accept(listener, listener);
        exchange(&mut client, &mut server, listener);
        server.begin_serve(listener, short(3, 10, 20));
        client.call(format_args!("{HERE}:{port}"), short(3, 10, 20));
        server.finish();
    }
    let keys = |client: &mut Process, server: &mut Process, port| {
        [key(client, Role::Client, HERE, HERE, port), key(server, Role::Server, HERE, HERE, port)]
    };
    let (past, plain) = (keys(&mut client, &mut server, past), keys(&mut client, &mut server, plain));
    let open = u64::from(can_list());
    let expect = |watched: &mut Watched, of_past, of_plain| {
        watched.until("the counts", |watched| {
            past.iter().all(|key| counts(watched, *key) == Some(of_past))
                && plain.iter().all(|key| counts(watched, *key) == Some(of_plain))
        });
    };
    // Where nothing is listed, all open connections have unknown bytes.
    expect(&mut watched, [4, 3, 3, 1], [4, 3, 0, 1 - open]);
    // The client's end closes one, the server's end the other one.
    client.close("past");
    server.await_end("past");
    server.close("past");
    server.close("plain");
    client.await_end("plain");
    client.close("plain");
    expect(&mut watched, [4, 4, 4, 0], [4, 4, 0, 0]);
    for key in past {
        assert!(
            watched.flows[&key].bytes_sent < BYTES as u64,
            "the other program redirects nothing: {:?}",
            watched.flows
        );
    }
    let bytes = plain.map(|key| (watched.flows[&key].bytes_sent, watched.flows[&key].bytes_received));
    let (requests, responses) = (BYTES as u64 + 3 * 10, BYTES as u64 + 3 * 20);
    assert_eq!(bytes, [(requests, responses), (responses, requests)]);
    watched.assert_nothing_lost();
}

#[test]
fn redirected_connections_have_unknown_bytes_where_the_capture_came_later() {
    redirected_connections_have_unknown_bytes(true);
}

#[test]
fn redirected_connections_have_unknown_bytes_where_the_other_program_came_later() {
    redirected_connections_have_unknown_bytes(false);
}

/// A process can add a socket to a map and close it between two listings.
#[test]
fn connections_without_payload_are_uncertain_while_there_are_such_programs() {
    let node = node_or_skip!();
    list_or_skip!();
    let (mut client, mut server) = (node.process("client"), node.process("server"));
    let port = server.listen("l", "127.0.0.1:0");
    let mut watched = node.capture(Attach::SockOps);
    let key = key(&mut client, Role::Client, HERE, HERE, port);
    let mut end_one = |watched: &mut Watched, expected| {
        client.connect("c", format_args!("{HERE}:{port}"));
        server.accept("s", "l");
        client.close("c");
        server.await_end("s");
        server.close("s");
        watched.until("the end", |watched| counts(watched, key) == Some(expected));
    };
    end_one(&mut watched, [1, 1, 0, 0]);
    let other = foreign::shortcut(node.root(), 1);
    watched.capture.list_again();
    watched.read();
    end_one(&mut watched, [2, 2, 1, 0]);
    drop(other);
}
