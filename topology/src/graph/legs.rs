//! Legs of calls that pass a transparent proxy: the connections that it accepts and those that it opens.

use std::{collections::BTreeSet, time::SystemTime};

use super::observed::{ClientFlow, INEXACT, ServerFlow};
use crate::{count, hash::HashSet, history::Part};

/// Sum of the connections of some flows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leg {
    pub(super) opened: u64,
    /// The part of it of which the other legs' counts may still be on their way.
    fresh: u64,
    /// The part of it that was opened after all of the rest had to be counted by the other legs.
    later: u64,
    /// Attempts that failed or are pending.
    unanswered: u64,
}

impl Leg {
    /// Returns the leg of clients' flows. What was opened by `settled` has had time to be reported.
    pub(super) fn of_clients<'f, 'a: 'f>(flows: impl Iterator<Item = &'f ClientFlow<'a>>, settled: SystemTime) -> Self {
        flows.fold(Self::default(), |leg, flow| {
            let unanswered = count::add(flow.counters.failed, flow.counters.pending);
            leg.with(flow.counters.opened, flow.fresh.opened, later(flow.parts, settled), unanswered)
        })
    }

    /// Returns the leg of servers' flows, as [`Self::of_clients`].
    pub(super) fn of_servers<'f, 'a: 'f>(flows: impl Iterator<Item = &'f ServerFlow<'a>>, settled: SystemTime) -> Self {
        flows.fold(Self::default(), |leg, flow| {
            leg.with(flow.counters.opened, flow.fresh.opened, later(flow.parts, settled), 0)
        })
    }

    fn with(self, opened: u64, fresh: u64, later: u64, unanswered: u64) -> Self {
        Self {
            opened: count::add(self.opened, opened),
            fresh: count::add(self.fresh, fresh),
            later: count::add(self.later, later),
            unanswered: count::add(self.unanswered, unanswered),
        }
    }

    /// Connections that have had time to be reported by all ends.
    pub(super) fn settled(&self) -> u64 {
        self.opened.saturating_sub(self.fresh)
    }

    /// Connections that may be the other legs' settled ones. Later ones cannot make up for what is missing of these.
    fn earlier(&self) -> u64 {
        self.opened.saturating_sub(self.later)
    }

    /// Returns whether the proxy opened, or attempted, one connection for each that it accepted. Its agent has both legs.
    pub(super) fn is_one_for_one(accepted: &Self, opened: &Self) -> bool {
        opened.settled() <= accepted.earlier() && accepted.settled() <= count::add(opened.earlier(), opened.unanswered)
    }
}

/// Returns the item of a set if it is the only one.
pub(super) fn only<T: Copy + Ord>(items: &BTreeSet<T>) -> Option<T> {
    items.first().copied().filter(|_| items.len() == 1)
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

/// Returns how many connections were certainly opened after this time.
fn later(parts: &[Part], settled: SystemTime) -> u64 {
    let later = parts.iter().filter(|part| part.since > settled + INEXACT);
    later.fold(0, |sum, part| count::add(sum, part.counted.opened))
}
