//! Workloads of every kind whose pods run the traffic program in several containers, with a Service for each.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};
use traffic::protocol::{Answer, Behaviour, Closer, Command};

use super::Workload;
use crate::{
    Error, Result, eventually,
    namespace::Namespace,
    traffic_pod::{Traffic, container},
};

/// The containers of each pod.
pub const CONTAINERS: [&str; 2] = ["one", "two"];

/// Port of a Service without a listener, and its target port.
pub const CLOSED: (u16, u16) = (90, 7999);

/// Maximum number of concurrent calls to pods.
const AT_A_TIME: usize = 6;

/// A server that each pod of the fleet runs.
#[derive(Clone, Debug)]
pub struct Port {
    /// In which container.
    pub container: &'static str,
    /// The Service's port.
    pub service: u16,
    /// The server's own port.
    pub server: u16,
    /// Behavior of the server.
    pub behaviour: Behaviour,
}

/// The servers of each pod.
#[must_use]
pub fn ports() -> [Port; 4] {
    let port = |container, service, server, behaviour| Port { container, service, server, behaviour };
    [
        port("one", 80, 7001, Behaviour::Echo),
        port("one", 81, 7002, Behaviour::Reply { request: 300, response: 5000, closes: Closer::Server }),
        port("two", 82, 7003, Behaviour::Sink),
        port("two", 83, 7004, Behaviour::Source { bytes: 2000, closes: Closer::Client }),
    ]
}

/// A pod of the fleet.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// The workload that it belongs to.
    pub workload: Workload,
    /// The node it runs on.
    pub node: String,
    /// One address of each family.
    pub ips: Vec<IpAddr>,
}

/// Workloads, their pods and Services.
pub struct Fleet {
    /// Namespace of the pods.
    pub namespace: Namespace,
    /// All pods, by name.
    pub members: Vec<Member>,
    /// Service addresses by workload; the Service is named after the workload.
    pub services: BTreeMap<Workload, Vec<IpAddr>>,
}

/// Kind, name and how many pods (a DaemonSet's and a CronJob's are what they are).
const WORKLOADS: [(&str, &str, usize); 10] = [
    ("Deployment", "alpha", 3),
    ("Deployment", "beta", 2),
    ("Deployment", "gamma", 2),
    ("Deployment", "delta", 2),
    ("StatefulSet", "epsilon", 3),
    ("DaemonSet", "zeta", 2),
    ("Job", "eta", 2),
    ("CronJob", "theta", 1),
    ("Pod", "iota", 1),
    ("Deployment", "kappa", 2),
];

impl Fleet {
    /// Makes 20 pods of ten workloads of seven kinds on two nodes, and has each listen at all [`ports`].
    ///
    /// # Errors
    /// Returns an error if they do not become ready.
    pub async fn launch(namespace: Namespace) -> Result<Self> {
        let pods: usize = WORKLOADS.iter().map(|(_, _, pods)| pods).sum();
        namespace.apply(&manifest()).await?;
        let job = ["-n", &namespace.name, "create", "job", "--from=cronjob/theta", "theta-now"];
        namespace.cluster.kubectl(&job).await?;
        let members = members(&namespace.ready_pods("fleet=yes", pods).await?)?;
        let services = service_addresses(&namespace).await?;
        let fleet = Self { namespace, members, services };
        let addresses: Vec<IpAddr> = fleet.members.iter().flat_map(|member| member.ips.clone()).collect();
        fleet.namespace.cluster.await_routes_to(&addresses).await?;
        fleet.listen().await?;
        Ok(fleet)
    }

    async fn listen(&self) -> Result<()> {
        let jobs = self.members.iter().flat_map(|member| ports().into_iter().map(move |port| (member, port)));
        stream::iter(jobs)
            .map(|(member, port)| async move {
                let program = self.namespace.traffic(&member.pod, port.container);
                let what = format!("{program} to answer");
                eventually(&what, async || match program.ask(&Command::Ping).await {
                    Ok(Answer::Done) => Ok(()),
                    other => Err(format!("{other:?}")),
                })
                .await?;
                program.listen(&format!("[::]:{}", port.server), port.behaviour.clone()).await.map(|_| ())
            })
            .buffer_unordered(AT_A_TIME)
            .try_collect::<()>()
            .await
    }

    /// All clients: every container of every pod.
    #[must_use]
    pub fn clients(&self) -> Vec<(&Member, Traffic)> {
        self.members
            .iter()
            .flat_map(|member| CONTAINERS.map(|name| (member, self.namespace.traffic(&member.pod, name))))
            .collect()
    }

    /// Does something with every client, several at a time.
    ///
    /// # Errors
    /// The first that fails.
    pub async fn each_client<T>(&self, action: impl AsyncFn(usize, &Member, &Traffic) -> Result<T>) -> Result<Vec<T>> {
        let action = &action;
        let clients = self.clients();
        stream::iter(clients.iter().enumerate())
            .map(|(index, (member, program))| async move { action(index, member, program).await })
            .buffered(AT_A_TIME)
            .try_collect()
            .await
    }

    /// Addresses by which others can call `port` of `member`, directly or through its workload's Service.
    #[must_use]
    pub fn target(&self, member: &Member, through_service: bool, v6: bool, port: &Port) -> SocketAddr {
        let (ips, port) =
            if through_service { (&self.services[&member.workload], port.service) } else { (&member.ips, port.server) };
        SocketAddr::new(of_family(ips, v6), port)
    }

    /// A pod of another workload, a different one for each client and turn.
    #[must_use]
    pub fn partner(&self, client: usize, turn: usize, own: &Member) -> &Member {
        let others: Vec<&Member> = self.members.iter().filter(|other| other.workload != own.workload).collect();
        others[(client * 7 + turn * 5 + 3) % others.len()]
    }

    /// Returns the member that has each address.
    #[must_use]
    pub fn by_ip(&self) -> HashMap<IpAddr, &Member> {
        self.members.iter().flat_map(|member| member.ips.iter().map(move |ip| (*ip, member))).collect()
    }
}

/// The address of one family.
///
/// # Panics
/// Returns an error if there is none.
#[must_use]
pub fn of_family(ips: &[IpAddr], v6: bool) -> IpAddr {
    let found = ips.iter().find(|ip| ip.is_ipv6() == v6);
    *found.unwrap_or_else(|| panic!("no address of the family (IPv6: {v6}) among {ips:?}"))
}

fn manifest() -> String {
    let mut yaml = String::new();
    for (kind, name, pods) in WORKLOADS {
        let template =
            json!({"metadata": {"labels": {"fleet": "yes", "workload": name}}, "spec": pod_spec(name, kind)});
        let selector = json!({"matchLabels": {"workload": name}});
        let (version, spec) = match kind {
            "Deployment" => ("apps/v1", json!({"replicas": pods, "selector": selector, "template": template})),
            "StatefulSet" => (
                "apps/v1",
                json!({"replicas": pods, "selector": selector, "serviceName": name,
                       "podManagementPolicy": "Parallel", "template": template}),
            ),
            "DaemonSet" => ("apps/v1", json!({"selector": selector, "template": template})),
            "Job" => ("batch/v1", json!({"completions": pods, "parallelism": pods, "template": template})),
            // Suspended: its one Job is made by hand, as its owner.
            "CronJob" => (
                "batch/v1",
                json!({"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": {"template": template}}}),
            ),
            _ => ("v1", template["spec"].clone()),
        };
        let mut metadata = json!({"name": name});
        if kind == "Pod" {
            metadata["labels"] = template["metadata"]["labels"].clone();
        }
        let workload = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
        // Writing to a string cannot fail.
        let _ = writeln!(yaml, "---\n{workload}\n---\n{}", service(name));
    }
    yaml
}

fn pod_spec(workload: &str, kind: &str) -> Value {
    let containers: Vec<Value> = CONTAINERS.iter().map(|name| container(name)).collect();
    let spread = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
                         "labelSelector": {"matchLabels": {"workload": workload}}}]);
    let mut spec = json!({"terminationGracePeriodSeconds": 0, "containers": containers,
                          "topologySpreadConstraints": spread});
    if kind.ends_with("Job") {
        spec["restartPolicy"] = json!("Never");
    }
    if kind == "DaemonSet" {
        spec["topologySpreadConstraints"] = json!([]);
    }
    spec
}

fn service(workload: &str) -> Value {
    let open = ports().map(|port| (port.service, port.server));
    let all: Vec<Value> = open
        .into_iter()
        .chain([CLOSED])
        .map(|(port, target)| json!({"name": format!("p{port}"), "port": port, "targetPort": target}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": workload},
           "spec": {"ipFamilyPolicy": "RequireDualStack", "selector": {"workload": workload}, "ports": all}})
}

fn members(pods: &[Pod]) -> Result<Vec<Member>> {
    pods.iter()
        .map(|pod| {
            let name = pod.name_any();
            let label = pod.labels().get("workload").cloned().unwrap_or_default();
            let kind = WORKLOADS.iter().find(|(_, name, _)| *name == label).map(|(kind, _, _)| (*kind).to_owned());
            let kind =
                kind.ok_or_else(|| Error::Unexpected(format!("the pod {name} is of no workload of the fleet")))?;
            let ips = pod.status.as_ref().and_then(|status| status.pod_ips.clone()).unwrap_or_default();
            let ips: Vec<IpAddr> = ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect();
            if ips.len() != 2 {
                return Err(Error::Unexpected(format!("the pod {name} has not one address of each family: {ips:?}")));
            }
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            Ok(Member { pod: name, uid: pod.uid().unwrap_or_default(), workload: (kind, label), node, ips })
        })
        .collect()
}

async fn service_addresses(namespace: &Namespace) -> Result<BTreeMap<Workload, Vec<IpAddr>>> {
    let api: Api<Service> = namespace.api();
    let services = api.list(&ListParams::default()).await.map_err(Error::api("list the fleet's Services"))?;
    let addresses = |name: &str| -> Vec<IpAddr> {
        let service = services.items.iter().find(|service| service.name_any() == name);
        let ips = service.and_then(|service| service.spec.as_ref()?.cluster_ips.clone()).unwrap_or_default();
        ips.iter().filter_map(|ip| ip.parse().ok()).collect()
    };
    Ok(WORKLOADS.iter().map(|(kind, name, _)| (((*kind).to_owned(), (*name).to_owned()), addresses(name))).collect())
}
