//! A control plane with the fleet's Node objects, and an operator that runs in the test's own process. There are no
//! kubelets: what agents would report is made up.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crds::{MODE_LABEL, Mode, NodeProbe, NodeProbeStatus, PROBE_LABEL, ScopeProbe};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{
    api::{apps::v1::DaemonSet, core::v1::Node},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kernel_support::Reason;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use operator::{
    api_budget::ApiBudget,
    api_problems::ApiProblems,
    cleanup::garbage_collector::GarbageCollector,
    cluster::{ClusterState, WatchedCluster},
    coverage::HOUR,
    metrics::Metrics,
    observation::{NodeObservation, Observations, TopologyOverview},
    rollout::{
        apply_cache::ApplyCache,
        assigner::Assigner,
        controller::{self, Context},
        fallback_controller::FallbackController,
        obstacles::Obstacles,
        outcome::Outcomes,
    },
    settings::{AgentSettings, Cli, Command},
    status::{events::Events, restore, writer::Writer},
};
use scopeprobe_tests::{ControlPlane, Error, Result, eventually, manifest, place};
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};

use crate::fleet::{self, Kind};

pub const NAMESPACE: &str = "scopeprobe-system";
/// The name of the one ScopeProbe.
pub const PROBE: &str = "fleet";
/// Image of the agents, until a test sets another.
pub const IMAGE: &str = "registry.example/agent:1";

pub struct Lab {
    pub control_plane: ControlPlane,
    pub metrics: Metrics,
    /// The operator's own, with which its DaemonSets go.
    pub deployment: Option<String>,
    observations: Observations,
    parts: JoinSet<()>,
    stop: Option<oneshot::Sender<()>>,
}

impl Lab {
    /// The API server with the kinds and the fleet; no operator runs yet.
    pub async fn new() -> Result<Self> {
        let control_plane = ControlPlane::start().await?;
        let client = &control_plane.client;
        control_plane.install_kinds().await?;
        let probes: Api<ScopeProbe> = Api::all(client.clone());
        let node_probes: Api<NodeProbe> = Api::all(client.clone());
        eventually("the API server to know the kinds", async || {
            probes.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            node_probes.list(&ListParams::default()).await.map_err(|error| error.to_string())
        })
        .await?;
        let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
        manifest::apply(client, "", &namespace).await?;
        let lab = Self {
            control_plane,
            metrics: Metrics::default(),
            deployment: None,
            observations: Observations::default(),
            parts: JoinSet::new(),
            stop: None,
        };
        let making = fleet::nodes().map(|(name, kind)| lab.make_node(name, kind));
        stream::iter(making).buffer_unordered(8).try_collect::<Vec<()>>().await?;
        Ok(lab)
    }

    async fn make_node(&self, name: String, kind: Kind) -> Result<()> {
        let node = serde_json::from_value(json!({"metadata": {"name": name}})).expect("a Node");
        self.nodes().create(&PostParams::default(), &node).await.map_err(Error::api(format!("make {name}")))?;
        self.node_info(&name, &kind, "first").await
    }

    /// Writes a node's info, as its kubelet does.
    pub async fn node_info(&self, node: &str, kind: &Kind, boot: &str) -> Result<()> {
        let info = json!({
            "operatingSystem": kind.os, "osImage": kind.image, "kernelVersion": kind.kernel, "bootID": boot,
            "architecture": "amd64", "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "v1.33.0",
            "machineID": "", "systemUUID": "",
        });
        let patch = Patch::Merge(json!({"status": {"nodeInfo": info}}));
        let patched = self.nodes().patch_status(node, &PatchParams::default(), &patch).await;
        patched.map(|_| ()).map_err(Error::api(format!("change the status of {node}")))
    }

    /// An operator begins: what an earlier one knew it has to read from the API server.
    pub async fn start_operator(&mut self, image: &str) -> Result<()> {
        let client = self.control_plane.client.clone();
        let agents = agent_settings(image);
        self.metrics = Metrics::default();
        let WatchedCluster { state: cluster, .. } = ClusterState::watch(&client)
            .await
            .map_err(|error| Error::Unexpected(format!("the operator cannot watch: {error}")))?;
        self.observations = restore::observations(&cluster.node_probes(), now_ms());
        let assigner = Arc::new(Assigner::new(cluster));
        let outcomes = Outcomes::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let context = Arc::new(Context {
            client: client.clone(),
            watching: client.clone(),
            namespace: NAMESPACE.to_owned(),
            deployment: self.deployment.clone(),
            agents: agents.clone(),
            assigner: Arc::clone(&assigner),
            apply_cache: ApplyCache::default(),
            obstacles: Obstacles::default(),
            outcomes: outcomes.clone(),
            resync: Duration::from_mins(5),
            metrics: self.metrics.clone(),
        });
        self.parts.spawn(controller::run(context, async {
            // Either way it is over.
            let _ = stopped.await;
        }));
        let fallback_controller =
            FallbackController { assigner: Arc::clone(&assigner), observations: self.observations.clone(), agents };
        self.parts.spawn(fallback_controller.run());
        let garbage_collector = GarbageCollector {
            client: client.clone(),
            namespace: NAMESPACE.to_owned(),
            assigner: Arc::clone(&assigner),
            observations: self.observations.clone(),
            interval: Duration::from_mins(5),
        };
        self.parts.spawn(garbage_collector.run());
        let writer = Writer {
            client: client.clone(),
            assigner,
            observations: self.observations.clone(),
            outcomes,
            overview: watch::Sender::new(TopologyOverview::default()).subscribe(),
            publish: watch::Sender::new(None),
            events: Events::new(client, "operator-1"),
            budget: ApiBudget::new(Instant::now()),
            problems: ApiProblems::default(),
            metrics: self.metrics.clone(),
        };
        self.parts.spawn(writer.run());
        self.stop = Some(stop);
        Ok(())
    }

    /// Stops the operator in the middle of its work.
    pub async fn stop_operator(&mut self) {
        self.stop = None;
        self.parts.shutdown().await;
    }

    /// Simulates a report of an agent.
    pub fn report(&self, node: &str, change: impl FnOnce(&mut NodeObservation)) {
        self.observations.update(node, |observation| {
            observation.connected = true;
            let before = (observation.mode, observation.attach.clone());
            change(observation);
            if observation.epoch.is_empty() || (observation.mode, observation.attach.clone()) != before {
                // What captures in another way is another agent.
                observation.begin_epoch(&now_ms().to_le_bytes().repeat(2));
            }
            if observation.has_capture() {
                let now = now_ms();
                // A first capture has been there for longer than the NodeProbe.
                let attached = if observation.coverage.is_some() { now } else { now - HOUR };
                observation.last_report_unix_ms = now;
                observation.note_capture(attached, now);
            }
        });
    }

    /// Simulates a report with times that the test sets.
    pub fn observe(&self, node: &str, change: impl FnOnce(&mut NodeObservation)) {
        self.observations.update(node, |observation| {
            observation.connected = true;
            change(observation);
        });
    }

    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client())
    }

    pub fn client(&self) -> Client {
        self.control_plane.client.clone()
    }

    pub fn probes(&self) -> Api<ScopeProbe> {
        Api::all(self.client())
    }

    /// Asks for this, and waits until that is rolled out: every label that it makes needless or needed was written.
    pub async fn probe(&self, spec: &Value) -> Result<()> {
        let object = json!({
            "apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe", "metadata": {"name": PROBE}, "spec": spec,
        });
        manifest::apply(&self.client(), "", &object.to_string()).await?;
        self.rolled_out().await
    }

    async fn rolled_out(&self) -> Result<()> {
        eventually("the newest spec to be rolled out", async || {
            let probe = self.probes().get(PROBE).await.map_err(|error| error.to_string())?;
            let status = probe.status.clone().unwrap_or_default();
            let newest = status.observed_generation == probe.metadata.generation;
            if newest { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await
    }

    pub async fn condition(&self, type_: &str) -> Result<Condition, String> {
        let probe = self.probes().get(PROBE).await.map_err(|error| error.to_string())?;
        let conditions = probe.status.unwrap_or_default().conditions;
        conditions.into_iter().find(|it| it.type_ == type_).ok_or_else(|| format!("no condition {type_}"))
    }

    /// Every node's resource version.
    pub async fn versions(&self) -> Result<BTreeMap<String, String>> {
        let nodes = self.all_nodes().await?;
        Ok(nodes.iter().map(|node| (node.name_any(), node.resource_version().unwrap_or_default())).collect())
    }

    /// Every node's agents, by its labels; `half` where it has one of them only.
    pub async fn labels(&self) -> Result<BTreeMap<String, Option<String>>> {
        let label = |node: &Node| {
            let labels = node.labels();
            let of_probe = labels.get(PROBE_LABEL).is_some_and(|probe| probe == PROBE);
            let agents = labels.get(MODE_LABEL).cloned();
            if of_probe == agents.is_some() { agents } else { Some("half".to_owned()) }
        };
        Ok(self.all_nodes().await?.iter().map(|node| (node.name_any(), label(node))).collect())
    }

    async fn all_nodes(&self) -> Result<Vec<Node>> {
        let list = self.nodes().list(&ListParams::default()).await;
        Ok(list.map_err(Error::api("list nodes"))?.items)
    }

    /// Waits until the nodes have these agents.
    pub async fn labelled(&self, expected: &BTreeMap<String, Option<String>>) -> Result<()> {
        eventually("each node to have the labels of its agents", async || {
            let labels = self.labels().await.map_err(|error| error.to_string())?;
            let wrong: Vec<_> = labels.iter().filter(|(node, label)| expected.get(*node) != Some(label)).collect();
            if wrong.is_empty() { Ok(()) } else { Err(format!("{} are wrong: {wrong:?}", wrong.len())) }
        })
        .await
    }

    /// By name: the mode that it selects.
    pub async fn daemon_sets(&self) -> Result<BTreeMap<String, String>, String> {
        let api: Api<DaemonSet> = Api::namespaced(self.client(), NAMESPACE);
        let all = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let selects = |set: &DaemonSet| {
            let pod = set.spec.as_ref()?.template.spec.as_ref()?;
            pod.node_selector.as_ref()?.get(MODE_LABEL).cloned()
        };
        Ok(all.iter().map(|set| (set.name_any(), selects(set).unwrap_or_default())).collect())
    }

    pub async fn node_probes(&self) -> Result<BTreeMap<String, NodeProbeStatus>, String> {
        let api: Api<NodeProbe> = Api::all(self.client());
        let all = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        Ok(all.into_iter().map(|probe| (probe.name_any(), probe.status.unwrap_or_default())).collect())
    }

    /// Waits until a NodeProbe is as it has to be.
    pub async fn node_probe(&self, node: &str, is_it: impl Fn(&NodeProbeStatus) -> bool) -> Result<NodeProbeStatus> {
        eventually(&format!("the NodeProbe {node} to be right"), async || {
            let status = self.node_probes().await?.remove(node).ok_or("none")?;
            if is_it(&status) { Ok(status) } else { Err(format!("{status:#?}")) }
        })
        .await
    }

    /// Lets the time pass until eBPF is tried again on a node; no operator may run.
    pub async fn retry_is_due(&self, node: &str) -> Result<()> {
        let api: Api<NodeProbe> = Api::all(self.client());
        let patch = Patch::Merge(json!({"status": {"fallback": {"retryAt": "2026-01-01T00:00:00Z"}}}));
        let patched = api.patch_status(node, &PatchParams::default(), &patch).await;
        patched.map(|_| ()).map_err(Error::api(format!("change the NodeProbe {node}")))
    }

    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let variables = [("KUBECONFIG", self.control_plane.kubeconfig())];
        place::run(&place::tool("kubectl"), arguments.iter().copied(), &variables).await
    }
}

/// Now, by the clock of the test and its operator.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(since.as_millis()).expect("it is long before the end of time")
}

/// As the operator's command line makes them.
fn agent_settings(image: &str) -> AgentSettings {
    let image = format!("--agent-image={image}");
    let arguments = [
        "scopeprobe-operator",
        "run",
        "--namespace=scopeprobe-system",
        "--identity=operator-1",
        "--collector-url=https://192.0.2.1:9463",
        &image,
    ];
    let cli = <Cli as clap::Parser>::try_parse_from(arguments).expect("the command line is good");
    match cli.command {
        Command::Run(settings) => settings.agents,
        other => panic!("{other:?}"),
    }
}

/// Returns what a working agent of these DaemonSets reports.
pub fn works(agents: &str, kernel: &str) -> impl FnOnce(&mut NodeObservation) + use<> {
    let (mode, reason, attach) = match agents {
        "fallback" => (Mode::Fallback, Reason::ForcedByProbe, "SockDiag+Conntrack"),
        _ => (Mode::Ebpf, Reason::Supported, "SockOps"),
    };
    let kernel = kernel.to_owned();
    move |observation| {
        observation.mode = Some(mode);
        observation.reason = reason;
        attach.clone_into(&mut observation.attach);
        observation.kernel = kernel;
        observation.message = String::new();
        observation.asks_for_fallback_since_unix_ms = None;
    }
}
