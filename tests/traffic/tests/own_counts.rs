//! The oracle's own oracle: what clients counted and what servers counted, each by its own system calls, agrees.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use traffic::{
    program::Program,
    protocol::{Answer, Behaviour, Close, Closer, Command, Connect, End, Exchange, Listen, Outcome, Report, Unlisten},
};

fn listen(program: &Arc<Program>, address: &str, behaviour: Behaviour) -> SocketAddr {
    let Ok(address) = address.parse() else { panic!("{address} is no address") };
    let listen = Listen { address, v6_only: false, behaviour };
    match program.answer(Command::Listen(listen)) {
        Answer::Listening(address) => address,
        other => panic!("{other:?}"),
    }
}

fn outcome(program: &Arc<Program>, command: Command) -> Outcome {
    match program.answer(command) {
        Answer::Outcome(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

/// Waits until the server has seen the end of all it accepted, and `opened` of them.
fn settled(program: &Arc<Program>, opened: u64) -> Report {
    for _ in 0..3000 {
        let Answer::Report(report) = program.answer(Command::Report) else { panic!("no report") };
        let (all, open) = report.servers.iter().fold((0, 0), |sum, row| (sum.0 + row.opened, sum.1 + row.open));
        if all == opened && open == 0 {
            return report;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the server has not seen {opened} connections begin and end: {:?}", program.answer(Command::Report));
}

/// Client and server in programs of their own; returns what both counted.
fn both_counts(listen_at: &str, behaviour: Behaviour, plan: impl FnOnce(SocketAddr) -> Connect) -> (Outcome, Report) {
    let (client, server) = (Arc::new(Program::default()), Arc::new(Program::default()));
    let address = listen(&server, listen_at, behaviour);
    let outcome = outcome(&client, Command::Connect(plan(address)));
    let report = settled(&server, outcome.opened);
    assert_eq!(report.servers.len(), 1);
    let Answer::Report(own) = client.answer(Command::Report) else { panic!("no report") };
    assert_eq!((own.clients[0].opened, own.clients[0].open), (outcome.opened, 0));
    assert_eq!((own.clients[0].sent, own.clients[0].received), (outcome.sent, outcome.received));
    (outcome, report)
}

#[test]
fn both_ends_count_the_same_however_a_connection_ends() {
    let reply = |closes| Behaviour::Reply { request: 300, response: 70_000, closes };
    let cases = [
        (Behaviour::Echo, 300, 300, End::Close),
        (Behaviour::Echo, 300_000, 300_000, End::HalfClose),
        (Behaviour::Sink, 300, 0, End::Close),
        (Behaviour::Sink, 300, 0, End::HalfClose),
        (Behaviour::Source { bytes: 70_000, closes: Closer::Server }, 0, 70_000, End::AwaitServer),
        (Behaviour::Source { bytes: 300, closes: Closer::Client }, 0, 300, End::Close),
        (reply(Closer::Client), 300, 70_000, End::Close),
        (reply(Closer::Client), 300, 70_000, End::HalfClose),
        (reply(Closer::Server), 300, 70_000, End::AwaitServer),
    ];
    for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        for (behaviour, send, receive, end) in &cases {
            let (client, server) = both_counts(address, behaviour.clone(), |at| {
                // The wildcard address, called, is this machine.
                Connect { count: 40, concurrency: 4, send: *send, receive: *receive, end: *end, ..Connect::to(at) }
            });
            let row = &server.servers[0];
            let what = format!("{address} {behaviour:?} {end:?}: {client:?} {row:?}");
            assert_eq!((client.opened, client.broken, row.opened, row.broken), (40, 0, 40, 0), "{what}");
            assert_eq!((client.sent, client.received), (40 * send, 40 * receive), "{what}");
            assert_eq!((row.sent, row.received), (client.received, client.sent), "{what}");
        }
    }
}

#[test]
fn a_reset_is_seen_at_both_ends() {
    let (client, server) =
        both_counts("127.0.0.1:0", Behaviour::Sink, |at| Connect { count: 5, end: End::Reset, ..Connect::to(at) });
    assert_eq!((client.opened, client.broken), (5, 0));
    assert_eq!((server.servers[0].opened, server.servers[0].broken), (5, 5));
}

#[test]
fn an_ipv4_client_of_a_dual_stack_server_counts_as_ipv4() {
    let (client, server) =
        both_counts("[::]:0", Behaviour::Echo, |at| Connect::to(SocketAddr::new([127, 0, 0, 1].into(), at.port())));
    assert_eq!(client.opened, 1);
    assert_eq!(server.servers[0].peer.to_string(), "127.0.0.1");
}

#[test]
fn refused_attempts_are_failures_and_nothing_else() {
    let program = Arc::new(Program::default());
    let address = listen(&program, "127.0.0.1:0", Behaviour::Echo);
    assert_eq!(program.answer(Command::Unlisten(Unlisten { address })), Answer::Done);
    // A listener that waits in accept() when it is shut keeps the port until it has woken up.
    let mut refused = Outcome::default();
    for _ in 0..3000 {
        refused = outcome(&program, Command::Connect(Connect { count: 20, concurrency: 3, ..Connect::to(address) }));
        if refused.opened == 0 {
            break;
        }
    }
    assert_eq!((refused.failed.refused, refused.failed.total(), refused.opened, refused.broken), (20, 20, 0, 0));
    assert!(refused.first_error.unwrap().contains(&address.to_string()));
}

#[test]
fn held_connections_are_used_and_closed_when_told() {
    let (client, server) = (Arc::new(Program::default()), Arc::new(Program::default()));
    let address = listen(&server, "127.0.0.1:0", Behaviour::Echo);
    let held = || "a".to_owned();
    // More than wait in accept(): each holds a thread of the server.
    let plan = Connect { count: 200, concurrency: 8, hold: Some(held()), ..Connect::to(address) };
    assert_eq!(outcome(&client, Command::Connect(plan)).opened, 200);
    let exchange = outcome(&client, Command::Exchange(Exchange { held: held(), send: 10_000, receive: 10_000 }));
    assert_eq!((exchange.sent, exchange.received, exchange.broken), (2_000_000, 2_000_000, 0));
    outcome(&client, Command::Close(Close { held: held(), count: Some(150), end: End::Close }));
    let Answer::Report(report) = client.answer(Command::Report) else { panic!("no report") };
    assert_eq!((report.clients[0].opened, report.clients[0].open), (200, 50));
    outcome(&client, Command::Close(Close { held: held(), count: None, end: End::HalfClose }));
    let row = &settled(&server, 200).servers[0];
    assert_eq!((row.received, row.sent, row.broken), (2_000_000, 2_000_000, 0));
}

#[test]
fn a_run_in_the_background_can_be_stopped_and_loses_no_count() {
    let (client, server) = (Arc::new(Program::default()), Arc::new(Program::default()));
    let address = listen(&server, "127.0.0.1:0", Behaviour::Echo);
    let plan = Connect {
        count: u64::MAX,
        concurrency: 2,
        send: 10,
        receive: 10,
        every_ms: 1,
        background: true,
        ..Connect::to(address)
    };
    let Answer::Running(run) = client.answer(Command::Connect(plan)) else { panic!("it does not run") };
    let outcome = outcome(&client, Command::Stop(run));
    assert_eq!(settled(&server, outcome.opened).servers.iter().map(|row| row.received).sum::<u64>(), outcome.sent);
    assert!(matches!(client.answer(Command::Await(run)), Answer::Error(_)));
}

#[test]
fn what_a_server_leaves_out_breaks_the_plan() {
    let (client, _) = both_counts("127.0.0.1:0", Behaviour::Source { bytes: 10, closes: Closer::Server }, |at| {
        Connect { receive: 11, ..Connect::to(at) }
    });
    assert_eq!((client.opened, client.broken, client.received), (1, 1, 10));
    assert!(client.first_error.unwrap().contains("10 bytes instead of 11"));
}
