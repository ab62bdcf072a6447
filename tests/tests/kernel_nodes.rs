//! Tests one cluster with four kernels: every node captures in the best way that its kernel allows, and reports the
//! reason. Connections between pods on all nodes are shown exactly.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, net::SocketAddr};

use crds::Mode;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::{Api, ResourceExt as _, api::ListParams};
use scopeprobe_tests::{
    Cluster, Error, Result,
    cluster::Shape,
    eventually, manifest,
    namespace::Namespace,
    oracle::{EdgeCounts, EdgeName, Edges, agreement, differences, observed},
    traffic_pod::Traffic,
};
use traffic::protocol::{Close, Command, Connect, End};

/// A node, what its kernel's release begins with, and how it captures for which reason.
struct Expected {
    node: &'static str,
    kernel: &'static str,
    mode: Mode,
    reason: &'static str,
    attach: &'static str,
}

/// As `scripts/cluster up kernels` makes them.
const NODES: [Expected; 4] = [
    // It cannot list open sockets.
    Expected { node: "node-1", kernel: "5.10.", mode: Mode::Ebpf, reason: "Supported", attach: "SockOps" },
    // Without BTF.
    Expected {
        node: "node-2",
        kernel: "6.1.",
        mode: Mode::Fallback,
        reason: "BtfMissing",
        attach: "SockDiag+Conntrack",
    },
    // Locked down for confidentiality.
    Expected { node: "node-3", kernel: "6.12.", mode: Mode::Ebpf, reason: "Supported", attach: "SockOps" },
    Expected { node: "node-4", kernel: "7.", mode: Mode::Ebpf, reason: "Supported", attach: "SockOps" },
];

const PROBE: &str = "{apiVersion: scopeprobe.io/v1alpha1, kind: ScopeProbe, metadata: {name: tests},
  spec: {topology: {counterInterval: 1s}, capture: {fallback: {cpuBudget: 500m}}}}";

const PORT: u16 = 7001;
/// Service of each pod.
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: NAME}, spec: {selector: {app: NAME},
  ports: [{port: 80, targetPort: 7001}]}}";
/// Connections that are held, and such that end at once; the bytes that each of them sends and gets back.
const HELD: (u64, u64) = (3, 700);
const SHORT: (u64, u64) = (40, 30);

#[tokio::test]
#[ignore = "needs a cluster of virtual machines: scripts/kernels nodes"]
async fn every_node_captures_as_its_kernel_allows_and_all_pods_are_shown_as_it_happened() -> Result<()> {
    let cluster = Cluster::of(Shape::Kernels).await?;
    kernels_are_as_expected(&cluster).await?;
    cluster.install_chart(&[]).await?;
    cluster.unprobe().await?;
    let namespace = cluster.namespace("kernels").await?;
    let pods = Pods::launch(&namespace).await?;
    // These connections are closed before an agent starts, so no count contains them.
    pods.reach_services().await?;
    manifest::apply(&cluster.client, "", PROBE).await?;
    every_node_says_which_mode_and_why(&cluster).await?;

    // The client's kernel on node-1 reports a connection's bytes when it ends; the servers' kernels report them before.
    let mut edges = pods.talk(false).await?;
    shown(&namespace, "held ones open", &edges, |_| true).await?;
    // If a client reaches a server by two paths, the server's bytes cannot be assigned to one of them.
    edges.extend(pods.talk(true).await?);
    let client_knows = |name: &EdgeName| name.client.1 != pod_on(&NODES[0]);
    shown(&namespace, "held ones open, by Services too", &edges, client_knows).await?;
    for edge in edges.values_mut() {
        edge.active = 0;
    }
    for pod in &pods.0 {
        pod.program.outcome(&Command::Close(Close { held: "held".into(), count: None, end: End::Close })).await?;
    }
    shown(&namespace, "held ones closed", &edges, |_| true).await?;
    cluster.unprobe().await
}

async fn kernels_are_as_expected(cluster: &Cluster) -> Result<()> {
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await;
    for node in nodes.map_err(Error::api("list nodes"))?.items {
        let name = node.name_any();
        let expected = NODES.iter().find(|expected| expected.node == name).map(|expected| expected.kernel);
        let kernel =
            node.status.and_then(|status| status.node_info).map(|info| info.kernel_version).unwrap_or_default();
        assert!(expected.is_some_and(|expected| kernel.starts_with(expected)), "{name} has {kernel}");
    }
    Ok(())
}

async fn every_node_says_which_mode_and_why(cluster: &Cluster) -> Result<()> {
    let expected: BTreeMap<_, _> = NODES
        .iter()
        .map(|node| (node.node.to_owned(), (node.kernel, Some(node.mode), node.reason, node.attach)))
        .collect();
    eventually("every node to capture as its kernel allows", async || {
        let probes = cluster.node_probes().await.map_err(|error| error.to_string())?;
        let statuses: Vec<_> =
            probes.iter().map(|probe| (probe.name_any(), probe.status.clone().unwrap_or_default())).collect();
        let said = statuses.iter().map(|(name, status)| {
            let kernel = NODES.iter().map(|node| node.kernel).find(|kernel| status.kernel.starts_with(kernel));
            (name.clone(), (kernel.unwrap_or_default(), status.mode, status.reason.as_str(), status.attach.as_str()))
        });
        if said.collect::<BTreeMap<_, _>>() == expected { Ok(()) } else { Err(format!("{statuses:?}")) }
    })
    .await
}

/// A pod on each node.
struct Pods(Vec<Pod>);

struct Pod {
    name: String,
    address: SocketAddr,
    /// Its Service's.
    service: SocketAddr,
    program: Traffic,
}

impl Pods {
    async fn launch(namespace: &Namespace) -> Result<Self> {
        let mut pods = Vec::new();
        for node in &NODES {
            let name = pod_on(node);
            let program = namespace.traffic_pod(&name, Some(node.node), &["main"]).await?.remove(0);
            program.echo(&format!("[::]:{PORT}")).await?;
            let address = SocketAddr::new(namespace.pod_ips(&name).await?[0], PORT);
            namespace.apply(&SERVICE.replace("NAME", &name)).await?;
            let service = namespace.api::<Service>().get(&name).await.map_err(Error::api("get the Service"))?;
            let ip = service.spec.and_then(|spec| spec.cluster_ip).and_then(|ip| ip.parse().ok());
            let ip = ip.ok_or_else(|| Error::Unexpected(format!("the Service {name} has no address")))?;
            pods.push(Pod { name, address, service: SocketAddr::new(ip, 80), program });
        }
        Ok(Self(pods))
    }

    /// Waits until every node leads to every Service: a call before that would be a failed attempt of its own.
    async fn reach_services(&self) -> Result<()> {
        let probe = |target| Connect { timeout_ms: 2000, ..Connect::to(target) };
        for client in &self.0 {
            for server in &self.0 {
                eventually(&format!("{} to reach {}'s Service", client.name, server.name), async || {
                    let outcome =
                        client.program.connect(probe(server.service)).await.map_err(|error| error.to_string())?;
                    if outcome.opened == 1 { Ok(()) } else { Err(format!("{outcome:?}")) }
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Each pod calls all others, at their own addresses or through Services. Returns the edges by the clients' own
    /// counts. All pods make long connections. Only pairs with eBPF at both ends, which misses none, make short ones.
    async fn talk(&self, through_service: bool) -> Result<Edges> {
        let mut edges = Edges::new();
        for client in &self.0 {
            for server in self.0.iter().filter(|server| server.name != client.name) {
                let counts = call(client, server, through_service).await?;
                let workload = |pod: &Pod| ("Pod".to_owned(), pod.name.clone());
                let service = through_service.then(|| (server.name.clone(), server.service.port()));
                let name = EdgeName { client: workload(client), server: workload(server), service, port: Some(PORT) };
                edges.insert(name, counts);
            }
        }
        Ok(edges)
    }
}

async fn call(client: &Pod, server: &Pod, through_service: bool) -> Result<EdgeCounts> {
    let target = if through_service { server.service } else { server.address };
    let plan = |(count, bytes), hold| Connect {
        count,
        concurrency: 2,
        send: bytes,
        receive: bytes,
        hold,
        ..Connect::to(target)
    };
    let mut sum = client.program.connect(plan(HELD, Some("held".into()))).await?;
    assert_eq!((sum.opened, sum.broken), (HELD.0, 0), "{} → {}: {sum:?}", client.name, server.name);
    if in_the_kernel(&client.name) && in_the_kernel(&server.name) {
        let short = client.program.connect(plan(SHORT, None)).await?;
        assert_eq!((short.opened, short.broken), (SHORT.0, 0), "{} → {}: {short:?}", client.name, server.name);
        sum.opened += short.opened;
        sum.sent += short.sent;
        sum.received += short.received;
    }
    let end = |pod: &Pod| BTreeMap::from([((pod.name.clone(), "main".to_owned()), sum.opened)]);
    Ok(EdgeCounts {
        opened: sum.opened,
        active: HELD.0,
        failed: 0,
        sent: sum.sent,
        received: sum.received,
        clients: end(client),
        servers: end(server),
    })
}

fn pod_on(node: &Expected) -> String {
    format!("on-{}", node.node)
}

fn in_the_kernel(pod: &str) -> bool {
    NODES.iter().any(|node| pod_on(node) == pod && node.mode == Mode::Ebpf)
}

/// Waits until the Topology objects show these edges and no others, from both sides; of edges whose bytes are not known,
/// no more bytes than there are.
async fn shown(
    namespace: &Namespace,
    when: &str,
    edges: &Edges,
    knows_bytes: impl Fn(&EdgeName) -> bool,
) -> Result<()> {
    let as_known = |mut shown: Edges| {
        for (name, shown) in &mut shown {
            let truth = edges.get(name).filter(|truth| truth.sent >= shown.sent && truth.received >= shown.received);
            if let Some(truth) = truth.filter(|_| !knows_bytes(name)) {
                (shown.sent, shown.received) = (truth.sent, truth.received);
            }
        }
        shown
    };
    eventually(&format!("{when}: the Topology objects to show what happened"), async || {
        let (by_clients, by_servers) = observed::edges(namespace).await.map_err(|error| error.to_string())?;
        let mut wrong = differences(edges, &as_known(by_clients));
        wrong
            .extend(differences(edges, &as_known(by_servers)).into_iter().map(|line| format!("at the server, {line}")));
        agreement::summary(wrong, edges.len()).map_or(Ok(()), Err)
    })
    .await
}
