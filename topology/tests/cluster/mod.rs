//! A simulated cluster: pods with containers on nodes, Services, and conversations of which everything is known.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    directory::Directory,
    edge::{EdgeCounters, EdgeKey, Peer},
    entity::{
        Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServicePortRef, ServiceRef,
        Workload,
    },
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{Epoch, Ledger},
};

const PODS: usize = 7;
const WORKLOADS: usize = 4;
const NODES: usize = 3;
const SERVICES: usize = 3;
const DIRECT_PORT: u16 = 9000;
const SERVICE_PORT: u16 = 80;

#[derive(Clone, Debug)]
pub struct Cluster {
    /// Workload and node of each pod.
    pods: Vec<(usize, usize)>,
    /// Each Service's two workloads.
    services: Vec<(usize, usize)>,
    /// True if a Service leads to both of its workloads.
    pub split_services: bool,
    /// True if each node has an agent.
    pub observed: [bool; NODES],
    /// True if a client that reaches itself through a Service appears with a bridge's address.
    masquerade: bool,
    /// True if clients' agents report only half of the bytes, and declare it.
    pub half_known: bool,
    talks: Vec<Talk>,
    /// Of the order of reports.
    pub seed: u64,
}

#[derive(Clone, Debug)]
struct Talk {
    client: usize,
    container: usize,
    way: Way,
    ipv6: bool,
    protocol: Protocol,
    opened: u64,
    closed: u64,
    failed: u64,
    /// Payload of each connection: so much there, ten times as much back.
    bytes: u64,
}

#[derive(Clone, Debug)]
enum Way {
    Direct {
        server: usize,
        port: u16,
    },
    /// The backend is one of the Service's, by any number.
    Service {
        service: usize,
        backend: usize,
    },
}

/// Observed ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Client,
    Server,
    Both,
    Nothing,
}

/// A conversation as it truly was.
#[derive(Clone, Debug)]
pub struct Conversation {
    client: usize,
    container: usize,
    server: usize,
    service: Option<usize>,
    ipv6: bool,
    protocol: Protocol,
    /// At which the server listens.
    port: u16,
    pub opened: u64,
    closed: u64,
    failed: u64,
    bytes: u64,
}

impl Conversation {
    pub fn bytes_sent(&self) -> u64 {
        self.opened * self.bytes
    }

    fn bytes_received(&self) -> u64 {
        self.opened * self.bytes * 10
    }

    /// Returns the segments that the client and the server retransmitted.
    fn retransmits(&self) -> (u64, u64) {
        (self.opened * (self.bytes % 5), self.opened * (self.bytes % 3))
    }
}

pub fn cluster() -> impl Strategy<Value = Cluster> {
    let way = prop_oneof![
        (0..PODS, 0..2_u16).prop_map(|(server, port)| Way::Direct { server, port: DIRECT_PORT + port }),
        // Where a Service may lead, too.
        (0..PODS, 0..SERVICES).prop_map(|(server, service)| Way::Direct { server, port: target_port(service) }),
        (0..SERVICES, any::<usize>()).prop_map(|(service, backend)| Way::Service { service, backend }),
    ];
    let bytes = (0..500_u64).prop_map(|half| 2 * half);
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let talk = (0..PODS, 0..2_usize, way, any::<bool>(), protocol, 0..6_u64, 0..6_u64, 0..3_u64, bytes).prop_map(
        |(client, container, way, ipv6, protocol, opened, closed, failed, bytes)| Talk {
            client,
            container,
            way,
            ipv6,
            protocol,
            opened,
            closed: closed.min(opened),
            failed,
            bytes,
        },
    );
    (
        prop::collection::vec((0..WORKLOADS, 0..NODES), PODS),
        prop::collection::vec((0..WORKLOADS, 0..WORKLOADS), SERVICES),
        any::<bool>(),
        prop_oneof![Just([true; NODES]), any::<[bool; NODES]>()],
        any::<bool>(),
        prop::collection::vec(talk, 0..30),
        any::<u64>(),
    )
        .prop_map(|(pods, services, split_services, observed, masquerade, talks, seed)| Cluster {
            pods,
            services,
            split_services,
            observed,
            masquerade,
            half_known: false,
            talks,
            seed,
        })
}

#[expect(clippy::cast_possible_truncation, reason = "the cluster is small")]
fn pod_ip(pod: usize, node: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0, 0, node as u16, 0, 0, 1, pod as u16).into()
    } else {
        Ipv4Addr::new(10, 244, node as u8, 10 + pod as u8).into()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the cluster is small")]
fn node_ip(node: usize) -> IpAddr {
    Ipv4Addr::new(172, 18, 0, 2 + node as u8).into()
}

#[expect(clippy::cast_possible_truncation, reason = "the cluster is small")]
fn bridge_ip(node: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0, 0, node as u16, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(10, 244, node as u8, 1).into()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the cluster is small")]
fn service_ip(service: usize, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, service as u16).into()
    } else {
        Ipv4Addr::new(10, 96, 0, service as u8).into()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the cluster is small")]
fn target_port(service: usize) -> u16 {
    8080 + service as u16
}

fn workload(workload: usize) -> Workload {
    Workload {
        namespace: "shop".to_owned(),
        kind: "Deployment".to_owned(),
        name: format!("workload-{workload}"),
        group: "apps".to_owned(),
    }
}

fn service_ref(service: usize) -> ServiceRef {
    ServiceRef { namespace: "shop".to_owned(), name: format!("service-{service}") }
}

/// The container that listens at a port.
fn listening(port: u16) -> usize {
    usize::from(port % 2)
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

/// One report: node, cgroup, owner, key and counters.
type Report = (usize, CgroupOwner, FlowKey, FlowCounters);

impl Cluster {
    fn backends(&self, service: usize) -> Vec<usize> {
        let (first, second) = self.services[service];
        let leads_to = |workload| workload == first || (self.split_services && workload == second);
        (0..PODS).filter(|pod| leads_to(self.pods[*pod].0)).collect()
    }

    fn is_split(&self, service: usize) -> bool {
        let mut workloads: Vec<usize> = self.backends(service).iter().map(|pod| self.pods[*pod].0).collect();
        workloads.dedup_by_key(|workload| *workload);
        workloads.sort_unstable();
        workloads.dedup();
        workloads.len() > 1
    }

    /// Everything that happened, and which of its ends is observed.
    pub fn conversations(&self) -> impl Iterator<Item = (Conversation, Seen)> {
        self.talks.iter().filter_map(|talk| {
            let (server, service, port) = match talk.way {
                Way::Direct { server, port } => (server, None, port),
                Way::Service { service, backend } => {
                    let backends = self.backends(service);
                    // A Service without backends refuses everything, which the graph's own tests look at.
                    let server = *backends.get(backend.checked_rem(backends.len())?)?;
                    (server, Some(service), target_port(service))
                }
            };
            let conversation = Conversation {
                client: talk.client,
                container: talk.container,
                server,
                service,
                ipv6: talk.ipv6,
                protocol: talk.protocol,
                port,
                opened: talk.opened,
                closed: talk.closed,
                failed: talk.failed,
                bytes: talk.bytes,
            };
            let seen = match (self.observed[self.pods[talk.client].1], self.observed[self.pods[server].1]) {
                (true, true) => Seen::Both,
                (true, false) => Seen::Client,
                (false, true) => Seen::Server,
                (false, false) => Seen::Nothing,
            };
            Some((conversation, seen))
        })
    }

    /// The edges as they have to be.
    pub fn truth(&self) -> BTreeMap<EdgeKey, EdgeCounters> {
        let mut edges: BTreeMap<EdgeKey, EdgeCounters> = BTreeMap::new();
        let mut add = |key: EdgeKey, counters: EdgeCounters| {
            if counters != EdgeCounters::default() {
                edges.entry(key).or_default().add(&counters);
            }
        };
        for (it, seen) in self.conversations() {
            let of = |pod: usize| Peer::Workload(workload(self.pods[pod].0));
            let opened = EdgeCounters {
                opened: it.opened,
                active: it.opened - it.closed,
                failed: 0,
                bytes_sent: it.bytes_sent(),
                bytes_received: it.bytes_received(),
                retransmits: match (seen, it.retransmits()) {
                    (Seen::Both, (by_client, by_server)) => by_client + by_server,
                    (Seen::Client, (by_client, _)) => by_client,
                    (Seen::Server, (_, by_server)) => by_server,
                    (Seen::Nothing, _) => 0,
                },
                ..EdgeCounters::default()
            };
            let failed = EdgeCounters { failed: it.failed, ..EdgeCounters::default() };
            let service = it.service.map(|of| ServicePortRef { service: service_ref(of), port: SERVICE_PORT });
            let (client, server) = (of(it.client), of(it.server));
            let direct = EdgeKey { client, server, service, port: Some(it.port), protocol: it.protocol };
            // Which backend it was is not known then.
            let to_service = it.service.map(|service| EdgeKey {
                server: Peer::Service(service_ref(service)),
                port: None,
                ..direct.clone()
            });
            let is_split = it.service.is_some_and(|service| self.is_split(service));
            match seen {
                Seen::Both => {
                    add(direct.clone(), opened);
                    add(to_service.filter(|_| is_split).unwrap_or(direct), failed);
                }
                Seen::Client => {
                    let key = to_service.filter(|_| is_split).unwrap_or(direct);
                    add(key.clone(), opened);
                    add(key, failed);
                }
                // The server does not know what was called, nor does it see what failed.
                Seen::Server => add(EdgeKey { service: None, ..direct }, opened),
                Seen::Nothing => {}
            }
        }
        edges
    }

    /// Connections by pod and container that took them.
    pub fn opened_by_server(&self) -> BTreeMap<(String, String), u64> {
        let mut servers = BTreeMap::new();
        for (it, _) in self.conversations().filter(|(it, _)| it.opened > 0) {
            let end = (format!("pod-{}", it.server), format!("container-{}", listening(it.port)));
            *servers.entry(end).or_default() += it.opened;
        }
        servers
    }

    /// The graph, with the reports in an order that `seed` gives.
    pub fn graph(&self, seed: u64) -> Graph {
        let mut reports = self.reports();
        // A shuffle that needs to be no more than different for each seed.
        let mut state = seed | 1;
        for index in (1..reports.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let other = usize::try_from((state >> 33) % (index as u64 + 1)).unwrap_or(0);
            reports.swap(index, other);
        }
        let mut ledger = Ledger::new();
        for (node, owner, key, counters) in reports {
            let node = format!("node-{node}");
            let applied = ledger
                .identify(&node, Epoch([1; 16]), key.cgroup_id, owner)
                .and_then(|_| ledger.apply(&node, Epoch([1; 16]), key, &counters, now()));
            assert!(applied.is_ok(), "there is only one epoch");
        }
        let options =
            Options { now: now(), settle: Duration::ZERO, retention: Duration::from_mins(1), max_external: usize::MAX };
        graph::build(&ledger, &self.directory(), &options)
    }

    /// Returns the agents' reports: flows of both ends, with equal keys added up.
    fn reports(&self) -> Vec<Report> {
        let mut flows: BTreeMap<FlowKey, (usize, CgroupOwner, FlowCounters)> = BTreeMap::new();
        for (it, seen) in self.conversations() {
            let client_ip = pod_ip(it.client, self.pods[it.client].1, it.ipv6);
            let server_ip = pod_ip(it.server, self.pods[it.server].1, it.ipv6);
            if matches!(seen, Seen::Both | Seen::Client) {
                let (remote, port) = match it.service {
                    Some(service) => (service_ip(service, it.ipv6), SERVICE_PORT),
                    None => (server_ip, it.port),
                };
                let at = (port, it.protocol);
                let (key, owner) = self.flow(it.client, it.container, Role::Client, client_ip, remote, at);
                let (_, _, counters) =
                    flows.entry(key).or_insert((self.pods[it.client].1, owner, FlowCounters::default()));
                counters.opened += it.opened;
                counters.closed += it.closed;
                counters.failed += it.failed;
                let (known_of, unknown) = if self.half_known { (2, it.opened) } else { (1, 0) };
                counters.bytes_sent += it.bytes_sent() / known_of;
                counters.bytes_received += it.bytes_received() / known_of;
                counters.without_bytes += unknown;
                *counters.retransmits.get_or_insert(0) += it.retransmits().0;
            }
            if matches!(seen, Seen::Both | Seen::Server) && it.opened > 0 {
                let hairpin = self.masquerade && it.service.is_some() && it.client == it.server;
                let remote = if hairpin { bridge_ip(self.pods[it.server].1, it.ipv6) } else { client_ip };
                let at = (it.port, it.protocol);
                let (key, owner) = self.flow(it.server, listening(it.port), Role::Server, server_ip, remote, at);
                let (_, _, counters) =
                    flows.entry(key).or_insert((self.pods[it.server].1, owner, FlowCounters::default()));
                counters.opened += it.opened;
                counters.closed += it.closed;
                counters.bytes_sent += it.bytes_received();
                counters.bytes_received += it.bytes_sent();
                *counters.retransmits.get_or_insert(0) += it.retransmits().1;
            }
        }
        flows.into_iter().map(|(key, (node, owner, counters))| (node, owner, key, counters)).collect()
    }

    #[expect(clippy::unused_self, reason = "it belongs to the cluster")]
    fn flow(
        &self,
        pod: usize,
        container: usize,
        role: Role,
        local: IpAddr,
        remote: IpAddr,
        (port, protocol): (u16, Protocol),
    ) -> (FlowKey, CgroupOwner) {
        let cgroup_id = (pod * 10 + container) as u64;
        let owner =
            CgroupOwner::PodContainer { pod_uid: format!("uid-{pod}"), container_id: format!("{pod}-{container}") };
        let netns = u32::try_from(pod).unwrap_or_default();
        (FlowKey { cgroup_id, netns, role, local, remote, port, protocol }, owner)
    }

    fn directory(&self) -> Directory {
        let mut directory = Directory::new();
        for node in 0..NODES {
            directory.upsert_node(Node {
                name: format!("node-{node}"),
                ips: vec![node_ip(node)],
                pod_networks: [false, true]
                    .map(|ipv6| Network { address: bridge_ip(node, ipv6), prefix: if ipv6 { 64 } else { 24 } })
                    .to_vec(),
            });
        }
        for (pod, (of, node)) in self.pods.iter().enumerate() {
            directory.upsert_pod(
                Pod {
                    uid: format!("uid-{pod}"),
                    namespace: "shop".to_owned(),
                    name: format!("pod-{pod}"),
                    node: format!("node-{node}"),
                    host_network: false,
                    ips: [false, true].map(|ipv6| pod_ip(pod, *node, ipv6)).to_vec(),
                    ended: false,
                    workload: workload(*of),
                    containers: (0..2)
                        .map(|container| (format!("{pod}-{container}"), format!("container-{container}")))
                        .collect(),
                    host_ports: Vec::new(),
                    life: PodLifetime::default(),
                },
                now(),
            );
        }
        for service in 0..SERVICES {
            let backends = self.backends(service).into_iter().flat_map(|pod| {
                [false, true].map(|ipv6| Backend {
                    ip: pod_ip(pod, self.pods[pod].1, ipv6),
                    port: target_port(service),
                    pod_uid: Some(format!("uid-{pod}")),
                })
            });
            let backends: Vec<Backend> = backends.collect();
            let port =
                |protocol| ServicePort { port: SERVICE_PORT, protocol, node_port: None, backends: backends.clone() };
            directory.upsert_service(
                Service {
                    name: service_ref(service),
                    addresses: [false, true].map(|ipv6| service_ip(service, ipv6)).to_vec(),
                    ports: [Protocol::Tcp, Protocol::Udp].map(port).to_vec(),
                },
                now(),
            );
        }
        directory
    }
}
