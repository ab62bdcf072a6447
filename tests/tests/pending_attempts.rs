//! Tests a client whose packets are dropped: its Topology shows pending attempts within seconds, and then what came of them.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use crds::{Topology, TopologyEdge, Totals};
use scopeprobe_tests::{
    Cluster, Error, Result, eventually, namespace::Namespace, outside_host::OutsideHost, traffic_pod::Traffic,
};
use traffic::protocol::{Answer, Command, Connect};

/// Address of the server. Nothing else is exchanged with it.
const SERVER: [u8; 4] = [198, 18, 7, 1];
const PORT: u16 = 9000;
/// Milliseconds after which the client gives up, which is long after the attempts are shown.
const GIVES_UP: u64 = 45_000;
/// Milliseconds for which the client waits if it is to succeed.
const WAITS: u64 = 120_000;

/// Begins attempts, and returns at once.
async fn begin(client: &Traffic, count: u32, timeout_ms: u64) -> Result<Instant> {
    let target = SocketAddr::new(IpAddr::from(SERVER), PORT);
    let plan = Connect { count: count.into(), concurrency: count, timeout_ms, background: true, ..Connect::to(target) };
    let begun = Instant::now();
    match client.ask(&Command::Connect(plan)).await? {
        Answer::Running(_) => Ok(begun),
        other => Err(Error::Unexpected(format!("{client} answered {other:?}"))),
    }
}

/// Returns the numbers of pending, opened and failed attempts of the edge to the server, and the totals.
async fn shown(namespace: &Namespace) -> std::result::Result<([u64; 3], Totals), String> {
    let object = namespace.api::<Topology>().get_opt("pod-client").await.map_err(|error| error.to_string())?;
    let status = object.and_then(|object| object.status).ok_or("there is no Topology yet")?;
    let is_servers = |edge: &&TopologyEdge| edge.peer.ip.as_deref() == Some("198.18.7.1");
    let edge = status.egress.iter().find(is_servers).ok_or("the edge is not shown")?;
    Ok(([edge.pending, edge.opened, edge.failed], status.totals.clone()))
}

/// Waits for these numbers of pending, opened and failed attempts. Until then, each of `all` attempts has one state.
async fn expect(namespace: &Namespace, all: u64, expected: [u64; 3]) -> Result<()> {
    eventually(&format!("{expected:?} attempts"), async || {
        let (attempts, totals) = shown(namespace).await?;
        assert_eq!(attempts.iter().sum::<u64>(), all, "{attempts:?}");
        assert_eq!([totals.pending, totals.opened, totals.failed], attempts);
        if attempts == expected { Ok(()) } else { Err(format!("{attempts:?}")) }
    })
    .await
}

#[tokio::test]
async fn client_whose_packets_are_dropped_shows_pending_attempts() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.probe("{topology: {counterInterval: 1s, dnsNames: false}}").await?;
    let namespace = cluster.namespace("pending").await?;
    let host = OutsideHost::start(&cluster, &[IpAddr::from(SERVER)]).await?;
    host.echo((IpAddr::from(SERVER), PORT)).await?;
    let client = namespace.traffic_pod("client", Some("node-1"), &["main"]).await?.remove(0);

    let firewall = host.drop_packets_to(PORT).await?;
    let begun = begin(&client, 2, GIVES_UP).await?;
    eventually("the attempts to be pending", async || {
        let (attempts, _) = shown(&namespace).await?;
        assert_eq!(attempts[1..], [0, 0], "they are shown before they end");
        if attempts[0] == 2 { Ok(()) } else { Err(format!("{attempts:?}")) }
    })
    .await?;
    println!("pending attempts were shown after {:.1} s", begun.elapsed().as_secs_f64());
    expect(&namespace, 2, [0, 0, 2]).await?;

    begin(&client, 1, WAITS).await?;
    eventually("the attempt to be pending", async || {
        let (attempts, _) = shown(&namespace).await?;
        if attempts == [1, 0, 2] { Ok(()) } else { Err(format!("{attempts:?}")) }
    })
    .await?;
    drop(firewall);
    expect(&namespace, 3, [0, 1, 2]).await
}
