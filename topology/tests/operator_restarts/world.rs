//! A simulated cluster: what happens, what its agents count, and what its operators publish.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    archive::{Archive, Published},
    directory::{Directory, RecordedPod},
    edge::{Edge, EdgeCounters, EdgeKey, Peer},
    entity::{
        Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServicePortRef, ServiceRef,
        Workload,
    },
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{Graph, Options},
    ledger::{Epoch, Ledger},
};

const DB: &str = "10.244.2.2";
const SERVICE: &str = "10.96.0.5";
const PORT: u16 = 5432;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn workload(name: &str) -> Workload {
    Workload {
        namespace: "shop".to_owned(),
        kind: "Deployment".to_owned(),
        name: name.to_owned(),
        group: "apps".to_owned(),
    }
}

/// The client's pod, by how many there were before.
fn web(generation: u8) -> String {
    format!("10.244.1.{}", 2 + generation)
}

pub fn pod(name: &str, number: u8, node: usize, address: &str) -> Pod {
    Pod {
        uid: format!("uid-{name}-{number}"),
        namespace: "shop".to_owned(),
        name: format!("{name}-{number}"),
        node: format!("node-{}", node + 1),
        ips: vec![ip(address)],
        host_network: false,
        workload: workload(name),
        containers: BTreeMap::from([(format!("id-{name}-{number}"), "main".to_owned())]),
        ended: false,
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    }
}

/// Returns the cluster's objects while the client's pod is of this generation.
fn directory(generation: u8) -> Directory {
    let mut directory = Directory::new();
    for number in [1, 2] {
        directory.upsert_node(Node {
            name: format!("node-{number}"),
            ips: Vec::new(),
            pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
        });
    }
    directory.upsert_pod(pod("web", generation, 0, &web(generation)), SystemTime::UNIX_EPOCH);
    directory.upsert_pod(pod("db", 0, 1, DB), SystemTime::UNIX_EPOCH);
    let backend = Backend { ip: ip(DB), port: PORT, pod_uid: Some("uid-db-0".to_owned()) };
    let service = Service {
        name: ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() },
        addresses: vec![ip(SERVICE)],
        ports: vec![ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends: vec![backend] }],
    };
    directory.upsert_service(service, SystemTime::UNIX_EPOCH);
    directory
}

pub fn edge(through_service: bool) -> EdgeKey {
    let name = || ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() };
    let service = through_service.then(|| ServicePortRef { service: name(), port: 80 });
    EdgeKey {
        client: Peer::Workload(workload("web")),
        server: Peer::Workload(workload("db")),
        service,
        port: Some(PORT),
        protocol: Protocol::Tcp,
    }
}

/// Returns an edge as the objects of its two ends publish it: each has its own pods.
fn sides(published: &Published) -> [Published; 2] {
    let [mut by_client, mut by_server] = [published.clone(), published.clone()];
    (by_client.edge.servers, by_client.earlier.counts.servers) = (Vec::new(), Vec::new());
    (by_server.edge.clients, by_server.earlier.counts.clients) = (Vec::new(), Vec::new());
    [by_client, by_server]
}

/// Returns the graph's edges as the objects of their ends publish them.
pub fn published(graph: &Graph) -> impl Iterator<Item = Published> {
    graph.edges.iter().flat_map(|edge| {
        let earlier = graph.earlier.get(&edge.key).cloned().unwrap_or_default();
        sides(&Published { edge: Edge::clone(edge), earlier })
    })
}

/// Reports a flow of a pod's only container.
pub fn report_flow(
    ledger: &mut Ledger,
    (node, epoch): (&str, Epoch),
    key: FlowKey,
    (pod, number): (&str, u8),
    counters: &FlowCounters,
    now: SystemTime,
) {
    let owner = CgroupOwner::PodContainer {
        pod_uid: format!("uid-{pod}-{number}"),
        container_id: format!("id-{pod}-{number}"),
    };
    ledger.identify(node, epoch, key.cgroup_id, owner).expect("the present epoch");
    ledger.apply(node, epoch, key, counters, now).expect("the present epoch");
}

#[derive(Clone, Debug)]
pub enum Step {
    /// Through the Service or not; bytes.
    Open(bool, u64),
    /// One that is open on this way sends bytes, and receives twice as many.
    Send(bool, u64),
    /// All that are open on this way.
    Close(bool),
    /// A call that is refused.
    Fail(bool),
    /// The agents report to the operator.
    Report,
    /// An agent restarts, after it reported everything or not. The new agent reports preexisting connections at once.
    RestartAgent(usize, bool),
    /// The client's pod ends, and another one takes its place.
    ReplacePod,
    /// Publishes the current graph.
    Publish,
    /// The operator restarts, after it published everything or not. The agents report all flows to the new operator.
    RestartOperator(bool),
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), 0..1000_u64).prop_map(|(service, bytes)| Step::Open(service, bytes)),
        2 => (any::<bool>(), 0..1000_u64).prop_map(|(service, bytes)| Step::Send(service, bytes)),
        2 => any::<bool>().prop_map(Step::Close),
        1 => any::<bool>().prop_map(Step::Fail),
        5 => Just(Step::Report),
        1 => (0..2_usize, prop::bool::weighted(0.8)).prop_map(|(node, told)| Step::RestartAgent(node, told)),
        1 => Just(Step::ReplacePod),
        3 => Just(Step::Publish),
        1 => prop::bool::weighted(0.5).prop_map(Step::RestartOperator),
    ]
}

/// One flow as its agent counts it.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    counters: FlowCounters,
    reported: FlowCounters,
}

impl Flow {
    fn open(&mut self, sent: u64, received: u64) {
        self.counters.opened += 1;
        self.send(sent, received);
    }

    fn send(&mut self, sent: u64, received: u64) {
        let counters = &mut self.counters;
        counters.bytes_sent += sent;
        counters.bytes_received += received;
        counters.open_bytes_sent += sent;
        counters.open_bytes_received += received;
    }

    fn close_all(&mut self) {
        let counters = &mut self.counters;
        counters.closed = counters.opened + counters.preexisting;
        (counters.open_bytes_sent, counters.open_bytes_received) = (0, 0);
    }

    /// Starts another agent, with what it observes.
    fn begin_anew(&mut self) {
        let counters = self.counters;
        *self = Self::default();
        let (sent, received) = (counters.open_bytes_sent, counters.open_bytes_received);
        self.counters = FlowCounters {
            preexisting: counters.active(),
            bytes_sent: sent,
            bytes_received: received,
            preexisting_bytes_sent: sent,
            preexisting_bytes_received: received,
            open_bytes_sent: sent,
            open_bytes_received: received,
            ..FlowCounters::default()
        };
    }
}

/// A flow: which generation of the client's pod, and which end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Directly,
    ThroughService,
    Served,
}

impl End {
    /// The node whose agent counts it.
    fn node(self) -> usize {
        usize::from(self == Self::Served)
    }

    fn of(through_service: bool) -> Self {
        if through_service { Self::ThroughService } else { Self::Directly }
    }
}

pub struct World {
    directory: Directory,
    generation: u8,
    pub now: SystemTime,
    /// Agents report at least so often.
    pub interval: Duration,
    flows: BTreeMap<(u8, End), Flow>,
    epochs: [u8; 2],
    pub truth: BTreeMap<EdgeKey, EdgeCounters>,
    ledger: Ledger,
    archive: Archive,
    pub published: Graph,
    /// Pods as the checkpoints of the published objects record them.
    recorded: Vec<RecordedPod<'static>>,
    /// Something happened and was not reported before its agent began anew, or was reported to an operator that is no
    /// more and published nothing since.
    pub missed: bool,
    /// An agent has begun anew, or a pod is gone that was not recorded, and nothing was published since.
    pub unpublished: bool,
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            directory: directory(0),
            generation: 0,
            now: SystemTime::UNIX_EPOCH,
            interval: Duration::from_secs(1),
            flows: BTreeMap::new(),
            epochs: [1, 1],
            truth: BTreeMap::new(),
            ledger: Ledger::new(),
            archive: Archive::new(),
            published: Graph::default(),
            recorded: Vec::new(),
            missed: false,
            unpublished: false,
        };
        world.restart_operator();
        world.settle();
        world
    }

    pub fn snapshot(&mut self, node: usize) {
        let (name, epoch) = (format!("node-{}", node + 1), Epoch([self.epochs[node]; 16]));
        self.ledger.begin_snapshot(&name, epoch).expect("the present epoch");
        for ((generation, end), flow) in self.flows.iter_mut().filter(|((_, end), _)| end.node() == node) {
            let web = web(*generation);
            let (role, local, remote, port, who, number) = match end {
                End::Directly => (Role::Client, web.as_str(), DB, PORT, "web", *generation),
                End::ThroughService => (Role::Client, web.as_str(), SERVICE, 80, "web", *generation),
                End::Served => (Role::Server, DB, web.as_str(), PORT, "db", 0),
            };
            let cgroup_id = 5 + u64::from(number);
            let key = FlowKey {
                cgroup_id,
                netns: 1,
                role,
                local: ip(local),
                remote: ip(remote),
                port,
                protocol: Protocol::Tcp,
            };
            if flow.counters != FlowCounters::default() {
                flow.reported = flow.counters;
                report_flow(&mut self.ledger, (&name, epoch), key, (who, number), &flow.counters, self.now);
            }
        }
        self.ledger.end_snapshot(&name, epoch, self.now).expect("the present epoch");
    }

    pub fn report(&mut self) {
        for node in [0, 1] {
            self.snapshot(node);
        }
    }

    fn flow(&mut self, end: End) -> &mut Flow {
        self.flows.entry((self.generation, end)).or_default()
    }

    fn is_unreported(&self, node: usize) -> bool {
        self.flows.iter().any(|((_, end), flow)| end.node() == node && flow.counters != flow.reported)
    }

    pub fn build(&mut self) -> Graph {
        let options = options(self.now + Duration::from_secs(5), self.interval);
        self.archive.build(&self.ledger, &self.directory, &options)
    }

    pub fn build_shown(&mut self) -> Graph {
        let options = options(self.now, self.interval);
        self.archive.settle_in_time(&self.ledger, &self.directory, &options);
        self.archive.build_shown(&self.ledger, &self.directory, &options)
    }

    pub fn publish(&mut self) {
        self.published = self.build();
        self.record_pods();
        self.unpublished = false;
    }

    /// Records the pods of the directory, as the checkpoints of published objects do.
    pub fn record_pods(&mut self) {
        let (directory, backends) = (&self.directory, self.directory.backends_by_pod());
        let removed = directory.removed_pods().map(|pod| pod.uid.clone());
        let present = [format!("uid-web-{}", self.generation), "uid-db-0".to_owned()];
        self.recorded =
            removed.chain(present).filter_map(|uid| Some(directory.recorded(&uid, &backends)?.into_owned())).collect();
    }

    pub fn restart_operator(&mut self) {
        // What was reported before and will not be again has to have been published.
        self.missed |= self.unpublished;
        self.directory = directory(self.generation);
        for recorded in &self.recorded {
            self.directory.restore_pod(recorded.clone(), self.now);
        }
        self.ledger = Ledger::new();
        self.archive = Archive::new();
        self.archive.restore(published(&self.published), self.now);
        self.report();
    }

    fn settle(&mut self) {
        self.archive.settle(&self.ledger, &self.directory, self.now);
    }

    fn close(&mut self, service: bool) {
        let client = self.flow(End::of(service));
        let closed = client.counters.active();
        let (sent, received) = (client.counters.open_bytes_sent, client.counters.open_bytes_received);
        client.close_all();
        let server = &mut self.flow(End::Served).counters;
        server.closed += closed;
        server.open_bytes_sent -= received;
        server.open_bytes_received -= sent;
        if let Some(truth) = self.truth.get_mut(&edge(service)) {
            truth.active = 0;
        }
    }

    pub fn run(&mut self, step: &Step) {
        self.now += Duration::from_secs(10);
        self.happen(step);
    }

    pub fn happen(&mut self, step: &Step) {
        match *step {
            Step::Open(service, bytes) => {
                self.flow(End::of(service)).open(bytes, 2 * bytes);
                self.flow(End::Served).open(2 * bytes, bytes);
                let truth = self.truth.entry(edge(service)).or_default();
                truth.opened += 1;
                truth.active += 1;
                truth.bytes_sent += bytes;
                truth.bytes_received += 2 * bytes;
            }
            Step::Send(service, bytes) if self.flow(End::of(service)).counters.active() > 0 => {
                self.flow(End::of(service)).send(bytes, 2 * bytes);
                self.flow(End::Served).send(2 * bytes, bytes);
                let truth = self.truth.entry(edge(service)).or_default();
                truth.bytes_sent += bytes;
                truth.bytes_received += 2 * bytes;
            }
            Step::Send(..) => {}
            Step::Close(service) => self.close(service),
            Step::Fail(service) => {
                self.flow(End::of(service)).counters.failed += 1;
                self.truth.entry(edge(service)).or_default().failed += 1;
            }
            Step::Report => self.report(),
            Step::RestartAgent(node, told) => {
                if told {
                    self.report();
                }
                self.missed |= self.is_unreported(node);
                self.unpublished = true;
                self.epochs[node] += 1;
                let own = self.flows.iter_mut().filter(|((_, end), _)| end.node() == node);
                own.for_each(|(_, flow)| flow.begin_anew());
                self.report();
            }
            Step::ReplacePod => {
                self.close(true);
                self.close(false);
                self.report();
                self.directory.remove_pod(&format!("uid-web-{}", self.generation), self.now);
                self.generation += 1;
                let next = pod("web", self.generation, 0, &web(self.generation));
                self.directory.upsert_pod(next, self.now);
                let replaced = format!("uid-web-{}", self.generation - 1);
                self.unpublished |= !self.recorded.iter().any(|recorded| recorded.pod.uid == replaced);
            }
            Step::Publish => self.publish(),
            Step::RestartOperator(published) => {
                if published {
                    self.publish();
                }
                self.restart_operator();
                self.settle();
            }
        }
    }
}

pub fn options(now: SystemTime, interval: Duration) -> Options {
    Options {
        now,
        settle: Duration::from_secs(1) + interval,
        retention: Duration::from_hours(1000),
        max_external: usize::MAX,
    }
}
