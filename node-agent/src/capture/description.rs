//! Method of a capture, and its limitations on this machine.

use std::time::SystemTime;

use kernel_support::Reason;

use super::attach::Attach;
use crate::budget::Shortage;

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

    /// Returns whether the capture observes UDP.
    #[must_use]
    pub fn observes_udp(&self) -> bool {
        self.mode == Mode::Ebpf && self.has(Feature::Datagrams)
    }

    /// Adds a degradation if fewer flows fit into the memory than requested.
    pub(super) fn note_shortage(&mut self, shortage: Option<Shortage>) {
        if let Some(shortage) = shortage {
            self.lack(Feature::MaxFlows, &shortage.to_string());
        }
    }

    /// Adds a degradation for this feature, unless one is there already.
    pub(super) fn lack(&mut self, feature: Feature, message: &str) {
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
    /// Callback flags of sockets, without which the end of a connection is not observed.
    CallbackFlags,
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
    OriginalDestinations,
    /// Original destinations of connections and datagrams that a load balancer at the sockets leads to backends.
    BalancedDestinations,
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
