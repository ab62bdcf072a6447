//! Tests a load balancer at the sockets of a node, such as Cilium's kube-proxy replacement. Clients on that node have edges
//! through the Service, whether the load balancer or the agent was there first.

#[allow(dead_code, clippy::unwrap_used, reason = "shared with the tests of the capture")]
#[path = "../../node-agent/tests/capture_kernel/lab/foreign.rs"]
mod foreign;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use agent::capture::find_cgroup_root;
use foreign::{Balancer, Balancing, programs_at};
use k8s_openapi::api::core::v1::Pod;
use scopeprobe_tests::{
    Cluster, Error, Result, eventually,
    namespace::Namespace,
    oracle::{EdgeName, observed},
    traffic_pod::{container, pod_of},
};
use serde_json::{Value, json};
use traffic::protocol::{Answer, Behaviour, Command, Connect, Datagrams, Echo, Listen};

const SPEC: &str = "{topology: {counterInterval: 1s}}";

/// Ports of the servers, and those of their Services.
const WEB: (u16, u16) = (8080, 80);
const NAMES: (u16, u16) = (5353, 53);

/// Connections and conversations by client and Service.
type Opened = BTreeMap<(String, String, Option<(String, u16)>, Option<u16>), u64>;

struct Testbed {
    cluster: Cluster,
    namespace: Namespace,
    /// Cgroup of the clients' node, and that of a client.
    node: PathBuf,
    client: PathBuf,
    web: [SocketAddr; 2],
    names: [SocketAddr; 2],
    expected: Opened,
}

impl Testbed {
    async fn new(cluster: Cluster) -> Result<Self> {
        let namespace = cluster.namespace("socket-lb").await?;
        let pods = [
            pod("client", "node-1", false),
            pod("host", "node-1", true),
            pod("web", "node-2", false),
            pod("names", "node-2", false),
        ];
        let objects = pods.iter().map(Value::to_string);
        let objects: Vec<String> =
            objects.chain([service("web", "TCP", WEB), service("names", "UDP", NAMES)]).collect();
        namespace.apply(&objects.join("\n---\n")).await?;
        let ready = namespace.ready_pods("testbed=yes", pods.len()).await?;
        let uid = ready.iter().find(|pod| pod.metadata.name.as_deref() == Some("client"));
        let (node, client) = cgroups(uid)?;
        let web = ends(&namespace, "web", WEB).await?;
        let names = ends(&namespace, "names", NAMES).await?;
        let listen = Listen { address: ([0, 0, 0, 0], WEB.0).into(), v6_only: false, behaviour: Behaviour::Echo };
        namespace.traffic("web", "main").ask(&Command::Listen(listen)).await?;
        let echo = Echo { address: ([0, 0, 0, 0], NAMES.0).into() };
        let Answer::Listening(_) = namespace.traffic("names", "main").ask(&Command::Echo(echo)).await? else {
            return Err(Error::Unexpected("the name server does not listen".to_owned()));
        };
        Ok(Self { cluster, namespace, node, client, web, names, expected: Opened::new() })
    }

    fn attach(&self) -> [Balancer; 2] {
        [self.web, self.names].map(|[service, backend]| Balancing::USUAL.attach(&self.node, service, backend))
    }

    /// Waits until the agent's programs run beside those of both load balancers.
    async fn until_programs(&self) -> Result<()> {
        eventually("the agent's programs to run", async || {
            let programs = programs_at(&self.client);
            if programs == [3, 3, 4, 4] { Ok(()) } else { Err(format!("{programs:?}")) }
        })
        .await
    }

    async fn call(&mut self) -> Result<()> {
        for (pod, count) in [("client", 20), ("host", 15)] {
            let program = self.namespace.traffic(pod, "main");
            let plan = Connect { count, send: 10, receive: 10, timeout_ms: 5000, ..Connect::to(self.web[0]) };
            let outcome = program.connect(plan).await?;
            assert_eq!(outcome.opened, count, "{outcome:?}");
            *self.expected.entry(edge(pod, "web", WEB)).or_default() += outcome.opened;
            for connected in [true, false] {
                let plan =
                    Datagrams { target: self.names[0], sockets: 10, times: 3, bytes: 50, connected, timeout_ms: 5000 };
                let outcome = program.outcome(&Command::Datagrams(plan)).await?;
                assert_eq!((outcome.opened, outcome.broken), (10, 0), "{outcome:?}");
                *self.expected.entry(edge(pod, "names", NAMES)).or_default() += outcome.opened;
            }
        }
        Ok(())
    }

    /// Waits until exactly these edges are shown.
    async fn until_shown(&self) -> Result<()> {
        eventually("edges through the Services", async || {
            let (by_clients, by_servers) = observed::edges(&self.namespace).await.map_err(|error| error.to_string())?;
            let shown: Opened = by_clients.into_iter().map(|(name, counts)| (named(name), counts.opened)).collect();
            let reversed: Vec<_> =
                by_servers.keys().filter(|name| name.server.1 == "client" || name.server.1 == "host").collect();
            if shown == self.expected && reversed.is_empty() {
                return Ok(());
            }
            Err(format!("expected {:#?}\nshown {shown:#?}\nreversed {reversed:#?}", self.expected))
        })
        .await
    }
}

fn edge(client: &str, server: &str, ports: (u16, u16)) -> (String, String, Option<(String, u16)>, Option<u16>) {
    (format!("Pod/{client}"), format!("Pod/{server}"), Some((server.to_owned(), ports.1)), Some(ports.0))
}

fn named(name: EdgeName) -> (String, String, Option<(String, u16)>, Option<u16>) {
    let EdgeName { client, server, service, port } = name;
    let text = |(kind, name): (String, String)| format!("{kind}/{name}");
    (text(client), text(server), service, port)
}

fn pod(name: &str, node: &str, host_network: bool) -> Value {
    pod_of(name, node, host_network, &[container("main")])
}

fn service(name: &str, protocol: &str, (target, port): (u16, u16)) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port, "targetPort": target, "protocol": protocol}]},
    })
    .to_string()
}

/// Returns the addresses and ports of a Service and of its only backend.
async fn ends(namespace: &Namespace, name: &str, (target, port): (u16, u16)) -> Result<[SocketAddr; 2]> {
    let (service, backend) = (namespace.service_ip(name).await?, namespace.pod_ip(name).await?);
    Ok([SocketAddr::new(service, port), SocketAddr::new(backend, target)])
}

/// Returns the cgroup of a pod's node and that of the pod, as this machine shows them.
fn cgroups(pod: Option<&Pod>) -> Result<(PathBuf, PathBuf)> {
    let unknown = || Error::Unexpected("the client's node is no part of this machine".to_owned());
    let uid = pod.and_then(|pod| pod.metadata.uid.as_deref()).ok_or_else(unknown)?;
    let root =
        find_cgroup_root(Path::new("/sys/fs/cgroup")).map_err(|refusal| Error::Unexpected(refusal.to_string()))?;
    let own = find_below(&root, uid).ok_or_else(unknown)?;
    let node = own.ancestors().find(|path| path.parent() == Some(root.as_path())).ok_or_else(unknown)?;
    Ok((node.to_owned(), own))
}

fn find_below(cgroup: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(cgroup).ok()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).find_map(
        |entry| {
            let path = entry.path();
            if entry.file_name().to_string_lossy().contains(name) { Some(path) } else { find_below(&path, name) }
        },
    )
}

#[tokio::test]
async fn clients_of_a_socket_load_balancer_are_shown_with_the_service() -> Result<()> {
    let cluster = Cluster::shared().await?;
    cluster.install_chart(&[]).await?;
    cluster.probe(SPEC).await?;
    let mut testbed = Testbed::new(cluster).await?;
    let balancers = testbed.attach();
    testbed.until_programs().await?;
    testbed.call().await?;
    testbed.until_shown().await?;
    // The next agent finds the load balancer there.
    testbed.cluster.crash_agent("node-1").await?;
    testbed.until_programs().await?;
    testbed.call().await?;
    testbed.until_shown().await?;
    drop(balancers);
    Ok(())
}
