//! One node's agent, as it last reported.

use crds::{Folding, Losses, Mode};
use kernel_support::Reason;
use topology::count;

use super::{
    left_out::LeftOut,
    replaced::{EarlierObservation, ReplacedObservation},
};
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
    /// Folding of this epoch.
    pub folding: Folding,
    /// Flows of this epoch that the operator left out. `losses` contains them.
    pub left_out: LeftOut,
    /// State before this epoch.
    pub earlier: EarlierObservation,
    /// Agents whose epochs were replaced, the latest last: they may continue under new ones.
    pub replaced: Vec<ReplacedObservation>,
    /// Observed and unobserved time; `None` before the first report of a running capture.
    pub coverage: Option<CoverageAccount>,
}

/// Attach types of the agent that use a tracepoint.
const TRACEPOINTS: [&str; 2] = ["TpBtf", "Tracepoint"];

/// Returns whether a capture may miss connections that it does not count as lost ([`NodeObservation::misses_uncounted`]).
pub(crate) fn may_miss_uncounted(mode: Mode, attach: &str) -> bool {
    match mode {
        Mode::Fallback => true,
        Mode::Ebpf => TRACEPOINTS.contains(&attach),
        Mode::Unsupported => false,
    }
}

impl NodeObservation {
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
        self.mode.is_some_and(|mode| may_miss_uncounted(mode, &self.attach))
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
