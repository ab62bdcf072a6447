//! Entry of one flow.

use std::sync::Arc;

use topology::{flow::FlowCounters, packed::PackedCounters};

use super::clock::Moment;

/// One flow.
#[derive(Debug)]
pub(super) struct FlowEntry {
    /// Counters of the whole run.
    pub(super) counters: PackedCounters,
    pub(super) rare: Option<Box<Rare>>,
    /// Lower bound of the time of the flow's first event.
    pub(super) before_first: Moment,
    /// Lower bound of the time of unacknowledged changes; without meaning in [`ReportState::Acknowledged`].
    pub(super) before_news: Moment,
    /// Time at which the last change was found.
    pub(super) changed: Moment,
    pub(super) state: ReportState,
    /// True if the capture dropped the flow and has not counted it since.
    pub(super) is_dropped: bool,
}

/// Data that few flows have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// Counters that the flow had when the capture dropped it.
    pub(super) dropped: Option<FlowCounters>,
    /// DNS names that resolved to the remote address.
    pub(super) names: Box<[Arc<str>]>,
}

impl FlowEntry {
    pub(super) fn counters(&self) -> FlowCounters {
        (&self.counters).into()
    }

    pub(super) fn names(&self) -> &[Arc<str>] {
        self.rare.as_ref().map(|rare| &*rare.names).unwrap_or_default()
    }

    pub(super) fn name_bytes(&self) -> usize {
        self.names().iter().map(|name| name.len()).sum()
    }

    /// Returns whether the flow has no open connection and no pending attempt, and was not dropped yet.
    pub(super) fn is_quiet(&self) -> bool {
        !self.is_dropped && self.counters().active() == 0 && self.counters().pending() == 0
    }
}

/// State of the operator's copy of a flow's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReportState {
    /// The counters changed; the flow is in the queue of changes.
    Changed,
    /// The counters were sent, but are not acknowledged yet.
    Sent,
    /// The operator has acknowledged the counters.
    Acknowledged,
}
