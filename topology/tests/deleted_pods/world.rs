//! Simulated pods that are replaced, with two operators: one that runs all the time, and one that is restarted.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    archive::{Archive, Published},
    directory::{Directory, RecordedPod},
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Peer},
    entity::{
        Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServicePortRef, ServiceRef,
        Workload,
    },
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{Graph, Options},
    ledger::{Epoch, Ledger},
    sighting::{Ages, Sighting},
};

/// Workload and node of each place of a pod.
pub const PLACES: [(&str, usize); 6] = [("web", 0), ("web", 1), ("db", 0), ("db", 1), ("cache", 0), ("cache", 1)];
const NODES: usize = 2;
pub const PORT: u16 = 5432;
/// Services with their address and workloads.
const SERVICES: [(&str, &str, &[&str]); 2] = [("db", "10.96.0.1", &["db"]), ("store", "10.96.0.2", &["db", "cache"])];
/// Bytes that each connection sends; it receives as many.
const BYTES: u64 = 10;
const PACE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub enum Step {
    /// Short connections from one place to another, through a Service if it leads there.
    Call {
        client: usize,
        server: usize,
        service: Option<usize>,
        opened: u64,
    },
    Report,
    /// The pod of a place ends, and another pod takes its place, with the same address or not.
    Replace {
        place: usize,
        keeps_address: bool,
    },
    /// An agent drops the flows of deleted pods, as it does after a while.
    DropFlows(usize),
    /// An agent restarts, after it reported everything and the operator published it.
    RestartAgent(usize),
    Publish,
    RestartOperator,
}

pub fn step() -> impl Strategy<Value = Step> {
    let place = || 0..PLACES.len();
    prop_oneof![
        8 => (place(), place(), prop::option::of(0..SERVICES.len()), 1..5_u64)
            .prop_map(|(client, server, service, opened)| Step::Call { client, server, service, opened }),
        3 => Just(Step::Report),
        3 => (place(), any::<bool>()).prop_map(|(place, keeps_address)| Step::Replace { place, keeps_address }),
        1 => (0..NODES).prop_map(Step::DropFlows),
        2 => Just(Step::Publish),
        2 => Just(Step::RestartOperator),
    ]
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn workload(name: &str) -> Workload {
    let [namespace, kind, group] = ["shop", "Deployment", "apps"].map(str::to_owned);
    Workload { namespace, kind, name: name.to_owned(), group }
}

fn number(pod: &Pod) -> u32 {
    pod.uid.trim_start_matches("uid-").parse().expect("a number")
}

fn service_ref(number: usize) -> ServiceRef {
    ServiceRef { namespace: "shop".to_owned(), name: SERVICES[number].0.to_owned() }
}

pub fn edge(client: usize, server: usize, service: Option<usize>) -> EdgeKey {
    EdgeKey {
        client: Peer::Workload(workload(PLACES[client].0)),
        server: Peer::Workload(workload(PLACES[server].0)),
        service: service.map(|number| ServicePortRef { service: service_ref(number), port: 80 }),
        port: Some(PORT),
        protocol: Protocol::Tcp,
    }
}

/// A flow as its agent counts it.
#[derive(Clone, Copy, Debug)]
struct Flow {
    opened: u64,
    first: SystemTime,
    changed: SystemTime,
}

struct Operator {
    directory: Directory,
    ledger: Ledger,
    archive: Archive,
    /// Times of the flows' last reports.
    told: HashMap<(usize, FlowKey), SystemTime>,
}

pub struct World {
    pub now: SystemTime,
    pods: Vec<Pod>,
    /// Number of pods so far.
    made: u8,
    observed: [bool; NODES],
    epochs: [u8; NODES],
    flows: [BTreeMap<FlowKey, Flow>; NODES],
    owners: HashMap<u64, CgroupOwner>,
    old: Operator,
    new: Operator,
    published: Vec<Published>,
    recorded: Vec<RecordedPod<'static>>,
    pub truth: BTreeMap<EdgeKey, u64>,
}

impl World {
    pub fn new(observed: [bool; NODES]) -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let operator = || Operator {
            directory: Directory::new(),
            ledger: Ledger::new(),
            archive: Archive::new(),
            told: HashMap::new(),
        };
        let mut world = Self {
            now,
            pods: Vec::new(),
            made: 0,
            observed,
            epochs: [1; NODES],
            flows: [BTreeMap::new(), BTreeMap::new()],
            owners: HashMap::new(),
            old: operator(),
            new: operator(),
            published: Vec::new(),
            recorded: Vec::new(),
            truth: BTreeMap::new(),
        };
        for place in 0..PLACES.len() {
            let pod = world.pod(place, None);
            world.pods.push(pod);
        }
        world.old.directory = world.directory();
        world.restart_operator();
        world
    }

    fn pod(&mut self, place: usize, address: Option<IpAddr>) -> Pod {
        let (name, node) = PLACES[place];
        self.made += 1;
        let made = self.made;
        let pod = Pod {
            uid: format!("uid-{made}"),
            namespace: "shop".to_owned(),
            name: format!("{name}-{made}"),
            node: format!("node-{node}"),
            host_network: false,
            ips: vec![address.unwrap_or_else(|| ip(&format!("10.244.{node}.{}", 2 + made)))],
            ended: false,
            workload: workload(name),
            containers: BTreeMap::from([(format!("id-{made}"), "main".to_owned())]),
            host_ports: Vec::new(),
            life: PodLifetime {
                created: Some(self.now),
                started: Some(self.now),
                ran: Some(self.now + Duration::from_secs(1)),
                ..PodLifetime::default()
            },
        };
        let owner = CgroupOwner::PodContainer { pod_uid: pod.uid.clone(), container_id: format!("id-{made}") };
        self.owners.insert(made.into(), owner);
        pod
    }

    fn services(&self) -> Vec<Service> {
        let service = |(number, (_, address, workloads)): (usize, &(&str, &str, &[&str]))| {
            let pods = self.pods.iter().filter(|pod| workloads.contains(&pod.workload.name.as_str()));
            let backend = |pod: &Pod| Backend { ip: pod.ips[0], port: PORT, pod_uid: Some(pod.uid.clone()) };
            let backends = pods.map(backend).collect();
            let port = ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends };
            Service { name: service_ref(number), addresses: vec![ip(address)], ports: vec![port] }
        };
        SERVICES.iter().enumerate().map(service).collect()
    }

    /// Returns the objects that are present.
    fn directory(&self) -> Directory {
        let mut directory = Directory::new();
        for number in 0..NODES {
            directory.upsert_node(Node {
                name: format!("node-{number}"),
                ips: Vec::new(),
                pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
            });
        }
        for pod in &self.pods {
            directory.upsert_pod(pod.clone(), self.now);
        }
        for service in self.services() {
            directory.upsert_service(service, self.now);
        }
        directory
    }

    fn report(&mut self) {
        for operator in [&mut self.old, &mut self.new] {
            for node in (0..NODES).filter(|node| self.observed[*node]) {
                operator.hear(node, self.epochs[node], &self.flows[node], &self.owners, self.now);
            }
        }
    }

    fn restart_operator(&mut self) {
        let mut directory = self.directory();
        for recorded in &self.recorded {
            directory.restore_pod(recorded.clone(), self.now);
        }
        let (ledger, mut archive) = (Ledger::new(), Archive::new());
        archive.restore(self.published.clone(), self.now);
        self.new = Operator { directory, ledger, archive, told: HashMap::new() };
        self.report();
    }

    fn publish(&mut self) {
        let graph = self.new.shown(self.now);
        self.published = published(&graph).collect();
        let (directory, backends) = (&self.new.directory, self.new.directory.backends_by_pod());
        let uids: Vec<&str> = directory.removed_pods().chain(&self.pods).map(|pod| pod.uid.as_str()).collect();
        let recorded = uids.into_iter().filter_map(|uid| Some(directory.recorded(uid, &backends)?.into_owned()));
        self.recorded = recorded.collect();
    }

    /// Returns the graphs of the operator that runs all the time and of the other one.
    pub fn shown(&mut self) -> [Graph; 2] {
        [self.old.shown(self.now), self.new.shown(self.now)]
    }

    /// Lets agents report, and what waits for reports become certain.
    pub fn rest(&mut self) {
        self.report();
        for _ in 0..4 {
            self.now += PACE;
            let _ = self.shown();
        }
    }

    pub fn run(&mut self, step: &Step) {
        self.now += PACE;
        match *step {
            Step::Call { client, server, service, opened } => self.call(client, server, service, opened),
            Step::Report => self.report(),
            Step::Replace { place, keeps_address } => self.replace(place, keeps_address),
            Step::DropFlows(node) => self.drop_flows(node),
            Step::RestartAgent(node) => {
                self.rest();
                self.publish();
                self.epochs[node] += 1;
                self.flows[node].clear();
                self.rest();
                self.publish();
            }
            Step::Publish => {
                self.report();
                self.publish();
            }
            Step::RestartOperator => self.restart_operator(),
        }
        let _ = self.shown();
    }

    fn call(&mut self, client: usize, server: usize, service: Option<usize>, opened: u64) {
        let leads_there = |number: &usize| SERVICES[*number].2.contains(&PLACES[server].0);
        if client == server {
            return;
        }
        let service = service.filter(leads_there);
        *self.truth.entry(edge(client, server, service)).or_default() += opened;
        let [client_pod, server_pod] = [client, server].map(|place| self.pods[place].clone());
        let (remote, port) = service.map_or((server_pod.ips[0], PORT), |number| (ip(SERVICES[number].1), 80));
        for (pod, role, remote, port) in
            [(&client_pod, Role::Client, remote, port), (&server_pod, Role::Server, client_pod.ips[0], PORT)]
        {
            let number = number(pod);
            let local = pod.ips[0];
            let key =
                FlowKey { cgroup_id: number.into(), netns: number, role, local, remote, port, protocol: Protocol::Tcp };
            let node = usize::from(pod.node == "node-1");
            let flow = Flow { opened: 0, first: self.now, changed: self.now };
            let flow = self.flows[node].entry(key).or_insert(flow);
            (flow.opened, flow.changed) = (flow.opened + opened, self.now);
        }
    }

    /// The agent of a place evicts its flows, and the operator forgets them an hour later.
    pub fn forget(&mut self, place: usize) {
        let pod = &self.pods[place];
        let (node, cgroup_id) = (usize::from(pod.node == "node-1"), u64::from(number(pod)));
        self.flows[node].retain(|key, _| key.cgroup_id != cgroup_id);
        let (name, epoch) = (format!("node-{node}"), Epoch([self.epochs[node]; 16]));
        self.new.ledger.begin_snapshot(&name, epoch).expect("the present epoch");
        self.report();
        self.new.ledger.end_snapshot(&name, epoch, self.now).expect("the present epoch");
        self.now += Duration::from_hours(2);
        let Operator { directory, ledger, archive, .. } = &mut self.new;
        assert!(archive.retire(ledger, directory, self.now, Duration::from_hours(1)) > 0);
        self.report();
    }

    fn drop_flows(&mut self, node: usize) {
        // By then, it is published.
        self.rest();
        self.publish();
        let pods: Vec<u64> = self.pods.iter().map(|pod| number(pod).into()).collect();
        self.flows[node].retain(|key, _| pods.contains(&key.cgroup_id));
    }

    fn replace(&mut self, place: usize, keeps_address: bool) {
        let uid = self.pods[place].uid.clone();
        if !self.recorded.iter().any(|recorded| recorded.pod.uid == uid) {
            // No object has its name yet.
            self.report();
            self.publish();
        }
        let mut last = self.pods[place].clone();
        last.life.finished = Some(self.now);
        self.now += Duration::from_secs(2);
        let address = keeps_address.then(|| last.ips[0]);
        let next = self.pod(place, address);
        self.pods[place] = next.clone();
        let services = self.services();
        for operator in [&mut self.old, &mut self.new] {
            operator.directory.note_life(&uid, last.life, false, self.now);
            operator.directory.remove_pod(&uid, self.now);
            operator.directory.upsert_pod(next.clone(), self.now);
            for service in &services {
                operator.directory.upsert_service(service.clone(), self.now);
            }
        }
    }
}

impl Operator {
    fn hear(
        &mut self,
        node: usize,
        epoch: u8,
        flows: &BTreeMap<FlowKey, Flow>,
        owners: &HashMap<u64, CgroupOwner>,
        now: SystemTime,
    ) {
        let (name, epoch) = (format!("node-{node}"), Epoch([epoch; 16]));
        // A new stream begins with a snapshot.
        let is_new = !self.ledger.is_complete(&name);
        if is_new {
            self.ledger.begin_snapshot(&name, epoch).expect("the present epoch");
        }
        for (key, flow) in flows {
            let owner = owners[&key.cgroup_id].clone();
            self.ledger.identify(&name, epoch, key.cgroup_id, owner).expect("the present epoch");
            let age = |time: SystemTime| now.duration_since(time).unwrap_or_default();
            let news = self.told.get(&(node, *key)).map_or(flow.first, |told| (*told).min(flow.changed));
            let ages = Ages::of(age(flow.first), age(news), age(flow.changed));
            let bytes = BYTES * flow.opened;
            let counters = FlowCounters {
                opened: flow.opened,
                closed: flow.opened,
                bytes_sent: bytes,
                bytes_received: bytes,
                ..FlowCounters::default()
            };
            let sighting = Sighting::new(&ages, now, now);
            self.ledger.apply(&name, epoch, *key, &counters, sighting).expect("the present epoch");
            self.told.insert((node, *key), now);
        }
        if is_new {
            self.ledger.end_snapshot(&name, epoch, now).expect("the present epoch");
        }
        self.ledger.record_heartbeat(&name, now);
    }

    fn shown(&mut self, now: SystemTime) -> Graph {
        let options = Options {
            now,
            settle: Duration::from_secs(2),
            retention: Duration::from_hours(1000),
            max_external: usize::MAX,
        };
        self.archive.settle_in_time(&self.ledger, &self.directory, &options);
        self.archive.build_shown(&self.ledger, &self.directory, &options)
    }
}

/// Returns the graph's edges as the objects of their ends publish them: each has its own pods.
fn published(graph: &Graph) -> impl Iterator<Item = Published> {
    graph.edges.iter().flat_map(|edge| {
        let earlier = graph.earlier.get(&edge.key).cloned().unwrap_or_default();
        let [mut by_client, mut by_server] = [
            Published { edge: Edge::clone(edge), earlier: earlier.clone() },
            Published { edge: Edge::clone(edge), earlier },
        ];
        (by_client.edge.servers, by_client.earlier.counts.servers) = (Vec::new(), Vec::new());
        (by_server.edge.clients, by_server.earlier.counts.clients) = (Vec::new(), Vec::new());
        [by_client, by_server]
    })
}

pub type Shown = BTreeMap<EdgeKey, (EdgeCounters, Vec<Endpoint>, Vec<Endpoint>)>;

/// Returns the counters and the pods of each edge.
pub fn counts(graph: &Graph) -> Shown {
    let counts = |edge: &scopeprobe_topology::edge::Edge| (edge.counters, edge.clients.clone(), edge.servers.clone());
    graph.edges.iter().map(|edge| (edge.key.clone(), counts(edge))).collect()
}
