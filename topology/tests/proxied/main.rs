//! Random calls between pods of which some have sidecars: the graph has each call once, as if there were no proxies.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "a test")]

mod histories;
mod history;
mod over_time;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use scopeprobe_topology::{
    directory::Directory,
    edge::{Peer, Side},
    entity::{Backend, CgroupOwner, Network, Node, Pod, PodLifetime, Service, ServicePort, ServiceRef, Workload},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::{self, Graph, Options},
    ledger::{Epoch, Ledger},
};

const PODS: usize = 4;
const SERVICE_PORT: u16 = 80;
const PORTS: [u16; 2] = [8080, 9090];
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const EPOCH: Epoch = Epoch([1; 16]);

/// Container of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Application,
    Proxy,
}

#[derive(Clone, Copy, Debug)]
struct Call {
    client: usize,
    server: usize,
    /// One of [`PORTS`]; the Service leads to the first.
    port: usize,
    through_service: bool,
    /// True if the client's proxy calls the pod instead of the Service.
    proxy_chooses_pod: bool,
    opened: u64,
}

#[derive(Clone, Debug)]
struct Mesh {
    has_proxy: [bool; PODS],
    /// True if a proxy calls its own pod's address instead of loopback.
    calls_own_address: [bool; PODS],
    /// True if a proxy opens one connection for two that it accepts.
    pools: [bool; PODS],
    calls: Vec<Call>,
}

impl Mesh {
    /// Returns the number of connections that a pod's proxy opens for so many that it accepts.
    fn opened_by_proxy(&self, pod: usize, accepted: u64) -> u64 {
        if self.pools[pod] { accepted.div_ceil(2) } else { accepted }
    }
}

/// Client, server, port, and whether through a Service.
type EdgeOf = (usize, usize, u16, bool);

prop_compose! {
    fn call()(
        client in 0..PODS,
        others in 1..PODS,
        port in 0..PORTS.len(),
        through_service: bool,
        proxy_chooses_pod: bool,
        opened in 1..6_u64,
    ) -> Call {
        Call {
            client,
            server: (client + others) % PODS,
            port: if through_service { 0 } else { port },
            through_service,
            proxy_chooses_pod,
            opened,
        }
    }
}

prop_compose! {
    fn mesh(may_pool: bool)(
        has_proxy: [bool; PODS],
        calls_own_address: [bool; PODS],
        pools: [bool; PODS],
        calls in prop::collection::vec(call(), 1..12),
    ) -> Mesh {
        Mesh { has_proxy, calls_own_address, pools: pools.map(|pools| pools && may_pool), calls }
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(10_000)
}

fn address(pod: usize) -> IpAddr {
    let number = u8::try_from(pod).expect("a few pods");
    IpAddr::from([10, 244, number % 2 + 1, number + 2])
}

fn service_address(pod: usize) -> IpAddr {
    IpAddr::from([10, 96, 0, u8::try_from(pod).expect("a few pods") + 1])
}

fn node(pod: usize) -> String {
    format!("node-{}", pod % 2 + 1)
}

fn workload(pod: usize) -> Workload {
    Workload {
        namespace: "shop".to_owned(),
        kind: "Deployment".to_owned(),
        name: pod.to_string(),
        group: "apps".to_owned(),
    }
}

fn directory() -> Directory {
    let mut directory = Directory::new();
    for number in [1, 2] {
        directory.upsert_node(Node {
            name: format!("node-{number}"),
            ips: vec![IpAddr::from([172, 18, 0, number])],
            pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
        });
    }
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    for pod in 0..PODS {
        let containers = [("application", Container::Application), ("proxy", Container::Proxy)];
        directory.upsert_pod(
            Pod {
                uid: format!("uid-{pod}"),
                namespace: "shop".to_owned(),
                name: format!("pod-{pod}"),
                node: node(pod),
                host_network: false,
                ips: vec![address(pod)],
                ended: false,
                workload: workload(pod),
                containers: containers.map(|(name, it)| (container_id(pod, it), name.to_owned())).into(),
                host_ports: Vec::new(),
                life: PodLifetime::default(),
            },
            since,
        );
        let backend = Backend { ip: address(pod), port: PORTS[0], pod_uid: Some(format!("uid-{pod}")) };
        let port =
            ServicePort { port: SERVICE_PORT, protocol: Protocol::Tcp, node_port: None, backends: vec![backend] };
        let name = ServiceRef { namespace: "shop".to_owned(), name: pod.to_string() };
        directory.upsert_service(Service { name, addresses: vec![service_address(pod)], ports: vec![port] }, since);
    }
    directory
}

fn container_id(pod: usize, container: Container) -> String {
    format!("{pod}-{container:?}")
}

/// Flows of the mesh, with their numbers of connections.
#[derive(Debug, Default)]
struct Flows(BTreeMap<FlowKey, (usize, Container, u64)>);

impl Flows {
    fn add(&mut self, (pod, container): (usize, Container), role: Role, ends: (IpAddr, IpAddr, u16), opened: u64) {
        let (local, remote, port) = ends;
        let number = 2 * pod + usize::from(container == Container::Proxy);
        let key = FlowKey {
            cgroup_id: 100 + number as u64,
            netns: u32::try_from(pod).expect("a few pods"),
            role,
            local,
            remote,
            port,
            protocol: Protocol::Tcp,
        };
        self.0.entry(key).or_insert((pod, container, 0)).2 += opened;
    }

    fn of(mesh: &Mesh) -> Self {
        use Container::{Application, Proxy};
        let mut flows = Self::default();
        for call in &mesh.calls {
            let Call { client, server, mut opened, .. } = *call;
            let port = PORTS[call.port];
            let (own, pod) = (address(client), (address(server), port));
            let called = if call.through_service { (service_address(server), SERVICE_PORT) } else { pod };
            flows.add((client, Application), Role::Client, (own, called.0, called.1), opened);
            if mesh.has_proxy[client] {
                let upstream = if call.proxy_chooses_pod { pod } else { called };
                flows.add((client, Proxy), Role::Server, (LOOPBACK, own, OUTBOUND), opened);
                opened = mesh.opened_by_proxy(client, opened);
                flows.add((client, Proxy), Role::Client, (own, upstream.0, upstream.1), opened);
            }
            if mesh.has_proxy[server] {
                let own_address = if mesh.calls_own_address[server] { pod.0 } else { LOOPBACK };
                flows.add((server, Proxy), Role::Server, (pod.0, own, INBOUND), opened);
                opened = mesh.opened_by_proxy(server, opened);
                flows.add((server, Proxy), Role::Client, (own_address, own_address, port), opened);
                flows.add((server, Application), Role::Server, (own_address, own_address, port), opened);
            } else {
                flows.add((server, Application), Role::Server, (pod.0, own, port), opened);
            }
        }
        flows
    }

    fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::new();
        for node in ["node-1", "node-2"] {
            ledger.enter(node, EPOCH).expect("the first epoch");
        }
        for (key, (pod, container, opened)) in &self.0 {
            let owner = CgroupOwner::PodContainer {
                pod_uid: format!("uid-{pod}"),
                container_id: container_id(*pod, *container),
            };
            ledger.identify(&node(*pod), EPOCH, key.cgroup_id, owner).expect("the present epoch");
            let counters = FlowCounters {
                opened: *opened,
                closed: *opened,
                bytes_sent: 10 * opened,
                bytes_received: 10 * opened,
                ..FlowCounters::default()
            };
            let at = now() - Duration::from_mins(1);
            ledger.apply(&node(*pod), EPOCH, *key, &counters, at).expect("the present epoch");
        }
        ledger
    }
}

fn graph(mesh: &Mesh) -> Graph {
    let options = Options {
        now: now(),
        settle: Duration::from_secs(2),
        retention: Duration::from_mins(10),
        max_external: usize::MAX,
    };
    graph::build(&Flows::of(mesh).ledger(), &directory(), &options)
}

fn number(peer: &Peer) -> usize {
    match peer {
        Peer::Workload(workload) => workload.name.parse().expect("a pod's number"),
        other => panic!("{other:?} is no workload"),
    }
}

proptest! {
    #[test]
    fn each_call_is_on_one_edge(mesh in mesh(false)) {
        let mut expected: BTreeMap<EdgeOf, (u64, BTreeSet<(Side, usize)>)> = BTreeMap::new();
        for call in &mesh.calls {
            let key = (call.client, call.server, PORTS[call.port], call.through_service);
            let edge = expected.entry(key).or_default();
            edge.0 += call.opened;
            let sides = [(Side::Client, call.client), (Side::Server, call.server)];
            edge.1.extend(sides.into_iter().filter(|(_, pod)| mesh.has_proxy[*pod]));
        }
        let mut shown = BTreeMap::new();
        for edge in &graph(&mesh).edges {
            let port = edge.key.port.expect("a known server");
            let key = (number(&edge.key.client), number(&edge.key.server), port, edge.key.service.is_some());
            let via: BTreeSet<(Side, usize)> =
                edge.via.iter().map(|proxy| (proxy.side, number(&proxy.peer))).collect();
            prop_assert_eq!(edge.counters.bytes_sent, 10 * edge.counters.opened);
            prop_assert!(edge.clients.iter().all(|end| end.container == "application"), "{:?}", edge.clients);
            prop_assert!(edge.servers.iter().all(|end| end.container == "application"), "{:?}", edge.servers);
            prop_assert!(shown.insert(key, (edge.counters.opened, via)).is_none());
        }
        prop_assert_eq!(shown, expected);
    }

    #[test]
    fn each_connection_is_on_one_edge_if_proxies_pool(mesh in mesh(true)) {
        let (mut made, mut accepted) = ([0; PODS], [0; PODS]);
        for call in &mesh.calls {
            made[call.client] += call.opened;
            let is_led = mesh.has_proxy[call.client];
            let opened = if is_led { mesh.opened_by_proxy(call.client, call.opened) } else { call.opened };
            accepted[call.server] += opened;
        }
        let (mut shown_made, mut shown_accepted) = ([0; PODS], [0; PODS]);
        for edge in &graph(&mesh).edges {
            let (client, server) = (number(&edge.key.client), number(&edge.key.server));
            let of_application = edge.clients.iter().filter(|end| end.container == "application");
            shown_made[client] += of_application.map(|end| end.opened).sum::<u64>();
            if client != server {
                shown_accepted[server] += edge.counters.opened;
            }
        }
        prop_assert_eq!(shown_made, made);
        prop_assert_eq!(shown_accepted, accepted);
    }
}
