//! Tests pods whose network leads all connections through a proxy beside the application, as the sidecars of a mesh.
//!
//! The proxies are `HAProxy`, and netfilter redirects to them. The Topology objects show each call once, between the
//! applications, and name the proxies.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use crds::{Topology, TopologyEdge};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, ResourceExt as _, api::ListParams};
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    namespace::Namespace,
    oracle::observed::{parts, peer_name, service_name},
    traffic_pod::{IMAGE, container},
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

/// Connects to where the connection was going before it was redirected: a server at `0.0.0.0`, or at no port.
fn configuration() -> String {
    format!(
        "defaults\n  mode tcp\n  timeout connect 10s\n  timeout client 60s\n  timeout server 60s\n\
         listen outbound\n  bind 0.0.0.0:{OUTBOUND}\n  server original 0.0.0.0\n\
         listen inbound\n  bind 0.0.0.0:{INBOUND}\n  server application 127.0.0.1\n"
    )
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
fn with_programs(name: &str, command: &[&str], security: &Value) -> Value {
    let mount = |path: &str| json!({"name": volume_name(path), "mountPath": path, "readOnly": true});
    let mut mounts: Vec<Value> = PROGRAMS.iter().map(|path| mount(path)).collect();
    mounts.push(json!({"name": "configuration", "mountPath": "/configuration"}));
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

fn pod(name: &str, node: &str, has_proxy: bool) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, "testbed": "yes"}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container("application")]},
    });
    if has_proxy {
        let script = redirection();
        let init = with_programs("redirection", &["/bin/bash", "-c", &script], &json!({"privileged": true}));
        let haproxy = ["/usr/sbin/haproxy", "-W", "-db", "-f", "/configuration/haproxy.cfg"];
        let proxy = with_programs("proxy", &haproxy, &json!({"runAsUser": PROXY_USER}));
        let mut volumes: Vec<Value> =
            PROGRAMS.iter().map(|path| json!({"name": volume_name(path), "hostPath": {"path": path}})).collect();
        volumes.push(json!({"name": "configuration", "configMap": {"name": "proxy"}}));
        pod["spec"]["initContainers"] = json!([init]);
        pod["spec"]["containers"] = json!([container("application"), proxy]);
        pod["spec"]["volumes"] = json!(volumes);
    }
    pod
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
        let pods = [
            pod("meshed-client", "node-1", true),
            pod("plain-client", "node-1", false),
            pod("meshed-server", "node-2", true),
            pod("plain-server", "node-2", false),
        ];
        let configuration = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "proxy"},
            "data": {"haproxy.cfg": configuration()},
        });
        let service = |name: &str| {
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"selector": {"app": name}, "ports": [{"port": SERVICE_PORT, "targetPort": PORTS[0]}]},
            })
        };
        let services = [service("meshed-server"), service("plain-server")];
        let objects: Vec<String> = pods.iter().chain(&services).chain([&configuration]).map(Value::to_string).collect();
        namespace.apply(&objects.join("\n---\n")).await?;
        namespace.ready_pods("testbed=yes", pods.len()).await?;
        let testbed = Self { namespace };
        for (server, port) in ["meshed-server", "plain-server"].into_iter().flat_map(|it| PORTS.map(|port| (it, port)))
        {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let listen = Listen { address, v6_only: false, behaviour: Behaviour::Echo };
            testbed.namespace.traffic(server, "application").ask(&Command::Listen(listen)).await?;
        }
        Ok(testbed)
    }

    async fn address(&self, pod: &str) -> Result<IpAddr> {
        let ips = self.namespace.pod_ips(pod).await?;
        ips.into_iter().find(IpAddr::is_ipv4).ok_or_else(|| Error::Unexpected(format!("{pod} has no address")))
    }

    async fn service(&self, name: &str) -> Result<IpAddr> {
        let service = self.namespace.api::<Service>().get(name).await.map_err(Error::api("get the Service"))?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip?.parse().ok());
        ip.ok_or_else(|| Error::Unexpected(format!("{name} has no address")))
    }

    /// Makes connections, each of which is answered.
    async fn call(&self, client: &str, target: (IpAddr, u16), count: u64) -> Result<()> {
        let plan =
            Connect { count, send: 10, receive: 10, timeout_ms: 10_000, ..Connect::to(SocketAddr::from(target)) };
        let outcome = self.namespace.traffic(client, "application").connect(plan).await?;
        if outcome.opened == count {
            return Ok(());
        }
        Err(Error::Unexpected(format!("{client} called {target:?}: {outcome:?}")))
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
    let (meshed, plain) = (testbed.address("meshed-server").await?, testbed.address("plain-server").await?);
    let [meshed_service, plain_service] =
        [testbed.service("meshed-server").await?, testbed.service("plain-server").await?];
    testbed.call("meshed-client", (meshed_service, SERVICE_PORT), 20).await?;
    testbed.call("meshed-client", (meshed, PORTS[0]), 7).await?;
    testbed.call("meshed-client", (meshed, PORTS[1]), 3).await?;
    testbed.call("meshed-client", (plain_service, SERVICE_PORT), 6).await?;
    testbed.call("meshed-client", (plain, PORTS[1]), 2).await?;
    testbed.call("plain-client", (meshed_service, SERVICE_PORT), 5).await?;
    testbed.call("plain-client", (meshed, PORTS[1]), 4).await?;
    testbed.call("plain-client", (plain, PORTS[0]), 1).await?;
    let edge = |client: &str, server: &str, port: usize, service: bool, opened: u64| {
        let sides = [("Client", client), ("Server", server)];
        let via = sides.into_iter().filter(|(_, pod)| pod.starts_with("meshed"));
        let via: Vec<String> = via.map(|(side, pod)| format!("{side} {pod} proxy")).collect();
        let containers = vec!["application".to_owned()];
        let name = (client.to_owned(), server.to_owned(), Some(PORTS[port]), service);
        (name, Shown { opened, failed: 0, via, containers })
    };
    let expected: BTreeMap<Name, Shown> = [
        edge("meshed-client", "meshed-server", 0, true, 20),
        edge("meshed-client", "meshed-server", 0, false, 7),
        edge("meshed-client", "meshed-server", 1, false, 3),
        edge("meshed-client", "plain-server", 0, true, 6),
        edge("meshed-client", "plain-server", 1, false, 2),
        edge("plain-client", "meshed-server", 0, true, 5),
        edge("plain-client", "meshed-server", 1, false, 4),
        edge("plain-client", "plain-server", 0, false, 1),
    ]
    .into();
    eventually("each call to be shown once, with its proxies", async || {
        let [outgoing, incoming] = testbed.shown().await?;
        if outgoing == expected && incoming == expected {
            return Ok(());
        }
        Err(format!("expected {expected:#?}\nby clients {outgoing:#?}\nby servers {incoming:#?}"))
    })
    .await
}
