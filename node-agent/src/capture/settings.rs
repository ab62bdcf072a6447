//! Settings of a capture by eBPF.

use std::{path::PathBuf, time::Duration};

use super::attach::Attach;
use crate::budget::Shortage;

/// Settings of a capture by eBPF.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub struct Settings {
    /// Directory of the cgroup v2 hierarchy: sockets that are created below it belong to this node.
    /// [`find_cgroup_root`](super::find_cgroup_root) finds it below a mount point.
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
    /// Maximum number of tracked sockets, for connections without callbacks. Connections beyond it are counted as
    /// [`Losses`](super::Losses).
    pub max_tracked_sockets: u32,
    /// Maximum number of preexisting connections whose end the kernel program counts; `None` for the number of sockets.
    /// The agent notices further ends late and counts them in
    /// [`Losses::closes_unseen`](super::Losses::closes_unseen).
    pub max_preexisting: Option<u32>,
    /// Time after which the end of a preexisting connection counts as missed if no process holds its socket. Before, the
    /// socket may still send its remaining bytes.
    pub gone_after: Duration,
    /// Maximum number of connections noted as counted while the capture starts. If more open and close, preexisting
    /// connections are left out and counted as [`Losses`](super::Losses).
    pub max_start_notes: u32,
    /// Maximum number of flows that the kernel counts. Connections of further flows are counted as
    /// [`Losses`](super::Losses).
    pub max_flows: u32,
    /// Reason for which `max_flows` is lower than requested; `None` if it is not.
    pub shortage: Option<Shortage>,
    /// Counts datagrams, if the kernel allows it.
    pub datagrams: bool,
    /// Maximum number of UDP conversations that the kernel keeps, about 150 bytes each; fewer at first. If there are more, some may count
    /// twice and are marked so ([`FlowCounters::inferred`](topology::flow::FlowCounters::inferred)).
    pub max_conversations: u32,
    /// Time without a datagram after which a conversation is over.
    pub conversation_silence: Duration,
    /// Time after the attach in which a conversation may be preexisting.
    pub conversations_settle: Duration,
    /// Reads DNS responses; their payload leaves the kernel only then.
    pub dns_names: bool,
    /// Size of the ring buffer of DNS responses, in bytes: a power of two, at least a page. A response takes about 150
    /// bytes.
    pub answer_ring_bytes: u32,
    /// Size of the ring buffer of new flows, in bytes: a power of two, at least a page. A notification takes 64
    /// bytes.
    pub ring_bytes: u32,
    /// Uses positions of programs among others', where the kernel has them; otherwise the order of cgroups.
    pub hook_positions: bool,
    /// Interval at which all open sockets are listed.
    pub listing_interval: Duration,
    /// Runs the self-test at the start. It requires a cgroup root that contains this process. Without it, a capture
    /// that counts nothing at all goes unnoticed.
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
            max_tracked_sockets: 65_536,
            max_preexisting: None,
            gone_after: Duration::from_mins(1),
            max_start_notes: 65_536,
            max_flows: 65_536,
            shortage: None,
            datagrams: true,
            max_conversations: 65_536,
            dns_names: true,
            answer_ring_bytes: 512 * 1024,
            conversation_silence: Duration::from_mins(2),
            conversations_settle: Duration::from_secs(10),
            ring_bytes: 256 * 1024,
            hook_positions: true,
            listing_interval: Duration::from_secs(30),
            self_test: true,
        }
    }
}
