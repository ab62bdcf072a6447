//! The connections, and how many of them there were by those who have made them.

use std::{collections::BTreeMap, time::Instant};

use topology::flow::{FlowKey, Role};

use crate::lab::{Process, key, routed::addresses};

/// Edges, connections of each, and for how many milliseconds each lives.
const LONG: (usize, usize, usize) = (6, 3, 2200);
/// Edges, connections of each, and how many a second in all.
const SHORT: (usize, usize, usize) = (40, 13, 100);
/// Attempts that are refused.
const REFUSED: u64 = 25;

/// Kind of an edge's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Long,
    Short,
    Refused,
}

/// Connections that were made on an edge.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub kind: Kind,
    pub opened: u64,
    pub failed: u64,
    pub sent: u64,
    pub received: u64,
}

/// Connections that were made.
#[derive(Debug, Default)]
pub struct Oracle {
    pub edges: BTreeMap<FlowKey, Done>,
    /// Short connections a second.
    pub rate: u128,
}

/// A way from a client to a listener.
struct Way {
    listener: String,
    dial: String,
    /// The addresses as they are to be shown.
    client: String,
    server: String,
    port: u16,
}

/// Bytes of a connection, there and back.
type Payload = (u64, u64);

impl Oracle {
    /// Both ends of so many connections.
    fn add(&mut self, kind: Kind, [client, server]: [FlowKey; 2], opened: u64, (there, back): Payload) {
        let done = Done { kind, opened, failed: 0, sent: opened * there, received: opened * back };
        self.edges.insert(client, done);
        self.edges.insert(server, Done { sent: done.received, received: done.sent, ..done });
    }

    /// Adds the counts of client and server, which count separately.
    fn add_all(
        &mut self,
        kind: Kind,
        ways: &[Way],
        [client, server]: [&mut Process; 2],
        [made, accepted]: [Vec<u64>; 2],
        payload: Payload,
    ) {
        assert_eq!(made, accepted);
        assert_eq!(made.len(), ways.len());
        for (way, made) in ways.iter().zip(made) {
            let ends = [
                key(client, Role::Client, &way.client, &way.server, way.port),
                key(server, Role::Server, &way.server, &way.client, way.port),
            ];
            self.add(kind, ends, made, payload);
        }
    }
}

/// Long ones and short ones at a time, between four pods, over IPv4, IPv6 and sockets of IPv6 that speak IPv4; then
/// attempts that are refused.
pub fn between_pods([long_client, long_server, short_client, short_server]: &mut [Process; 4]) -> Oracle {
    let mut oracle = Oracle::default();
    let (edges, times, life) = LONG;
    let long = ways(long_server, edges, 0, 1);
    long_server.begin(&format!("serve-each {times} 1000 500 0 {}", listeners(&long)));
    long_client.begin(&format!("hold-each {times} {life} 1000 500 {}", targets(&long)));

    let (edges, times, rate) = SHORT;
    let short = ways(short_server, edges, 2, 3);
    short_server.begin(&format!("serve-each {times} 10 20 3 {}", listeners(&short)));
    short_client.begin(&format!("call-in-turns {} {rate} {}", edges * times, targets(&short)));

    let (made, milliseconds) = counts(&short_client.finish());
    let (accepted, _) = counts(&short_server.finish());
    oracle.rate = a_second(made.iter().sum(), milliseconds.into());
    oracle.add_all(Kind::Short, &short, [short_client, short_server], [made, accepted], (10, 20));
    let (made, shortest) = counts(&long_client.finish());
    let (accepted, _) = counts(&long_server.finish());
    assert!(shortest >= 2000, "they live for two seconds at least: {shortest} ms");
    oracle.add_all(Kind::Long, &long, [long_client, long_server], [made, accepted], (1000, 500));

    let ([from, _], [to, _]) = (addresses(2), addresses(3));
    assert_eq!(short_client.tell(&format!("refused {to}:9 {REFUSED}")), "done");
    let refused = Done { kind: Kind::Refused, opened: 0, failed: REFUSED, sent: 0, received: 0 };
    oracle.edges.insert(key(short_client, Role::Client, &from, &to, 9), refused);
    oracle
}

/// As fast as this machine can, both ends in one process, in so many threads.
pub fn storm(process: &mut Process, threads: u64, times: u64) -> Oracle {
    let names: Vec<_> = (0..threads).map(|number| format!("l{number}")).collect();
    let ports: Vec<_> = names.iter().map(|name| process.listen(name, "127.0.0.1:0")).collect();
    let begun = Instant::now();
    assert_eq!(process.tell(&format!("storm-at {times} 20 30 {}", names.join(" "))), "done");
    let mut oracle = Oracle { rate: a_second(threads * times, begun.elapsed().as_millis()), ..Oracle::default() };
    for port in ports {
        let ends = [Role::Client, Role::Server].map(|role| key(process, role, "127.0.0.1", "127.0.0.1", port));
        oracle.add(Kind::Short, ends, times, (20, 30));
    }
    oracle
}

fn a_second(count: u64, milliseconds: u128) -> u128 {
    u128::from(count) * 1000 / milliseconds.max(1)
}

/// So many of every kind of address in turn, between the pods at these indices.
fn ways(server: &mut Process, count: usize, from: usize, to: usize) -> Vec<Way> {
    let ([client_v4, client_v6], [server_v4, server_v6]) = (addresses(from), addresses(to));
    (0..count)
        .map(|number| {
            let listener = format!("l{number}");
            let (listen, dial, client, server_address) = match number % 3 {
                0 => ("0.0.0.0:0", server_v4.clone(), &client_v4, &server_v4),
                1 => ("[::]:0", format!("[{server_v6}]"), &client_v6, &server_v6),
                _ => ("[::]:0", format!("[::ffff:{server_v4}]"), &client_v4, &server_v4),
            };
            let port = server.listen(&listener, listen);
            Way {
                listener,
                dial: format!("{dial}:{port}"),
                client: client.clone(),
                server: server_address.clone(),
                port,
            }
        })
        .collect()
}

fn listeners(ways: &[Way]) -> String {
    ways.iter().map(|way| way.listener.as_str()).collect::<Vec<_>>().join(" ")
}

fn targets(ways: &[Way]) -> String {
    ways.iter().map(|way| way.dial.as_str()).collect::<Vec<_>>().join(" ")
}

/// Parses a process's counts, and the time it took.
fn counts(answer: &str) -> (Vec<u64>, u64) {
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("the process said: {answer}"));
    let (counts, milliseconds) = answer.split_once(' ').unwrap_or((answer, "0"));
    (counts.split(',').map(number).collect(), number(milliseconds))
}
