//! Clients that call Services which share backends, and pods directly, on nodes of which some have agents: everything
//! that happened is known here, and what agents report of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    directory::Directory,
    edge::Peer,
    entity::{
        Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServicePortRef, ServiceRef,
        Workload,
    },
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{Epoch, Ledger},
    nat_peer::NatPeer,
    sighting::{Ages, Sighting},
};

pub const SETTLE_MS: u64 = 2_000;
/// Interval between two readings of an agent.
pub const PERIOD_MS: u64 = 1_000;
/// The longest time that a report takes.
pub const LATE_MS: u64 = 300;
const NODES: usize = 4;
/// Addresses of clients' pods, one on each of the first two nodes and so on.
const CLIENTS: usize = 4;
/// Processes of the first node, which call from its address.
const PROCESSES: usize = 2;
/// Addresses of servers' pods, on the last three nodes.
const SERVERS: usize = 5;
const WORKLOADS: usize = 3;
const SERVICES: usize = 3;
/// At which servers listen.
const PORTS: [u16; 2] = [8080, 8081];
const SERVICE_PORT: u16 = 80;
const EPOCH: Epoch = Epoch([1; 16]);
const BEGIN_MS: u64 = 1_000_000_000;
/// Time of the last call, from the beginning.
pub const LAST_CALL_MS: u64 = 40_000;

#[derive(Clone, Debug)]
pub struct World {
    /// Agents of each node, if any: true for one that scans at intervals.
    agents: [Option<bool>; NODES],
    /// True if connection tracking reports the NAT peers to clients' agents.
    tracks: bool,
    /// Workloads of the pods that have a client's address, one after the other, and when the second one comes.
    clients: Vec<([usize; 2], u64)>,
    /// The same of servers.
    servers: Vec<([usize; 2], u64)>,
    /// Each Service's workloads, and which of the ports it leads to.
    services: Vec<([bool; WORKLOADS], usize)>,
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Call {
    ms: u64,
    /// An address of a client's pod, or a process.
    client: usize,
    way: Way,
    /// So many connections at once.
    opened: u64,
    /// Client's and server's agents that miss it.
    lost: (bool, bool),
}

#[derive(Clone, Debug)]
enum Way {
    Direct {
        server: usize,
        port: usize,
    },
    /// The backend is one of the Service's, by any number.
    Service {
        service: usize,
        backend: usize,
    },
}

/// `lost`: how often an agent misses a call.
pub fn world(lost: f64, observed: f64) -> impl Strategy<Value = World> {
    let way = prop_oneof![
        1 => (0..SERVERS, 0..PORTS.len()).prop_map(|(server, port)| Way::Direct { server, port }),
        3 => (0..SERVICES, any::<usize>()).prop_map(|(service, backend)| Way::Service { service, backend }),
    ];
    let misses = (0.0..1.0_f64).prop_map(move |luck| luck < lost);
    let lost = (misses.clone(), misses);
    let call = (0..LAST_CALL_MS, 0..CLIENTS + PROCESSES, way, 1..20_u64, lost)
        .prop_map(|(ms, client, way, opened, lost)| Call { ms, client, way, opened, lost });
    // Half of the second pods come only after everything.
    let pods = |of: usize| prop::collection::vec(([0..WORKLOADS, 0..WORKLOADS], 1_000..2 * LAST_CALL_MS), of);
    let agent =
        (0.0..1.0_f64, prop::bool::weighted(0.2)).prop_map(move |(luck, looks)| (luck < observed).then_some(looks));
    (
        [agent.clone(), agent.clone(), agent.clone(), agent],
        any::<bool>(),
        pods(CLIENTS),
        pods(SERVERS),
        prop::collection::vec((any::<[bool; WORKLOADS]>(), 0..PORTS.len()), SERVICES),
        prop::collection::vec(call, 1..40),
    )
        .prop_map(|(agents, tracks, clients, servers, services, mut calls)| {
            calls.sort_by_key(|call| call.ms);
            World { agents, tracks, clients, servers, services, calls }
        })
}

/// Numbers of calls by client and Service.
pub type ByClient = BTreeMap<(Peer, Option<ServicePortRef>), u64>;

/// Reports of agents up to some time.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Counts of clients' agents.
    pub by_clients: ByClient,
    /// Counts of servers' agents by workload and port.
    pub by_servers: BTreeMap<(Peer, Option<u16>), u64>,
    /// Connections of which at least one end was reported.
    pub happened: u64,
    /// Connections reported shortly before, counted at each reported end.
    pub young: u64,
}

/// A call as it was.
struct Happened<'a> {
    call: &'a Call,
    client: Party,
    server: Party,
    /// Original destination: the address and port that the client called.
    called: (IpAddr, u16),
    service: Option<ServicePortRef>,
    port: u16,
}

/// Participant of a call.
#[derive(Clone)]
struct Party {
    node: usize,
    ip: IpAddr,
    peer: Peer,
    owner: CgroupOwner,
    cgroup_id: u64,
}

fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(BEGIN_MS + ms)
}

fn node(number: usize) -> String {
    format!("node-{number}")
}

fn node_ip(number: usize) -> IpAddr {
    Ipv4Addr::new(172, 18, 0, octet(2 + number)).into()
}

fn octet(number: usize) -> u8 {
    u8::try_from(number).expect("the cluster is small")
}

fn workload(kind: &str, number: usize) -> Workload {
    let (namespace, group) = ("shop".to_owned(), "apps".to_owned());
    Workload { namespace, kind: "Deployment".to_owned(), name: format!("{kind}-{number}"), group }
}

fn service_port_ref(number: usize) -> ServicePortRef {
    ServicePortRef { service: service_ref(number), port: SERVICE_PORT }
}

fn service_ref(number: usize) -> ServiceRef {
    ServiceRef { namespace: "shop".to_owned(), name: format!("service-{number}") }
}

fn service_ip(number: usize) -> IpAddr {
    Ipv4Addr::new(10, 96, 0, octet(1 + number)).into()
}

/// The pods that have an address: a client's or a server's, the first or the second.
fn pod(kind: &str, place: usize, number: usize, of: usize) -> Pod {
    let node_of = if kind == "client" { place % 2 } else { 1 + place % 3 };
    let last = octet(10 + place + if kind == "client" { 0 } else { 100 });
    let name = format!("{kind}-{place}-{number}");
    Pod {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.clone(),
        node: node(node_of),
        host_network: false,
        ips: vec![Ipv4Addr::new(10, 244, octet(node_of), last).into()],
        ended: false,
        workload: workload(kind, of),
        containers: [(format!("id-{name}"), "main".to_owned())].into(),
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    }
}

fn party(pod: &Pod) -> Party {
    let node = (0..NODES).find(|number| node(*number) == pod.node).expect("it is one of the nodes");
    let owner = CgroupOwner::PodContainer { pod_uid: pod.uid.clone(), container_id: format!("id-{}", pod.name) };
    let cgroup_id = pod.uid.bytes().fold(1, |id: u64, byte| id.wrapping_mul(31).wrapping_add(byte.into()));
    Party { node, ip: pod.ips[0], peer: Peer::Workload(pod.workload.clone()), owner, cgroup_id }
}

fn process(number: usize) -> Party {
    let name = format!("process-{number}");
    let peer = Peer::HostProcess { node: node(0), name: name.clone() };
    Party { node: 0, ip: node_ip(0), peer, owner: CgroupOwner::HostProcess { name }, cgroup_id: number as u64 }
}

/// Returns the time of the next reading on a node.
fn look_after(ms: u64, node: usize) -> u64 {
    let phase = 230 * node as u64;
    (ms + PERIOD_MS - phase).div_ceil(PERIOD_MS) * PERIOD_MS + phase
}

impl World {
    fn pods(&self) -> impl Iterator<Item = (u64, Option<u64>, Pod)> {
        let of = |kind: &'static str, all: &[([usize; 2], u64)]| {
            let pods = all.iter().enumerate().flat_map(move |(place, ([first, second], replaced))| {
                [(0, Some(*replaced), pod(kind, place, 0, *first)), (*replaced, None, pod(kind, place, 1, *second))]
            });
            pods.collect::<Vec<_>>()
        };
        of("client", &self.clients).into_iter().chain(of("server", &self.servers))
    }

    fn server_at(&self, place: usize, ms: u64) -> Pod {
        let (workloads, replaced) = self.servers[place];
        let number = usize::from(ms >= replaced);
        pod("server", place, number, workloads[number])
    }

    fn client_at(&self, place: usize, ms: u64) -> Party {
        let Some(process_number) = place.checked_sub(CLIENTS) else {
            let (workloads, replaced) = self.clients[place];
            let number = usize::from(ms >= replaced);
            return party(&pod("client", place, number, workloads[number]));
        };
        process(process_number)
    }

    fn backends(&self, service: usize, ms: u64) -> Vec<Pod> {
        let (leads_to, _) = self.services[service];
        let pods = (0..SERVERS).map(|place| self.server_at(place, ms));
        pods.filter(|pod| (0..WORKLOADS).any(|of| leads_to[of] && workload("server", of) == pod.workload)).collect()
    }

    fn happened(&self) -> impl Iterator<Item = Happened<'_>> {
        self.calls.iter().filter_map(|call| {
            let client = self.client_at(call.client, call.ms);
            let (server, port, service) = match call.way {
                Way::Direct { server, port } => (self.server_at(server, call.ms), PORTS[port], None),
                Way::Service { service, backend } => {
                    let backends = self.backends(service, call.ms);
                    let server = backends.get(backend.checked_rem(backends.len())?)?.clone();
                    (server, PORTS[self.services[service].1], Some(service))
                }
            };
            let server = party(&server);
            let called = service.map_or((server.ip, port), |service| (service_ip(service), SERVICE_PORT));
            Some(Happened { call, client, server, called, service: service.map(service_port_ref), port })
        })
    }

    /// Returns the time of the reading that finds a call, and the time at which the node's agent reports it, if any.
    fn told_at(&self, happened: &Happened<'_>, by_client: bool) -> Option<(u64, u64)> {
        let (end, lost) =
            if by_client { (&happened.client, happened.call.lost.0) } else { (&happened.server, happened.call.lost.1) };
        let look_ms = look_after(happened.call.ms, end.node);
        self.agents[end.node].filter(|_| !lost)?;
        Some((look_ms, look_ms + (happened.call.ms * 7 + end.node as u64) % LATE_MS))
    }

    /// Returns everything that was reported by then.
    pub fn told(&self, now_ms: u64) -> Told {
        let mut told = Told::default();
        // A flow that is new has to wait as a whole.
        let mut first: BTreeMap<(FlowKey, usize), u64> = BTreeMap::new();
        let mut ends = Vec::new();
        for happened in self.happened() {
            let opened = happened.call.opened;
            let mut was_told = false;
            for by_client in [true, false] {
                let Some((look_ms, due_ms)) = self.told_at(&happened, by_client).filter(|(_, due)| *due <= now_ms)
                else {
                    continue;
                };
                was_told = true;
                let (flow, node) = flow(&happened, by_client);
                let reported = first.entry((flow, node)).or_insert(due_ms);
                *reported = (*reported).min(due_ms);
                ends.push(((flow, node), look_ms, opened));
                if by_client {
                    *told.by_clients.entry((happened.client.peer.clone(), happened.service.clone())).or_default() +=
                        opened;
                } else {
                    *told.by_servers.entry((happened.server.peer.clone(), Some(happened.port))).or_default() += opened;
                }
            }
            told.happened += if was_told { opened } else { 0 };
        }
        // The other end's agent may have looked, and spoken, a period before.
        let waits = |ms: u64| ms + SETTLE_MS + PERIOD_MS + LATE_MS > now_ms;
        told.young =
            ends.iter().filter(|(of, look, _)| waits(*look) || waits(first[of])).map(|(_, _, opened)| opened).sum();
        told
    }

    fn directory(&self, now_ms: u64) -> Directory {
        let mut directory = Directory::new();
        for number in 0..NODES {
            directory.upsert_node(Node {
                name: node(number),
                ips: vec![node_ip(number)],
                pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
            });
        }
        let mut changes: Vec<u64> = vec![0];
        for (from_ms, until_ms, pod) in self.pods().filter(|(from_ms, ..)| *from_ms <= now_ms) {
            directory.upsert_pod(pod.clone(), at(from_ms));
            changes.push(from_ms);
            if let Some(until_ms) = until_ms.filter(|until_ms| *until_ms <= now_ms) {
                directory.remove_pod(&pod.uid, at(until_ms));
            }
        }
        changes.sort_unstable();
        for ms in changes {
            for service in 0..SERVICES {
                let backends = self.backends(service, ms).into_iter().map(|pod| Backend {
                    ip: pod.ips[0],
                    port: PORTS[self.services[service].1],
                    pod_uid: Some(pod.uid),
                });
                let ports = vec![ServicePort {
                    port: SERVICE_PORT,
                    protocol: Protocol::Tcp,
                    node_port: None,
                    backends: backends.collect(),
                }];
                let (name, addresses) = (service_ref(service), vec![service_ip(service)]);
                directory.upsert_service(Service { name, addresses, ports }, at(ms));
            }
        }
        directory
    }

    fn ledger(&self, now_ms: u64) -> Ledger {
        let mut reports: Vec<(u64, u64, Report)> = Vec::new();
        for happened in self.happened() {
            for by_client in [true, false] {
                if let Some((look_ms, due_ms)) = self.told_at(&happened, by_client) {
                    let (key, node) = flow(&happened, by_client);
                    let end = if by_client { &happened.client } else { &happened.server };
                    let nat_peer = (by_client && self.tracks && happened.service.is_some())
                        .then_some(NatPeer { ip: happened.server.ip, port: happened.port });
                    let (owner, opened) = (end.owner.clone(), happened.call.opened);
                    reports.push((due_ms, look_ms, Report { node, key, owner, opened, nat_peer }));
                }
            }
        }
        // A node's messages keep their order.
        reports.sort_by_key(|(due_ms, look_ms, _)| (*due_ms, *look_ms));
        let mut ledger = Ledger::new();
        for number in (0..NODES).filter(|number| self.agents[*number].is_some()) {
            ledger.enter(&node(number), EPOCH).expect("there is one epoch");
            ledger.record_heartbeat(&node(number), at(look_after(now_ms, number) - PERIOD_MS));
        }
        let mut flows: BTreeMap<(FlowKey, usize), Counted> = BTreeMap::new();
        for (due_ms, look_ms, report) in reports.into_iter().filter(|(due_ms, ..)| *due_ms <= now_ms) {
            let Report { node: number, key, owner, opened, nat_peer } = report;
            let before_ms = look_ms - PERIOD_MS;
            let (counters, first_ms, nat_peers) =
                flows.entry((key, number)).or_insert((FlowCounters::default(), before_ms, BTreeMap::new()));
            let sampled = self.agents[number] == Some(true);
            counters.opened += opened;
            counters.closed += opened;
            counters.bytes_sent += 10 * opened;
            counters.methods = if sampled { Methods::SOCK_DIAG } else { Methods::EBPF };
            let age = |ms: u64| Duration::from_millis(look_ms - ms.min(look_ms));
            let ages = Ages::of(age(*first_ms), age(before_ms), Duration::ZERO);
            let sighting = Sighting::new(&ages, at(look_ms), at(due_ms));
            if let Some(nat_peer) = nat_peer {
                *nat_peers.entry(nat_peer).or_default() += opened;
            }
            let nat_peers: Vec<(NatPeer, u64)> = nat_peers.iter().map(|(end, count)| (*end, *count)).collect();
            let node = node(number);
            let applied = ledger
                .identify(&node, EPOCH, key.cgroup_id, owner)
                .and_then(|_| ledger.apply(&node, EPOCH, key, counters, sighting))
                .and_then(|_| ledger.record_nat_peers(&node, EPOCH, &key, &nat_peers));
            assert!(applied.is_ok(), "there is only one epoch");
        }
        ledger
    }

    pub fn graph(&self, now_ms: u64) -> Graph {
        let options = Options {
            now: at(now_ms),
            settle: Duration::from_millis(SETTLE_MS),
            retention: Duration::from_hours(1),
            max_external: usize::MAX,
        };
        graph::build(&self.ledger(now_ms), &self.directory(now_ms), &options)
    }

    /// Returns whether calls come from a node's address and no agent sees the caller: they can be taken for those of
    /// others, whose address the node has replaced by its own.
    pub fn has_unseen_processes(&self) -> bool {
        self.agents[0].is_none() && self.calls.iter().any(|call| call.client >= CLIENTS)
    }

    /// No address belongs to a second pod.
    pub fn keep_addresses(mut self) -> Self {
        for (workloads, replaced) in self.clients.iter_mut().chain(&mut self.servers) {
            (workloads[1], *replaced) = (workloads[0], 10 * LAST_CALL_MS);
        }
        self
    }
}

/// Counts of a flow, the time of the reading before its first call, and the NAT peers of its connections.
type Counted = (FlowCounters, u64, BTreeMap<NatPeer, u64>);

/// Report of a call.
struct Report {
    node: usize,
    key: FlowKey,
    owner: CgroupOwner,
    opened: u64,
    nat_peer: Option<NatPeer>,
}

/// The flow that a call is a part of, at one of its ends, with that end's node.
fn flow(happened: &Happened<'_>, by_client: bool) -> (FlowKey, usize) {
    let (client, server) = (&happened.client, &happened.server);
    let (end, role, remote, port) = if by_client {
        (client, Role::Client, happened.called.0, happened.called.1)
    } else {
        (server, Role::Server, client.ip, happened.port)
    };
    let key =
        FlowKey { cgroup_id: end.cgroup_id, netns: 1, role, local: end.ip, remote, port, protocol: Protocol::Tcp };
    (key, end.node)
}
