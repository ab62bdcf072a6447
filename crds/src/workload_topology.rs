//! `Topology`: observed connections of one workload.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelectorRequirement, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{TopologyEdge, schema};

/// Maximum number of labels in `status.workload.podSelector`.
pub const MAX_LABELS: usize = 64;
/// Maximum number of requirements in `status.workload.podSelector`.
pub const MAX_REQUIREMENTS: usize = 16;
/// Maximum number of values of a requirement in `status.workload.podSelector`.
pub const MAX_REQUIREMENT_VALUES: usize = 64;
/// Maximum length of a checkpoint, in characters.
pub const MAX_CHECKPOINT: usize = 65_536;

/// Always empty: a Topology holds observations only.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "scopeprobe.io",
    version = "v1alpha1",
    kind = "Topology",
    plural = "topologies",
    singular = "topology",
    shortname = "stopo",
    category = "scopeprobe-all",
    namespaced,
    status = "TopologyStatus",
    derive = "PartialEq",
    doc = "Observed connections of one workload. The operator names it `<kind>-<workload>` in lower case, and Kubernetes deletes it with its workload. Where two API groups have workloads of the same kind and name, the name of one is `<kind>.<group>-<workload>`.",
    printcolumn(name = "From", type_ = "string", json_path = ".status.summary.from"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.summary.to"),
    printcolumn(name = "Last-Failed", type_ = "date", json_path = ".status.totals.lastFailed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Egress", type_ = "integer", json_path = ".status.totals.egress", priority = 1),
    printcolumn(name = "Ingress", type_ = "integer", json_path = ".status.totals.ingress", priority = 1),
    printcolumn(name = "Opened", type_ = "integer", json_path = ".status.totals.opened", priority = 1),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.totals.active", priority = 1),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.totals.failed", priority = 1),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.totals.pending", priority = 1),
    printcolumn(name = "Bytes-Sent", type_ = "integer", json_path = ".status.totals.bytesSent", priority = 1),
    printcolumn(name = "Bytes-Received", type_ = "integer", json_path = ".status.totals.bytesReceived", priority = 1),
    printcolumn(
        name = "Observed",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Observed")].status"#,
        priority = 1
    )
)]
#[schemars(extend("default" = {}))]
pub struct TopologySpec {}

/// Observations of one workload's connections. Only the operator writes them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = schema::signed_integers)]
pub struct TopologyStatus {
    /// The workload, in this object's namespace.
    pub workload: WorkloadRef,
    /// One line for each direction, as `kubectl get topology` prints them.
    pub summary: Summary,
    /// Sums over all edges in both directions, including those that are not listed for lack of space.
    pub totals: Totals,
    /// Edges on which the workload is the client, sorted by peer. Where not all fit, the busiest are listed.
    #[schemars(length(max = 500), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<TopologyEdge>,
    /// Edges on which the workload is the server, sorted by peer. Where not all fit, the busiest are listed.
    #[schemars(length(max = 500), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<TopologyEdge>,
    /// Number of edges that are not listed.
    pub omitted: OmittedEdges,
    /// `Observed`: agents report from all nodes on which the workload runs. `Truncated`: some edges are not listed, or
    /// totals exceed 9223372036854775807 and stop there; its message also reports pods that the checkpoint lacks.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// State that the operator restores after a restart: counters of which agents keep no record any more, and identities of
    /// pods. Its format is private to the operator and may change at any time.
    #[schemars(length(max = MAX_CHECKPOINT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// A workload of a Topology's namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadRef {
    /// API group and version of `kind`, for example `apps/v1`.
    #[schemars(length(max = 317))]
    pub api_version: String,
    /// Deployment, StatefulSet, DaemonSet, CronJob, Job, Pod, or the kind of another owner.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Name of the workload.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Value of the label `app.kubernetes.io/name` on the workload's newest pod. The operator copies it, `version`,
    /// `component` and `part-of` to the Topology's labels, except labels that another manager has set there.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Value of the label `app.kubernetes.io/version` on the workload's newest pod.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Value of the label `app.kubernetes.io/component` on the workload's newest pod.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// Value of the label `app.kubernetes.io/part-of` on the workload's newest pod.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// Selector of the workload's pods. Of a Deployment, StatefulSet or DaemonSet, it is `spec.selector`. Of others, it holds
    /// the labels that all of their pods share, without those that change with each release. Absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<PodSelector>,
    /// ServiceAccounts of the workload's pods, by name; at most 10.
    #[schemars(length(max = 10), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// Whether a pod of the workload uses its node's network. No NetworkPolicy selects such a pod.
    #[serde(skip_serializing_if = "is_false")]
    pub host_network: bool,
}

/// Labels that a workload's pods have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSelector {
    /// Labels with their values; a pod has all of them.
    #[schemars(schema_with = "schema::match_labels")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements that a pod meets as well, as the workload's `spec.selector` lists them.
    #[schemars(schema_with = "schema::requirements")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelSelectorRequirement>,
}

/// One line for each direction: columns of `kubectl get topology`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Clients of the workload, each with the workload's own port, for example `frontend→8080`; `-` for none. Nodes,
    /// monitoring and DNS come last.
    #[schemars(length(max = 256))]
    pub from: String,
    /// Servers that the workload calls, for example `catalog:80, cart:80`; `-` for none. Name and port are the Service's
    /// where the workload called one.
    #[schemars(length(max = 256))]
    pub to: String,
}

/// Sums over edges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Number of egress edges.
    pub egress: u64,
    /// Number of ingress edges.
    pub ingress: u64,
    /// Connections that were established, including those that were open when an agent attached.
    pub opened: u64,
    /// Number of `opened` connections that are open now.
    pub active: u64,
    /// Attempts that were refused, timed out or were given up.
    pub failed: u64,
    /// Attempts that have had no answer for two seconds or longer; absent if there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub pending: u64,
    /// Time of the last failed attempt, to the minute; absent if none failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failed: Option<Time>,
    /// TCP payload that this workload sent, in bytes, without retransmissions.
    pub bytes_sent: u64,
    /// TCP payload that this workload received, in bytes.
    pub bytes_received: u64,
    /// Number of `opened` connections whose payload is unknown or known in part: bytes are then a lower bound.
    #[serde(skip_serializing_if = "is_zero")]
    pub without_bytes: u64,
    /// Retransmitted TCP segments, as on the edges; absent where they are unknown for all edges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
}

/// Number of edges that are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OmittedEdges {
    /// Number of edges missing from `egress`.
    pub egress: u64,
    /// Number of edges missing from `ingress`.
    pub ingress: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}
