//! Pods and Services of the access paths, and the connections that really happened between them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use scopeprobe_tests::{
    Error, Result, eventually,
    namespace::Namespace,
    oracle::{EdgeCounts, EdgeName, Edges},
    traffic_pod::{Traffic, container},
};
use serde_json::{Value, json};
use traffic::protocol::{Behaviour, Command, Connect, Listen};

use crate::paths::{self, AccessPath, CONNECTIONS, Case, Door, LEADS};

pub const BACKENDS: [&str; 2] = ["backend-1", "backend-2"];
pub const HOST_CLIENT: &str = "host-client";
pub const HOST_SERVER: &str = "host-server";

/// Payload of each connection, in each direction.
const BYTES: u64 = 100;
/// Number of attempts to reach a path before the test: kube-proxy in IPVS mode alternates between servers, and
/// configures the last one later than the first.
const KNOCKS: u64 = 4;

/// A pod of the testbed.
pub struct TestPod {
    pub name: &'static str,
    pub node: &'static str,
    pub host_network: bool,
}

const fn test_pod(name: &'static str, node: &'static str, host_network: bool) -> TestPod {
    TestPod { name, node, host_network }
}

pub const PODS: [TestPod; 6] = [
    test_pod("client-1", "node-1", false),
    test_pod("client-2", "node-2", false),
    test_pod("backend-1", "node-1", false),
    test_pod("backend-2", "node-2", false),
    test_pod(HOST_CLIENT, "node-1", true),
    test_pod(HOST_SERVER, "node-2", true),
];

/// Returns the node of a pod of the testbed; empty for another pod.
pub fn node_of(pod: &str) -> &'static str {
    PODS.iter().find(|test_pod| test_pod.name == pod).map_or("", |test_pod| test_pod.node)
}

/// Addresses of a Service.
#[derive(Debug, Default)]
pub struct Doors {
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub balancer_ips: Vec<IpAddr>,
    /// By the Service's port.
    pub node_ports: HashMap<u16, u16>,
}

pub struct Testbed {
    pub namespace: Namespace,
    /// Addresses by pod.
    pub pods: HashMap<&'static str, Vec<IpAddr>>,
    /// By Service.
    pub services: HashMap<String, Doors>,
    /// Addresses by node.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
}

impl Testbed {
    /// Makes everything, and waits until it can be used.
    pub async fn new(namespace: Namespace, paths: &[AccessPath]) -> Result<Self> {
        let objects: Vec<String> =
            PODS.iter().map(pod).chain(paths::services(paths)).map(|object| object.to_string()).collect();
        namespace.apply(&objects.join("\n---\n")).await?;
        balance(&namespace, paths).await?;
        namespace.ready_pods("testbed=yes", PODS.len()).await?;
        let mut pods = HashMap::new();
        for test_pod in &PODS {
            pods.insert(test_pod.name, namespace.pod_ips(test_pod.name).await?);
        }
        let nodes = nodes(&namespace).await?;
        let services = doors(&namespace).await?;
        Ok(Self { namespace, pods, services, nodes })
    }

    /// Deletes everything that other tests may need: ports of nodes, addresses of Services.
    pub async fn tear_down(&self) -> Result<()> {
        let all = ["-n", &self.namespace.name, "delete", "pods,services", "--all", "--wait"];
        self.namespace.cluster.kubectl(&all).await.map(|_| ())
    }

    fn program(&self, pod: &str) -> Traffic {
        self.namespace.traffic(pod, "main")
    }

    /// Returns the ports of the readiness probes: before the test, clients connect to them until the path works.
    pub fn leads(&self) -> BTreeSet<u16> {
        let node_ports = self.services.values().filter_map(|doors| doors.node_ports.get(&LEADS.service).copied());
        node_ports.chain([LEADS.service, LEADS.server]).collect()
    }

    /// Makes the connections of every client; each lasts this long.
    pub async fn connect_all(&self, cases: &[Case], lasting: Duration) -> Result<()> {
        let servers: BTreeSet<_> = cases.iter().flat_map(|case| case.path.servers).copied().collect();
        try_join_all(servers.into_iter().map(|server| self.listen(server, cases))).await?;
        let clients: BTreeSet<_> = cases.iter().map(|case| case.client).collect();
        try_join_all(clients.into_iter().map(|client| self.go(client, cases, lasting))).await?;
        Ok(())
    }

    async fn listen(&self, server: &str, cases: &[Case]) -> Result<()> {
        let own = cases.iter().filter(|case| case.path.servers.contains(&server));
        let ports = own.map(|case| case.port).chain([LEADS.server]);
        let listen =
            |port| Listen { address: (Ipv6Addr::UNSPECIFIED, port).into(), v6_only: false, behaviour: Behaviour::Echo };
        let commands: Vec<_> = ports.map(|port| Command::Listen(listen(port))).collect();
        self.program(server).ask_all(&commands).await.map(|_| ())
    }

    async fn go(&self, client: &str, cases: &[Case], lasting: Duration) -> Result<()> {
        let program = self.program(client);
        let own: Vec<_> = cases.iter().filter(|case| case.client == client).collect();
        self.lead(&program, &own).await?;
        let plans = own.iter().flat_map(|case| CONNECTIONS.map(|(v6, count)| self.plan(case, v6, count, lasting)));
        let plans: Vec<_> = plans.collect();
        let outcomes = program.connect_all(plans.clone()).await?;
        for (plan, outcome) in plans.iter().zip(outcomes) {
            if (outcome.opened, outcome.broken) != (plan.count, 0) {
                return Err(Error::Unexpected(format!("{client}: {plan:?} came to {outcome:?}")));
            }
        }
        Ok(())
    }

    fn plan(&self, case: &Case, v6: bool, count: u64, lasting: Duration) -> Connect {
        Connect {
            count,
            send: BYTES,
            receive: BYTES,
            timeout_ms: 5000,
            pause_ms: u64::try_from(lasting.as_millis()).unwrap_or(u64::MAX),
            concurrency: if lasting.is_zero() { 1 } else { 10 },
            ..Connect::to(paths::target(self, case, v6, case.service_port))
        }
    }

    /// Waits until the node's proxy serves the paths. A port of its own takes the attempts that fail.
    async fn lead(&self, program: &Traffic, cases: &[&Case]) -> Result<()> {
        let through_services = cases.iter().filter(|case| case.service().is_some());
        let both =
            through_services.flat_map(|case| CONNECTIONS.map(|(v6, _)| paths::target(self, case, v6, LEADS.service)));
        let mut targets: Vec<_> = both.collect();
        eventually(&format!("all paths of {program} to lead to a server"), async || {
            let plan = |target: &SocketAddr| Connect { count: KNOCKS, timeout_ms: 1000, ..Connect::to(*target) };
            let plans: Vec<_> = targets.iter().map(|target| Command::Connect(plan(target))).collect();
            let outcomes = program.outcomes(&plans).await.map_err(|error| error.to_string())?;
            let mut failed = outcomes.iter().map(|outcome| outcome.opened < KNOCKS);
            // As many outcomes as there were targets.
            targets.retain(|_| failed.next().unwrap_or(true));
            if targets.is_empty() { Ok(()) } else { Err(format!("{targets:?} lead nowhere")) }
        })
        .await
    }

    /// Returns the results of each case by the programs' own counts: the servers at which connections arrived. All have
    /// ended.
    pub async fn happened(&self, cases: &[Case]) -> Result<Vec<(Case, Edges)>> {
        let each: u64 = CONNECTIONS.iter().map(|(_, count)| count).sum();
        let all = each * cases.len() as u64;
        eventually("the servers to have served all", async || {
            let served = self.served().await.map_err(|error| error.to_string())?;
            let (opened, open) = served.values().fold((0, 0), |sum, row| (sum.0 + row.opened, sum.1 + row.open));
            if (opened, open) != (all, 0) {
                return Err(format!("{opened} of {all} connections have arrived, {open} are open"));
            }
            Ok(cases.iter().map(|case| (*case, edges(case, &served))).collect())
        })
        .await
    }

    /// By server and port.
    async fn served(&self) -> Result<BTreeMap<(&'static str, u16), Served>> {
        let mut served: BTreeMap<_, Served> = BTreeMap::new();
        for server in [BACKENDS[0], BACKENDS[1], HOST_SERVER] {
            let report = self.program(server).report().await?;
            for row in report.servers.iter().filter(|row| row.port != LEADS.server) {
                let sum = served.entry((server, row.port)).or_default();
                sum.opened += row.opened;
                sum.open += row.open;
                sum.sent += row.sent;
                sum.received += row.received;
            }
        }
        Ok(served)
    }
}

/// Connections that a server accepted at a port.
#[derive(Default)]
struct Served {
    opened: u64,
    open: u64,
    sent: u64,
    received: u64,
}

fn edges(case: &Case, served: &BTreeMap<(&'static str, u16), Served>) -> Edges {
    let workload = |pod: &str| ("Pod".to_owned(), pod.to_owned());
    let at_port = served.iter().filter(|((_, port), _)| *port == case.port);
    let edge = |((server, port), served): (&(&'static str, u16), &Served)| {
        let name = EdgeName {
            client: workload(case.client),
            server: workload(server),
            service: case.service().map(|name| (name.to_owned(), case.service_port)),
            port: Some(*port),
        };
        let counts = EdgeCounts {
            opened: served.opened,
            active: 0,
            failed: 0,
            sent: served.received,
            received: served.sent,
            clients: [((case.client.to_owned(), "main".to_owned()), served.opened)].into(),
            servers: [(((*server).to_owned(), "main".to_owned()), served.opened)].into(),
        };
        (name, counts)
    };
    at_port.map(edge).collect()
}

fn pod(test_pod: &TestPod) -> Value {
    let role = if BACKENDS.contains(&test_pod.name) { "backend" } else { "other" };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": test_pod.name, "labels": {"app": test_pod.name, "role": role, "testbed": "yes"}},
        "spec": {
            "nodeName": test_pod.node,
            "hostNetwork": test_pod.host_network,
            "terminationGracePeriodSeconds": 0,
            "containers": [container("main")],
        },
    })
}

/// Plays the load balancer's controller: gives addresses out. They lead nowhere but into the nodes' own proxies.
async fn balance(namespace: &Namespace, paths: &[AccessPath]) -> Result<()> {
    let api: Api<Service> = namespace.api();
    let balanced = paths.iter().filter(|path| path.door == Door::LoadBalancer);
    for (number, path) in (1..).zip(balanced) {
        let ingress = json!([{"ip": format!("203.0.113.{number}")}, {"ip": format!("2001:db8:1::{number}")}]);
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        api.patch_status(path.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map_err(Error::api(format!("give {} an address", path.name)))?;
    }
    Ok(())
}

async fn nodes(namespace: &Namespace) -> Result<BTreeMap<String, Vec<IpAddr>>> {
    let api: Api<Node> = Api::all(namespace.cluster.client.clone());
    let nodes = api.list(&ListParams::default()).await.map_err(Error::api("list nodes"))?;
    let addresses = |node: &Node| {
        let all = node.status.clone().unwrap_or_default().addresses.unwrap_or_default();
        (node.name_any(), all.iter().filter_map(|address| address.address.parse().ok()).collect())
    };
    Ok(nodes.iter().map(addresses).collect())
}

async fn doors(namespace: &Namespace) -> Result<HashMap<String, Doors>> {
    let api: Api<Service> = namespace.api();
    let services = api.list(&ListParams::default()).await.map_err(Error::api("list Services"))?;
    Ok(services.items.into_iter().map(|service| (service.name_any(), doors_of(service))).collect())
}

fn doors_of(service: Service) -> Doors {
    let parse = |ips: Vec<String>| ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    let spec = service.spec.unwrap_or_default();
    let balancer = service.status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
    let ports = spec.ports.unwrap_or_default();
    let port = |number: i32| u16::try_from(number).ok();
    Doors {
        cluster_ips: parse(spec.cluster_ips.unwrap_or_default()),
        external_ips: parse(spec.external_ips.unwrap_or_default()),
        balancer_ips: parse(balancer.into_iter().filter_map(|ingress| ingress.ip).collect()),
        node_ports: ports.iter().filter_map(|each| Some((port(each.port)?, port(each.node_port?)?))).collect(),
    }
}
