//! Entry of one flow.

use std::sync::Arc;

use topology::flow::FlowCounters;

use super::clock::Moment;
use crate::packed::PackedCounters;

/// One flow.
#[derive(Debug)]
pub(super) struct FlowEntry {
    /// Of the whole run.
    pub(super) counters: PackedCounters,
    pub(super) rare: Option<Box<Rare>>,
    /// Nothing of it had happened then.
    pub(super) before_first: Moment,
    /// Nothing had happened then of what the operator does not know yet; of no meaning while it knows everything.
    pub(super) before_news: Moment,
    /// The last change was found then.
    pub(super) changed: Moment,
    pub(super) state: State,
    /// The capture has dropped it and seen nothing of it since.
    pub(super) is_dropped: bool,
}

/// Data that few flows have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    /// The part of the counters that the capture has dropped.
    pub(super) dropped: Option<FlowCounters>,
    /// Names that have led to the remote address.
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

    /// Without open connections, and not dropped yet.
    pub(super) fn is_quiet(&self) -> bool {
        !self.is_dropped && self.counters().active() == 0
    }
}

/// State of the operator's copy of a flow's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// They stand in the queue of news.
    News,
    /// They are on their way.
    Underway,
    /// It has acknowledged them.
    Known,
}
