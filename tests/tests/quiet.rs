//! Tests write behavior: without new edges, only counters are written; without traffic, nothing is.
//!
//! Lasts 75 seconds, in which everything that the operator repeats happens: comparisons with the desired state every ten
//! seconds, housekeeping every minute. `scripts/test-long quiet` makes it five minutes with the chart's own intervals.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::SocketAddr,
    time::Duration,
};

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use scopeprobe_tests::{
    Cluster, Error, Result,
    audit::Request,
    chart, eventually,
    namespace::Namespace,
    traffic_pod::{Traffic, container},
    versions::Versions,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use traffic::protocol::{Answer, Command, Connect, Exchange};

/// Counters are written often, so that there is much to compare. No edge is so old that it goes meanwhile.
const SPEC: &str = "{topology: {counterInterval: 1s, retention: 168h}}";
/// Longer than the longest interval of what the operator repeats.
const SECONDS: u64 = 75;
/// User of the operator.
const OPERATOR: &str = "system:serviceaccount:scopeprobe-system:scopeprobe-operator";
/// Number of bytes in each direction over a held connection.
const HELD_BYTES: u64 = 10;
/// Between two rounds of traffic.
const PAUSE: Duration = Duration::from_secs(2);
/// Port without a listener.
const CLOSED: u16 = 9;

fn period() -> Duration {
    let seconds = env::var("SCOPEPROBE_QUIET_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(SECONDS))
}

fn manifests() -> String {
    let workload = |name: &str, replicas: u32, node: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "nodeSelector": {"kubernetes.io/hostname": node},
                        "terminationGracePeriodSeconds": 0,
                        "containers": [container("main"), container("side")],
                    },
                },
            },
        })
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
        "spec": {
            "selector": {"app": "server"},
            "ports": [{"name": "echo", "port": 80, "targetPort": 8080}, {"name": "closed", "port": CLOSED}],
        },
    });
    let all = [workload("clients", 3, "node-2"), workload("server", 1, "node-1"), service];
    all.map(|object| object.to_string()).join("\n---\n")
}

/// Three pods of one workload, with two containers each, and the server they call, at two ports.
async fn launch(namespace: &Namespace) -> Result<(Vec<Traffic>, Vec<SocketAddr>)> {
    namespace.apply(&manifests()).await?;
    let servers = namespace.ready_pods("app=server", 1).await?;
    namespace.ready_pods("app=clients", 3).await?;
    let server = namespace.traffic(servers[0].metadata.name.as_deref().unwrap_or_default(), "main");
    server.echo("0.0.0.0:8080").await?;
    let service = namespace.api::<Service>().get("server").await.map_err(Error::api("get the Service"))?;
    let ip = service.spec.and_then(|spec| spec.cluster_ip).and_then(|ip| ip.parse().ok());
    let ip = ip.ok_or_else(|| Error::Unexpected("the Service has no address".to_owned()))?;
    let direct = namespace.pod_ips(&server.pod).await?[0];
    let clients = namespace.traffic_of("app=clients").await?;
    let service = SocketAddr::new(ip, 80);
    eventually("the Service to answer", async || {
        let outcome = clients[0].connect(Connect { timeout_ms: 1000, ..Connect::to(service) }).await;
        match outcome.map_err(|error| error.to_string())? {
            outcome if outcome.opened == 1 => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        }
    })
    .await?;
    Ok((clients, vec![SocketAddr::new(direct, 8080), service]))
}

/// Connections that stay open, from every client to every target.
async fn hold(clients: &[Traffic], targets: &[SocketAddr]) -> Result<()> {
    for client in clients {
        for target in targets {
            let held = Some("held".to_owned());
            client
                .connect(Connect { send: HELD_BYTES, receive: HELD_BYTES, hold: held, ..Connect::to(*target) })
                .await?;
        }
    }
    Ok(())
}

/// Waits until what was sent over held connections is shown.
async fn held_bytes_are_shown(cluster: &Cluster, namespace: &str, connections: usize) -> Result<()> {
    let kind = GroupVersionKind::gvk(crds::GROUP, crds::VERSION, "Topology");
    let api = Api::<DynamicObject>::namespaced_with(
        cluster.client.clone(),
        namespace,
        &ApiResource::from_gvk_with_plural(&kind, "topologies"),
    );
    let sent = HELD_BYTES * connections as u64;
    eventually("the bytes of held connections to be shown", async || {
        for name in ["deployment-server", "deployment-clients"] {
            let topology = api.get(name).await.map_err(|error| error.to_string())?;
            let totals = &topology.data["status"]["totals"];
            if totals["bytesSent"] != sent || totals["bytesReceived"] != sent {
                return Err(format!("{name}: {totals} instead of {sent} bytes each way"));
            }
        }
        Ok(())
    })
    .await
}

/// Short connections and refused ones, by every client to every target, without an end.
async fn repeat(clients: &[Traffic], targets: &[SocketAddr]) -> Result<()> {
    for client in clients {
        for target in targets {
            let once = Connect { send: 100, receive: 100, timeout_ms: 5000, every_ms: 500, ..Connect::to(*target) };
            let refused = Connect { every_ms: 2000, ..Connect::to(SocketAddr::new(target.ip(), CLOSED)) };
            for plan in [once, refused] {
                let plan = Connect { count: u64::from(u32::MAX), background: true, ..plan };
                let answer = client.ask(&Command::Connect(plan)).await?;
                assert!(matches!(answer, Answer::Running(_)), "{client}: {answer:?}");
            }
        }
    }
    Ok(())
}

/// Uses what is held, and makes one client after the other the busiest.
async fn stay_busy(clients: &[Traffic], targets: &[SocketAddr], until: Instant) -> Result<()> {
    for round in 0.. {
        for client in clients {
            let more = Exchange { held: "held".into(), send: 1000, receive: 1000 };
            let outcome = client.outcome(&Command::Exchange(more)).await?;
            assert_eq!((outcome.broken, outcome.sent), (0, 2000), "{client}: {outcome:?}");
        }
        let count = 8 * (round as u64 + 1);
        for target in targets {
            let plan = Connect { count, send: 100, receive: 100, ..Connect::to(*target) };
            let outcome = clients[round % clients.len()].connect(plan).await?;
            assert_eq!(outcome.opened, count, "{outcome:?}");
        }
        if Instant::now() + PAUSE >= until {
            break;
        }
        sleep(PAUSE).await;
    }
    sleep_until(until).await;
    Ok(())
}

/// Removes the fields that may change while the same peers communicate.
fn structure(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
    }
    if let Some(status) = object["status"].as_object_mut() {
        // Counters over time: written with the others, and never alone.
        status.remove("coverageRecord");
        status.remove("checkpoint");
    }
    strip(&mut object["status"]);
    object
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let counters = ["opened", "active", "failed", "bytesSent", "bytesReceived", "seen"];
            // Bytes of an open connection may be unknown for a moment on a busy machine.
            for counter in counters.into_iter().chain(["retransmits", "rttMicroseconds", "withoutBytes"]) {
                if fields.get(counter).is_some_and(Value::is_number) {
                    fields.remove(counter);
                }
            }
            // The busiest pods, and times of what has happened: written with counters.
            for field in ["pods", "lastSeen", "lastFailed"] {
                fields.remove(field);
            }
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Waits until no structure has changed for a while; a change of structure has nothing to wait for then.
async fn settle(versions: &[&Versions]) -> Result<()> {
    let mut before: Vec<BTreeMap<_, _>> = Vec::new();
    let mut since = Instant::now();
    eventually("all structure to settle", async || {
        let now: Vec<_> = versions.iter().map(|versions| versions.latest(structure)).collect();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        let calm = since.elapsed();
        if calm >= Duration::from_secs(15) { Ok(()) } else { Err(format!("the last change was {calm:?} ago")) }
    })
    .await
}

/// All versions of the objects whose names begin so, a line each, to find out what has changed.
fn versions_of(objects: &Versions, prefix: &str) -> String {
    let of = |name: &String| name.starts_with(prefix);
    let here = objects.taken().into_iter().filter(|(name, _)| of(name));
    let lines = here
        .flat_map(|(name, versions)| versions.into_iter().map(move |version| format!("{name}: {}", version["status"])));
    lines.collect::<Vec<_>>().join("\n")
}

fn assert_structure_stays(what: &str, versions: &Versions) -> usize {
    let mut seen = 0;
    for (name, versions) in versions.taken() {
        seen += versions.len();
        let mut structures = versions.into_iter().map(structure);
        let Some(first) = structures.next() else { continue };
        for later in structures {
            assert_eq!(first, later, "the structure of the {what} {name} has changed");
        }
    }
    seen
}

/// Returns whether the operator may make this write while only counters change.
fn is_counters(write: &Request) -> bool {
    let statuses = ["topologies", "nodeprobes"];
    write.resource == "leases"
        || write.subresource == "status" && write.verb == "patch" && statuses.contains(&write.resource.as_str())
}

#[tokio::test]
async fn operator_writes_only_counters_without_new_peers() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    cluster.probe(SPEC).await?;
    let (busy, silent) = (cluster.namespace("busy").await?, cluster.namespace("silent").await?);
    let (clients, targets) = launch(&busy).await?;
    let (silent_clients, silent_targets) = launch(&silent).await?;
    hold(&clients, &targets).await?;
    hold(&silent_clients, &silent_targets).await?;
    repeat(&clients, &targets).await?;
    held_bytes_are_shown(&cluster, &silent.name, silent_clients.len() * silent_targets.len()).await?;

    let topologies = Versions::of(&cluster.client, "Topology", "topologies").await?;
    let nodes = Versions::of(&cluster.client, "NodeProbe", "nodeprobes").await?;
    let probes = Versions::of(&cluster.client, "ScopeProbe", "scopeprobes").await?;
    settle(&[&topologies, &nodes, &probes]).await?;
    for versions in [&topologies, &nodes, &probes] {
        versions.forget_earlier();
    }
    let audit = cluster.audit()?;
    let mark = audit.mark()?;
    stay_busy(&clients, &targets, Instant::now() + period()).await?;

    let writes = audit.writes_since(mark, |write| write.user == OPERATOR)?;
    let wrong: Vec<_> = writes.iter().filter(|write| !is_counters(write)).collect();
    assert!(wrong.is_empty(), "writes of more than counters: {wrong:#?}\n{}", versions_of(&probes, ""));
    let in_silence: Vec<_> = writes.iter().filter(|write| write.namespace == silent.name).collect();
    let written = || versions_of(&topologies, &format!("{}/", silent.name));
    assert!(in_silence.is_empty(), "writes where nothing happens: {in_silence:#?}\n{}", written());
    let here: Vec<_> =
        writes.iter().filter(|write| write.namespace == chart::NAMESPACE && write.resource == "leases").collect();
    assert!(!here.is_empty(), "the operator has written nothing at all: does it run?");
    let counted = writes.iter().filter(|write| write.namespace == busy.name).count();
    assert!(counted > 10, "counters of the busy namespace were written {counted} times only: does anybody talk?");

    let versions = assert_structure_stays("Topology", &topologies);
    assert!(versions > 10, "{versions} versions were seen: is the watch alive?");
    assert_structure_stays("NodeProbe", &nodes);
    assert_structure_stays("ScopeProbe", &probes);
    assert!(topologies.removed().is_empty(), "removed: {:?}", topologies.removed());
    println!("{} writes of counters, {versions} versions of Topologies", writes.len());
    assert_rank_has_changed(&topologies, &busy.name)
}

/// That the test could have seen a list in the order of counters: the busiest pod was not the same all the time.
fn assert_rank_has_changed(topologies: &Versions, namespace: &str) -> Result<()> {
    let name = format!("{namespace}/deployment-clients");
    let all = topologies.taken();
    let versions = all.get(&name).ok_or_else(|| Error::Unexpected(format!("no Topology {name}")))?;
    let busiest = |version: &Value| {
        let edges = version["status"]["egress"].as_array()?;
        let edge = edges.iter().max_by_key(|edge| edge["opened"].as_u64())?;
        let pods = edge["pods"].as_array()?;
        pods.iter().max_by_key(|pod| pod["opened"].as_u64()).map(|pod| format!("{}/{}", pod["pod"], pod["container"]))
    };
    let busiest: BTreeSet<_> = versions.iter().filter_map(busiest).collect();
    assert!(busiest.len() > 1, "only {busiest:?} was ever the busiest");
    Ok(())
}
