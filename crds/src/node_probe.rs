//! `NodeProbe`: state of the agent of one node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topology::count;

use crate::{RequestedMode, schema};

/// Always empty: only the operator writes a NodeProbe.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "scopeprobe.io",
    version = "v1alpha1",
    kind = "NodeProbe",
    plural = "nodeprobes",
    shortname = "npr",
    category = "scopeprobe-all",
    status = "NodeProbeStatus",
    derive = "PartialEq",
    doc = "State of the agent of one node: its capture mode with the reason, and the connections that it recorded and lost. The operator names it after its Node, and Kubernetes deletes it with the Node.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".status.mode"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernel"),
    printcolumn(name = "Seen", type_ = "integer", json_path = ".status.seen"),
    printcolumn(name = "Lost", type_ = "integer", json_path = ".status.lost"),
    printcolumn(name = "Coverage", type_ = "string", json_path = ".status.coverage"),
    printcolumn(name = "Attach", type_ = "string", json_path = ".status.attach", priority = 1),
    printcolumn(name = "Agents", type_ = "string", json_path = ".status.choice.agents", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("default" = {}))]
pub struct NodeProbeSpec {}

/// Capture mode of the agent; absent before its first report. `EBPF` records each connection, `Fallback` scans sockets at
/// intervals, `Unsupported` captures nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Programs in the kernel: each connection.
    // Objects from before have the other spelling.
    #[serde(rename = "EBPF", alias = "Ebpf")]
    Ebpf,
    /// Scans of the kernel's socket tables, at intervals.
    Fallback,
    /// None; `reason` gives the cause.
    Unsupported,
}

impl Mode {
    /// Returns the mode as the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "EBPF",
            Self::Fallback => "Fallback",
            Self::Unsupported => "Unsupported",
        }
    }
}

/// State of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = schema::signed_integers)]
pub struct NodeProbeStatus {
    /// ScopeProbe to which the node belongs.
    #[schemars(length(max = 63))]
    pub probe: String,
    /// Mode that the ScopeProbe requests for this node: `spec.mode`, or the mode of the override that applies.
    pub requested_mode: RequestedMode,
    /// Agents of the ScopeProbe that the operator has assigned to the node.
    pub choice: Choice,
    /// Capture mode of the agent; absent before its first report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Reason for this mode: `Supported`, `KernelTooOld`, `KnownBadKernel`, `Lockdown`, `BtfMissing`, `CapabilityMissing`,
    /// `CgroupV2Missing`, `LoadFailed`, `AttachFailed`, `SelfTestFailed`, `CaptureFailed`, `ForcedByProbe` (`spec.mode`) or
    /// `ForcedByOverride` (`spec.modeOverrides`). `NoReportYet` before the agent's first report. `Unknown` for a reason of
    /// an agent of another version that the operator does not know: see `message`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Human-readable explanation of `reason`: the failed step, the error, and how to fix it.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Method of the capture. eBPF: `SockOps`, `TpBtf`, `Tracepoint`. Fallback: `SockDiag+Conntrack`, `SockDiag`,
    /// `Procfs+Conntrack`, `Procfs`. Empty without a capture.
    #[schemars(length(max = 64))]
    pub attach: String,
    /// Release of the node's kernel, as `uname -r` prints it.
    #[schemars(length(max = 128))]
    pub kernel: String,
    /// Time of the last change of `mode` or `reason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Cause of the node's move from eBPF to the fallback, and time of the next attempt. Absent where eBPF works or has not
    /// been tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<NodeFallback>,
    /// Last changes of `mode`, `reason` and `attach`, newest last; at most 10.
    #[schemars(schema_with = "schema::history")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ModeChange>,
    /// Identifier of the capture to which the counters belong, in hexadecimal. Each start of an agent begins a new one.
    #[schemars(length(max = 32))]
    pub epoch: String,
    /// Connections, conversations over UDP and failed attempts that were seen, at both their ends if both are on this
    /// node, since the NodeProbe was made.
    pub seen: u64,
    /// What happened and could not be recorded, since the NodeProbe was made.
    pub losses: Losses,
    /// Connections and failed attempts that were not recorded: `losses.opened` + `losses.failed` + `losses.missedRuns`.
    pub lost: u64,
    /// Folding of external flows by the current capture. Absent if it has folded none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folding: Option<Folding>,
    /// Whether a part of `seen` comes from the fallback or from a tracepoint, which cannot count all that they have missed.
    pub sampled: bool,
    /// The part of `seen` and `losses` that comes from before the current epoch.
    pub earlier: EarlierEpochs,
    /// The time without a capture since the NodeProbe was made.
    pub unobserved: Unobserved,
    /// Counted share of the connections and failed attempts of the last hour, in percent, rounded down; `-` before the
    /// agent's first report. It is `seen` / (`seen` + `lost` + missed in unobserved time), but at most the observed share
    /// of the time × `seen` / (`seen` + `lost`). Never `100%` if anything was lost or the node was not observed for a
    /// time. A gap leaves the last hour at most 70 minutes after its end. `~`: an estimate, as a part of the time was not
    /// observed. `≤`: at most so much, as a part was `sampled`.
    #[schemars(length(max = 16))]
    pub coverage: String,
    /// The same of the last day, in steps of an hour.
    #[schemars(length(max = 16))]
    pub coverage_last_day: String,
    /// The same since the first agent of the node was attached.
    #[schemars(length(max = 16))]
    pub coverage_total: String,
    /// What `coverage` is computed from, for the operator that comes next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage_record: Option<CoverageRecord>,
    /// `Reporting`: the agent is connected to the operator. `CaptureComplete`: nothing is known to have been missed in the
    /// last hour; `Unknown`, reason `Sampled`, where the fallback may have missed what it could not count.
    /// `ExternalAddressesFolded`: flows are counted without their external addresses, because the flow table is nearly full;
    /// absent if the current capture has folded none. `FlowsLeftOut`: the operator has no room for more flows of the node, or
    /// the agent reports flows at addresses of other nodes; their connections count as lost. Absent if none was left out.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Agents of a ScopeProbe that the operator has assigned to a node. Its DaemonSets differ in their privileges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Choice {
    /// Value of the node's label `scopeprobe.io/mode`: `ebpf`, `ebpf-memlock` (kernels that count eBPF maps as locked memory)
    /// or `fallback`.
    #[schemars(length(max = 63))]
    pub agents: String,
    /// Reason of the assignment: `Supported`, `KernelUnknown`, `KernelTooOld`, `KnownBadKernel`, `ForcedByProbe`,
    /// `ForcedByOverride`, or the reason of `fallback`.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// Move of a node from eBPF to the fallback, because its agent could not use eBPF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeFallback {
    /// Reason that the agent reported.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Human-readable explanation of `reason`.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Kernel on which eBPF failed. The operator retries at once on another kernel.
    #[schemars(length(max = 128))]
    pub kernel: String,
    /// Boot of the node in which eBPF failed. The operator retries at once after another boot.
    #[schemars(length(max = 128))]
    pub boot_id: String,
    /// Image of the agent with which eBPF failed. The operator retries at once with another image.
    #[schemars(length(max = 1024))]
    pub image: String,
    /// Time of the last move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Number of failed attempts.
    pub attempts: u32,
    /// Time of the next attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// Maximum number of changes in `status.history`.
pub const MAX_HISTORY: usize = 10;

/// Change of `mode`, `reason` or `attach`, with their new values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModeChange {
    /// Time of the change.
    pub time: Time,
    /// New capture mode.
    pub mode: Mode,
    /// New reason.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// New method of the capture.
    #[schemars(length(max = 64))]
    pub attach: String,
}

/// Events that agents could not record, counted exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Losses {
    /// Connections that opened while the flow table was full. In the fallback and with a tracepoint: connections that other
    /// counters reveal, which is a lower bound; with a tracepoint, failed attempts are among them.
    pub opened: u64,
    /// Connections that closed while the flow table was full; their bytes are missing.
    pub closed: u64,
    /// Attempts that failed while the flow table was full; in the fallback, as for `opened`.
    pub failed: u64,
    /// Notifications of new flows that were dropped. The next scan found these flows, so that nothing is missing.
    pub new_flow_notifications: u64,
    /// Preexisting connections whose end was not observed; their last bytes are missing.
    pub closes_unseen: u64,
    /// Overflows of the queue of connection tracking's events; short-lived connections may be missing.
    pub event_overflows: u64,
    /// Runs of a tracepoint's program that the kernel skipped; at most as many openings, ends or failures are missing.
    pub missed_runs: u64,
}

/// Folding: while the flow table is nearly full, an agent counts the flows of a container and port with external addresses
/// together. Nothing is lost. The external peer is then `OtherExternal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Folding {
    /// True while flows are folded, or folded flows have open connections.
    #[serde(rename = "active")]
    pub is_active: bool,
    /// Connections, conversations over UDP and failed attempts that the current capture has counted without their external
    /// address.
    pub connections: u64,
}

impl Losses {
    /// Connections and failed attempts that were not recorded.
    #[must_use]
    pub fn lost(&self) -> u64 {
        count::add(count::add(self.opened, self.failed), self.missed_runs)
    }

    /// Sum of both, field by field.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.by_field(other, count::add)
    }

    /// The part that came after `earlier`, field by field.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.by_field(earlier, u64::saturating_sub)
    }

    fn by_field(&self, other: &Self, make: fn(u64, u64) -> u64) -> Self {
        Self {
            opened: make(self.opened, other.opened),
            closed: make(self.closed, other.closed),
            failed: make(self.failed, other.failed),
            new_flow_notifications: make(self.new_flow_notifications, other.new_flow_notifications),
            closes_unseen: make(self.closes_unseen, other.closes_unseen),
            event_overflows: make(self.event_overflows, other.event_overflows),
            missed_runs: make(self.missed_runs, other.missed_runs),
        }
    }
}

/// What earlier epochs have contributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EarlierEpochs {
    /// Of `seen`.
    pub seen: u64,
    /// Of `losses`.
    pub losses: Losses,
}

/// Time without a capture. It counts from one minute after the NodeProbe was created until the first agent attaches. Later,
/// it counts from an agent's last report until the next one attaches, and while an agent is silent for over a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Unobserved {
    /// Number of such times.
    pub intervals: u64,
    /// Their sum in seconds, rounded up; an upper bound.
    pub seconds: u64,
    /// Estimate of the connections and failed attempts in them: as many in a second as just before or just after, whichever
    /// is more.
    pub missed: u64,
}

/// Maximum number of periods in a [`CoverageRecord`].
pub const MAX_PERIODS: usize = 128;

/// The observed and unobserved time of a node, up to the time by which its connections were surely written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CoverageRecord {
    /// When the first capture of the node was attached.
    pub since: MicroTime,
    /// The end of the last period.
    pub until: MicroTime,
    /// When the capture of the current epoch was attached.
    pub attached: MicroTime,
    /// `seen` and `losses` as of `until`.
    pub counted: EarlierEpochs,
    /// Connections and failed attempts that were reported after `until`.
    #[serde(default)]
    pub unsettled: u64,
    /// The observed time in which they were, in milliseconds.
    #[serde(default)]
    pub unsettled_milliseconds: u64,
    /// The last day and the time before it, oldest first. Time without losses and gaps is one period.
    #[schemars(schema_with = "schema::periods")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub periods: Vec<CoveragePeriod>,
}

/// The counts between two times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CoveragePeriod {
    /// Its beginning.
    pub from: MicroTime,
    /// Its end.
    pub to: MicroTime,
    /// Connections and failed attempts that were seen.
    #[serde(default)]
    pub seen: u64,
    /// The incomplete part; absent where nothing is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortfall: Option<CoverageShortfall>,
}

/// The incomplete part of a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CoverageShortfall {
    /// Time without a capture, in milliseconds.
    pub unobserved_milliseconds: u64,
    /// Number of times without a capture that ended in the period.
    pub intervals: u64,
    /// Estimate of the connections and failed attempts in the unobserved time.
    pub missed: u64,
    /// What could not be recorded.
    pub losses: Losses,
    /// Whether the capture could not count all that it missed.
    pub sampled: bool,
}
