//! Tests pods whose network leads all connections through a proxy beside the application, as the sidecars of a mesh.
//!
//! The proxies are `HAProxy` and Envoy, and netfilter redirects to them. The Topology objects show each call once, between
//! the applications, and name the proxies.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use crds::{Topology, TopologyEdge};
use kube::{Api, ResourceExt as _, api::ListParams};
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    namespace::Namespace,
    oracle::observed::{parts, peer_name, service_name},
    place,
    traffic_pod::{IMAGE, container, pod_of},
};
use serde_json::{Value, json};
use traffic::protocol::{Behaviour, Command, Connect, Listen};

const SPEC: &str = "{topology: {counterInterval: 1s, pods: 10}}";

const SERVICE_PORT: u16 = 80;
/// Ports at which each server listens.
const PORTS: [u16; 2] = [8080, 9090];
const OUTBOUND: u16 = 15_001;
const INBOUND: u16 = 15_006;
/// User of the proxies, whose own connections are not redirected.
const PROXY_USER: u16 = 1337;

/// A proxy that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    HaProxy,
    Envoy,
}

impl Proxy {
    const ALL: [Self; 2] = [Self::HaProxy, Self::Envoy];

    fn file(self) -> &'static str {
        match self {
            Self::HaProxy => "haproxy.cfg",
            Self::Envoy => "envoy.json",
        }
    }

    fn command(self) -> Vec<String> {
        let words = match self {
            Self::HaProxy => "/usr/sbin/haproxy -W -db -f",
            Self::Envoy => "/tools/envoy --concurrency 1 --disable-hot-restart --log-level warn -c",
        };
        let file = format!("/configuration/{}", self.file());
        words.split(' ').map(str::to_owned).chain([file]).collect()
    }

    /// Returns a configuration that connects to where each connection was going before it was redirected.
    fn configuration(self) -> String {
        match self {
            // A server at 0.0.0.0, or at no port, is that of the connection.
            Self::HaProxy => format!(
                "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
                 listen outbound\n  bind 0.0.0.0:{OUTBOUND}\n  server original 0.0.0.0\n\
                 listen inbound\n  bind 0.0.0.0:{INBOUND}\n  server application 127.0.0.1\n"
            ),
            Self::Envoy => {
                // As Istio's sidecars, which call their application from this address.
                let own = json!({"source_address": {"address": "127.0.0.6", "port_value": 0, "protocol": "TCP"}});
                let [outbound, inbound] = [("outbound", OUTBOUND), ("inbound", INBOUND)].map(listener);
                let clusters = [cluster("outbound", &Value::Null), cluster("inbound", &own)];
                json!({"static_resources": {"listeners": [outbound, inbound], "clusters": clusters}}).to_string()
            }
        }
    }
}

fn listener((name, port): (&str, u16)) -> Value {
    let types = "type.googleapis.com/envoy.extensions.filters";
    json!({
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "listener_filters": [{
            "name": "envoy.filters.listener.original_dst",
            "typed_config": {"@type": format!("{types}.listener.original_dst.v3.OriginalDst")},
        }],
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{types}.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": name, "cluster": name,
            },
        }]}],
    })
}

fn cluster(name: &str, bind: &Value) -> Value {
    let mut cluster =
        json!({"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s"});
    if !bind.is_null() {
        cluster["upstream_bind_config"] = bind.clone();
    }
    cluster
}

fn redirection() -> String {
    format!(
        "set -e; export PATH=/usr/sbin:/usr/bin:/sbin:/bin; redirect() {{ iptables -t nat -A \"$@\"; }}\n\
         redirect OUTPUT -p tcp -m owner --uid-owner {PROXY_USER} -j RETURN\n\
         redirect OUTPUT -p tcp -d 127.0.0.0/8 -j RETURN\n\
         redirect OUTPUT -p tcp -j REDIRECT --to-ports {OUTBOUND}\n\
         redirect PREROUTING -p tcp -j REDIRECT --to-ports {INBOUND}"
    )
}

/// A container with the programs of its node.
fn with_programs(name: &str, command: &[String], security: &Value) -> Value {
    let mount = |path: &str| json!({"name": volume_name(path), "mountPath": path, "readOnly": true});
    let mut mounts: Vec<Value> = PROGRAMS.iter().map(|path| mount(path)).collect();
    mounts.push(json!({"name": "configuration", "mountPath": "/configuration"}));
    mounts.push(json!({"name": "tools", "mountPath": "/tools", "readOnly": true}));
    json!({
        "name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": command, "securityContext": security,
        "volumeMounts": mounts,
    })
}

/// Directories of a node's programs, and of what they need.
const PROGRAMS: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/alternatives"];

fn volume_name(path: &str) -> String {
    path.trim_start_matches('/').replace('/', "-")
}

fn pod(name: &str, node: &str, proxy: Option<Proxy>) -> Value {
    let mut pod = pod_of(name, node, false, &[container("application")]);
    if let Some(proxy) = proxy {
        let script = ["/bin/bash", "-c", &redirection()].map(str::to_owned);
        let init = with_programs("redirection", &script, &json!({"privileged": true}));
        let mut proxy = with_programs("proxy", &proxy.command(), &json!({"runAsUser": PROXY_USER}));
        // Reads the kernel's list of listeners: a connection would be a call.
        let listens = |port: u16| format!("grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp");
        let script = format!("{} && {}", listens(OUTBOUND), listens(INBOUND));
        proxy["readinessProbe"] = json!({"exec": {"command": ["/bin/bash", "-c", script]}, "periodSeconds": 1});
        let at = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
        let mut volumes: Vec<Value> = PROGRAMS.iter().map(|path| at(&volume_name(path), path)).collect();
        volumes.push(at("tools", &place::cache().join("bin").to_string_lossy()));
        volumes.push(json!({"name": "configuration", "configMap": {"name": "proxy"}}));
        pod["spec"]["initContainers"] = json!([init]);
        pod["spec"]["containers"] = json!([container("application"), proxy]);
        pod["spec"]["volumes"] = json!(volumes);
    }
    pod
}

/// Pods at each end, by name, with their proxies.
fn ends(kind: &str) -> Vec<(String, Option<Proxy>)> {
    let name = |proxy: Option<Proxy>| match proxy {
        Some(Proxy::HaProxy) => format!("haproxy-{kind}"),
        Some(Proxy::Envoy) => format!("envoy-{kind}"),
        None => format!("plain-{kind}"),
    };
    Proxy::ALL.into_iter().map(Some).chain([None]).map(|proxy| (name(proxy), proxy)).collect()
}

/// Client, server, port and whether a Service was called.
type Name = (String, String, Option<u16>, bool);

/// Numbers of an edge, its proxies and the containers of its own end.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    opened: u64,
    failed: u64,
    via: Vec<String>,
    containers: Vec<String>,
}

struct Testbed {
    namespace: Namespace,
}

impl Testbed {
    async fn new(cluster: &Cluster) -> Result<Self> {
        let namespace = cluster.namespace("proxies").await?;
        let pods: Vec<Value> = [("client", "node-1"), ("server", "node-2")]
            .into_iter()
            .flat_map(|(kind, node)| ends(kind).into_iter().map(move |(name, proxy)| pod(&name, node, proxy)))
            .collect();
        let files = Proxy::ALL.map(|proxy| (proxy.file().to_owned(), json!(proxy.configuration())));
        let configuration = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "proxy"},
            "data": serde_json::Map::from_iter(files),
        });
        let service = |name: &str| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"selector": {"app": name}, "ports": [{"port": SERVICE_PORT, "targetPort": PORTS[0]}]},
            })
        };
        let services: Vec<Value> = ends("server").iter().map(|(name, _)| service(name)).collect();
        let objects: Vec<String> = pods.iter().chain(&services).chain([&configuration]).map(Value::to_string).collect();
        namespace.apply(&objects.join("\n---\n")).await?;
        namespace.ready_pods("testbed=yes", pods.len()).await?;
        let mut servers = Vec::new();
        for (server, _) in ends("server") {
            servers.push(namespace.pod_ip(&server).await?);
        }
        cluster.await_routes_to(&servers).await?;
        let testbed = Self { namespace };
        for (server, _) in ends("server") {
            for port in PORTS {
                let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                let listen = Listen { address, v6_only: false, behaviour: Behaviour::Echo };
                testbed.namespace.traffic(&server, "application").ask(&Command::Listen(listen)).await?;
            }
        }
        Ok(testbed)
    }

    /// Makes connections, each of which is answered.
    async fn call(&self, client: &str, target: (IpAddr, u16), count: u64) -> Result<()> {
        let plan =
            Connect { count, send: 10, receive: 10, timeout_ms: 10_000, ..Connect::to(SocketAddr::from(target)) };
        let outcome = self.namespace.traffic(client, "application").connect(plan).await?;
        if (outcome.opened, outcome.broken) == (count, 0) {
            return Ok(());
        }
        Err(Error::Unexpected(format!("{client} called {target:?}: {outcome:?}")))
    }

    /// Has each client call each server through its Service and directly, another number of times each, from `first` on: so
    /// none can be taken for another. Adds what is to be shown.
    async fn call_all(&self, first: u64, expected: &mut BTreeMap<Name, Shown>) -> Result<()> {
        let mut counts = first..;
        for (server, servers_proxy) in ends("server") {
            let (address, service) = (self.namespace.pod_ip(&server).await?, self.namespace.service_ip(&server).await?);
            for (client, clients_proxy) in ends("client") {
                let via = [("Client", &client, clients_proxy), ("Server", &server, servers_proxy)];
                let via: Vec<String> = via
                    .into_iter()
                    .filter_map(|(side, pod, proxy)| proxy.map(|_| format!("{side} {pod} proxy")))
                    .collect();
                let targets = [(service, SERVICE_PORT), (address, PORTS[0]), (address, PORTS[1])];
                for ((target, port), count) in targets.into_iter().zip([PORTS[0], PORTS[0], PORTS[1]]).zip(&mut counts)
                {
                    self.call(&client, target, count).await?;
                    let name = (client.clone(), server.clone(), Some(port), target.1 == SERVICE_PORT);
                    let containers = vec!["application".to_owned()];
                    let shown = Shown { opened: 0, failed: 0, via: via.clone(), containers };
                    expected.entry(name).or_insert(shown).opened += count;
                }
            }
        }
        Ok(())
    }

    /// Waits until exactly these edges are shown, by the clients' objects and by the servers'.
    async fn wait_for(&self, expected: &BTreeMap<Name, Shown>) -> Result<()> {
        eventually("each call to be shown once, with its proxies", async || {
            let [outgoing, incoming] = self.shown().await?;
            if outgoing == *expected && incoming == *expected {
                return Ok(());
            }
            Err(format!("expected {expected:#?}\nby clients {outgoing:#?}\nby servers {incoming:#?}"))
        })
        .await
    }

    /// Returns the edges of the clients' objects and those of the servers'.
    async fn shown(&self) -> std::result::Result<[BTreeMap<Name, Shown>; 2], String> {
        let api: Api<Topology> = self.namespace.api();
        let objects = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?.items;
        let (mut outgoing, mut incoming) = (BTreeMap::new(), BTreeMap::new());
        for object in objects {
            let own = object.name_any().trim_start_matches("pod-").to_owned();
            let Some(status) = object.status else { continue };
            let name = |client: String, server: String, edge: &TopologyEdge| {
                (client, server, edge.port, service_name(edge).is_some())
            };
            for edge in &status.egress {
                outgoing.insert(name(own.clone(), peer_name(&edge.peer).1, edge), shown(edge));
            }
            for edge in &status.ingress {
                incoming.insert(name(peer_name(&edge.peer).1, own.clone(), edge), shown(edge));
            }
        }
        Ok([outgoing, incoming])
    }
}

fn shown(edge: &TopologyEdge) -> Shown {
    let via = edge.via.iter().map(|proxy| format!("{:?} {} {}", proxy.side, peer_name(&proxy.peer).1, proxy.container));
    let containers = parts(&edge.pods).into_keys().map(|(_, container)| container).collect();
    Shown { opened: edge.opened, failed: edge.failed, via: via.collect(), containers }
}

#[tokio::test]
async fn calls_through_sidecars_are_shown_once_with_their_proxies() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.probe(SPEC).await?;
    let testbed = Testbed::new(&cluster).await?;
    let mut expected = BTreeMap::new();
    testbed.call_all(1, &mut expected).await?;
    testbed.wait_for(&expected).await?;
    // The next operator has the objects and the agents' counters, and continues.
    cluster.crash_operator().await?;
    testbed.call_all(100, &mut expected).await?;
    testbed.wait_for(&expected).await
}
