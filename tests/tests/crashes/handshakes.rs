//! Kills all agents again and again while handshakes hang, since packets to the server are dropped: the connections are
//! established while no agent runs.

use std::time::{Duration, Instant};

use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    namespace::Namespace,
    oracle::{Edges, Workload, observed},
    traffic_pod::Traffic,
};
use traffic::protocol::{Answer, Close, Command, Connect, End, Run};

const NODES: [&str; 2] = ["node-1", "node-2"];
const PORT: u16 = 9100;
/// Number of connections of each round.
const ROUND: u32 = 10;
/// Name under which all of them are held open.
const HELD: &str = "held";
/// Seconds for which rounds begin, unless `SCOPEPROBE_CRASHES_SECONDS` sets another number.
const SECONDS: u64 = 10;

fn duration() -> Duration {
    let seconds = std::env::var("SCOPEPROBE_CRASHES_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(SECONDS))
}

/// Begins the connections of a round, each of which sends its SYN at once.
async fn begin(client: &Traffic, plan: &Connect) -> Result<Run> {
    let plan = Connect { count: ROUND.into(), concurrency: ROUND, background: true, ..plan.clone() };
    match client.ask(&Command::Connect(plan)).await? {
        Answer::Running(run) => Ok(run),
        other => Err(Error::Unexpected(format!("{client} answered {other:?}"))),
    }
}

/// The only edge that either end may show.
fn is_right(edges: &Edges, opened: u64, active: u64) -> bool {
    let pod = |name: &str| -> Workload { ("Pod".to_owned(), name.to_owned()) };
    let mut edges = edges.iter();
    edges.next().is_some_and(|(name, counts)| {
        (&name.client, &name.server, name.port) == (&pod("client"), &pod("server"), Some(PORT))
            && (counts.opened, counts.active, counts.failed) == (opened, active, 0)
    }) && edges.next().is_none()
}

async fn expect(namespace: &Namespace, opened: u64, active: u64) -> Result<()> {
    eventually(&format!("{opened} connections, {active} of them open, on one edge"), async || {
        let (by_client, by_server) = observed::edges(namespace).await.map_err(|error| error.to_string())?;
        let is_right = is_right(&by_client, opened, active) && is_right(&by_server, opened, active);
        if is_right { Ok(()) } else { Err(format!("{by_client:?}\n{by_server:?}")) }
    })
    .await
}

#[tokio::test]
async fn handshakes_that_end_while_no_agent_runs_count_once_on_the_right_edge() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let namespace = cluster.namespace("handshakes").await?;
    let server = namespace.traffic_pod("server", Some(NODES[1]), &["main"]).await?.remove(0);
    let client = namespace.traffic_pod("client", Some(NODES[0]), &["main"]).await?.remove(0);
    server.echo(&format!("0.0.0.0:{PORT}")).await?;
    let target = (namespace.pod_ips("server").await?[0], PORT).into();
    let plan =
        Connect { send: 10, receive: 10, timeout_ms: 120_000, hold: Some(HELD.to_owned()), ..Connect::to(target) };
    cluster.probe(super::SPEC).await?;

    let (begun, mut opened) = (Instant::now(), 0);
    while begun.elapsed() < duration() {
        let firewall = cluster.drop_packets_to(NODES[1], PORT).await?;
        let run = begin(&client, &plan).await?;
        // The first SYNs are sent while agents run; they are sent again after one second.
        firewall.reached(ROUND.into()).await?;
        cluster.kill_agents(&NODES).await?;
        drop(firewall);
        let outcome = client.outcome(&Command::Await(run)).await?;
        opened += u64::from(ROUND);
        assert_eq!(outcome.opened, u64::from(ROUND), "{outcome:?}");
        server.served(opened, opened).await?;
        cluster.agents_ready(&NODES).await?;
    }
    println!("{opened} connections in {} s", begun.elapsed().as_secs());
    expect(&namespace, opened, opened).await?;
    client.outcome(&Command::Close(Close { held: HELD.to_owned(), count: None, end: End::Close })).await?;
    server.served(opened, 0).await?;
    expect(&namespace, opened, 0).await
}
