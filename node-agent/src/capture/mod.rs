//! Captures the connections of this node: counters by flow, which the kernel or a scan provides.
//!
//! [`Capture`] is the interface to the rest of the agent. [`EbpfCapture`] counts in the kernel by a `sock_ops` program.
//! If that cannot be attached, programs on the tracepoint `inet_sock_set_state` use the same maps. An iterator lists
//! preexisting sockets. [`FallbackCapture`] works without eBPF: see `fallback`.
//!
//! Attach: `prepare` checks the `requirements` and then tries each [`Attach`] in turn. `kernel` loads and attaches the
//! programs with the `offsets` that `btf` found; `tracepoint` does so for the second and third choice. `refusals` explains
//! the kernel's errors.
//!
//! Counting: the programs count into `counters`, by `slots`, and announce a new flow through `first_sights`. `listing`
//! reads the open sockets. `existing` separates preexisting connections from counted ones, and `attempts` does so for
//! attempts in progress. `followed` finds the ends that a tracepoint missed. `accounts` computes the totals.

use std::{
    os::fd::BorrowedFd,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use topology::{
    flow::{FlowCounters, FlowKey},
    nat_peer::NatPeer,
};

use crate::{budget::Shortage, names::Answer};

mod accounts;
mod attach;
mod attempts;
mod btf;
mod cgroup_root;
mod counters;
mod datagrams;
mod ebpf;
mod existing;
mod fallback;
mod first_sights;
mod followed;
mod kernel;
mod keys;
mod listing;
mod offsets;
mod prepare;
mod refusals;
mod requirements;
mod room;
mod running_kernel;
mod self_test;
mod slots;
mod tasks;
mod tracepoint;
mod traffic;
mod uncounted;

pub use attach::Attach;
pub use cgroup_root::find_cgroup_root;
pub use ebpf::{EbpfCapture, probe, start_ebpf};
pub use fallback::{FallbackCapture, FallbackSettings, Passes, probe_fallback, start_fallback};
pub use kernel_support::Reason;

/// Source of flows. It needs no async runtime: [`Capture::read`] blocks for some milliseconds at most.
pub trait Capture: Send {
    /// Returns the method of this capture and its limitations.
    fn description(&self) -> &Description;

    /// Returns the flows whose counters have changed since the last call, with their counters since the capture began.
    /// These are absolute values that never decrease, except `open_bytes_*`. Drains [`Capture::first_sights`].
    ///
    /// # Errors
    /// Returns an error if the kernel refuses to return counters. The next call may succeed and then returns all changes.
    fn read(&mut self) -> Result<Reading, CaptureError>;

    /// Returns a descriptor that becomes readable on a new flow; `None` if this capture has no such notification.
    fn first_sights(&self) -> Option<BorrowedFd<'_>>;

    /// Drops those of these flows that have no open connection and have not changed since the last reading. Returns the
    /// dropped flows. Their counters restart at zero if they return.
    fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey>;
}

/// Description of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Kind of capture.
    pub mode: Mode,
    /// Attach type: a name of [`Attach`] or of Fallback mode; empty if nothing is attached.
    pub attach: &'static str,
    /// Time of the attach: connections that opened later are in `opened`, older ones in `preexisting`.
    pub attached_at: SystemTime,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// Features that are missing although the capture works.
    pub degradations: Vec<Degradation>,
}

impl Description {
    /// Returns whether this feature works.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        !self.degradations.iter().any(|degradation| degradation.feature == feature)
    }

    /// Adds a degradation if fewer flows fit into the memory than requested.
    fn note_shortage(&mut self, shortage: Option<Shortage>) {
        if let Some(shortage) = shortage {
            self.lack(Feature::MaxFlows, &shortage.to_string());
        }
    }

    /// Adds a degradation for this feature, unless one is there already.
    fn lack(&mut self, feature: Feature, message: &str) {
        if self.has(feature) {
            self.degradations.push(Degradation { feature, message: message.to_owned() });
        }
    }
}

/// The kinds of capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// eBPF programs count in the kernel.
    Ebpf,
    /// Scans of socket tables and conntrack events, without eBPF.
    Fallback,
}

/// Feature that this kernel or these privileges do not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degradation {
    /// Missing feature.
    pub feature: Feature,
    /// Failed step, its error, and the consequence.
    pub message: String,
}

/// Optional features of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Preexisting connections, and the bytes of connections while they are open.
    OpenSockets,
    /// The end of connections that are older than any agent of this boot.
    OldCloses,
    /// Retransmitted segments.
    Retransmits,
    /// Round-trip times.
    RoundTripTimes,
    /// Datagrams: conversations over UDP.
    Datagrams,
    /// All names in DNS answers.
    RemoteNames,
    /// Original destinations of datagrams that a process of the node's own network sends from an unconnected socket, if
    /// the node translates the address.
    DialledAddresses,
    /// Every opening and every end: attach types other than the first choice may miss some.
    EveryEvent,
    /// Sockets by netlink, with their bytes.
    SockDiag,
    /// The cgroup of a socket by netlink.
    SocketCgroups,
    /// The process of a socket whose cgroup the kernel does not report.
    SocketOwners,
    /// Connections between two scans.
    ConntrackEvents,
    /// The bytes of connections between two scans.
    ConntrackBytes,
    /// A scan of everything within two seconds.
    PassInterval,
    /// The requested number of flows.
    MaxFlows,
}

/// Result of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Flows that have changed since the last reading, each once.
    pub flows: Vec<(FlowKey, FlowCounters)>,
    /// NAT peers of these flows that conntrack reported, with all counts since the capture began.
    pub nat_peers: Vec<(FlowKey, Vec<(NatPeer, u64)>)>,
    /// DNS responses since the last reading, with the cgroup of the receiving socket. Responses that led to a flow's
    /// remote address come with this reading or before it.
    pub answers: Vec<(u64, Answer)>,
    /// Losses since the capture began.
    pub losses: Losses,
    /// Opened connections and failed attempts of all flows since the capture began, dropped flows included.
    pub seen: u64,
    /// Time up to which all events are in this reading or an earlier one; `None` if only the present is known.
    pub complete_until: Option<Instant>,
    /// True if more flows have changed than one reading holds: the caller reads again at once.
    pub is_partial: bool,
}

/// Maximum number of flows of one [`Reading`], so that a burst of new flows takes little memory.
const MAX_FLOWS_PER_READING: usize = 8192;

/// Flows that have changed.
struct Changes {
    flows: Vec<(FlowKey, FlowCounters)>,
    /// True if further flows have changed.
    are_partial: bool,
}

/// Exact numbers of events that could not be stored, since the capture began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Connections that opened while the flow table was full. With a tracepoint, also connections and attempts that
    /// namespaces counted beyond [`Losses::missed_runs`] and other known losses.
    pub opened: u64,
    /// Connections that closed while the flow table was full: their bytes are missing.
    pub closed: u64,
    /// Failed attempts while the flow table was full.
    pub failed: u64,
    /// Notifications of new flows that did not fit into the ring buffer; the next reading contained these flows.
    pub first_sights: u64,
    /// Preexisting connections whose end was not observed: their last bytes are missing.
    pub closes_unseen: u64,
    /// Overflows of the queue of conntrack events; the open entries were listed again after each.
    pub event_overflows: u64,
    /// Runs of a tracepoint's program that the kernel skipped: at most as many openings, ends or failures are missing.
    pub missed_runs: u64,
}

/// Settings of a capture.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the cgroup v2 hierarchy: sockets that are created below it belong to this node.
    /// [`find_cgroup_root`] finds it below a mount point.
    pub cgroup_root: PathBuf,
    /// The running kernel's type information (BTF).
    pub btf_path: PathBuf,
    /// File with the kernel's lockdown state.
    pub lockdown_path: PathBuf,
    /// Mount point of the node's procfs.
    pub proc: PathBuf,
    /// Possible mount points of tracefs, for the classic tracepoint.
    pub tracefs_paths: Vec<PathBuf>,
    /// Release to assume instead of the one that the kernel reports.
    pub release: Option<String>,
    /// The only attach type to try; `None` for the best that works.
    pub attach: Option<Attach>,
    /// Maximum number of tracked sockets, for connections without callbacks; more are [`Losses`].
    pub max_followed: u32,
    /// Maximum number of preexisting connections whose end the kernel program counts. The ends of more are noticed late
    /// and counted in [`Losses::closes_unseen`]. `None`: the number of sockets.
    pub max_old: Option<u32>,
    /// Time after which the end of a preexisting connection counts as missed if no process holds its socket. Before, the
    /// socket may still send its remaining bytes.
    pub gone_after: Duration,
    /// Maximum number of connections noted as counted while the capture starts. If more open and close, preexisting
    /// connections are left out and counted as [`Losses`].
    pub max_noted: u32,
    /// Maximum number of flows that the kernel counts; more are counted as [`Losses`].
    pub max_flows: u32,
    /// Reason for fewer flows than requested, if so.
    pub shortage: Option<Shortage>,
    /// Counts datagrams, if the kernel allows it.
    pub datagrams: bool,
    /// Maximum number of UDP conversations that the kernel keeps, about 140 bytes each. If there are more, some may count
    /// twice and are marked so ([`FlowCounters::inferred`]).
    pub max_conversations: u32,
    /// Time without a datagram after which a conversation is over.
    pub conversation_silence: Duration,
    /// Time after the attach in which a conversation may be preexisting.
    pub conversations_settle: Duration,
    /// Reads DNS responses; their payload leaves the kernel only then.
    pub dns_names: bool,
    /// Size of the ring buffer of DNS answers, in bytes: a power of two, at least a page. An answer takes about 150.
    pub answer_ring_bytes: u32,
    /// Size of the ring buffer of new flows, in bytes: a power of two, at least a page. A notification takes 64.
    pub ring_bytes: u32,
    /// Interval at which all open sockets are listed.
    pub look_every: Duration,
    /// Opens a test connection at the start, which must be counted. Only for roots that contain this process.
    /// A capture that has not passed it may miss everything unnoticed.
    pub self_test: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            btf_path: PathBuf::from("/sys/kernel/btf/vmlinux"),
            lockdown_path: PathBuf::from("/sys/kernel/security/lockdown"),
            proc: PathBuf::from("/proc"),
            tracefs_paths: ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].map(PathBuf::from).to_vec(),
            release: None,
            attach: None,
            max_followed: 65_536,
            max_old: None,
            gone_after: Duration::from_mins(1),
            max_noted: 65_536,
            max_flows: 65_536,
            shortage: None,
            datagrams: true,
            max_conversations: 65_536,
            dns_names: true,
            answer_ring_bytes: 512 * 1024,
            conversation_silence: Duration::from_mins(2),
            conversations_settle: Duration::from_secs(10),
            ring_bytes: 256 * 1024,
            look_every: Duration::from_secs(30),
            self_test: true,
        }
    }
}

/// Error of a capture that could not be started.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// The word for it.
    pub reason: Reason,
    /// Failed step, its object, its error, and how to fix it.
    pub message: String,
}

/// Error of a reading.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}: {source}")]
pub struct CaptureError {
    /// Failed step and its object.
    pub attempted: String,
    /// Cause of the failure.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Result of one check of the `check` command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Attach type that needs it; `None` if all do.
    pub attach: Option<Attach>,
    /// Name of the check.
    pub what: &'static str,
    /// True if the check passed.
    pub ok: bool,
    /// Result; if the check failed, also how to fix it.
    pub detail: String,
    /// Reason that is reported if this attach type, or all of them, cannot work without it.
    pub refusal: Option<Reason>,
}
