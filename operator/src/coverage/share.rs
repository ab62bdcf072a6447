//! The counted share of what happened within a window. Pure.

use crds::Losses;
use topology::count;

use super::{
    DAY, HOUR, MINUTE, STEP, UnixMs,
    period::{Period, Shortfall},
};

/// Counts and shortfall of a window, of one node or the sum of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Time in which the node was due to be observed, in milliseconds.
    pub due_ms: u64,
    /// Connections and failed attempts that were seen.
    pub seen: u64,
    /// The incomplete part.
    pub shortfall: Shortfall,
}

impl Share {
    /// Adds another node's.
    pub fn add(&mut self, other: &Self) {
        self.due_ms = self.due_ms.saturating_add(other.due_ms);
        self.seen = count::add(self.seen, other.seen);
        self.shortfall.add(&other.shortfall);
    }

    /// The losses within the window, by cause.
    #[must_use]
    pub fn losses(&self) -> &Losses {
        &self.shortfall.losses
    }

    /// Connections and failed attempts that are counted as lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shortfall.losses.lost()
    }

    /// Returns whether there was a time without a capture.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        self.shortfall.unobserved_ms > 0
    }

    /// The counted share, in thousandths, rounded down: seen ÷ (seen + lost + missed), where `missed` is an estimate;
    /// at most the observed share of the time × seen ÷ (seen + lost).
    #[must_use]
    pub fn permille(&self) -> u64 {
        let (seen, recorded) = (u128::from(self.seen), u128::from(self.seen) + u128::from(self.lost()));
        let by_counts = permille(seen, recorded + u128::from(self.shortfall.missed));
        let observed = u128::from(self.due_ms.saturating_sub(self.shortfall.unobserved_ms));
        // Where nothing was recorded, all that was observed was stored.
        let (seen, recorded) = if recorded == 0 { (1, 1) } else { (seen, recorded) };
        by_counts.min(permille(seen.saturating_mul(observed), recorded.saturating_mul(u128::from(self.due_ms))))
    }
}

/// `part` of `whole` in thousandths, rounded down; all of nothing.
fn permille(part: u128, whole: u128) -> u64 {
    let permille = part.saturating_mul(1000).checked_div(whole).unwrap_or(1000);
    u64::try_from(permille.min(1000)).unwrap_or(1000)
}

/// One node's shares of all windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Of the last hour.
    pub last_hour: Share,
    /// Of the last day.
    pub last_day: Share,
    /// Since the beginning.
    pub total: Share,
}

impl Shares {
    /// Sums periods up, which are in order: the first begins when the node was due to be observed, the last ends now.
    /// Windows move in steps, so that time alone changes nothing more often.
    #[must_use]
    pub fn of(periods: &[Period]) -> Self {
        let Some((first, last)) = periods.first().zip(periods.last()) else { return Self::default() };
        let is_young = last.to.saturating_sub(first.from) < HOUR;
        let step = if is_young { MINUTE } else { STEP };
        let end = last.to / step * step;
        let window = |length: u64| share(periods, end.saturating_sub(length), end);
        Self { last_hour: window(HOUR), last_day: window(DAY), total: window(u64::MAX) }
    }

    /// Adds another node's.
    pub fn add(&mut self, other: &Self) {
        self.last_hour.add(&other.last_hour);
        self.last_day.add(&other.last_day);
        self.total.add(&other.total);
    }
}

/// The share of what came after `start`. A period with a shortfall that reaches into the window belongs to it as a
/// whole. `end` is the window's, but for gaps that ended later.
fn share(periods: &[Period], start: UnixMs, end: UnixMs) -> Share {
    let mut share = Share::default();
    let within = || periods.iter().filter(|period| period.to > start);
    let Some(first) = within().next() else { return share };
    let mut end = end;
    for period in within() {
        if let Some(shortfall) = &period.shortfall {
            share.seen = count::add(share.seen, period.seen);
            share.shortfall.add(shortfall);
            end = end.max(period.to);
        } else {
            share.seen = count::add(share.seen, seen_after(period, start));
        }
    }
    share.due_ms = end.saturating_sub(first.from.max(start));
    share.shortfall.unobserved_ms = share.shortfall.unobserved_ms.min(share.due_ms);
    share
}

/// Of a period that is complete: the part of its connections that falls into the window, as if they were evenly spread.
fn seen_after(period: &Period, start: UnixMs) -> u64 {
    let within = period.to.saturating_sub(period.from.max(start));
    match period.length() {
        0 => period.seen,
        length => u64::try_from(u128::from(period.seen) * u128::from(within) / u128::from(length)).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::period::Counts;

    fn share_of(due_ms: u64, seen: u64, shortfall: Shortfall) -> u64 {
        Share { due_ms, seen, shortfall }.permille()
    }

    #[test]
    fn share_of_losses_is_rounded_down() {
        let lost = |opened| Shortfall { losses: Losses { opened, ..Losses::default() }, ..Shortfall::default() };
        assert_eq!(share_of(HOUR, 1000, lost(0)), 1000);
        assert_eq!(share_of(0, 0, lost(0)), 1000);
        assert_eq!(share_of(HOUR, 2, lost(1)), 666);
        assert_eq!(share_of(HOUR, 0, lost(5)), 0);
        assert_eq!(share_of(HOUR, u64::MAX, lost(1)), 999);
    }

    #[test]
    fn unobserved_time_lowers_the_share_even_where_nothing_happened() {
        let gap = |unobserved_ms, missed| Shortfall { unobserved_ms, missed, ..Shortfall::default() };
        assert_eq!(share_of(HOUR, 0, gap(HOUR / 4, 0)), 750);
        assert_eq!(share_of(HOUR, 100, gap(HOUR / 4, 0)), 750);
        assert_eq!(share_of(HOUR, 100, gap(HOUR / 4, 900)), 100, "the gap was busier than the rest");
        assert_eq!(share_of(HOUR, 0, gap(HOUR, 0)), 0);
        assert_eq!(share_of(HOUR, 0, gap(HOUR, 60)), 0);
    }

    #[test]
    fn time_and_losses_multiply() {
        let losses = Losses { opened: 50, ..Losses::default() };
        let shortfall = Shortfall { unobserved_ms: HOUR / 2, losses, missed: 100, ..Shortfall::default() };
        assert_eq!(share_of(HOUR, 50, shortfall), 250);
    }

    fn busy(from: UnixMs, to: UnixMs, seen: u64) -> Period {
        Period::observed(from, to, &Counts { seen, ..Counts::default() }, false)
    }

    #[test]
    fn incomplete_period_belongs_to_a_window_until_all_of_it_has_left() {
        let at = |minute: u64| {
            let gap = Period::unobserved(100 * MINUTE, 105 * MINUTE, 30);
            let since = busy(105 * MINUTE, minute * MINUTE, 10 * (minute - 105));
            Shares::of(&[busy(0, 100 * MINUTE, 600), gap, since])
        };
        let within = at(164);
        assert_eq!((within.last_hour.shortfall.missed, within.last_hour.seen), (30, 590));
        assert_eq!(within.last_hour.due_ms, HOUR, "windows move in steps of five minutes");
        let later = at(165);
        assert_eq!((later.last_hour.has_gaps(), later.last_day.has_gaps()), (false, true));
        assert_eq!(later.last_hour.permille(), 1000);
        assert_eq!((later.total.due_ms, later.total.seen), (165 * MINUTE, 1_200));
    }

    #[test]
    fn complete_period_counts_by_its_part() {
        let shares = Shares::of(&[busy(0, 120 * MINUTE, 1_200)]);
        assert_eq!((shares.last_hour.seen, shares.total.seen), (600, 1_200));
    }

    #[test]
    fn windows_of_a_young_node_are_precise_to_the_minute() {
        let gap = Period::unobserved(60_000, 66_000, 0);
        let shares = Shares::of(&[busy(0, 60_000, 60), gap, busy(66_000, 190_000, 124)]);
        assert_eq!((shares.last_hour.due_ms, shares.last_hour.permille()), (3 * MINUTE, 966));
        assert_eq!(shares.last_hour, shares.total);
    }
}
