//! Simulates seven days of a cluster in which workloads come and go, as the operator sees them: nothing grows, and the
//! counters of what stays are right.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the tests of the agent's memory")]
#[path = "../../node-agent/tests/counting_allocator/mod.rs"]
mod counting_allocator;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use counting_allocator::{Counting, IN_USE};
use scopeprobe_topology::{
    archive::{Archive, Published},
    directory::Directory,
    edge::{Edge, Peer},
    entity::{Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServiceRef, Workload},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{Graph, Options},
    ledger::{Epoch, Ledger},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Time between two rounds of births, reports and pictures.
const ROUND: Duration = Duration::from_mins(5);
const ROUNDS_A_DAY: u32 = 24 * 12;
/// Rounds for which a pod lives.
const LIFE: usize = 2;
const RETENTION: Duration = Duration::from_mins(15);
const NODES: [&str; 2] = ["node-1", "node-2"];
const DB: &str = "10.244.2.2";
const SERVICE: &str = "10.96.0.5";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(namespace: &str, kind: &str, name: &str) -> Workload {
    Workload { namespace: namespace.into(), kind: kind.into(), name: name.into(), group: "apps".into() }
}

/// A pod on the first node, and what it has opened.
struct Client {
    pod: Pod,
    number: u32,
    service: ServiceRef,
}

struct Cluster {
    now: SystemTime,
    directory: Directory,
    ledger: Ledger,
    archive: Archive,
    shown: Graph,
    epoch: u8,
    clients: VecDeque<Client>,
    /// Counters of the flows that the agents have.
    flows: BTreeMap<FlowKey, FlowCounters>,
    /// Calls of the database through its Service by the workload that stays.
    calls: u64,
}

fn pod(uid: &str, workload: Workload, node: &str, address: IpAddr) -> Pod {
    Pod {
        uid: uid.into(),
        namespace: workload.namespace.clone(),
        name: uid.into(),
        node: node.into(),
        ips: vec![address],
        host_network: false,
        workload,
        containers: BTreeMap::from([(format!("id-{uid}"), "main".into())]),
        ended: false,
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    }
}

fn service(name: &ServiceRef, address: IpAddr, backend: IpAddr) -> Service {
    let backend = Backend { ip: backend, port: 5432, pod_uid: Some("db".into()) };
    let port = ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends: vec![backend] };
    Service { name: name.clone(), addresses: vec![address], ports: vec![port] }
}

impl Cluster {
    fn new() -> Self {
        let mut directory = Directory::new();
        for (number, name) in (1..).zip(NODES) {
            let pod_networks = Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect();
            directory.upsert_node(Node { name: name.into(), ips: Vec::new(), pod_networks });
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
        directory.upsert_pod(pod("db", workload("shop", "Deployment", "db"), NODES[1], ip(DB)), now);
        let name = ServiceRef { namespace: "shop".into(), name: "db".into() };
        directory.upsert_service(service(&name, ip(SERVICE), ip(DB)), now);
        let mut archive = Archive::new();
        archive.restore([], now);
        Self {
            now,
            directory,
            ledger: Ledger::new(),
            archive,
            shown: Graph::default(),
            epoch: 1,
            clients: VecDeque::new(),
            flows: BTreeMap::new(),
            calls: 0,
        }
    }

    /// Two pods start: one of a workload that stays, and one whose workload, namespace and Service are gone with it.
    /// Addresses are used again.
    fn start_pods(&mut self, round: u32) {
        for which in 0..2 {
            let number = 2 * round + which;
            let address = IpAddr::from([10, 244, 1, u8::try_from(2 + number % 250).unwrap()]);
            let namespace = if which == 0 { "shop".to_owned() } else { format!("ci-{number}") };
            let owner =
                if which == 0 { workload("shop", "CronJob", "backup") } else { workload(&namespace, "Job", "run") };
            let pod = pod(&format!("uid-{number}"), owner, NODES[0], address);
            self.directory.upsert_pod(pod.clone(), self.now);
            let service_name = ServiceRef { namespace, name: "own".into() };
            if which == 1 {
                let own = IpAddr::from([10, 96, 1, u8::try_from(number % 250).unwrap()]);
                self.directory.upsert_service(service(&service_name, own, address), self.now);
            } else {
                self.calls += 1;
            }
            for (key, bytes) in keys(number, address) {
                let counters = self.flows.entry(key).or_default();
                counters.opened += 1;
                counters.closed += 1;
                counters.bytes_sent += bytes;
            }
            self.clients.push_back(Client { pod, number, service: service_name });
        }
    }

    /// The oldest pods end, and the agents forget their flows.
    fn end_pods(&mut self) {
        while self.clients.len() > 2 * LIFE {
            let Client { pod, number, service } = self.clients.pop_front().unwrap();
            for (key, _) in keys(number, pod.ips[0]) {
                self.flows.remove(&key);
            }
            self.directory.remove_pod(&pod.uid, self.now);
            self.directory.remove_service(&service, self.now);
        }
    }

    fn report(&mut self) {
        for (index, node) in NODES.into_iter().enumerate() {
            let epoch = Epoch([self.epoch; 16]);
            let role = if index == 0 { Role::Client } else { Role::Server };
            self.ledger.begin_snapshot(node, epoch).unwrap();
            for (key, counters) in self.flows.iter().filter(|(key, _)| key.role == role) {
                let uid = if index == 0 { format!("uid-{}", key.cgroup_id) } else { "db".to_owned() };
                let owner = CgroupOwner::PodContainer { container_id: format!("id-{uid}"), pod_uid: uid };
                self.ledger.identify(node, epoch, key.cgroup_id, owner).unwrap();
                self.ledger.apply(node, epoch, *key, counters, self.now).unwrap();
            }
            self.ledger.end_snapshot(node, epoch, self.now).unwrap();
            self.ledger.record_heartbeat(node, self.now);
        }
    }

    /// As the operator's publisher does.
    fn picture(&mut self) {
        let settle = Duration::from_secs(2);
        let options = Options { now: self.now, settle, retention: RETENTION, max_external: 20 };
        self.archive.settle_in_time(&self.ledger, &self.directory, &options);
        self.shown = self.archive.build_shown(&self.ledger, &self.directory, &options);
        let directory = &self.directory;
        let nodes: Vec<String> = self.ledger.nodes().map(str::to_owned).collect();
        for node in nodes {
            self.ledger.condense(&node, |flow, one, next| directory.are_one(flow.remote, one, next, self.now));
        }
        self.archive.retire(&mut self.ledger, directory, self.now, RETENTION);
        self.directory.forget_removed(self.now, 2 * RETENTION);
    }

    /// An operator takes over from what was published.
    fn restart_operator(&mut self) {
        let published: Vec<_> = self
            .shown
            .edges
            .iter()
            .map(|edge| Published {
                edge: Edge::clone(edge),
                earlier: self.shown.earlier.get(&edge.key).cloned().unwrap_or_default(),
            })
            .collect();
        (self.ledger, self.archive) = (Ledger::new(), Archive::new());
        self.archive.restore(published, self.now);
    }

    /// Agents start anew; nothing is open.
    fn restart_agents(&mut self) {
        self.epoch += 1;
        self.flows.clear();
    }
}

/// Flows of a pod's short connections: to the database by its Service, and to an address outside that no other pod calls;
/// and of the first as the database sees it. With the bytes that each sends.
fn keys(number: u32, address: IpAddr) -> [(FlowKey, u64); 3] {
    let [_, b, c, d] = (0x0100_0000 + number).to_be_bytes();
    let outside = IpAddr::from([203, b, c, d]);
    let key = |cgroup_id, role, local, remote, port| FlowKey {
        cgroup_id,
        netns: 1,
        role,
        local,
        remote,
        port,
        protocol: Protocol::Tcp,
    };
    [
        (key(number.into(), Role::Client, address, ip(SERVICE), 80), 10),
        (key(number.into(), Role::Client, address, outside, 443), 20),
        (key(0xffff_ffff, Role::Server, ip(DB), address, 5432), 30),
    ]
}

fn is_of_backup(edge: &Edge) -> bool {
    edge.key.client == Peer::Workload(workload("shop", "CronJob", "backup")) && edge.key.service.is_some()
}

/// The only test of this binary: the allocator would also count the memory of other tests' threads.
#[test]
fn seven_days_of_workloads_leave_no_memory_behind() {
    let mut cluster = Cluster::new();
    let mut most_by_day = [0_usize; 7];
    for round in 0..7 * ROUNDS_A_DAY {
        cluster.now += ROUND;
        cluster.start_pods(round);
        cluster.report();
        cluster.end_pods();
        cluster.report();
        cluster.picture();
        let edges = cluster.shown.edges.iter();
        let shown: u64 = edges.filter(|edge| is_of_backup(edge)).map(|edge| edge.counters.opened).sum();
        assert_eq!(shown, cluster.calls, "round {round}");
        match round % ROUNDS_A_DAY {
            // Once a day each.
            100 => cluster.restart_agents(),
            200 => cluster.restart_operator(),
            _ => {}
        }
        let most = &mut most_by_day[usize::try_from(round / ROUNDS_A_DAY).unwrap()];
        *most = IN_USE.load(Ordering::Relaxed).max(*most);
    }
    println!("most bytes in use, by day: {most_by_day:?}; {} edges", cluster.shown.edges.len());
    // The list of the directory's latest changes, which is bounded, fills up on the first two days.
    let [_, second, .., last] = most_by_day;
    assert!(last <= second + second / 8, "{most_by_day:?}");
}
