//! Tests calls of addresses that do not name their server, and calls whose source is replaced on the way. The Topology
//! objects show what the programs did.
//!
//! The addresses are host ports, those of several nodes, a Service's at a port that it lacks, and a node's before a server
//! listens there.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    namespace::Namespace,
    oracle::{EdgeName, observed},
    traffic_pod::{Traffic, container, pod_of},
};
use serde_json::{Value, json};
use traffic::protocol::{Behaviour, Command, Connect, Listen};

const SPEC: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";

/// Ports of the servers.
const WEB: u16 = 8080;
const HOST_PORT: u16 = 18_080;
const EXPORTER: u16 = 19_100;
const LATE: u16 = 19_777;
const BRIDGE_PORT: u16 = 17_000;
/// Address of a bridge on both nodes, as `docker0` has it.
const BRIDGE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1));

/// Client, server, Service and port.
type Name = (String, String, Option<String>, Option<u16>);

/// Opened and failed connections.
type Shown = BTreeMap<Name, (u64, u64)>;

struct Testbed {
    namespace: Namespace,
    nodes: [IpAddr; 2],
    web: Service,
}

impl Testbed {
    async fn new(cluster: &Cluster) -> Result<Self> {
        let namespace = cluster.namespace("translated").await?;
        let pods = [
            pod("client", "node-1", false, &json!([])),
            pod("client-b", "node-2", false, &json!([])),
            pod("web", "node-2", false, &json!([{"containerPort": WEB, "hostPort": HOST_PORT}])),
            pod("exporter", "node-2", true, &json!([])),
            pod("late", "node-2", true, &json!([])),
            pod("own-1", "node-1", true, &json!([])),
            pod("own-2", "node-2", true, &json!([])),
        ];
        let objects: Vec<String> = pods.iter().chain([&service()]).map(Value::to_string).collect();
        namespace.apply(&objects.join("\n---\n")).await?;
        namespace.ready_pods("testbed=yes", pods.len()).await?;
        let mut nodes = [BRIDGE; 2];
        for (place, name) in nodes.iter_mut().zip(["node-1", "node-2"]) {
            *place = address(&Api::all(cluster.client.clone()), name).await?;
        }
        let web = namespace.api::<Service>().get("web").await.map_err(Error::api("get the Service"))?;
        Ok(Self { namespace, nodes, web })
    }

    fn program(&self, pod: &str) -> Traffic {
        self.namespace.traffic(pod, "main")
    }

    async fn listen(&self, pod: &str, address: IpAddr, port: u16) -> Result<()> {
        let listen = Listen { address: (address, port).into(), v6_only: false, behaviour: Behaviour::Echo };
        self.program(pod).ask(&Command::Listen(listen)).await.map(|_| ())
    }

    /// Makes connections until so many have been opened or have failed, all in the same way.
    async fn call(&self, pod: &str, target: (IpAddr, u16), count: u64, answered: bool) -> Result<()> {
        let plan = Connect { count, send: 10, receive: 10, timeout_ms: 2000, ..Connect::to(SocketAddr::from(target)) };
        let outcome = self.program(pod).connect(plan).await?;
        let expected = if answered { (count, 0) } else { (0, count) };
        if (outcome.opened, count - outcome.opened) != expected {
            return Err(Error::Unexpected(format!("{pod} called {target:?}: {outcome:?}")));
        }
        Ok(())
    }

    fn cluster_ip(&self) -> Result<IpAddr> {
        let ip = self.web.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()?.parse().ok());
        ip.ok_or_else(|| Error::Unexpected("the Service has no address".to_owned()))
    }

    fn node_port(&self) -> Result<u16> {
        let port = self.web.spec.as_ref().and_then(|spec| spec.ports.as_ref()?.first()?.node_port);
        port.and_then(|port| u16::try_from(port).ok()).ok_or_else(|| Error::Unexpected("no node port".to_owned()))
    }

    /// Waits until an edge is shown.
    async fn wait_for(&self, (name, counts): (Name, (u64, u64))) -> Result<()> {
        eventually(&format!("{name:?} to be shown"), async || {
            let shown = self.shown().await?;
            if shown.get(&name) == Some(&counts) { Ok(()) } else { Err(format!("{shown:#?}")) }
        })
        .await
    }

    /// Returns the edges of the namespace's pods, as the clients' objects show them, and those of its servers with other
    /// clients.
    async fn shown(&self) -> std::result::Result<Shown, String> {
        let (by_clients, by_servers) = observed::edges(&self.namespace).await.map_err(|error| error.to_string())?;
        let mut shown = Shown::new();
        for (name, counts) in by_clients.into_iter().chain(by_servers) {
            let EdgeName { client, server, service, port } = name;
            let text = |(kind, name): (String, String)| format!("{kind}/{name}");
            let key = (text(client), text(server), service.map(|(name, _)| name), port);
            shown.insert(key, (counts.opened, counts.failed));
        }
        Ok(shown)
    }
}

fn pod(name: &str, node: &str, host_network: bool, ports: &Value) -> Value {
    let mut main = container("main");
    main["ports"] = ports.clone();
    pod_of(name, node, host_network, &[main])
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": WEB}]},
    })
}

async fn address(nodes: &Api<Node>, name: &str) -> Result<IpAddr> {
    let node = nodes.get(name).await.map_err(Error::api(format!("get {name}")))?;
    let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    let v4 = internal.filter_map(|address| address.address.parse().ok()).find(IpAddr::is_ipv4);
    v4.ok_or_else(|| Error::Unexpected(format!("{name} has no address")))
}

/// Runs a command in a node's network, and another one when dropped.
async fn on(cluster: &Cluster, node: &str, command: &str) -> Result<()> {
    cluster.script(&["on", node, "bash", "-c", command]).await.map(|_| ())
}

/// Rule by which a node replaces the source of what a pod calls outside of the pods' networks, as flannel and Calico do.
fn masquerade(client: IpAddr, action: &str) -> String {
    format!("iptables -t nat {action} POSTROUTING -s {client} -p tcp --dport {EXPORTER} -j MASQUERADE")
}

#[tokio::test]
async fn translated_addresses_are_shown_as_what_happened() -> Result<()> {
    let cluster = Cluster::shared().await?;
    for node in ["node-1", "node-2"] {
        let bridge = format!("ip link add same0 type bridge; ip addr add {BRIDGE}/32 dev same0; ip link set same0 up");
        on(&cluster, node, &bridge).await?;
    }
    cluster.install_chart(&[]).await?;
    cluster.probe(SPEC).await?;
    let testbed = Testbed::new(&cluster).await?;
    let client = testbed.namespace.pod_ips("client").await?.into_iter().find(IpAddr::is_ipv4).unwrap_or(BRIDGE);
    on(&cluster, "node-1", &masquerade(client, "-I")).await?;
    let done = everything(&testbed).await;
    on(&cluster, "node-1", &masquerade(client, "-D")).await?;
    for node in ["node-1", "node-2"] {
        on(&cluster, node, "ip link del same0").await?;
    }
    done
}

async fn everything(testbed: &Testbed) -> Result<()> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let [node_1, node_2] = testbed.nodes;
    testbed.listen("web", any, WEB).await?;
    testbed.listen("exporter", any, EXPORTER).await?;
    for pod in ["own-1", "own-2"] {
        testbed.listen(pod, BRIDGE, BRIDGE_PORT).await?;
    }
    testbed.call("client", (node_2, HOST_PORT), 20, true).await?;
    testbed.call("client-b", (node_2, HOST_PORT), 15, true).await?;
    testbed.call("client", (node_1, HOST_PORT), 2, false).await?;
    testbed.call("client", (node_2, EXPORTER), 12, true).await?;
    testbed.call("client", (testbed.cluster_ip()?, WEB), 3, false).await?;
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    testbed.call("client", (loopback, testbed.node_port()?), 4, false).await?;
    for (pod, count) in [("own-1", 10), ("own-2", 20)] {
        testbed.call(pod, (BRIDGE, BRIDGE_PORT), count, true).await?;
    }
    let edge = |client: &str, server: &str, port: u16, counts: (u64, u64)| {
        ((format!("Pod/{client}"), server.to_owned(), None, Some(port)), counts)
    };
    // Long before anybody listens there, for the agents as well: the other node's agent has read a later connection.
    testbed.call("client", (node_2, LATE), 5, false).await?;
    testbed.wait_for(edge("client", "Node/node-2", LATE, (0, 5))).await?;
    // Times of two nodes count as the same within half a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    testbed.call("client-b", (node_2, EXPORTER), 1, true).await?;
    testbed.wait_for(edge("client-b", "Pod/exporter", EXPORTER, (1, 0))).await?;
    testbed.listen("late", any, LATE).await?;
    testbed.call("client-b", (node_2, LATE), 1, true).await?;
    let expected: Shown = [
        edge("client", "Pod/web", WEB, (20, 0)),
        edge("client-b", "Pod/web", WEB, (15, 0)),
        edge("client", "Node/node-1", HOST_PORT, (0, 2)),
        edge("client", "Pod/exporter", EXPORTER, (12, 0)),
        edge("client-b", "Pod/exporter", EXPORTER, (1, 0)),
        edge("client", "Service/web", WEB, (0, 3)),
        edge("client", "Pod/client", testbed.node_port()?, (0, 4)),
        edge("own-1", "Pod/own-1", BRIDGE_PORT, (10, 0)),
        edge("own-2", "Pod/own-2", BRIDGE_PORT, (20, 0)),
        edge("client", "Node/node-2", LATE, (0, 5)),
        edge("client-b", "Pod/late", LATE, (1, 0)),
    ]
    .into();
    eventually("translated addresses to be shown as what happened", async || {
        let shown = testbed.shown().await?;
        if shown == expected { Ok(()) } else { Err(format!("expected {expected:#?}\nshown {shown:#?}")) }
    })
    .await
}
