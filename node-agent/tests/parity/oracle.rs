//! The connections, and how many of them there were by those who have made them.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use topology::flow::{FlowKey, Role};
use traffic::script::step::Step;

use crate::lab::{Process, key, routed::addresses, short as short_connections, socket_address};

/// Edges, connections of each, and for how many milliseconds each lives.
const LONG: (usize, u64, u64) = (6, 3, 2200);
/// Edges, connections of each, and how many a second in all.
const SHORT: (usize, u32, u32) = (40, 13, 100);
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
    dial: SocketAddr,
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
    let connections = short_connections(times, 1000, 500);
    long_server.send(&Step::ServeEach { listeners: listeners(&long), connections, server_closes_every: 0 });
    long_client.send(&Step::HoldEach { targets: targets(&long), connections, hold_ms: life });

    let (edges, times, rate) = SHORT;
    let short = ways(short_server, edges, 2, 3);
    let connections = short_connections(times.into(), 10, 20);
    short_server.send(&Step::ServeEach { listeners: listeners(&short), connections, server_closes_every: 3 });
    let count = u32::try_from(edges).unwrap() * times;
    short_client.send(&Step::CallInTurns { targets: targets(&short), count, rate });

    let (made, milliseconds) = short_client.finish_counts();
    let (accepted, _) = short_server.finish_counts();
    oracle.rate = a_second(made.iter().sum(), milliseconds.into());
    oracle.add_all(Kind::Short, &short, [short_client, short_server], [made, accepted], (10, 20));
    let (made, shortest) = long_client.finish_counts();
    let (accepted, _) = long_server.finish_counts();
    assert!(shortest >= 2000, "they live for two seconds at least: {shortest} ms");
    oracle.add_all(Kind::Long, &long, [long_client, long_server], [made, accepted], (1000, 500));

    let ([from, _], [to, _]) = (addresses(2), addresses(3));
    short_client.fail_to_connect(format_args!("{to}:9"), REFUSED);
    let refused = Done { kind: Kind::Refused, opened: 0, failed: REFUSED, sent: 0, received: 0 };
    oracle.edges.insert(key(short_client, Role::Client, &from, &to, 9), refused);
    oracle
}

/// As fast as this machine can, both ends in one process, in so many threads.
pub fn storm(process: &mut Process, threads: u64, times: u64) -> Oracle {
    let names: Vec<_> = (0..threads).map(|number| format!("l{number}")).collect();
    let ports: Vec<_> = names.iter().map(|name| process.listen(name, "127.0.0.1:0")).collect();
    let begun = Instant::now();
    process.run(&Step::ServeAndCallAt { listeners: names, connections: short_connections(times, 20, 30) });
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
                dial: socket_address(format_args!("{dial}:{port}")),
                client: client.clone(),
                server: server_address.clone(),
                port,
            }
        })
        .collect()
}

fn listeners(ways: &[Way]) -> Vec<String> {
    ways.iter().map(|way| way.listener.clone()).collect()
}

fn targets(ways: &[Way]) -> Vec<SocketAddr> {
    ways.iter().map(|way| way.dial).collect()
}
