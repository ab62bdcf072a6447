//! The ways in, and who goes them.

use std::net::{IpAddr, SocketAddr};

use scopeprobe_tests::oracle::fleet::of_family;
use serde_json::{Value, json};

use crate::stage::{BACKENDS, HOST_CLIENT, HOST_SERVER, Stage, node_of};

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
pub struct Way {
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

/// All ways; their places here choose their ports.
pub const ALL: &[Way] = &[
    way("direct", Door::Direct, &["backend-2"], ALL_CLIENTS, "{}"),
    way("cluster-ip", Door::ClusterIp, &["backend-2"], ALL_CLIENTS, "{}"),
    way("cluster-ip-of-two", Door::ClusterIp, &BACKENDS, ALL_CLIENTS, "{}"),
    way("internal-local", Door::ClusterIp, &BACKENDS, ALL_CLIENTS, r#"{"internalTrafficPolicy": "Local"}"#),
    way("affinity", Door::ClusterIp, &BACKENDS, POD_CLIENTS, r#"{"sessionAffinity": "ClientIP"}"#),
    way("node-port-own", Door::NodePort { own: true }, &BACKENDS, ALL_CLIENTS, r#"{"type": "NodePort"}"#),
    way("node-port-other", Door::NodePort { own: false }, &BACKENDS, ALL_CLIENTS, r#"{"type": "NodePort"}"#),
    // A pod's way through another node's would fail: the answer would not pass that node.
    way("node-port-local-own", Door::NodePort { own: true }, &BACKENDS, POD_CLIENTS, NODE_PORT_LOCAL),
    way("node-port-local-other", Door::NodePort { own: false }, &BACKENDS, &[HOST_CLIENT], NODE_PORT_LOCAL),
    way("load-balancer", Door::LoadBalancer, &BACKENDS, ALL_CLIENTS, r#"{"type": "LoadBalancer"}"#),
    way(
        "load-balancer-local",
        Door::LoadBalancer,
        &BACKENDS,
        POD_CLIENTS,
        r#"{"type": "LoadBalancer", "externalTrafficPolicy": "Local"}"#,
    ),
    way(
        "external-ip",
        Door::ExternalIp,
        &BACKENDS,
        POD_CLIENTS,
        r#"{"externalIPs": ["198.51.100.7", "2001:db8:7::7"]}"#,
    ),
    way("hairpin", Door::ClusterIp, &["backend-1"], &["backend-1"], "{}"),
    way("hairpin-of-two", Door::ClusterIp, &BACKENDS, &["backend-1"], "{}"),
    way("to-a-node-directly", Door::Direct, &[HOST_SERVER], ALL_CLIENTS, "{}"),
    way("to-a-node", Door::ClusterIp, &[HOST_SERVER], ALL_CLIENTS, "{}"),
];

/// Access paths of the tests with one agent.
pub const OF_ONE_AGENT: &[Way] = &[
    way("direct-1", Door::Direct, &["backend-1"], POD_CLIENTS, "{}"),
    way("direct-2", Door::Direct, &["backend-2"], POD_CLIENTS, "{}"),
    way("cluster-ip-1", Door::ClusterIp, &["backend-1"], POD_CLIENTS, "{}"),
    way("cluster-ip-2", Door::ClusterIp, &["backend-2"], POD_CLIENTS, "{}"),
    way("cluster-ip-of-two", Door::ClusterIp, &BACKENDS, POD_CLIENTS, "{}"),
];

const fn way(
    name: &'static str,
    door: Door,
    servers: &'static [&'static str],
    clients: &'static [&'static str],
    more: &'static str,
) -> Way {
    Way { name, door, servers, clients, more }
}

/// One client on one way; at a port of its own, so that the servers' counts tell the cases apart.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub way: Way,
    pub client: &'static str,
    /// The servers' own port.
    pub port: u16,
    /// The Service's.
    pub service_port: u16,
}

impl Case {
    /// The Service that the client calls.
    pub fn service(&self) -> Option<&'static str> {
        (self.way.door != Door::Direct).then_some(self.way.name)
    }
}

/// All cases of some ways.
pub fn cases(ways: &[Way]) -> Vec<Case> {
    ways.iter().enumerate().flat_map(|(place, way)| of_way(place, *way)).collect()
}

fn of_way(place: usize, way: Way) -> impl Iterator<Item = Case> {
    let case = move |(turn, client): (usize, &&'static str)| {
        // At most a few dozen ways and clients.
        let port = |base: u16| base + u16::try_from(10 * place + turn).unwrap_or_default();
        Case { way, client, port: port(17_100), service_port: port(1_000) }
    };
    way.clients.iter().enumerate().map(case)
}

/// The Services of some ways.
pub fn services(ways: &[Way]) -> Vec<Value> {
    let with_service = ways.iter().enumerate().filter(|(_, way)| way.door != Door::Direct);
    with_service.map(|(place, way)| service(place, way)).collect()
}

fn service(place: usize, way: &Way) -> Value {
    let port = |(port, target): (u16, u16)| json!({"name": format!("p{port}"), "port": port, "targetPort": target});
    let ports = of_way(place, *way).map(|case| (case.service_port, case.port));
    let mut spec: Value = serde_json::from_str(way.more).unwrap_or_else(|error| panic!("{}: {error}", way.name));
    spec["ipFamilyPolicy"] = json!("RequireDualStack");
    spec["ports"] = ports.chain([(LEADS.service, LEADS.server)]).map(port).collect();
    spec["selector"] = match way.servers {
        [one] => json!({"app": one}),
        _ => json!({"role": "backend"}),
    };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": way.name}, "spec": spec})
}

/// Returns the address that the client of a case calls for a port of the Service.
pub fn target(stage: &Stage, case: &Case, v6: bool, service_port: u16) -> SocketAddr {
    let own = node_of(case.client);
    let (ips, port): (&[IpAddr], u16) = match case.way.door {
        Door::Direct => (&stage.pods[case.way.servers[0]], case.port),
        Door::ClusterIp => (&stage.services[case.way.name].cluster_ips, service_port),
        Door::ExternalIp => (&stage.services[case.way.name].external_ips, service_port),
        Door::LoadBalancer => (&stage.services[case.way.name].balancer_ips, service_port),
        Door::NodePort { own: wanted } => {
            let node = stage.nodes.iter().find(|(name, _)| (name.as_str() == own) == wanted);
            let (_, ips) = node.unwrap_or_else(|| panic!("no such node for {case:?}"));
            (ips, stage.services[case.way.name].node_ports[&service_port])
        }
    };
    SocketAddr::new(of_family(ips, v6), port)
}
