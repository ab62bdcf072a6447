//! Two nodes with agents, a pod on each, and what is reported of them.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use scopeprobe_topology::{
    directory::Directory,
    edge::Peer,
    entity::{Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServiceRef, Workload},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{ClientReport, Epoch, Ledger},
};

pub const EPOCH: Epoch = Epoch([1; 16]);
pub const SETTLE: Duration = Duration::from_secs(2);
pub const RETENTION: Duration = Duration::from_mins(10);

pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 + seconds)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn workload(name: &str) -> Workload {
    Workload {
        namespace: "shop".to_owned(),
        kind: "Deployment".to_owned(),
        name: name.to_owned(),
        group: "apps".to_owned(),
    }
}

pub fn pod(name: &str, node: &str, address: &str) -> Pod {
    Pod {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        host_network: false,
        ips: vec![ip(address)],
        ended: false,
        workload: workload(name),
        containers: [(format!("id-{name}"), "app".to_owned())].into(),
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    }
}

pub struct World {
    pub ledger: Ledger,
    pub directory: Directory,
}

impl World {
    /// Two nodes with agents; a pod on each.
    pub fn new() -> Self {
        let mut world = Self { ledger: Ledger::new(), directory: Directory::new() };
        for number in [1, 2] {
            world.directory.upsert_node(Node {
                name: format!("node-{number}"),
                ips: vec![ip(&format!("172.18.0.{number}"))],
                pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
            });
            world.ledger.enter(&format!("node-{number}"), EPOCH).expect("the first epoch");
        }
        world.directory.upsert_pod(pod("web", "node-1", "10.244.1.2"), at(0));
        world.directory.upsert_pod(pod("db", "node-2", "10.244.2.2"), at(0));
        world
    }

    /// Adds two workloads with pods on a node without reports.
    pub fn with_a_dark_node() -> Self {
        let mut world = Self::new();
        world.directory.upsert_node(Node {
            name: "node-3".to_owned(),
            ips: vec![ip("172.18.0.3")],
            pod_networks: Network::parse("10.244.3.0/24").into_iter().collect(),
        });
        world.directory.upsert_pod(pod("dark-a", "node-3", "10.244.3.2"), at(0));
        world.directory.upsert_pod(pod("dark-b", "node-3", "10.244.3.3"), at(0));
        world
    }

    pub fn service(&mut self, node_port: Option<u16>, backends: &[&str]) {
        let backends = backends.iter().map(|name| {
            let pod = self.directory.pod(&format!("uid-{name}")).expect("the pod is known");
            Backend { ip: pod.ips[0], port: 5432, pod_uid: Some(pod.uid.clone()) }
        });
        let ports = vec![ServicePort { port: 80, protocol: Protocol::Tcp, node_port, backends: backends.collect() }];
        let name = ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() };
        self.directory.upsert_service(Service { name, addresses: vec![ip("10.96.0.5")], ports }, at(0));
    }

    pub fn flow(
        &mut self,
        who: &str,
        role: Role,
        (local, remote, port): (&str, &str, u16),
        opened: u64,
        now: SystemTime,
    ) {
        let counters = FlowCounters { opened, closed: opened, ..FlowCounters::default() };
        self.counters(who, role, (local, remote, port), &counters, now);
    }

    pub fn counters(
        &mut self,
        who: &str,
        role: Role,
        addresses: (&str, &str, u16),
        counters: &FlowCounters,
        now: SystemTime,
    ) {
        self.report(who, key(who, role, addresses), counters, now);
    }

    /// Reports a flow of a pod, of a container as `pod/container`, or of a process of node-2.
    pub fn report(&mut self, who: &str, key: FlowKey, counters: &FlowCounters, now: SystemTime) {
        let pod = who.split('/').next().unwrap_or(who);
        let (node, owner) = match self.directory.pod(&format!("uid-{pod}")) {
            Some(pod) => (
                pod.node.clone(),
                CgroupOwner::PodContainer { pod_uid: pod.uid.clone(), container_id: format!("id-{who}") },
            ),
            None => ("node-2".to_owned(), CgroupOwner::HostProcess { name: who.to_owned() }),
        };
        self.ledger.identify(&node, EPOCH, key.cgroup_id, owner).expect("the present epoch");
        self.ledger.apply(&node, EPOCH, key, counters, now).expect("the present epoch");
    }

    /// Reports that a node's agent has observed all clients of the node between two times.
    pub fn observe(&mut self, node: &str, attached: SystemTime, until: SystemTime) {
        self.observe_with(node, EPOCH, &ClientReport { complete_until: Some(until), ..client_report(attached, until) });
    }

    pub fn observe_with(&mut self, node: &str, epoch: Epoch, report: &ClientReport) {
        if !self.ledger.is_complete(node) {
            self.ledger.begin_snapshot(node, epoch).expect("the present epoch");
            self.ledger.end_snapshot(node, epoch, report.made).expect("the present epoch");
        }
        self.ledger.record_clients(node, epoch, report).expect("the present epoch");
    }

    pub fn graph(&self, now: SystemTime) -> Graph {
        graph::build(
            &self.ledger,
            &self.directory,
            &Options { now, settle: SETTLE, retention: RETENTION, max_external: usize::MAX },
        )
    }
}

/// Returns the report of an exact capture, made at a time, which does not report up to when it is complete.
pub fn client_report(attached: SystemTime, made: SystemTime) -> ClientReport {
    ClientReport { attached, complete_until: None, made, lost: 0, is_exact: true, observes_udp: true }
}

pub fn key(who: &str, role: Role, (local, remote, port): (&str, &str, u16)) -> FlowKey {
    let cgroup_id = who.bytes().map(u64::from).sum();
    FlowKey { cgroup_id, netns: 4, role, local: ip(local), remote: ip(remote), port, protocol: Protocol::Tcp }
}

/// Client, server, Service, port, opened, failed of each edge.
pub fn edges(graph: &Graph) -> Vec<String> {
    let name = |peer: &Peer| match peer {
        Peer::Workload(workload) => workload.name.clone(),
        Peer::Service(service) => format!("service {}", service.name),
        Peer::HostProcess { node, name } => format!("{node}/{name}"),
        Peer::Node { node } => node.clone(),
        Peer::UnknownPod { uid } => format!("pod {uid}"),
        Peer::SomePod { ip } => format!("some pod {ip}"),
        Peer::External { ip } => ip.to_string(),
        Peer::BehindNode { node } => format!("via {node}"),
        Peer::ExternalGroup { name } | Peer::ExternalName { name } => name.clone(),
        Peer::ApiServer => "kubernetes-api".to_owned(),
        Peer::OtherExternal => "others".to_owned(),
    };
    graph
        .edges
        .iter()
        .map(|edge| {
            let key = &edge.key;
            let via =
                key.service.as_ref().map(|of| format!(" via {}:{}", of.service.name, of.port)).unwrap_or_default();
            let counters = &edge.counters;
            let (client, server) = (name(&key.client), name(&key.server));
            let protocol = if key.protocol == Protocol::Udp { "/UDP" } else { "" };
            let port = key.port.map(|port| format!(":{port}")).unwrap_or_default();
            format!("{client} -> {server}{port}{protocol}{via} {}+{}", counters.opened, counters.failed)
        })
        .collect()
}
