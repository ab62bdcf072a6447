//! Access paths, and the clients of each.

use std::net::{IpAddr, SocketAddr};

use scopeprobe_tests::oracle::fleet::of_family;
use serde_json::{Value, json};

use crate::testbed::{BACKENDS, HOST_CLIENT, HOST_SERVER, Testbed, node_of};

/// Number of connections per case: IPv4, IPv6.
pub const CONNECTIONS: [(bool, u64); 2] = [(false, 6), (true, 5)];

/// Port of every Service for readiness probes: tests connect to it until the Service works.
pub struct Leads {
    pub service: u16,
    pub server: u16,
}

pub const LEADS: Leads = Leads { service: 999, server: 17_099 };

/// Address through which a client reaches the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The server's own address.
    Direct,
    ClusterIp,
    /// A node's address and the Service's node port; of the client's own node or of the other one.
    NodePort {
        own: bool,
    },
    /// The address that the Service's status names.
    LoadBalancer,
    /// The address that the Service's spec names.
    ExternalIp,
}

/// An access path.
#[derive(Clone, Copy, Debug)]
pub struct AccessPath {
    pub name: &'static str,
    pub door: Door,
    /// Servers that may answer.
    pub servers: &'static [&'static str],
    /// Clients that use it.
    pub clients: &'static [&'static str],
    /// More of the Service's spec, in JSON.
    more: &'static str,
}

const POD_CLIENTS: &[&str] = &["client-1", "client-2"];
const ALL_CLIENTS: &[&str] = &["client-1", "client-2", HOST_CLIENT];

const NODE_PORT_LOCAL: &str = r#"{"type": "NodePort", "externalTrafficPolicy": "Local"}"#;

/// All paths; their places here choose their ports.
pub const ALL: &[AccessPath] = &[
    path("direct", Door::Direct, &["backend-2"], ALL_CLIENTS, "{}"),
    path("cluster-ip", Door::ClusterIp, &["backend-2"], ALL_CLIENTS, "{}"),
    path("cluster-ip-of-two", Door::ClusterIp, &BACKENDS, ALL_CLIENTS, "{}"),
    path("internal-local", Door::ClusterIp, &BACKENDS, ALL_CLIENTS, r#"{"internalTrafficPolicy": "Local"}"#),
    path("affinity", Door::ClusterIp, &BACKENDS, POD_CLIENTS, r#"{"sessionAffinity": "ClientIP"}"#),
    path("node-port-own", Door::NodePort { own: true }, &BACKENDS, ALL_CLIENTS, r#"{"type": "NodePort"}"#),
    path("node-port-other", Door::NodePort { own: false }, &BACKENDS, ALL_CLIENTS, r#"{"type": "NodePort"}"#),
    // A pod's connection through another node's would fail: the answer would not pass that node.
    path("node-port-local-own", Door::NodePort { own: true }, &BACKENDS, POD_CLIENTS, NODE_PORT_LOCAL),
    path("node-port-local-other", Door::NodePort { own: false }, &BACKENDS, &[HOST_CLIENT], NODE_PORT_LOCAL),
    path("load-balancer", Door::LoadBalancer, &BACKENDS, ALL_CLIENTS, r#"{"type": "LoadBalancer"}"#),
    path(
        "load-balancer-local",
        Door::LoadBalancer,
        &BACKENDS,
        POD_CLIENTS,
        r#"{"type": "LoadBalancer", "externalTrafficPolicy": "Local"}"#,
    ),
    path(
        "external-ip",
        Door::ExternalIp,
        &BACKENDS,
        POD_CLIENTS,
        r#"{"externalIPs": ["198.51.100.7", "2001:db8:7::7"]}"#,
    ),
    path("hairpin", Door::ClusterIp, &["backend-1"], &["backend-1"], "{}"),
    path("hairpin-of-two", Door::ClusterIp, &BACKENDS, &["backend-1"], "{}"),
    path("to-a-node-directly", Door::Direct, &[HOST_SERVER], ALL_CLIENTS, "{}"),
    path("to-a-node", Door::ClusterIp, &[HOST_SERVER], ALL_CLIENTS, "{}"),
];

/// Access paths of the tests with one agent.
pub const OF_ONE_AGENT: &[AccessPath] = &[
    path("direct-1", Door::Direct, &["backend-1"], POD_CLIENTS, "{}"),
    path("direct-2", Door::Direct, &["backend-2"], POD_CLIENTS, "{}"),
    path("cluster-ip-1", Door::ClusterIp, &["backend-1"], POD_CLIENTS, "{}"),
    path("cluster-ip-2", Door::ClusterIp, &["backend-2"], POD_CLIENTS, "{}"),
    path("cluster-ip-of-two", Door::ClusterIp, &BACKENDS, POD_CLIENTS, "{}"),
];

const fn path(
    name: &'static str,
    door: Door,
    servers: &'static [&'static str],
    clients: &'static [&'static str],
    more: &'static str,
) -> AccessPath {
    AccessPath { name, door, servers, clients, more }
}

/// One client of one path, at a port of its own, so that the servers' counts tell the cases apart.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub path: AccessPath,
    pub client: &'static str,
    /// The servers' own port.
    pub port: u16,
    /// The Service's.
    pub service_port: u16,
}

impl Case {
    /// The Service that the client calls.
    pub fn service(&self) -> Option<&'static str> {
        (self.path.door != Door::Direct).then_some(self.path.name)
    }
}

/// All cases of some paths.
pub fn cases(paths: &[AccessPath]) -> Vec<Case> {
    paths.iter().enumerate().flat_map(|(place, path)| of_path(place, *path)).collect()
}

fn of_path(place: usize, path: AccessPath) -> impl Iterator<Item = Case> {
    let case = move |(turn, client): (usize, &&'static str)| {
        // At most a few dozen paths and clients.
        let port = |base: u16| base + u16::try_from(10 * place + turn).unwrap_or_default();
        Case { path, client, port: port(17_100), service_port: port(1_000) }
    };
    path.clients.iter().enumerate().map(case)
}

/// The Services of some paths.
pub fn services(paths: &[AccessPath]) -> Vec<Value> {
    let with_service = paths.iter().enumerate().filter(|(_, path)| path.door != Door::Direct);
    with_service.map(|(place, path)| service(place, path)).collect()
}

fn service(place: usize, path: &AccessPath) -> Value {
    let port = |(port, target): (u16, u16)| json!({"name": format!("p{port}"), "port": port, "targetPort": target});
    let ports = of_path(place, *path).map(|case| (case.service_port, case.port));
    let mut spec: Value = serde_json::from_str(path.more).unwrap_or_else(|error| panic!("{}: {error}", path.name));
    spec["ipFamilyPolicy"] = json!("RequireDualStack");
    spec["ports"] = ports.chain([(LEADS.service, LEADS.server)]).map(port).collect();
    spec["selector"] = match path.servers {
        [one] => json!({"app": one}),
        _ => json!({"role": "backend"}),
    };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": path.name}, "spec": spec})
}

/// Returns the address that the client of a case calls for a port of the Service.
pub fn target(testbed: &Testbed, case: &Case, v6: bool, service_port: u16) -> SocketAddr {
    let own = node_of(case.client);
    let (ips, port): (&[IpAddr], u16) = match case.path.door {
        Door::Direct => (&testbed.pods[case.path.servers[0]], case.port),
        Door::ClusterIp => (&testbed.services[case.path.name].cluster_ips, service_port),
        Door::ExternalIp => (&testbed.services[case.path.name].external_ips, service_port),
        Door::LoadBalancer => (&testbed.services[case.path.name].balancer_ips, service_port),
        Door::NodePort { own: wanted } => {
            let node = testbed.nodes.iter().find(|(name, _)| (name.as_str() == own) == wanted);
            let (_, ips) = node.unwrap_or_else(|| panic!("no such node for {case:?}"));
            (ips, testbed.services[case.path.name].node_ports[&service_port])
        }
    };
    SocketAddr::new(of_family(ips, v6), port)
}
