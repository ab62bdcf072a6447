//! Tests the whole path with an oracle: pods of every kind of workload call each other in every way. The Topology
//! objects must equal the programs' own counts, to the connection and to the byte.
#![forbid(unsafe_code)]

use scopeprobe_tests::{
    Cluster, Result,
    oracle::{
        self, agreement, expected,
        fleet::{CLOSED, Fleet, Port, ports},
    },
};
use traffic::protocol::{Behaviour, Close, Closer, Command, Connect, End, Exchange};

/// Counters are written this often, so that the test need not wait.
const SPEC: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";

/// Returns the client's part of a conversation with this server.
fn conversation(port: &Port, turn: usize) -> (u64, u64, End) {
    let some = 1 + 977 * turn as u64;
    match port.behaviour {
        Behaviour::Echo => (some, some, if turn.is_multiple_of(2) { End::Close } else { End::HalfClose }),
        Behaviour::Reply { request, response, closes: Closer::Server } => (request, response, End::AwaitServer),
        Behaviour::Sink => (some * 3, 0, End::Close),
        Behaviour::Source { bytes, .. } => (0, bytes, End::Close),
        Behaviour::Reply { .. } => unreachable!("the fleet has no such server"),
    }
}

/// Opens 50 connections before an agent starts, and transfers bytes on them.
async fn open_before_the_start(fleet: &Fleet) -> Result<()> {
    let opened = fleet
        .each_client(async |client, own, program| {
            if client >= 10 {
                return Ok(0);
            }
            let target = fleet.target(fleet.partner(client, 0, own), client % 2 == 0, client % 4 < 2, &ports()[0]);
            let plan =
                Connect { count: 5, send: 700, receive: 700, hold: Some("before".into()), ..Connect::to(target) };
            let outcome = program.connect(plan).await?;
            assert_eq!((outcome.opened, outcome.broken), (5, 0), "{program}: {outcome:?}");
            Ok(outcome.opened)
        })
        .await?;
    assert_eq!(opened.iter().sum::<u64>(), 50);
    Ok(())
}

/// Every client holds two connections at a time when many come and go, and uses them.
async fn open_long_ones(fleet: &Fleet) -> Result<()> {
    fleet
        .each_client(async |client, own, program| {
            for turn in 0..2 {
                let target = fleet.target(fleet.partner(client, turn, own), turn == 1, client % 2 == 1, &ports()[0]);
                let plan = Connect { send: 11, receive: 11, hold: Some("long".into()), ..Connect::to(target) };
                program.connect(plan).await?;
            }
            program.outcome(&Command::Exchange(Exchange { held: "long".into(), send: 50_000, receive: 50_000 })).await
        })
        .await?;
    Ok(())
}

/// 5,000 connections that last as long as their bytes take, to all servers, in both ways and families; and 200 attempts
/// that are refused.
async fn open_short_ones(fleet: &Fleet) -> Result<()> {
    let outcomes = fleet
        .each_client(async |client, own, program| {
            let (mut opened, mut refused) = (0, 0);
            for turn in 0..5 {
                let port = &ports()[(client + turn) % 4];
                let (send, receive, end) = conversation(port, turn);
                let target =
                    fleet.target(fleet.partner(client, turn, own), (client + turn) % 3 > 0, turn % 2 == 0, port);
                let plan = Connect { count: 25, concurrency: 3, send, receive, end, ..Connect::to(target) };
                let outcome = program.connect(plan).await?;
                assert_eq!((outcome.opened, outcome.broken), (25, 0), "{program} → {target}: {outcome:?}");
                opened += outcome.opened;
            }
            let closed = Port { service: CLOSED.0, server: CLOSED.1, ..ports()[0].clone() };
            let other = fleet.partner(client, 1, own);
            for (through_service, count) in [(false, 2), (true, 3)] {
                let target = fleet.target(other, through_service, client % 2 == 0, &closed);
                let outcome = program.connect(Connect { count, ..Connect::to(target) }).await?;
                refused += outcome.failed.refused;
            }
            Ok((opened, refused))
        })
        .await?;
    let sum = outcomes.iter().fold((0, 0), |sum, (opened, refused)| (sum.0 + opened, sum.1 + refused));
    assert_eq!(sum, (5000, 200));
    Ok(())
}

async fn close(fleet: &Fleet, held: &str, count: Option<u64>) -> Result<()> {
    fleet
        .each_client(async |client, _, program| {
            if held == "before" && client >= 10 {
                return Ok(());
            }
            program.outcome(&Command::Close(Close { held: held.into(), count, end: End::Close })).await.map(|_| ())
        })
        .await?;
    Ok(())
}

async fn exchange_on_the_old_ones(fleet: &Fleet) -> Result<()> {
    fleet
        .each_client(async |client, _, program| {
            if client < 10 {
                let more = Exchange { held: "before".into(), send: 1300, receive: 1300 };
                program.outcome(&Command::Exchange(more)).await?;
            }
            Ok(())
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn every_connection_of_twenty_pods_is_shown_exactly() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let fleet = Fleet::launch(cluster.namespace("exact").await?).await?;
    assert_eq!(fleet.members.len(), 20);
    let nodes: std::collections::BTreeSet<_> = fleet.members.iter().map(|member| &member.node).collect();
    assert_eq!(nodes.len(), 2, "the pods are on two nodes");

    open_before_the_start(&fleet).await?;
    cluster.probe(SPEC).await?;
    agreement::exact(&fleet, "what was there before").await?;

    open_long_ones(&fleet).await?;
    open_short_ones(&fleet).await?;
    exchange_on_the_old_ones(&fleet).await?;
    agreement::exact(&fleet, "long ones open").await?;

    close(&fleet, "before", Some(2)).await?;
    close(&fleet, "long", None).await?;
    agreement::exact(&fleet, "long ones closed").await?;

    let edges: oracle::Edges = expected::edges(&fleet).await?;
    let clients: u64 = edges.values().map(|edge| edge.opened).sum();
    assert_eq!(clients, 50 + 80 + 5000);
    Ok(())
}
