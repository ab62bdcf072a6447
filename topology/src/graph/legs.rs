//! Legs of calls that pass a transparent proxy: the connections that it accepts and those that it opens.

use std::{collections::BTreeSet, time::SystemTime};

use super::observed::{ClientFlow, Fresh, INEXACT, ServerFlow};
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
    pub(super) unanswered: u64,
}

impl Leg {
    /// Returns the leg of the undecided connections of applications' flows. What was opened by `settled` has had time to be
    /// reported.
    pub(super) fn of_applications<'f, 'a: 'f>(
        flows: impl Iterator<Item = &'f ClientFlow<'a>>,
        settled: SystemTime,
    ) -> Self {
        flows.fold(Self::default(), |leg, flow| {
            let left = flow.leg.undecided_of_application(&flow.counters);
            leg.with(left, flow.fresh.opened, later(flow.parts, settled), 0)
        })
    }

    /// Returns the leg of the undecided connections of a proxy's clients' flows, as [`Self::of_applications`].
    pub(super) fn of_proxies<'f, 'a: 'f>(flows: impl Iterator<Item = &'f ClientFlow<'a>>, settled: SystemTime) -> Self {
        flows.fold(Self::default(), |leg, flow| {
            let left = flow.leg.undecided_of_proxy(&flow.counters);
            let failed = flow.counters.failed.saturating_sub(flow.leg.attempts);
            let unanswered = count::add(failed, flow.counters.pending);
            leg.with(left, flow.fresh.opened, later(flow.parts, settled), unanswered)
        })
    }

    /// Returns the leg of the undecided connections that servers' flows accept, as [`Self::of_applications`].
    pub(super) fn of_arrivals<'f, 'a: 'f>(
        flows: impl Iterator<Item = &'f ServerFlow<'a>>,
        settled: SystemTime,
    ) -> Self {
        flows.fold(Self::default(), |leg, flow| {
            let left = flow.counters.opened.saturating_sub(flow.leg.matched);
            leg.with(left, flow.fresh.opened, later(flow.parts, settled), 0)
        })
    }

    /// Returns the leg of calls of a pod with itself, which its proxy leads to the server as well.
    pub(super) fn of_inward_calls<'f, 'a: 'f>(
        flows: impl Iterator<Item = &'f ClientFlow<'a>>,
        settled: SystemTime,
    ) -> Self {
        flows.fold(Self::default(), |leg, flow| {
            let left = flow.counters.opened.saturating_sub(flow.leg.inward);
            leg.with(left, flow.fresh.opened, later(flow.parts, settled), 0)
        })
    }

    /// Returns both together.
    pub(super) fn and(self, other: &Self) -> Self {
        self.with(other.opened, other.fresh, other.later, other.unanswered)
    }

    /// Returns the connections of servers' flows that were opened by `settled`.
    pub(super) fn settled_of_servers<'f, 'a: 'f>(
        flows: impl Iterator<Item = &'f ServerFlow<'a>>,
        settled: SystemTime,
    ) -> u64 {
        flows.fold(0, |sum, flow| {
            let fresh = Fresh::of(flow.counters.opened, flow.first_seen, flow.parts, settled);
            count::add(sum, flow.counters.opened.saturating_sub(fresh.opened))
        })
    }

    /// Adds so many connections. Of flows of which only a part is undecided, at most that part is fresh or later.
    fn with(self, opened: u64, fresh: u64, later: u64, unanswered: u64) -> Self {
        Self {
            opened: count::add(self.opened, opened),
            fresh: count::add(self.fresh, fresh.min(opened)),
            later: count::add(self.later, later.min(opened)),
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

    /// Returns the connections that both legs have in common: all if they have as many, and otherwise those that are settled.
    pub(super) fn matched(accepted: &Self, opened: &Self) -> Matched {
        let both = accepted.opened.min(opened.opened);
        let unanswered = (accepted.opened - both).min(opened.unanswered);
        let is_same = accepted.opened - unanswered == both && opened.opened == both;
        let both = if is_same { both } else { accepted.settled().min(opened.settled()) };
        let certainly = opened.unanswered.min(accepted.settled().saturating_sub(both));
        let unanswered = if is_same { unanswered } else { certainly };
        Matched { both, unanswered, certainly: certainly.min(unanswered) }
    }

    /// Returns whether the proxy opened, or attempted, one connection for each that it accepted. Its agent has both legs.
    pub(super) fn is_one_for_one(accepted: &Self, opened: &Self) -> bool {
        opened.settled() <= accepted.earlier() && accepted.settled() <= count::add(opened.earlier(), opened.unanswered)
    }
}

/// Connections that two legs have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matched {
    /// Connections of both.
    pub(super) both: u64,
    /// Accepted connections of which the other leg is an attempt.
    pub(super) unanswered: u64,
    /// Those of them for which no other attempt can be on its way.
    pub(super) certainly: u64,
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

/// Takes up to so many failed attempts of a proxy's flows as the other leg of connections. Returns their number.
pub(super) fn take_attempts<'i>(
    calls: impl Iterator<Item = &'i usize>,
    client_flows: &mut [ClientFlow<'_>],
    unanswered: u64,
) -> u64 {
    let mut left = unanswered;
    for index in calls {
        let flow = &mut client_flows[*index];
        let taken = flow.counters.failed.saturating_sub(flow.leg.attempts).min(left);
        flow.leg.attempts += taken;
        left -= taken;
    }
    unanswered - left
}

/// Gives so many connections to flows, up to those that are undecided, first to the ones that were opened last. Returns
/// the number of each.
pub(super) fn deal(
    mut number: u64,
    flows: &[usize],
    client_flows: &[ClientFlow<'_>],
    undecided: impl Fn(&ClientFlow<'_>) -> u64,
) -> Vec<(usize, u64)> {
    let mut parts: Vec<(usize, u64)> = flows.iter().map(|index| (*index, 0)).collect();
    for is_of_all in [false, true] {
        for (index, part) in &mut parts {
            let flow = &client_flows[*index];
            let most = undecided(flow).min(if is_of_all { u64::MAX } else { flow.fresh.opened });
            let more = most.saturating_sub(*part).min(number);
            *part += more;
            number -= more;
        }
    }
    parts
}

/// Returns how many connections were certainly opened after this time.
fn later(parts: &[Part], settled: SystemTime) -> u64 {
    let later = parts.iter().filter(|part| part.since > settled + INEXACT);
    later.fold(0, |sum, part| count::add(sum, part.counted.opened))
}
