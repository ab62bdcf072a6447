//! `ScopeProbe`: nodes to observe, and settings of agents and Topologies.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::Toleration,
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{Condition, LabelSelector, LabelSelectorRequirement},
    },
};
use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Nodes to observe, and settings. Every field has a default: an empty `spec` observes all Linux nodes.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "scopeprobe.io",
    version = "v1alpha1",
    kind = "ScopeProbe",
    plural = "scopeprobes",
    shortname = "spr",
    category = "scopeprobe-all",
    status = "ScopeProbeStatus",
    derive = "PartialEq",
    doc = "Requests agents on the selected nodes and Topology objects of their connections. The status reports how completely agents observe them.",
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$')").message("a ScopeProbe's name has to be at most 40 lower-case letters, digits and dashes: it becomes a label's value and a part of DaemonSets' names"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(name = "eBPF", type_ = "integer", json_path = ".status.nodes.ebpf"),
    printcolumn(name = "Fallback", type_ = "integer", json_path = ".status.nodes.fallback"),
    printcolumn(name = "Workloads", type_ = "integer", json_path = ".status.topology.workloads"),
    printcolumn(name = "Edges", type_ = "integer", json_path = ".status.topology.edges"),
    printcolumn(name = "Coverage", type_ = "string", json_path = ".status.coverage"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(schema::not_below("topology.counterInterval", "capture.reportInterval")).message("topology.counterInterval has to be at least capture.reportInterval: counters cannot be written more often than they are reported"),
    validation = Rule::new(schema::not_below("topology.retention", "topology.counterInterval")).message("topology.retention has to be at least topology.counterInterval")
)]
#[schemars(extend("default" = ScopeProbeSpec::default()), transform = schema::signed_integers)]
pub struct ScopeProbeSpec {
    /// Labels of the nodes to observe; a node needs all of them. An empty selector selects every Linux node. A node that
    /// several ScopeProbes select belongs to the oldest one.
    #[schemars(schema_with = "schema::node_selector")]
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Requirements on the labels of the nodes to observe, beside `nodeSelector`. By default, virtual nodes are left out,
    /// since no agent can run there. Nodes with another operating system than Linux are never selected.
    #[serde(default)]
    pub node_affinity: NodeAffinity,
    /// Capture mode of the nodes. `Auto`: eBPF where the kernel supports it, else the fallback. `EBPF`: eBPF on every node;
    /// a node that does not support it reports why. `Fallback`: no eBPF. A kernel that eBPF is known to crash always gets the
    /// fallback.
    #[serde(default)]
    pub mode: RequestedMode,
    /// Exceptions from `mode`. The first override whose labels a node has applies to it.
    #[schemars(schema_with = "schema::mode_overrides")]
    #[serde(default)]
    pub mode_overrides: Vec<ModeOverride>,
    /// Settings of the capture.
    #[serde(default)]
    pub capture: CaptureSpec,
    /// Contents of `Topology` objects, and intervals of writing. The oldest ScopeProbe decides.
    #[serde(default)]
    pub topology: TopologySettings,
    /// Settings of the agents' pods.
    #[serde(default)]
    pub agent: AgentSpec,
    /// Conditions of readiness.
    #[serde(default)]
    pub readiness: ReadinessSpec,
}

/// Requirements on the labels of nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAffinity {
    /// Requirements that a node has to meet; all of them. An empty list includes virtual nodes.
    #[schemars(schema_with = "schema::node_requirements")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

impl Default for NodeAffinity {
    fn default() -> Self {
        let not_in = |key: &str, value: &str| LabelSelectorRequirement {
            key: key.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(vec![value.to_owned()]),
        };
        Self {
            match_expressions: vec![
                not_in("type", "virtual-kubelet"),
                not_in("eks.amazonaws.com/compute-type", "fargate"),
            ],
        }
    }
}

/// Capture mode that a ScopeProbe requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RequestedMode {
    /// eBPF where the node's kernel supports it, else the fallback.
    #[default]
    Auto,
    /// eBPF on every node, except where eBPF is known to crash the kernel.
    // Objects from before have the other spelling.
    #[serde(rename = "EBPF", alias = "Ebpf")]
    Ebpf,
    /// The fallback on every node.
    Fallback,
}

/// Capture mode of some of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::selects_something()))]
pub struct ModeOverride {
    /// Labels of the nodes to which the override applies; a node needs all of them.
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: BTreeMap<String, String>,
    /// Capture mode of these nodes.
    pub mode: RequestedMode,
}

/// Settings of the capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CaptureSpec {
    /// Maximum number of flows (role, cgroup, addresses, port) that an agent keeps in the kernel. While 80 % are in
    /// use, an eBPF agent counts further external addresses together (`status.folding` of the NodeProbe). Agents count
    /// connections of flows without room as lost.
    #[schemars(range(min = 64, max = 1_048_576))]
    pub max_flows: u32,
    /// Interval at which an agent reports changed counters. It reports new flows at once. With more than 100 agents, the
    /// operator sets at least 10 ms per agent, up to 30 s.
    #[schemars(schema_with = "schema::report_interval")]
    pub report_interval: Duration,
    /// Settings of the fallback.
    pub fallback: FallbackSpec,
}

impl Default for CaptureSpec {
    fn default() -> Self {
        Self {
            max_flows: 65_536,
            report_interval: std::time::Duration::from_secs(1).into(),
            fallback: FallbackSpec::default(),
        }
    }
}

/// Settings of the fallback, which captures where eBPF is unavailable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FallbackSpec {
    /// CPU that the fallback may use for scans of sockets and processes, after the first scan. Where it does not suffice for
    /// a scan every 2 s, the fallback scans less often, and the NodeProbe reports it.
    #[schemars(schema_with = "schema::cpu_budget")]
    pub cpu_budget: Quantity,
}

impl Default for FallbackSpec {
    fn default() -> Self {
        Self { cpu_budget: Quantity("50m".to_owned()) }
    }
}

/// Contents of `Topology` objects, and intervals of writing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologySettings {
    /// Namespaces that get `Topology` objects, by label. An empty selector selects all. Counting is independent of it: the
    /// peers of a selected workload may be in any namespace, and the status counts all edges.
    #[schemars(schema_with = "schema::namespace_selector")]
    pub namespace_selector: LabelSelector,
    /// Maximum number of edges that a Topology lists in each direction. It lists the busiest ones, as many as fit into
    /// 256 KiB, and `status.omitted` counts the others.
    #[schemars(range(min = 1, max = 500))]
    pub max_edges: u32,
    /// Maximum number of own pods that each edge lists: the busiest.
    #[schemars(range(min = 0, max = 10))]
    pub pods: u32,
    /// Minimum interval between two writes of an object's counters. The operator writes new and removed edges at once.
    #[schemars(schema_with = "schema::counter_interval")]
    pub counter_interval: Duration,
    /// Time for which an edge stays listed after its last connection ended.
    #[schemars(schema_with = "schema::retention")]
    pub retention: Duration,
    /// Whether agents read answers of name servers over UDP, to name external addresses. Only names of called addresses leave
    /// a node. Agents without eBPF read none.
    pub dns_names: bool,
    /// Maximum number of external addresses that have edges of their own, for each workload and direction: the busiest. All
    /// others share the peer `OtherExternal`. Groups and DNS names do not count.
    #[schemars(range(min = 1, max = 500))]
    pub max_external_peers: u32,
    /// Names for external addresses and DNS names. An address range takes precedence over a DNS name, the narrowest range over
    /// wider ones, an exact name over a pattern, a longer pattern over a shorter one, and then the first group over others.
    /// Addresses of pods, Services and nodes keep their names.
    #[schemars(schema_with = "schema::external_groups")]
    pub external_groups: Vec<ExternalGroup>,
    /// Whether the map shows ScopeProbe's own traffic: calls of operator and agents, and the kubelets' probes of them. What
    /// others call is always shown. Own traffic is observed in either case: `ownEdges` of `status.topology` counts what is
    /// left out.
    pub include_self: bool,
}

impl Default for TopologySettings {
    fn default() -> Self {
        Self {
            namespace_selector: LabelSelector::default(),
            max_edges: 100,
            pods: 5,
            counter_interval: std::time::Duration::from_secs(30).into(),
            retention: std::time::Duration::from_hours(1).into(),
            dns_names: true,
            max_external_peers: 50,
            external_groups: Vec::new(),
            include_self: false,
        }
    }
}

/// A name for external addresses and DNS names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::group_has_members()))]
pub struct ExternalGroup {
    /// Name of the group in Topology objects.
    #[schemars(schema_with = "schema::external_group_name")]
    pub name: String,
    /// Address ranges in CIDR notation: `203.0.113.0/24`, `2001:db8::/32`, or `192.0.2.7/32` for a single address.
    #[schemars(schema_with = "schema::cidrs")]
    #[serde(default)]
    pub cidrs: Vec<String>,
    /// DNS names in lower case: `api.example.com`, or `*.example.com` for all names below `example.com`. They apply where an
    /// agent has read the answer of the name server (see `dnsNames` of `spec.topology`).
    #[schemars(schema_with = "schema::dns_names")]
    #[serde(default)]
    pub dns_names: Vec<String>,
}

/// Settings of the agents' pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentSpec {
    /// Resources of the agents' container.
    pub resources: AgentResources,
    /// Taints that the agents tolerate; all by default, so that an agent runs on every selected node.
    #[schemars(schema_with = "schema::tolerations")]
    pub tolerations: Vec<Toleration>,
    /// PriorityClass of the agents; an empty name means the cluster's default.
    #[schemars(length(max = 253))]
    pub priority_class_name: String,
}

impl Default for AgentSpec {
    fn default() -> Self {
        let everything = Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() };
        Self { resources: AgentResources::default(), tolerations: vec![everything], priority_class_name: String::new() }
    }
}

/// Resources of the agents' container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::requests_within_limits()))]
pub struct AgentResources {
    /// Resources that the scheduler reserves for the agent.
    pub requests: ResourceRequests,
    /// Resources that the agent may use at most.
    pub limits: ResourceLimits,
}

/// Resources that the scheduler reserves for the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceRequests {
    /// CPU, in cores.
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Quantity,
    /// Memory, in bytes, including eBPF maps.
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
}

impl Default for ResourceRequests {
    fn default() -> Self {
        Self { cpu: Quantity("10m".to_owned()), memory: Quantity("32Mi".to_owned()) }
    }
}

/// Resources that the agent may use at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceLimits {
    /// CPU, in cores. There is no limit by default: a throttled agent loses events.
    #[schemars(schema_with = "schema::quantity")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,
    /// Memory, in bytes; eBPF maps included. Each of `maxFlows` takes about 1.2 KiB and everything else 32 MiB; an agent
    /// whose limit is lower keeps fewer flows and says so in its NodeProbe.
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
}

impl Default for ResourceLimits {
    fn default() -> Self {
        Self { cpu: None, memory: Quantity("128Mi".to_owned()) }
    }
}

/// Conditions under which a ScopeProbe counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessSpec {
    /// Share of the nodes, in percent, that may lack a working agent while `Ready` stays true: at least one node, but never
    /// all of them. `Degraded` names these nodes. With 0, every node needs one.
    #[schemars(range(max = 100))]
    pub max_unavailable_percent: u32,
}

impl Default for ReadinessSpec {
    fn default() -> Self {
        Self { max_unavailable_percent: 10 }
    }
}

/// State of a ScopeProbe. Its size is bounded, however large the cluster is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("default" = schema::unobserved()), transform = schema::signed_integers)]
pub struct ScopeProbeStatus {
    /// Generation of the `spec` that the status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: agents report from the selected nodes, by eBPF or in Fallback mode; `spec.readiness` says how many may lack
    /// one. `Unknown` until an operator observes the ScopeProbe. `Degraded` names the nodes without a working agent.
    /// `Reconciling`: agents are being rolled out. `Stalled`: nothing will change without a person. `CaptureComplete`:
    /// nothing is known to have been missed in the last hour; `Unknown`, reason `Sampled`, where a fallback may have missed
    /// what it could not count. `Published`: the API server refuses no request for what is published.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Numbers of nodes, by the state of their agents.
    pub nodes: NodeCounts,
    /// Size of the topology.
    pub topology: TopologyTotals,
    /// Counted share of the connections and failed attempts of the last hour on all nodes, in percent, rounded down; `-`
    /// before the first report. Computed as the NodeProbes' `coverage`, from the sums over all nodes: a node without an
    /// agent counts with its time. Never `100%` if anything was lost or a node is not observed.
    #[schemars(length(max = 16))]
    pub coverage: String,
    /// The same of the last day.
    #[schemars(length(max = 16))]
    pub coverage_last_day: String,
    /// The same since the NodeProbes were made.
    #[schemars(length(max = 16))]
    pub coverage_total: String,
    /// Pairs of namespaces with edges between them, those with the most edges first; at most 50.
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<NamespaceEdge>,
    /// Number of pairs that are not listed in `namespaces`.
    pub omitted_namespaces: u64,
}

/// Numbers of nodes, by the state of their agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// Nodes that belong to this ScopeProbe.
    pub total: u64,
    /// Nodes whose agent reports from eBPF.
    pub ebpf: u64,
    /// Nodes whose agent reports from the fallback.
    pub fallback: u64,
    /// Nodes whose agent reports that it cannot capture; the NodeProbes give the reasons.
    pub unsupported: u64,
    /// Nodes whose agent does not report now, or that have none.
    pub not_reporting: u64,
}

/// Size of a topology.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologyTotals {
    /// Workloads that have at least one edge.
    pub workloads: u64,
    /// Edges: client, server, Service port, port and protocol.
    pub edges: u64,
    /// Edges of ScopeProbe itself, which the map leaves out unless `includeSelf` of `spec.topology` is true. `edges` does not
    /// count them.
    pub own_edges: u64,
    /// Entries of edges that did not fit into the Topology objects of their workloads.
    pub omitted_edges: u64,
    /// Maximum age of the counters in Topology objects, in seconds, while the API server accepts all writes. It grows with the
    /// number of objects. Edges appear and disappear sooner. 0 until the first map is complete.
    pub max_counter_age_seconds: u64,
}

/// Edges from the workloads of one namespace to those of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceEdge {
    /// Namespace of the clients; `(node)` for nodes and host processes, `(api-server)` for the API server, `(external)` for
    /// external peers, `(unknown)` otherwise.
    #[schemars(length(max = 63))]
    pub from: String,
    /// Namespace of the servers; the same words as in `from` for other peers.
    #[schemars(length(max = 63))]
    pub to: String,
    /// Number of edges.
    pub edges: u64,
}
