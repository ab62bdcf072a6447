//! Tests calls from outside of the cluster whose source address a node replaces by its own. The Topology objects show the
//! clients behind the node, and the node's own calls as its own.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use crds::IdentitySource;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    namespace::Namespace,
    oracle::{EdgeName, observed},
    outside_host::OutsideHost,
    traffic_pod::{container, pod_of},
};
use serde_json::{Value, json};
use traffic::protocol::{Behaviour, Command, Connect, Listen};

const SPEC: &str = "{topology: {counterInterval: 1s, maxEdges: 500, pods: 10}}";

/// Ports of the servers.
const WEB: u16 = 8080;
const HOST_PORT: u16 = 18_090;
const EXPORTER: u16 = 19_200;

/// Addresses of the client outside of the cluster (RFC 2544 and RFC 5180).
const OUTSIDE: [&str; 2] = ["198.18.7.1", "2001:2::7:1"];

/// Opened connections by client, server and port.
type Shown = BTreeMap<(String, String, u16), u64>;

struct Testbed {
    namespace: Namespace,
    /// The addresses of each node: of IPv4 and of IPv6.
    nodes: [[IpAddr; 2]; 2],
    host: OutsideHost,
}

impl Testbed {
    async fn new(cluster: &Cluster) -> Result<Self> {
        let namespace = cluster.namespace("external").await?;
        let probe = json!({"tcpSocket": {"port": WEB}, "periodSeconds": 1});
        let mut web = pod("web", "node-2", false);
        web["spec"]["containers"][0]["ports"] = json!([{"containerPort": WEB, "hostPort": HOST_PORT}]);
        let pods = [web, pod("exporter", "node-2", true), pod("own", "node-1", true)];
        let services = [service("web", WEB), service("exporter", EXPORTER)];
        let objects: Vec<String> = pods.iter().chain(&services).map(Value::to_string).collect();
        namespace.apply(&objects.join("\n---\n")).await?;
        namespace.ready_pods("testbed=yes", pods.len()).await?;
        let mut probed = pod("probed", "node-2", false);
        probed["spec"]["containers"][0]["args"] = json!(["serve", "--listen", format!("[::]:{WEB}")]);
        probed["spec"]["containers"][0]["readinessProbe"] = probe;
        let objects = [probed, service("probed", WEB)].map(|object| object.to_string());
        namespace.apply(&objects.join("\n---\n")).await?;
        namespace.ready_pods("app=probed", 1).await?;
        let mut nodes = [[IpAddr::V6(Ipv6Addr::UNSPECIFIED); 2]; 2];
        for (place, name) in nodes.iter_mut().zip(["node-1", "node-2"]) {
            *place = addresses(&Api::all(cluster.client.clone()), name).await?;
        }
        let host = OutsideHost::start(cluster, &OUTSIDE.map(ip)).await?;
        Ok(Self { namespace, nodes, host })
    }

    async fn listen(&self, pod: &str, port: u16) -> Result<()> {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listen = Listen { address, v6_only: false, behaviour: Behaviour::Echo };
        self.namespace.traffic(pod, "main").ask(&Command::Listen(listen)).await.map(|_| ())
    }

    async fn node_port(&self, service: &str) -> Result<u16> {
        let service = self.namespace.api::<Service>().get(service).await.map_err(Error::api("get the Service"))?;
        let port = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()?.first()?.node_port);
        port.and_then(|port| u16::try_from(port).ok()).ok_or_else(|| Error::Unexpected("no node port".to_owned()))
    }

    /// Calls an address of a node from outside of the cluster. The node's proxy may not serve the port yet: until then it
    /// refuses, and no server counts that.
    async fn call_in(&self, node: usize, family: usize, port: u16, count: u64) -> Result<u64> {
        let target = SocketAddr::from((self.nodes[node][family], port));
        let call = async |count| {
            let plan = Connect { count, send: 10, receive: 10, ..Connect::to(target) };
            self.host.connect(ip(OUTSIDE[family]), plan).await
        };
        eventually(&format!("an answer of {target}"), async || {
            let outcome = call(1).await.map_err(|error| error.to_string())?;
            if outcome.opened == 1 { Ok(()) } else { Err(format!("{outcome:?}")) }
        })
        .await?;
        let outcome = call(count - 1).await?;
        if (outcome.opened, outcome.broken) == (count - 1, 0) {
            Ok(count)
        } else {
            Err(Error::Unexpected(format!("called {target}: {outcome:?}")))
        }
    }

    /// Returns the edges of the servers, without those of host processes: the kubelet probes one of them.
    async fn shown(&self) -> std::result::Result<Shown, String> {
        let (_, by_servers) = observed::edges(&self.namespace).await.map_err(|error| error.to_string())?;
        let mut shown = Shown::new();
        for (EdgeName { client, server, port, .. }, counts) in by_servers {
            let (kind, name) = client;
            if kind != "HostProcess" {
                shown.insert((format!("{kind}/{name}"), server.1, port.unwrap_or_default()), counts.opened);
            }
        }
        Ok(shown)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn pod(name: &str, node: &str, host_network: bool) -> Value {
    pod_of(name, node, host_network, &[container("main")])
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "NodePort", "selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": 80, "targetPort": port}],
        },
    })
}

async fn addresses(nodes: &Api<Node>, name: &str) -> Result<[IpAddr; 2]> {
    let node = nodes.get(name).await.map_err(Error::api(format!("get {name}")))?;
    let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    let addresses: Vec<IpAddr> = internal.filter_map(|address| address.address.parse().ok()).collect();
    let of_family = |v4: bool| addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
    let both = of_family(true).zip(of_family(false)).map(|(v4, v6)| [v4, v6]);
    both.ok_or_else(|| Error::Unexpected(format!("{name} lacks an address of one family")))
}

#[tokio::test]
async fn outside_clients_are_shown_behind_the_nodes_that_forward_them() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.probe(SPEC).await?;
    let testbed = Testbed::new(&cluster).await?;
    testbed.listen("web", WEB).await?;
    testbed.listen("exporter", EXPORTER).await?;
    let mut expected = Shown::new();
    let mut expect = |client: &str, server: &str, port: u16, opened: u64| {
        *expected.entry((client.to_owned(), server.to_owned(), port)).or_default() += opened;
    };
    for (server, port, counts) in
        [("web", WEB, [[20, 5], [15, 4]]), ("exporter", EXPORTER, [[6, 3], [8, 2]]), ("probed", WEB, [[9, 0], [7, 0]])]
    {
        let node_port = testbed.node_port(server).await?;
        for (node, counts) in counts.iter().enumerate() {
            for (family, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                let opened = testbed.call_in(node, family, node_port, *count).await?;
                // A node keeps the address of a client that calls its own network.
                let keeps_address = (server, node) == ("exporter", 1);
                let by_address = || format!("IP/{}", OUTSIDE[family]);
                let client = if keeps_address { by_address() } else { format!("External/node-{}", node + 1) };
                expect(&client, server, port, opened);
            }
        }
    }
    // This port keeps the client's address.
    let opened = testbed.call_in(1, 0, HOST_PORT, 3).await?;
    expect(&format!("IP/{}", OUTSIDE[0]), "web", WEB, opened);
    // A program in the node's network, from the address that also stands for the clients outside.
    let web = testbed.namespace.pod_ips("web").await?.into_iter().find(IpAddr::is_ipv4);
    let web = web.ok_or_else(|| Error::Unexpected("the pod has no address".to_owned()))?;
    let plan = Connect { count: 11, send: 10, receive: 10, ..Connect::to((web, WEB).into()) };
    let outcome = testbed.namespace.traffic("own", "main").connect(plan).await?;
    expect("Pod/own", "web", WEB, outcome.opened);
    eventually("clients outside of the cluster to be shown behind the nodes", async || {
        let shown = testbed.shown().await?;
        if shown == expected { Ok(()) } else { Err(format!("expected {expected:#?}\nshown {shown:#?}")) }
    })
    .await?;
    let topologies: Api<crds::Topology> = testbed.namespace.api();
    let web = topologies.get("pod-web").await.map_err(Error::api("get the Topology"))?.status.unwrap_or_default();
    let of_nodes = web.ingress.iter().filter(|edge| edge.peer.type_ == crds::PeerType::External);
    assert!(of_nodes.clone().all(|edge| edge.identity == IdentitySource::Ip), "{:#?}", web.ingress);
    assert_eq!(of_nodes.count(), 2);
    let probed = topologies.get("pod-probed").await.map_err(Error::api("get the Topology"))?;
    let status = probed.status.unwrap_or_default();
    assert!(status.summary.from.starts_with("external via node-1→8080"), "{}", status.summary.from);
    let probed = status.ingress;
    let is_kubelets = |edge: &&crds::TopologyEdge| edge.peer.name.as_deref() == Some("kubelet.service");
    assert!(probed.iter().any(|edge| is_kubelets(&edge)), "{probed:#?}");
    Ok(())
}
