//! Graphs of two pods with sidecars over time. Each agent reports when a history demands it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use scopeprobe_topology::{
    archive::{Archive, Published},
    directory::Directory,
    edge::{Edge, Peer},
    entity::{Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServiceRef, Workload},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{Graph, Options},
    ledger::{Epoch, Ledger},
};

pub const WEB: &str = "10.244.1.2";
pub const DB: &str = "10.244.2.2";
pub const SERVICE: &str = "10.96.0.5";
pub const OUTBOUND: u16 = 15001;
pub const INBOUND: u16 = 15006;
pub const PORT: u16 = 5432;
pub const LOOPBACK: &str = "127.0.0.1";
pub const RETENTION: Duration = Duration::from_mins(10);
pub const SETTLE: Duration = Duration::from_secs(2);
const EPOCH: Epoch = Epoch([1; 16]);
/// Containers of the pods, by pod and name; each may be started twice.
const CONTAINERS: [(&str, &str); 4] = [("web", "app"), ("web", "proxy"), ("db", "app"), ("db", "proxy")];

/// A container of a pod, and its number among those that had its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container(pub &'static str, pub &'static str, pub u8);

impl Container {
    fn cgroup_id(self) -> u64 {
        let number = CONTAINERS.iter().position(|known| *known == (self.0, self.1)).expect("a known container");
        100 + 10 * number as u64 + u64::from(self.2)
    }

    fn id(self) -> String {
        format!("id-{}/{}-{}", self.0, self.1, self.2)
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(name: &str, node: &str, address: &str) -> Pod {
    let containers = ["app", "proxy"].into_iter().flat_map(|container| (0..4).map(move |number| (container, number)));
    Pod {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        host_network: false,
        ips: vec![ip(address)],
        ended: false,
        workload: Workload {
            namespace: "shop".to_owned(),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
            group: "apps".to_owned(),
        },
        containers: containers.map(|(it, number)| (format!("id-{name}/{it}-{number}"), it.to_owned())).collect(),
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    }
}

/// Flows of a node, with their owners.
type Flows = BTreeMap<FlowKey, (Container, FlowCounters)>;

pub struct History {
    pub now: SystemTime,
    pub agents: [Flows; 2],
    ledger: Ledger,
    directory: Directory,
    archive: Archive,
    /// Agents that have reported to this operator.
    reported: [bool; 2],
    pub shown: Graph,
}

impl History {
    pub fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let mut directory = Directory::new();
        for number in [1, 2] {
            directory.upsert_node(Node {
                name: format!("node-{number}"),
                ips: vec![IpAddr::from([172, 18, 0, number])],
                pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
            });
        }
        directory.upsert_pod(pod("web", "node-1", WEB), since);
        directory.upsert_pod(pod("db", "node-2", DB), since);
        for (name, address, backend) in [("db", SERVICE, DB), ("web", "10.96.0.6", WEB)] {
            let backend = Backend { ip: ip(backend), port: PORT, pod_uid: Some(format!("uid-{name}")) };
            let port = ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends: vec![backend] };
            let name = ServiceRef { namespace: "shop".to_owned(), name: name.to_owned() };
            directory.upsert_service(Service { name, addresses: vec![ip(address)], ports: vec![port] }, since);
        }
        let ledger = Ledger::new();
        let agents = [Flows::new(), Flows::new()];
        Self { now, agents, ledger, directory, archive: Archive::new(), reported: [false; 2], shown: Graph::default() }
    }

    fn counters(&mut self, who: Container, role: Role, (local, remote, port): (&str, &str, u16)) -> &mut FlowCounters {
        let pod = usize::from(who.0 == "db");
        let netns = u32::try_from(pod).expect("0 or 1") + 1;
        let (cgroup_id, protocol) = (who.cgroup_id(), Protocol::Tcp);
        let key = FlowKey { cgroup_id, netns, role, local: ip(local), remote: ip(remote), port, protocol };
        &mut self.agents[pod].entry(key).or_insert((who, FlowCounters::default())).1
    }

    /// Has a container open so many connections, or accept them.
    pub fn open(&mut self, who: Container, role: Role, addresses: (&str, &str, u16), opened: u64) {
        if opened > 0 {
            let counters = self.counters(who, role, addresses);
            counters.opened += opened;
            // One stays open, so that its edge stays.
            counters.closed = counters.opened - 1;
            counters.bytes_sent += 10 * opened;
        }
    }

    /// Has so many attempts of a container fail.
    pub fn fail(&mut self, who: Container, addresses: (&str, &str, u16), failed: u64) {
        if failed > 0 {
            self.counters(who, Role::Client, addresses).failed += failed;
        }
    }

    /// Has an agent report all of its flows; those that it has evicted are over.
    pub fn report(&mut self, node: usize) {
        let name = format!("node-{}", node + 1);
        if !self.reported[node] {
            self.ledger.enter(&name, EPOCH).expect("the first epoch");
        }
        self.ledger.begin_snapshot(&name, EPOCH).expect("the present epoch");
        for (key, (who, counters)) in &self.agents[node] {
            let owner = CgroupOwner::PodContainer { pod_uid: format!("uid-{}", who.0), container_id: who.id() };
            self.ledger.identify(&name, EPOCH, key.cgroup_id, owner).expect("the present epoch");
            self.ledger.apply(&name, EPOCH, *key, counters, self.now).expect("the present epoch");
        }
        self.ledger.end_snapshot(&name, EPOCH, self.now).expect("the present epoch");
        self.ledger.record_heartbeat(&name, self.now);
        self.reported[node] = true;
    }

    /// Has an agent evict flows.
    pub fn evict(&mut self, evicts: impl Fn(&FlowKey, Container) -> bool) {
        for flows in &mut self.agents {
            flows.retain(|key, (who, _)| !evicts(key, *who));
        }
    }

    fn options(&self) -> Options {
        Options { now: self.now, settle: SETTLE, retention: RETENTION, max_external: usize::MAX }
    }

    /// Returns what the operator shows after so many milliseconds.
    pub fn look_after(&mut self, milliseconds: u64) -> Vec<String> {
        self.now += Duration::from_millis(milliseconds);
        let options = self.options();
        if self.reported == [true; 2] {
            self.archive.settle_in_time(&self.ledger, &self.directory, &options);
        }
        self.shown = self.archive.build_shown(&self.ledger, &self.directory, &options);
        edges(&self.shown)
    }

    /// Returns what the operator shows when both agents have reported and all has settled.
    pub fn settled(&mut self) -> Vec<String> {
        self.report(0);
        self.report(1);
        self.look_after(500);
        self.look_after(2500)
    }

    /// Has the operator forget flows that are over, while others go on for an hour.
    pub fn retire(&mut self, mut go_on: impl FnMut(&mut Self)) {
        for _ in 0..60 {
            go_on(self);
            self.report(0);
            self.report(1);
            // Agents say that they are there.
            self.now += Duration::from_secs(30);
            self.ledger.record_heartbeat("node-1", self.now);
            self.ledger.record_heartbeat("node-2", self.now);
            self.look_after(30_000);
            self.archive.retire(&mut self.ledger, &self.directory, self.now, RETENTION);
        }
    }

    /// Has time pass after which the operator forgets flows that are over.
    pub fn forget(&mut self) {
        for _ in 0..25 {
            self.now += Duration::from_secs(30);
            self.ledger.record_heartbeat("node-1", self.now);
            self.ledger.record_heartbeat("node-2", self.now);
        }
        self.archive.retire(&mut self.ledger, &self.directory, self.now, RETENTION);
    }

    /// Replaces the operator by one that has the published objects.
    pub fn restart_operator(&mut self) {
        let graph = &self.shown;
        let published = graph.edges.iter().map(|edge| Published {
            edge: Edge::clone(edge),
            earlier: graph.earlier.get(&edge.key).cloned().unwrap_or_default(),
        });
        (self.archive, self.ledger, self.reported) = (Archive::new(), Ledger::new(), [false; 2]);
        self.archive.restore(published, self.now);
        self.archive.restore_legs(&graph.recorded_legs);
    }
}

pub fn name(peer: &Peer) -> String {
    match peer {
        Peer::Workload(workload) => workload.name.clone(),
        other => format!("{other:?}"),
    }
}

/// Client, server, port, Service, opened and failed of each edge.
pub fn edges(graph: &Graph) -> Vec<String> {
    let edge = |edge: &Edge| {
        let key = &edge.key;
        let port = key.port.map(|port| format!(":{port}")).unwrap_or_default();
        let via = key.service.as_ref().map(|of| format!(" via {}:{}", of.service.name, of.port)).unwrap_or_default();
        let (opened, failed) = (edge.counters.opened, edge.counters.failed);
        format!("{} -> {}{port}{via} {opened}+{failed}", name(&key.client), name(&key.server))
    };
    graph.edges.iter().map(|it| edge(it)).collect()
}
