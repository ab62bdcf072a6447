//! As many connections in a second as the machine can make, with packets processed in interrupts on every CPU: nothing
//! is missed and nothing is counted twice.
#![forbid(unsafe_code)]

use std::time::Instant;

use crds::{Losses, Unobserved};
use futures::future::try_join_all;
use kube::ResourceExt as _;
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    oracle::{
        agreement,
        fleet::{CLOSED, Fleet, Member, Port, ports},
    },
    traffic_pod::Traffic,
};
use traffic::protocol::{Behaviour, Connect, End, Outcome};

/// Counters are written this often, so that the test need not wait.
const SPEC: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";
/// Connections of each of the eight clients, made four at a time.
const EACH: u64 = 8_000;
/// Attempts of each that are refused.
const REFUSED: u64 = 500;

/// Path and plan of a client.
#[derive(Clone, Copy, Debug)]
struct Way {
    same_node: bool,
    through_service: bool,
    v6: bool,
}

/// Every way, each for a client of its own.
fn ways() -> Vec<Way> {
    let both = [false, true];
    let ways = both.into_iter().flat_map(|same_node| {
        both.into_iter().flat_map(move |through_service| both.map(|v6| Way { same_node, through_service, v6 }))
    });
    ways.collect()
}

/// A pod of another workload on the same or the other node; where a Service is called, its pods are on both.
fn server<'a>(fleet: &'a Fleet, client: &Member, way: Way) -> Result<&'a Member> {
    let fits = |other: &&Member| other.workload != client.workload && (other.node == client.node) == way.same_node;
    let found = fleet.members.iter().find(fits);
    found.ok_or_else(|| Error::Unexpected(format!("no server for {} to call ({way:?})", client.pod)))
}

/// Ends so that the client's port is free again at once: the server closes first, or the client resets.
fn conversation(port: &Port) -> (u64, u64, End) {
    match port.behaviour {
        Behaviour::Reply { request, response, .. } => (request, response, End::AwaitServer),
        _ => (100, 100, End::Reset),
    }
}

async fn storm(fleet: &Fleet, client: (&Member, &Traffic), way: Way, port: &Port) -> Result<Outcome> {
    let (own, program) = client;
    let server = server(fleet, own, way)?;
    let (send, receive, end) = conversation(port);
    let target = fleet.target(server, way.through_service, way.v6, port);
    let plan = Connect { count: EACH, concurrency: 4, send, receive, end, ..Connect::to(target) };
    let outcome = program.connect(plan).await?;
    assert_eq!((outcome.opened, outcome.broken), (EACH, 0), "{program} → {target} ({way:?}): {outcome:?}");
    let closed = Port { service: CLOSED.0, server: CLOSED.1, ..port.clone() };
    let target = fleet.target(server, way.through_service, way.v6, &closed);
    let refused = program.connect(Connect { count: REFUSED, concurrency: 4, ..Connect::to(target) }).await?;
    assert_eq!(refused.failed.refused, REFUSED, "{program} → {target} ({way:?}): {refused:?}");
    Ok(outcome)
}

/// Asserts that every node's agent reports no loss.
async fn assert_nothing_lost(cluster: &Cluster) -> Result<()> {
    for probe in cluster.node_probes().await? {
        let status = probe.status.clone().unwrap_or_default();
        // What came with the next read instead of at once was not missed.
        let losses = Losses { new_flow_notifications: 0, ..status.losses };
        let seen = (losses, status.lost, status.unobserved, status.coverage.as_str());
        assert_eq!(seen, (Losses::default(), 0, Unobserved::default(), "100%"), "{}", probe.name_any());
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_missed_at_full_speed() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let fleet = Fleet::launch(cluster.namespace("speed").await?).await?;
    cluster.probe(SPEC).await?;
    cluster.script(&["rps", "3", &fleet.namespace.name]).await?;

    let clients = fleet.clients();
    let begin = Instant::now();
    // One client of every other workload or so: all pods take part, as clients or servers.
    let storms = ways().into_iter().enumerate().map(|(index, way)| {
        let (own, program) = &clients[index * clients.len() / 8];
        let port = &ports()[usize::from(index % 3 != 0)];
        let fleet = &fleet;
        let port = port.clone();
        async move { storm(fleet, (own, program), way, &port).await }
    });
    let outcomes = try_join_all(storms).await?;
    let elapsed = begin.elapsed();
    let opened: u64 = outcomes.iter().map(|outcome| outcome.opened).sum();
    assert!(opened >= 60_000, "{opened}");
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = (opened + 8 * REFUSED) as f64 / elapsed.as_secs_f64();
    println!("{opened} connections and {} refused attempts in {elapsed:.1?}: {rate:.0} a second", 8 * REFUSED);

    agreement::exact(&fleet, "after the storm").await?;
    assert_nothing_lost(&cluster).await?;
    eventually("the ScopeProbe to say that nothing was missed", async || {
        let complete = cluster.probe_condition("CaptureComplete").await.map_err(|error| error.to_string())?;
        if complete.status == "True" { Ok(()) } else { Err(format!("{complete:?}")) }
    })
    .await?;
    cluster.script(&["rps", "0", &fleet.namespace.name]).await?;
    Ok(())
}
