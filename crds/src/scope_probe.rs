//! `ScopeProbe`: what to probe, and how.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::Toleration,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Condition},
};
use kube::{CustomResource, KubeSchema, core::Duration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// What to probe and how. Every field has a default: an empty `spec` is a good probe of all nodes.
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
    doc = "Asks for the topology of the connections of a cluster's nodes, and says how well they are seen.",
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
    /// Labels that a node has to have to be probed; all of them. Empty: every Linux node. A node that several
    /// ScopeProbes select belongs to the oldest of them.
    #[schemars(schema_with = "schema::node_selector")]
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// Which capture the nodes get.
    #[serde(default)]
    pub mode: RequestedMode,
    /// Nodes that get another capture than `mode` says: of the overrides whose labels a node has, the first counts.
    #[schemars(schema_with = "schema::mode_overrides")]
    #[serde(default)]
    pub mode_overrides: Vec<ModeOverride>,
    /// What the agents do on their nodes.
    #[serde(default)]
    pub capture: CaptureSpec,
    /// What is written into `Topology` objects, and when.
    #[serde(default)]
    pub topology: TopologySettings,
    /// The agents' pods.
    #[serde(default)]
    pub agent: AgentSpec,
}

/// Which capture a ScopeProbe asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RequestedMode {
    /// eBPF where the node's kernel can, the fallback elsewhere.
    #[default]
    Auto,
    /// eBPF on every node; one that can't is not moved, and says why. A kernel that eBPF is known to crash gets the
    /// fallback all the same.
    Ebpf,
    /// The fallback on every node.
    Fallback,
}

/// The capture of some of the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::selects_something()))]
pub struct ModeOverride {
    /// Labels that a node has to have for the override to count; all of them.
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: BTreeMap<String, String>,
    /// Which capture these nodes get.
    pub mode: RequestedMode,
}

/// What the agents do on their nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CaptureSpec {
    /// How many flows (client or server, cgroup, addresses, port) an agent keeps in the kernel at a time. What does not
    /// fit is counted as lost.
    #[schemars(range(min = 64, max = 1_048_576))]
    pub max_flows: u32,
    /// How often an agent reports counters that have changed. New flows are reported at once.
    #[schemars(schema_with = "schema::report_interval")]
    pub report_interval: Duration,
    /// The fallback.
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

/// The fallback, where eBPF cannot be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FallbackSpec {
    /// How much of a core the fallback may use to look at sockets and processes, after its first look at all of them. Where
    /// that does not suffice to look every 2 s, it looks less often, and the NodeProbe says so.
    #[schemars(schema_with = "schema::cpu_budget")]
    pub cpu_budget: Quantity,
}

impl Default for FallbackSpec {
    fn default() -> Self {
        Self { cpu_budget: Quantity("50m".to_owned()) }
    }
}

/// What is written into `Topology` objects, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologySettings {
    /// How many edges one Topology lists in each direction, busiest first. The others are counted in `status.omitted`.
    #[schemars(range(min = 1, max = 500))]
    pub max_edges: u32,
    /// How often counters of an object may be written. A new edge or one that ended is written at once.
    #[schemars(schema_with = "schema::counter_interval")]
    pub counter_interval: Duration,
    /// How long an edge is shown after its last connection ended.
    #[schemars(schema_with = "schema::retention")]
    pub retention: Duration,
    /// Whether agents read the answers that name servers give to the node's sockets over UDP, to name addresses outside
    /// of the cluster. Only names of addresses that are called leave a node. Agents without eBPF read none.
    pub dns_names: bool,
    /// How many addresses outside of the cluster one workload has edges of their own with in each direction, the busiest;
    /// all others share the peer `OtherExternal`. Groups and DNS names do not count.
    #[schemars(range(min = 1, max = 500))]
    pub max_external_peers: u32,
    /// Names for addresses outside of the cluster. Of several ranges that an address is in, the narrowest counts, then the
    /// first group. Addresses of pods, Services and nodes keep their names.
    #[schemars(schema_with = "schema::external_groups")]
    pub external_groups: Vec<ExternalGroup>,
}

impl Default for TopologySettings {
    fn default() -> Self {
        Self {
            max_edges: 100,
            counter_interval: std::time::Duration::from_secs(30).into(),
            retention: std::time::Duration::from_hours(1).into(),
            dns_names: true,
            max_external_peers: 50,
            external_groups: Vec::new(),
        }
    }
}

/// Ranges of addresses outside of the cluster, and what they are called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalGroup {
    /// What Topology objects call these addresses.
    #[schemars(schema_with = "schema::external_group_name")]
    pub name: String,
    /// The ranges, in CIDR notation: `203.0.113.0/24`, `2001:db8::/32`, or `192.0.2.7/32` for a single address.
    #[schemars(schema_with = "schema::cidrs")]
    pub cidrs: Vec<String>,
}

/// The agents' pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentSpec {
    /// What the agents' container asks for and may use.
    pub resources: AgentResources,
    /// Taints that the agents tolerate. By default all: an agent runs on every node that is probed.
    #[schemars(schema_with = "schema::tolerations")]
    pub tolerations: Vec<Toleration>,
    /// The agents' PriorityClass. Empty: the cluster's default.
    #[schemars(length(max = 253))]
    pub priority_class_name: String,
}

impl Default for AgentSpec {
    fn default() -> Self {
        let everything = Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() };
        Self { resources: AgentResources::default(), tolerations: vec![everything], priority_class_name: String::new() }
    }
}

/// What the agents' container asks for and may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = schema::requests_within_limits()))]
pub struct AgentResources {
    /// What is set aside for the agent on its node.
    pub requests: ResourceRequests,
    /// What the agent may use at most.
    pub limits: ResourceLimits,
}

/// What is set aside for the agent on its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceRequests {
    /// CPU, in cores.
    #[schemars(schema_with = "schema::quantity")]
    pub cpu: Quantity,
    /// Memory, in bytes; eBPF maps included.
    #[schemars(schema_with = "schema::quantity")]
    pub memory: Quantity,
}

impl Default for ResourceRequests {
    fn default() -> Self {
        Self { cpu: Quantity("10m".to_owned()), memory: Quantity("32Mi".to_owned()) }
    }
}

/// What the agent may use at most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceLimits {
    /// CPU, in cores. None by default: an agent that is slowed down loses sight.
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

/// What a ScopeProbe has come to. Its size does not depend on the cluster's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = schema::signed_integers)]
pub struct ScopeProbeStatus {
    /// The generation of the `spec` that the status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: every selected node has an agent that reports, from eBPF or from the fallback. `Reconciling`: agents are
    /// being rolled out. `Stalled`: nothing will change without a person. `CaptureComplete`: nothing is known to have been
    /// missed in the last hour; `Unknown`, reason `Sampled`, where a fallback may have missed what it could not count.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The nodes of this probe, by what their agents do.
    pub nodes: NodeCounts,
    /// How large the topology is.
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
    /// Which namespaces talk to which, those with the most edges first; at most 50.
    #[schemars(length(max = 50), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<NamespaceEdge>,
    /// How many pairs of namespaces are not listed in `namespaces`.
    pub omitted_namespaces: u64,
}

/// Nodes by what their agents do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCounts {
    /// Nodes that belong to this probe.
    pub total: u64,
    /// Nodes whose agent reports from eBPF.
    pub ebpf: u64,
    /// Nodes whose agent reports from the fallback.
    pub fallback: u64,
    /// Nodes whose agent reports that it sees nothing; their NodeProbes say why.
    pub unsupported: u64,
    /// Nodes without an agent that reports now.
    pub not_reporting: u64,
}

/// How large a topology is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TopologyTotals {
    /// Workloads that have at least one edge.
    pub workloads: u64,
    /// Edges: client, server, Service and port.
    pub edges: u64,
    /// Edges that did not fit into the Topology objects of their workloads.
    pub omitted_edges: u64,
}

/// That workloads of one namespace call workloads of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceEdge {
    /// The clients' namespace; `(node)` for host processes, `(api-server)` for the cluster's API server, `(external)` for
    /// the outside, `(unknown)` otherwise.
    #[schemars(length(max = 63))]
    pub from: String,
    /// The servers' namespace, in the same way.
    #[schemars(length(max = 63))]
    pub to: String,
    /// How many edges.
    pub edges: u64,
}
