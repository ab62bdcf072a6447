//! Measures the time from `connect()` in a pod to the Topology object, as a watch receives it: 200 attempts, each at a
//! new port. Client and watch use the same machine's clock.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use crds::Topology;
use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, ResourceExt as _,
    api::{WatchEvent, WatchParams},
};
use scopeprobe_tests::{Cluster, namespace::Namespace, traffic_pod::Traffic};
use tokio::time::{Instant, timeout_at};
use traffic::protocol::Connect;

const TRIES: u16 = 200;
const FIRST_PORT: u16 = 20_000;
/// An edge that is not there by then never comes.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two tries, so that each finds a system at rest: an object is not written more than twice a second.
const REST: Duration = Duration::from_millis(700);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let tries = env::var("TRIES").ok().map_or(Ok(TRIES), |text| text.parse()).context("TRIES is a number of ports")?;
    let cluster = Cluster::shared().await?;
    cluster.install_chart_as_shipped(&[]).await?;
    cluster.probe("{topology: {maxEdges: 500}}").await?;
    let namespace = cluster.namespace("latency").await?;
    let server = namespace.traffic_pod("server", Some("node-1"), &["main"]).await?.remove(0);
    let client = namespace.traffic_pod("client", Some("node-2"), &["main"]).await?.remove(0);
    eprintln!("listening at {tries} ports");
    for port in ports(tries) {
        server.echo(&format!("[::]:{port}")).await?;
    }
    let latencies = measure(&namespace, &client, tries).await?;
    print(latencies);
    Ok(())
}

fn ports(tries: u16) -> impl Iterator<Item = u16> {
    FIRST_PORT..FIRST_PORT.saturating_add(tries)
}

async fn measure(namespace: &Namespace, client: &Traffic, tries: u16) -> anyhow::Result<Vec<Duration>> {
    let ip = namespace.pod_ips("server").await?[0];
    let topologies: Api<Topology> = namespace.api();
    let mut events = topologies.watch(&WatchParams::default(), "0").await.context("cannot watch Topologies")?.boxed();
    let mut arrivals = BTreeMap::new();
    let mut latencies = Vec::new();
    for port in ports(tries) {
        let plan = Connect { send: 1, receive: 1, ..Connect::to((ip, port).into()) };
        let outcome = client.connect(plan).await?;
        anyhow::ensure!(outcome.opened == 1, "the try at port {port} did not connect: {outcome:?}");
        let arrived = arrival(&mut events, &mut arrivals, port).await?;
        let began = UNIX_EPOCH + Duration::from_micros(outcome.began_unix_micros);
        latencies.push(arrived.duration_since(began).context("an edge was there before its connection")?);
        if latencies.len() % 20 == 0 {
            eprintln!("{} of {tries}", latencies.len());
        }
        tokio::time::sleep(REST).await;
    }
    Ok(latencies)
}

/// Returns the time at which the client's object first showed an edge at this port.
async fn arrival(
    events: &mut BoxStream<'_, kube::Result<WatchEvent<Topology>>>,
    arrivals: &mut BTreeMap<u16, SystemTime>,
    port: u16,
) -> anyhow::Result<SystemTime> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(arrived) = arrivals.get(&port) {
            return Ok(*arrived);
        }
        let event = timeout_at(deadline, events.next()).await;
        let event = event.with_context(|| format!("the edge at port {port} did not come within {PATIENCE:?}"))?;
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) =
            event.context("the watch has ended")?.context("the watch failed")?
        else {
            continue;
        };
        if object.name_any() == "pod-client" {
            let now = SystemTime::now();
            for edge in object.status.map(|status| status.egress).unwrap_or_default() {
                arrivals.entry(edge.port).or_insert(now);
            }
        }
    }
}

fn print(mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() * percent).div_ceil(100).clamp(1, latencies.len()) - 1];
    println!(
        "from connect() to the Topology object, {} tries: median {:.0?}, p90 {:.0?}, p99 {:.0?}, longest {:.0?}",
        latencies.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}
