//! Settings of a capture without eBPF.

use std::{path::PathBuf, time::Duration};

use crate::budget::Shortage;

/// Settings of a capture without eBPF.
#[derive(Clone, Debug)]
pub struct FallbackSettings {
    /// Mount point of the node's procfs.
    pub proc: PathBuf,
    /// A directory of the cgroup v2 hierarchy: the sockets made below it are this node's.
    pub cgroup_root: PathBuf,
    /// The process whose network namespace is the node's own: there connections between pods are tracked.
    pub host_pid: u32,
    /// The share of one CPU that looking may take, in thousandths.
    pub cpu_millicores: u32,
    /// The time between two passes, where the budget allows it.
    pub interval: Duration,
    /// Flows that are counted at a time; more are counted as [`Losses`](crate::capture::Losses).
    pub max_flows: usize,
    /// Why that are fewer than were asked for, if so.
    pub shortage: Option<Shortage>,
    /// Size of the queue of conntrack's events, in bytes: what happens while the thread does something else waits there.
    pub event_bytes: usize,
}

impl Default for FallbackSettings {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            host_pid: 1,
            cpu_millicores: 50,
            interval: Duration::from_millis(1500),
            max_flows: 65_536,
            shortage: None,
            // About 20,000 messages.
            event_bytes: 16 << 20,
        }
    }
}
