//! `NodeProbe`: what runs on one node, and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{RequestedMode, schema};

/// Nothing: a NodeProbe is written by the operator only.
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
    doc = "What the agent of one node does, why, and how much it has seen and lost. Written by the operator, named after its Node and deleted with it.",
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

/// How an agent captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// By programs in the kernel: every connection.
    Ebpf,
    /// By dumps of the kernel's socket tables: what is open when one looks.
    Fallback,
    /// Not at all; the reason says why.
    Unsupported,
}

impl Mode {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "Ebpf",
            Self::Fallback => "Fallback",
            Self::Unsupported => "Unsupported",
        }
    }
}

/// What an agent does, and how well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = schema::signed_integers)]
pub struct NodeProbeStatus {
    /// The ScopeProbe to which the node belongs.
    #[schemars(length(max = 63))]
    pub probe: String,
    /// The mode that the ScopeProbe asks for on this node: `spec.mode`, or that of the override that counts.
    pub requested_mode: RequestedMode,
    /// Which of the ScopeProbe's agents the node has been given.
    pub choice: Choice,
    /// How the agent captures; empty before its first report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Why this mode: `Supported`, `KernelTooOld`, `KnownBadKernel`, `Lockdown`, `BtfMissing`, `CapabilityMissing`,
    /// `CgroupV2Missing`, `LoadFailed`, `AttachFailed`, `SelfTestFailed`, `CaptureFailed`, `ForcedByProbe` (`spec.mode`),
    /// `ForcedByOverride` (`spec.modeOverrides`); `NoReportYet` before the agent's first report; `Unknown` where the agent
    /// is of another version and gives a reason that the operator does not know: see `message`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// The same for people: what was attempted, on what, what came of it, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// How the capture sees connections. eBPF: `SockOps`, `TpBtf`, `Tracepoint`. Fallback: `SockDiag+Conntrack`,
    /// `SockDiag`, `Procfs+Conntrack`, `Procfs`. Empty where it doesn't.
    #[schemars(length(max = 64))]
    pub attach: String,
    /// The release of the kernel that the agent runs on, as `uname -r` prints it.
    #[schemars(length(max = 128))]
    pub kernel: String,
    /// When `mode` or `reason` changed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Why the node was moved from eBPF to the fallback, and when eBPF is tried again. Empty where eBPF works or has not
    /// been tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demotion: Option<Demotion>,
    /// The last changes of `mode`, `reason` and `attach`, the newest last.
    #[schemars(schema_with = "schema::history")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ModeChange>,
    /// The capture to which the counters belong, in hexadecimal: an agent that is started again begins a new one.
    #[schemars(length(max = 32))]
    pub epoch: String,
    /// Connections, conversations over UDP and failed attempts that were seen, at both their ends if both are on this
    /// node, since the NodeProbe was made.
    pub seen: u64,
    /// What happened and could not be recorded, since the NodeProbe was made.
    pub losses: Losses,
    /// Connections and failed attempts that were not recorded: `losses.opened` + `losses.failed` + `losses.missedRuns`.
    pub lost: u64,
    /// Whether a part of `seen` comes from the fallback or from a tracepoint, which cannot count all that they have missed.
    pub sampled: bool,
    /// The part of `seen` and `losses` that comes from before the current epoch.
    pub earlier: EarlierEpochs,
    /// Times in which nobody was looking.
    pub unobserved: Unobserved,
    /// `seen` / (`seen` + `lost`) in percent, rounded down; `-` before the agent's first report. Never `100%` if
    /// anything was lost or the node was not observed for a time. `≤` where it is that at most, as `sampled` is true.
    #[schemars(length(max = 16))]
    pub coverage: String,
    /// `Reporting`: the agent is connected to the operator. `CaptureComplete`: nothing is known to have been missed;
    /// `Unknown`, reason `Sampled`, where the fallback may have missed what it could not count.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Which of a ScopeProbe's agents a node has been given: its DaemonSets differ in what they may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Choice {
    /// `ebpf`, `ebpf-memlock` (kernels that count eBPF maps as locked memory) or `fallback`: the value of the node's label
    /// `scopeprobe.io/mode`.
    #[schemars(length(max = 63))]
    pub agents: String,
    /// Why: `Supported`, `KernelUnknown`, `KernelTooOld`, `KnownBadKernel`, `ForcedByProbe`, `ForcedByOverride`; or the
    /// reason of `demotion`.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// That a node was moved from eBPF to the fallback because its agent could not use eBPF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Demotion {
    /// Why, as the agent has said it.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// The same for people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The kernel on which eBPF was tried: on another it is tried again at once.
    #[schemars(length(max = 128))]
    pub kernel: String,
    /// The boot of the node in which it was tried: in another it is tried again at once.
    #[schemars(length(max = 128))]
    pub boot_id: String,
    /// The agents' image with which it was tried: with another it is tried again at once.
    #[schemars(length(max = 1024))]
    pub image: String,
    /// When the node was moved last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// How often eBPF was tried in vain.
    pub attempts: u32,
    /// When it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// How many changes a NodeProbe remembers.
pub const MAX_HISTORY: usize = 10;

/// A change of `mode`, `reason` or `attach`: what they became, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModeChange {
    /// When.
    pub time: Time,
    /// How the agent captures from then on.
    pub mode: Mode,
    /// Why.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// How its capture sees connections.
    #[schemars(length(max = 64))]
    pub attach: String,
}

/// What happened and could not be recorded, counted exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Losses {
    /// Connections that opened while the flow table was full; in the fallback, and where a tracepoint is used (attempts
    /// that failed included), those that were not seen and are known from other counts, which is not all of them.
    pub opened: u64,
    /// Connections that closed while the flow table was full: their bytes are missing.
    pub closed: u64,
    /// Failed attempts while the flow table was full; in the fallback as for `opened`.
    pub failed: u64,
    /// Flows that could not be announced at once and came with the next read. Nothing is missing.
    pub first_sights: u64,
    /// Connections from before the capture whose end was not seen: their last bytes are missing.
    pub closes_unseen: u64,
    /// Times that the queue of connection tracking's events overflowed: short connections may be missing.
    pub event_overflows: u64,
    /// Runs of a tracepoint's program that the kernel skipped: at most as many openings, ends or failures are missing.
    pub missed_runs: u64,
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

/// Times in which nobody was looking: between two epochs of an agent. What happened then is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Unobserved {
    /// How many such times there were.
    pub intervals: u64,
    /// How long they were together at most, in seconds, rounded up.
    pub seconds: u64,
}
