//! The operator's publisher against a real API server, with flows that the test makes up.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crds::{Topology, TopologyStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Selector,
};
use operator::{
    api_budget::ApiBudget,
    api_problems::ApiProblems,
    cluster::{self, ClusterIndex, Nodes},
    event_recorder::EventRecorder,
    metrics::{Metrics, WriteLabels},
    observation::TopologyOverview,
    publish_settings::PublishSettings,
    publisher::{self, OwnWorkloads, PublisherInputs},
    settings::{EdgeMetricsLevel, EdgeMetricsSettings},
    shared_ledger::SharedLedger,
};
use scopeprobe_tests::{ControlPlane, Error, Result, eventually, manifest, place};
use tokio::{sync::watch, task::JoinSet};
use topology::{
    entity::CgroupOwner,
    external::ExternalGroups,
    flow::{FlowCounters, FlowKey, Protocol, Role},
    ledger::{Epoch, News},
};

pub const NAMESPACE: &str = "shop";
pub const NODE: &str = "node-1";
pub const EPOCH: Epoch = Epoch([1; 16]);

pub struct Lab {
    pub control_plane: ControlPlane,
    pub settings: watch::Sender<Option<PublishSettings>>,
    pub metrics: Metrics,
    pub problems: ApiProblems,
    pub shared_ledger: SharedLedger,
    tasks: JoinSet<()>,
}

impl Lab {
    /// Starts the API server with the kinds, a node and a namespace, without a publisher.
    pub async fn new() -> Result<Self> {
        let control_plane = ControlPlane::start().await?;
        let client = &control_plane.client;
        control_plane.install_kinds().await?;
        let topologies: Api<Topology> = Api::all(client.clone());
        eventually("the API server to know Topologies", async || {
            topologies.list(&ListParams::default()).await.map_err(|error| error.to_string())
        })
        .await?;
        let world = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}\n---\n\
             {{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}}}\n"
        );
        manifest::apply(client, "", &world).await?;
        let settings = PublishSettings {
            namespaces: Selector::default(),
            max_edges: 100,
            max_pods: 5,
            counter_interval: Duration::from_secs(1),
            retention: Duration::from_hours(1),
            max_external: 50,
            external_groups: ExternalGroups::default(),
            include_self: false,
        };
        Ok(Self {
            control_plane,
            settings: watch::Sender::new(Some(settings)),
            metrics: Metrics::default(),
            problems: ApiProblems::default(),
            shared_ledger: SharedLedger::default(),
            tasks: JoinSet::new(),
        })
    }

    /// Publishes from now on, as this client may.
    pub fn publish(&mut self, client: &Client) {
        let index = ClusterIndex::default();
        let watching = self.control_plane.client.clone();
        let (_, node_steps) = Nodes::watch(&watching, Arc::default());
        self.tasks.spawn(cluster::keep_index(watching, node_steps, index.clone(), self.shared_ledger.clone()));
        let inputs = PublisherInputs {
            leader: watch::Sender::new(true).subscribe(),
            settings: self.settings.subscribe(),
            shared_ledger: self.shared_ledger.clone(),
            index,
            own: OwnWorkloads::default(),
            overview: watch::Sender::new(TopologyOverview::default()),
            edge_metrics: EdgeMetricsSettings { level: EdgeMetricsLevel::Workload, max_series: 2 },
            scan_interval: Duration::from_secs(30),
            budget: ApiBudget::new(Instant::now()),
            problems: self.problems.clone(),
            events: EventRecorder::new(client.clone(), "operator-1"),
            metrics: self.metrics.clone(),
        };
        self.tasks.spawn(publisher::run(client.clone(), inputs));
    }

    pub fn publish_as_administrator(&mut self) {
        let client = self.control_plane.client.clone();
        self.publish(&client);
    }

    /// A client that may do what this user may.
    pub async fn client_of(&self, user: &str) -> Result<Client> {
        let unusable = |error: &dyn std::error::Error| Error::Unexpected(format!("no client for {user}: {error}"));
        let kubeconfig = Kubeconfig::read_from(self.control_plane.kubeconfig()).map_err(|error| unusable(&error))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| unusable(&error))?;
        config.auth_info.impersonate = Some(user.to_owned());
        Client::try_from(config).map_err(|error| unusable(&error))
    }

    pub async fn apply(&self, yaml: &str) -> Result<()> {
        manifest::apply(&self.control_plane.client, NAMESPACE, yaml).await.map(|_| ())
    }

    /// A pod, of an owner of this API version, kind and name or of none; its UID.
    pub async fn pod(&self, name: &str, owner: Option<(&str, &str, &str)>) -> Result<String> {
        self.labelled_pod(name, owner, &[]).await
    }

    /// The same with labels.
    pub async fn labelled_pod(
        &self,
        name: &str,
        owner: Option<(&str, &str, &str)>,
        labels: &[(&str, &str)],
    ) -> Result<String> {
        let owners = owner.map_or_else(String::new, |(version, kind, of)| {
            format!(
                "ownerReferences: [{{apiVersion: {version}, kind: {kind}, name: {of}, uid: {version}-{of}, controller: true}}],"
            )
        });
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: '{value}'")).collect();
        let labels = labels.join(", ");
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, {owners} labels: {{{labels}}}}}, \
             spec: {{nodeName: {NODE}, containers: [{{name: main, image: none}}]}}}}"
        ))
        .await?;
        self.uid_of(name).await
    }

    /// The publisher's settings from now on.
    pub fn set(&self, change: impl FnOnce(&mut PublishSettings)) {
        self.settings.send_modify(|settings| change(settings.as_mut().expect("it is set")));
    }

    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let variables = [("KUBECONFIG", self.control_plane.kubeconfig())];
        place::run(&place::tool("kubectl"), arguments.iter().copied(), &variables).await
    }

    pub async fn uid_of(&self, pod: &str) -> Result<String> {
        let found = self.pods().get(pod).await.map_err(Error::api(format!("read the pod {pod}")))?;
        Ok(found.uid().unwrap_or_default())
    }

    /// Returns whether one pod was created in a later second than another.
    pub async fn is_newer(&self, pod: &str, than: &str) -> bool {
        let made = async |name: &str| self.pods().get(name).await.ok()?.creation_timestamp();
        made(pod).await > made(than).await
    }

    /// An operator's end: the next one begins with what is published.
    pub async fn restart(&mut self) {
        self.tasks.shutdown().await;
        self.shared_ledger = SharedLedger::default();
    }

    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        let at_once = DeleteParams::default().grace_period(0);
        self.pods().delete(name, &at_once).await.map(|_| ()).map_err(Error::api(format!("delete the pod {name}")))
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.control_plane.client.clone(), NAMESPACE)
    }

    /// The agent reports what a pod has opened to peers outside of the cluster, each known by a number.
    pub async fn report(&self, pod_uid: &str, opened: &[(u8, u64)]) {
        let now = SystemTime::now();
        let mut ledger = self.shared_ledger.ledger().lock().await;
        let owner = CgroupOwner::PodContainer { pod_uid: pod_uid.to_owned(), container_id: String::new() };
        let cgroup_id = pod_uid.bytes().fold(7, |id: u64, byte| id.wrapping_mul(31).wrapping_add(byte.into()));
        ledger.identify(NODE, EPOCH, cgroup_id, owner).expect("there is one epoch");
        for (peer, opened) in opened {
            let key = FlowKey {
                cgroup_id,
                netns: 1,
                role: Role::Client,
                local: IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)),
                remote: IpAddr::V4(Ipv4Addr::new(192, 0, 2, *peer)),
                port: 443,
                protocol: Protocol::Tcp,
            };
            let counters = FlowCounters { opened: *opened, closed: *opened, ..FlowCounters::default() };
            ledger.apply(NODE, EPOCH, key, &counters, now).expect("there is one epoch");
        }
        drop(ledger);
        self.flush().await;
    }

    /// Publishes what was reported. The first report is complete: what an earlier publisher has left may be changed.
    pub async fn flush(&self) {
        if self.shared_ledger.ledger().lock().await.is_complete(NODE) {
            self.shared_ledger.mark(News::Structure);
        } else {
            self.complete().await;
        }
    }

    /// All that was reported so far is all that there is.
    async fn complete(&self) {
        let mut ledger = self.shared_ledger.ledger().lock().await;
        let all: Vec<FlowKey> = ledger.flows().map(|flow| *flow.key).collect();
        ledger.begin_snapshot(NODE, EPOCH).expect("there is one epoch");
        for key in all {
            ledger.apply(NODE, EPOCH, key, &FlowCounters::default(), SystemTime::now()).expect("there is one epoch");
        }
        ledger.end_snapshot(NODE, EPOCH, SystemTime::now()).expect("there is one epoch");
        drop(ledger);
        self.shared_ledger.mark(News::Structure);
    }

    pub fn topologies(&self) -> Api<Topology> {
        Api::namespaced(self.control_plane.client.clone(), NAMESPACE)
    }

    /// Waits until a Topology is as it has to be.
    pub async fn topology(&self, name: &str, is_it: impl Fn(&Topology) -> bool) -> Result<Topology> {
        eventually(&format!("the Topology {name} to be right"), async || {
            let topology = self.topologies().get(name).await.map_err(|error| error.to_string())?;
            if is_it(&topology) { Ok(topology) } else { Err(format!("{:#?} {:?}", topology.metadata, topology.status)) }
        })
        .await
    }

    /// The name of an object that is cut because it is too long.
    pub async fn only_name_that_begins_with(&self, prefix: &str) -> Result<String> {
        eventually(&format!("an object whose name begins with {prefix}"), async || {
            let all = self.topologies().list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let names: Vec<String> = all.iter().map(kube::ResourceExt::name_any).collect();
            names.iter().find(|name| name.starts_with(prefix)).cloned().ok_or(format!("{names:?}"))
        })
        .await
    }

    pub async fn absent(&self, name: &str) -> Result<()> {
        eventually(&format!("the Topology {name} to go"), async || match self.topologies().get_opt(name).await {
            Ok(None) => Ok(()),
            Ok(Some(topology)) => Err(format!("{topology:?}")),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Topologies as they are, whether they decode or not.
    pub fn raw(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.control_plane.client.clone(), NAMESPACE, &ApiResource::erase::<Topology>(&()))
    }

    pub fn writes(&self, result: &'static str) -> u64 {
        self.metrics.writes.get_or_create(&WriteLabels { kind: "Topology", result }).get()
    }
}

pub fn status(topology: &Topology) -> TopologyStatus {
    topology.status.clone().unwrap_or_default()
}

pub fn opened(topology: &Topology) -> u64 {
    status(topology).totals.opened
}

pub fn owner_uids(topology: &Topology) -> Vec<&str> {
    topology.owner_references().iter().map(|owner| owner.uid.as_str()).collect()
}
