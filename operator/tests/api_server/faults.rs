//! Faults of the API server: the operator goes on with all that is not concerned, and with everything after the fault.
//! The invented agent counts by itself all the time.

use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode, Uri};
use crds::{NodeProbe, PROBE_LABEL, ScopeProbe, Topology};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use scopeprobe_tests::{ControlPlane, Error, Result, eventually, eventually_within, manifest};

use crate::{
    agent::{CountingAgent, JUMP_HOURS},
    control_plane, pod_uid,
    process::Operator,
    proxy::{Fault, Proxy},
    shows,
};

/// The world of a test: an operator behind a proxy, and an agent.
struct World {
    control_plane: ControlPlane,
    proxy: Proxy,
    operator: Operator,
    agent: CountingAgent,
}

impl World {
    async fn new() -> Result<Self> {
        let control_plane = control_plane().await?;
        let proxy = Proxy::start(&control_plane, "operator").await?;
        let mut operator = Operator::start_behind(&proxy, "operator-1", &[])?;
        operator.is_ready().await?;
        let agent = CountingAgent::start(operator.collector(), &pod_uid(&control_plane).await?);
        let world = Self { control_plane, proxy, operator, agent };
        world.publishes().await?;
        Ok(world)
    }

    fn probe(&self) -> Api<ScopeProbe> {
        Api::all(self.control_plane.client.clone())
    }

    /// Waits until `Published` has this status, with a message that contains the words.
    async fn published(&self, status: &str, words: &str) -> Result<()> {
        eventually(&format!("Published={status} with `{words}`"), async || {
            let probe = self.probe().get("cluster").await.map_err(|error| error.to_string())?;
            let conditions = probe.status.unwrap_or_default().conditions;
            let found = conditions.into_iter().find(|condition| condition.type_ == "Published");
            let found = found.ok_or_else(|| "no condition".to_owned())?;
            let is_it = found.status == status && found.message.contains(words);
            if is_it { Ok(()) } else { Err(format!("{}: {}", found.status, found.message)) }
        })
        .await
    }

    async fn publishes(&self) -> Result<()> {
        self.published("True", "").await
    }

    /// Ends the fault. Waits until the operator works, and all connections of the agent are shown.
    async fn ends_well(mut self) -> Result<()> {
        let began = Instant::now();
        self.proxy.heal();
        self.operator.is_ready().await?;
        eprintln!("the operator works {:.1} s after the fault", began.elapsed().as_secs_f64());
        self.publishes().await?;
        eprintln!("`Published` is true {:.1} s after the fault", began.elapsed().as_secs_f64());
        let counted = self.agent.stop().await?;
        let stopped = Timestamp::now();
        shows(&self.control_plane, counted).await?;
        shows_times_around(&self.control_plane, stopped).await?;
        eprintln!("{counted} connections were counted, and are shown");
        self.operator.runs()
    }
}

/// Fails if the edge's times are off by as much as the agent's clock is. They may be earlier by what the test took, and by
/// the hour to which the last one is rounded down.
async fn shows_times_around(control_plane: &ControlPlane, stopped: Timestamp) -> Result<()> {
    let topologies: Api<Topology> = Api::namespaced(control_plane.client.clone(), "shop");
    let topology = topologies.get("pod-web").await.map_err(Error::api("read the Topology"))?;
    let edges = topology.status.unwrap_or_default().egress;
    let times = edges.iter().flat_map(|edge| [&edge.first_seen, &edge.last_seen]).flatten();
    let off: Vec<_> = times.map(|time| time.0.duration_since(stopped).as_hours()).collect();
    assert!(off.len() == 2 && off.iter().all(|hours| hours.abs() <= JUMP_HOURS / 2), "{off:?}");
    Ok(())
}

fn is_lease(_: &Method, uri: &Uri) -> bool {
    uri.path().contains("/leases/")
}

fn is_about_pods(_: &Method, uri: &Uri) -> bool {
    uri.path().ends_with("/pods")
}

fn is_watch_or_list(method: &Method, uri: &Uri) -> bool {
    method == Method::GET && uri.path().ends_with("/topologies")
}

fn is_watch(_: &Method, uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.contains("watch=true"))
}

fn is_topology_write(method: &Method, uri: &Uri) -> bool {
    method != Method::GET && uri.path().contains("/topologies/")
}

#[tokio::test]
async fn operator_asks_at_even_pace_while_a_load_balancer_answers() -> Result<()> {
    let mut world = World::new().await?;
    world.proxy.fail(|_, _| true, Fault::Refusal(StatusCode::SERVICE_UNAVAILABLE, None, "no backend"));
    world.operator.waits_for("no backend").await?;
    // Pauses that double would be longer than that after so many.
    eventually_within(Duration::from_mins(1), "14 requests about the lease and for Pods", async || {
        let counts = [is_lease, is_about_pods].map(|selector| world.proxy.sent(selector).len());
        if counts.iter().all(|count| *count >= 14) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await?;
    world.ends_well().await
}

#[tokio::test]
async fn refused_writes_are_named_in_published_until_they_succeed() -> Result<()> {
    let world = World::new().await?;
    let (status, words) = (StatusCode::TOO_MANY_REQUESTS, "please try again later");
    world.proxy.fail(is_topology_write, Fault::Refusal(status, Some(1), words));
    world.published("False", words).await?;
    let words = "etcdserver: mvcc: database space exceeded";
    world.proxy.fail(is_topology_write, Fault::Refusal(StatusCode::INTERNAL_SERVER_ERROR, None, words));
    world.published("False", words).await?;
    world.ends_well().await
}

#[tokio::test]
async fn operator_waits_while_etcd_has_no_space() -> Result<()> {
    let mut world = World::new().await?;
    world.control_plane.refuse_writes_of_etcd(true).await?;
    world.operator.waits_for("database space exceeded").await?;
    world.control_plane.refuse_writes_of_etcd(false).await?;
    world.ends_well().await
}

#[tokio::test]
async fn watch_from_compacted_version_begins_with_a_list() -> Result<()> {
    let world = World::new().await?;
    // Open watches end, and none can go on from its last version, as after lost bookmarks and a compaction.
    world.proxy.fail(is_watch, Fault::Expired);
    eventually("3 lists of Topologies", async || {
        let requests = world.proxy.sent(is_watch_or_list);
        let lists = requests.iter().filter(|sent| !is_watch(&sent.method, &sent.uri)).count();
        if lists >= 3 { Ok(()) } else { Err(lists.to_string()) }
    })
    .await?;
    world.ends_well().await
}

/// Selects requests about one of the nodes.
fn is_about_node_1(method: &Method, uri: &Uri) -> bool {
    method == Method::PATCH && (uri.path().contains("/nodeprobes/node-1") || uri.path().ends_with("/nodes/node-1"))
}

#[tokio::test]
async fn requests_without_an_answer_stop_no_other_ones() -> Result<()> {
    let control_plane = control_plane().await?;
    let node = "{apiVersion: v1, kind: Node, metadata: {name: node-2, labels: {kubernetes.io/os: linux}}}";
    manifest::apply(&control_plane.client, "", node).await?;
    let proxy = Proxy::start(&control_plane, "operator").await?;
    proxy.fail(is_about_node_1, Fault::Silence);
    let mut operator = Operator::start_behind(&proxy, "operator-1", &[])?;
    operator.is_ready().await?;
    let agent = CountingAgent::start(operator.collector(), &pod_uid(&control_plane).await?);
    let (probes, nodes) =
        (Api::<NodeProbe>::all(control_plane.client.clone()), Api::<Node>::all(control_plane.client.clone()));
    eventually("node-2 to have its labels and its NodeProbe", async || {
        let probe = probes.get("node-2").await.map_err(|error| error.to_string())?;
        let node = nodes.get("node-2").await.map_err(|error| error.to_string())?;
        let has_label = node.metadata.labels.unwrap_or_default().contains_key(PROBE_LABEL);
        if has_label && probe.status.is_some() { Ok(()) } else { Err(format!("label: {has_label}")) }
    })
    .await?;
    let world = World { control_plane, proxy, operator, agent };
    eventually("a Topology beside the silence", async || {
        let topologies: Api<Topology> = Api::namespaced(world.control_plane.client.clone(), "shop");
        topologies.get("pod-web").await.map(|_| ()).map_err(|error| error.to_string())
    })
    .await?;
    world.published("False", "node-1").await?;
    assert!(!world.proxy.sent(is_about_node_1).is_empty());
    let labelled = async || {
        let node = nodes.get("node-1").await.map_err(Error::api("read the node"))?;
        Ok::<_, Error>(node.metadata.labels.unwrap_or_default().contains_key(PROBE_LABEL))
    };
    assert!(!labelled().await?);
    world.proxy.heal();
    eventually("node-1 to have its label", async || match labelled().await {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await?;
    world.ends_well().await
}

#[tokio::test]
async fn operator_goes_on_while_its_log_is_on_a_full_disk() -> Result<()> {
    let control_plane = control_plane().await?;
    let mut operator = Operator::start_without_log(&control_plane, "operator-1")?;
    operator.is_ready().await?;
    let agent = CountingAgent::start(operator.collector(), &pod_uid(&control_plane).await?);
    // It has logged a warning of the plain text by now.
    shows(&control_plane, agent.stop().await?).await?;
    operator.runs()
}
