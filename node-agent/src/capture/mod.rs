//! The connections of this node, as the kernel sees them: counters by flow, read now and then.
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
    far_end::FarEnd,
    flow::{FlowCounters, FlowKey},
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

/// A source of flows. Not tied to a runtime: [`Capture::read`] blocks for some milliseconds at most.
pub trait Capture: Send {
    /// Returns the method of this capture and its limitations.
    fn description(&self) -> &Description;

    /// The flows whose counters have changed since the last call, with their counters since the capture began
    /// (absolute values that never decrease, but for `open_bytes_*`). Drains [`Capture::first_sights`].
    ///
    /// # Errors
    /// Returns an error if the kernel refuses to return counters; the next call may succeed and misses nothing.
    fn read(&mut self) -> Result<Reading, CaptureError>;

    /// Becomes readable when a flow was seen for the first time; `None` where this capture cannot tell.
    fn first_sights(&self) -> Option<BorrowedFd<'_>>;

    /// Drops these flows, as far as they have no open connection and have not changed since they were read last; which
    /// it has dropped. Their counters begin at zero if they come back.
    fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey>;
}

/// Description of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// eBPF or its fallback.
    pub mode: Mode,
    /// Attach type: a word of [`Attach`] or of the fallback; empty if nothing is attached.
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

    /// Notes that fewer flows fit into the memory than were asked for, if so.
    fn note_shortage(&mut self, shortage: Option<Shortage>) {
        if let Some(shortage) = shortage {
            self.lack(Feature::MaxFlows, &shortage.to_string());
        }
    }

    /// Notes that this has turned out not to work, if it was not known yet.
    fn lack(&mut self, feature: Feature, message: &str) {
        if self.has(feature) {
            self.degradations.push(Degradation { feature, message: message.to_owned() });
        }
    }
}

/// The kinds of capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Counted in the kernel.
    Ebpf,
    /// Pieced together from what the kernel tells everybody.
    Fallback,
}

/// A feature that this kernel, or these privileges, do not allow.
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
    /// Connections from before the attach, and the bytes of connections while they are open.
    OpenSockets,
    /// The end of connections that are older than any agent of this boot.
    OldCloses,
    /// Retransmitted segments.
    Retransmits,
    /// Round-trip times.
    RoundTripTimes,
    /// Datagrams: conversations over UDP.
    Datagrams,
    /// All names that answers of name servers have given to addresses.
    RemoteNames,
    /// Whom a process of the node's own network has sent a datagram to from a socket that is not connected, where the
    /// node translates the address.
    DialledAddresses,
    /// Every opening and every end: what is not the first choice has a known weakness.
    EveryEvent,
    /// Sockets by netlink, with their bytes.
    SockDiag,
    /// The cgroup of a socket by netlink.
    SocketCgroups,
    /// The process of a socket whose cgroup the kernel does not tell.
    SocketOwners,
    /// Connections between two looks.
    ConntrackEvents,
    /// The bytes of connections between two looks.
    ConntrackBytes,
    /// A look at everything within two seconds.
    PassInterval,
    /// As many flows at a time as were asked for.
    MaxFlows,
}

/// Result of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Flows that have changed since the look before, each once.
    pub flows: Vec<(FlowKey, FlowCounters)>,
    /// Of these, where their connections really led or came from, with all counts since the capture began, where
    /// connection tracking has told.
    pub far_ends: Vec<(FlowKey, Vec<(FarEnd, u64)>)>,
    /// DNS responses since the last reading, with the cgroup of the receiving socket. Responses that led to a flow's
    /// remote address come with this reading or before it.
    pub answers: Vec<(u64, Answer)>,
    /// Losses since the capture began.
    pub losses: Losses,
    /// Connections opened and attempts failed that flows count or have counted, since the capture began.
    pub seen: u64,
    /// Time up to which all events are in this reading or an earlier one; `None` if only the present is known.
    pub complete_until: Option<Instant>,
    /// More flows have changed than one reading has: the next one, which is due at once, has more of them.
    pub is_partial: bool,
}

/// The most flows of one [`Reading`], so that a flood of new ones takes little memory on its way.
const MAX_FLOWS_PER_READING: usize = 8192;

/// Flows that have changed.
struct Changes {
    flows: Vec<(FlowKey, FlowCounters)>,
    /// More have.
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
    /// First sights that did not fit into the ring buffer; their flows came with the next read.
    pub first_sights: u64,
    /// Connections from before the attach whose end was not seen: their last bytes are missing.
    pub closes_unseen: u64,
    /// Times that the queue of connection tracking's events overflowed; what was open then was looked at again.
    pub event_overflows: u64,
    /// Runs of a tracepoint's program that the kernel skipped: at most as many openings, ends or failures are missing.
    pub missed_runs: u64,
}

/// Settings of a capture.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A directory of the cgroup v2 hierarchy: the sockets made below it are this node's.
    /// [`find_cgroup_root`] finds it below a mount point.
    pub cgroup_root: PathBuf,
    /// The running kernel's own type information.
    pub btf_path: PathBuf,
    /// The kernel's word on its own lockdown.
    pub lockdown_path: PathBuf,
    /// Mount point of the node's procfs.
    pub proc: PathBuf,
    /// Possible mount points of tracefs, for the classic tracepoint.
    pub tracefs_paths: Vec<PathBuf>,
    /// The running kernel's release, where it is to be another than the kernel says.
    pub release: Option<String>,
    /// The only way to attach; `None` for the best that works.
    pub attach: Option<Attach>,
    /// Open connections that the kernel can follow at a time where they have no callbacks; more are [`Losses`].
    pub max_followed: u32,
    /// Connections from before the attach whose end the kernel can be asked to count; the end of more is noticed late,
    /// and counted in [`Losses::closes_unseen`]. `None`: as many as there are sockets.
    pub max_old: Option<u32>,
    /// After so long a connection from before that no process holds any more is taken for one whose end was missed: it
    /// may still be sending what is left.
    pub gone_after: Duration,
    /// Connections that can be noted as counted while the capture starts. Where more come and go, those that were open
    /// before are left out and counted as [`Losses`].
    pub max_noted: u32,
    /// Flows that the kernel can count at a time; more are counted as [`Losses`].
    pub max_flows: u32,
    /// Why that are fewer than were asked for, if so.
    pub shortage: Option<Shortage>,
    /// Counts datagrams, if the kernel allows it.
    pub datagrams: bool,
    /// Conversations of datagrams that the kernel can remember at a time, about 140 bytes each. Where more go on, some
    /// count again, and it is said that this may be so ([`FlowCounters::inferred`]).
    pub max_conversations: u32,
    /// After so long without a datagram, a conversation is over.
    pub conversation_silence: Duration,
    /// For how long after the attach a conversation may be older, for all that is known.
    pub conversations_settle: Duration,
    /// Reads DNS responses; their payload leaves the kernel only then.
    pub dns_names: bool,
    /// Size of the ring buffer of answers, in bytes: a power of two, at least a page. One takes some 150.
    pub answer_ring_bytes: u32,
    /// Size of the ring buffer of first sights, in bytes: a power of two, at least a page. A first sight takes 64.
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

/// A capture that could not be started.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// The word for it.
    pub reason: Reason,
    /// Failed step, its object, its error, and how to fix it.
    pub message: String,
}

/// A look that failed.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}: {source}")]
pub struct CaptureError {
    /// Failed step and its object.
    pub attempted: String,
    /// Cause of the failure.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One thing that `check` looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// For which way to attach; `None` where all need it.
    pub attach: Option<Attach>,
    /// Name of the check.
    pub what: &'static str,
    /// True if the check passed.
    pub ok: bool,
    /// Result; if the check failed, also how to fix it.
    pub detail: String,
    /// Set where this way to attach, or all of them, cannot work without it.
    pub refusal: Option<Reason>,
}
