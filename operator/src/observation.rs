//! Observations of each node's agent, and a summary of the published topology: inputs of NodeProbe and ScopeProbe.

mod replaced;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use crds::{Losses, Mode, NamespaceEdge, TopologyTotals};
use kernel_support::Reason;
use tokio::sync::watch;
use topology::count;

pub use self::replaced::{ReplacedObservation, ResumedEpoch};
use crate::coverage::{
    UnixMs,
    account::{CaptureReport, CoverageAccount},
    period::Counts,
};

/// One node's agent, as it last reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeObservation {
    /// True if its stream is open.
    pub connected: bool,
    /// The epoch of the counters, 16 bytes.
    pub epoch: Vec<u8>,
    /// The epoch in which the counters began.
    pub origin: Vec<u8>,
    /// Capture mode; `None` before its first report.
    pub mode: Option<Mode>,
    /// Reason of the mode.
    pub reason: Reason,
    /// Human-readable explanation of `reason`.
    pub message: String,
    /// Attach type.
    pub attach: String,
    /// `uname -r`.
    pub kernel: String,
    /// Time of the last report, in milliseconds since 1970-01-01 UTC by the operator's clock; the start of this operator
    /// if there was none since.
    pub last_report_unix_ms: u64,
    /// Time since which all of its reports ask for the rights of the Fallback mode, in milliseconds since 1970-01-01
    /// UTC by the operator's clock. `None` if the last one does not.
    pub asks_for_fallback_since_unix_ms: Option<u64>,
    /// Losses of this epoch.
    pub losses: Losses,
    /// Connections and failed attempts of this epoch.
    pub seen: u64,
    /// State before this epoch.
    pub earlier: EarlierObservation,
    /// Agents whose epochs were replaced, the latest last: they may continue under new ones.
    pub replaced: Vec<ReplacedObservation>,
    /// Observed and unobserved time; `None` before the first report of a running capture.
    pub coverage: Option<CoverageAccount>,
}

/// Attach types of the agent that use a tracepoint.
const TRACEPOINTS: [&str; 2] = ["TpBtf", "Tracepoint"];

impl NodeObservation {
    /// Begins an epoch: adds the present counts to `earlier`. Does nothing if it is the current epoch.
    pub fn begin_epoch(&mut self, epoch: &[u8]) {
        if self.epoch == epoch {
            return;
        }
        if !self.epoch.is_empty() {
            self.replace();
        }
        self.earlier = EarlierObservation { seen: self.total_seen(), losses: self.total_losses() };
        self.epoch = epoch.to_vec();
        self.origin = epoch.to_vec();
        self.seen = 0;
        self.losses = Losses::default();
    }

    /// Records that a capture runs, with the times of its attach and of the report.
    pub fn note_capture(&mut self, attached: UnixMs, made: UnixMs) {
        let report = CaptureReport {
            epoch: &self.epoch,
            attached,
            made,
            earlier: Counts { seen: self.earlier.seen, losses: self.earlier.losses },
            total: Counts { seen: self.total_seen(), losses: self.total_losses() },
            sampled: self.misses_uncounted(),
        };
        match &mut self.coverage {
            Some(account) => account.report(&report),
            None => self.coverage = Some(CoverageAccount::begin(&report)),
        }
    }

    /// Returns whether a capture runs.
    #[must_use]
    pub fn has_capture(&self) -> bool {
        matches!(self.mode, Some(Mode::Ebpf | Mode::Fallback))
    }

    /// Returns whether connections may be missed that are not counted as lost.
    ///
    /// This is so in Fallback mode. It is also so for a tracepoint's program where several processors handle packets:
    /// `recursion_misses` does not contain all runs that Linux skips (observed on 6.18).
    #[must_use]
    pub fn misses_uncounted(&self) -> bool {
        match self.mode {
            Some(Mode::Fallback) => true,
            Some(Mode::Ebpf) => TRACEPOINTS.contains(&self.attach.as_str()),
            Some(Mode::Unsupported) | None => false,
        }
    }

    /// Records whether the last report asks for the rights of the Fallback mode.
    pub fn ask_for_fallback(&mut self, asks: bool, now_unix_ms: u64) {
        let since = self.asks_for_fallback_since_unix_ms.unwrap_or(now_unix_ms);
        self.asks_for_fallback_since_unix_ms = asks.then_some(since);
    }

    /// Records that its stream has ended.
    pub fn disconnect(&mut self) {
        self.connected = false;
        self.asks_for_fallback_since_unix_ms = None;
    }

    /// Returns the connections and failed attempts of all epochs.
    #[must_use]
    pub fn total_seen(&self) -> u64 {
        count::add(self.earlier.seen, self.seen)
    }

    /// Returns the losses of all epochs.
    #[must_use]
    pub fn total_losses(&self) -> Losses {
        self.earlier.losses.plus(&self.losses)
    }
}

/// Counts of a node's earlier epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EarlierObservation {
    /// Connections and failed attempts.
    pub seen: u64,
    /// Losses.
    pub losses: Losses,
}

/// All nodes that have ever reported to this operator, by name. Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct Observations {
    nodes: Arc<RwLock<BTreeMap<String, NodeObservation>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for Observations {
    fn default() -> Self {
        Self { nodes: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }
}

impl Observations {
    /// Changes the observation of a node. Notifies receivers if `change` made a difference.
    pub fn update(&self, node: &str, change: impl FnOnce(&mut NodeObservation)) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let observation = nodes.entry(node.to_owned()).or_default();
        let before = observation.clone();
        change(observation);
        if *observation != before {
            drop(nodes);
            self.changed.send_replace(());
        }
    }

    /// Returns the observation of one node.
    #[must_use]
    pub fn get(&self, node: &str) -> Option<NodeObservation> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    /// Returns the observations of all nodes.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, NodeObservation> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes a node that no longer exists.
    pub fn forget(&self, node: &str) {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// Returns a receiver that is notified of each change of a node.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Size of the published topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologyOverview {
    /// Workloads and edges.
    pub totals: TopologyTotals,
    /// Pairs of namespaces with edges, most edges first, at most 50.
    pub namespaces: Vec<NamespaceEdge>,
    /// Number of pairs that are missing in `namespaces`.
    pub omitted_namespaces: u64,
}
