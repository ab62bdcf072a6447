//! Legs of calls that pass a transparent proxy: the connections that it accepts and those that it opens.

use super::observed::{ClientFlow, ServerFlow};
use crate::{count, hash::HashSet};

/// Sum of the connections of some flows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leg {
    pub(super) opened: u64,
    /// The part of it of which the other legs' counts may still be on their way.
    fresh: u64,
    /// Attempts that failed or are pending.
    unanswered: u64,
}

impl Leg {
    pub(super) fn of_clients<'f, 'a: 'f>(flows: impl Iterator<Item = &'f ClientFlow<'a>>) -> Self {
        flows.fold(Self::default(), |leg, flow| {
            let unanswered = count::add(flow.counters.failed, flow.counters.pending);
            leg.with(flow.counters.opened, flow.fresh.opened, unanswered)
        })
    }

    pub(super) fn of_servers<'f, 'a: 'f>(flows: impl Iterator<Item = &'f ServerFlow<'a>>) -> Self {
        flows.fold(Self::default(), |leg, flow| leg.with(flow.counters.opened, flow.fresh.opened, 0))
    }

    fn with(self, opened: u64, fresh: u64, unanswered: u64) -> Self {
        Self {
            opened: count::add(self.opened, opened),
            fresh: count::add(self.fresh, fresh),
            unanswered: count::add(self.unanswered, unanswered),
        }
    }

    /// Connections that have had time to be reported by all ends.
    pub(super) fn settled(&self) -> u64 {
        self.opened.saturating_sub(self.fresh)
    }

    /// Returns whether the proxy opened, or attempted, one connection for each that it accepted.
    pub(super) fn is_one_for_one(accepted: &Self, opened: &Self) -> bool {
        opened.settled() <= accepted.opened && accepted.settled() <= count::add(opened.opened, opened.unanswered)
    }
}

/// Removes the items with these numbers.
pub(super) fn remove<T>(items: &mut Vec<T>, gone: &HashSet<usize>) {
    let mut number = 0;
    items.retain(|_| {
        number += 1;
        !gone.contains(&(number - 1))
    });
}

/// Leaves a flow of a proxy only the attempts without a connection. Returns whether there are any.
pub(super) fn leave_unanswered(flow: &mut ClientFlow<'_>) -> bool {
    let (failed, pending) = (flow.counters.failed, flow.counters.pending);
    flow.counters = crate::edge::EdgeCounters { failed, pending, ..crate::edge::EdgeCounters::default() };
    flow.fresh = super::observed::Fresh::default();
    failed > 0 || pending > 0
}
