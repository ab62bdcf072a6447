//! Time without a capture, and an estimate of what happened in it. Pure.

use topology::count;

use super::{UnixMs, period::Period};

/// A rate is measured over this much observed time next to the gap.
const MEASURED_MS: u64 = 10_000;
/// The least observed time that a rate is taken from: a single connection is not a thousand a second.
const LEAST_MS: u64 = 1_000;

/// Rate: events per observed time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Connections and failed attempts, seen or lost.
    pub happened: u64,
    /// Observed time in milliseconds.
    pub observed_ms: u64,
}

impl Rate {
    /// The rate at the end of these periods.
    pub(super) fn at_end(periods: &[Period]) -> Self {
        let mut rate = Self::default();
        for period in periods.iter().rev() {
            if rate.is_measured() {
                break;
            }
            rate.add(period);
        }
        rate
    }

    pub(super) fn add(&mut self, period: &Period) {
        self.happened = count::add(self.happened, period.counts().happened());
        self.observed_ms = self.observed_ms.saturating_add(period.observed_ms());
    }

    fn is_measured(&self) -> bool {
        self.observed_ms >= MEASURED_MS
    }

    /// The greater of two rates.
    pub(super) fn or_busier(self, other: Self) -> Self {
        if other.during(MEASURED_MS) > self.during(MEASURED_MS) { other } else { self }
    }

    /// Returns the expected events in so many milliseconds.
    fn during(&self, ms: u64) -> u64 {
        let estimate = u128::from(self.happened) * u128::from(ms) / u128::from(self.observed_ms.max(LEAST_MS));
        count::bounded(u64::try_from(estimate).unwrap_or(u64::MAX))
    }
}

/// A gap whose estimate is still being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) from: UnixMs,
    pub(super) to: UnixMs,
    before: Rate,
    after: Rate,
}

impl Gap {
    pub(super) fn new(from: UnixMs, to: UnixMs, before: Rate) -> Self {
        Self { from, to, before, after: Rate::default() }
    }

    /// Takes in the period after the gap, or the next one. Returns whether the estimate is final.
    pub(super) fn measure(&mut self, period: &Period) -> bool {
        self.after.add(period);
        self.after.is_measured()
    }

    /// The gap as a period: estimated by the busier of the times before and after it.
    pub(super) fn to_period(self) -> Period {
        let ms = self.to.saturating_sub(self.from);
        Period::unobserved(self.from, self.to, self.before.or_busier(self.after).during(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::period::Counts;

    fn busy(from: UnixMs, to: UnixMs, seen: u64) -> Period {
        Period::observed(from, to, &Counts { seen, ..Counts::default() }, false)
    }

    #[test]
    fn gap_is_estimated_by_the_busier_side() {
        let before = Rate::at_end(&[busy(0, 50_000, 5_000), busy(50_000, 60_000, 20)]);
        let mut gap = Gap::new(60_000, 65_000, before);
        assert_eq!(gap.to_period().shortfall.unwrap().missed, 10, "2 a second before");
        assert!(!gap.measure(&busy(65_000, 70_000, 50)), "half of what a rate is measured over");
        assert!(gap.measure(&busy(70_000, 76_000, 60)));
        assert_eq!(gap.to_period().shortfall.unwrap().missed, 50, "10 a second afterwards");
    }

    #[test]
    fn numbers_that_no_real_agent_reports_stay_within_the_api() {
        let most = busy(0, 1, count::MAX_COUNT);
        let rate = Rate::at_end(&[most.clone(), most.clone(), most]);
        assert_eq!(rate.happened, count::MAX_COUNT);
        assert_eq!(Gap::new(1, 10_001, rate).to_period().shortfall.unwrap().missed, count::MAX_COUNT);
    }

    #[test]
    fn rate_of_a_moment_is_taken_as_that_of_a_second() {
        let before = Rate::at_end(&[busy(0, 1, 3)]);
        assert_eq!(Gap::new(1, 10_001, before).to_period().shortfall.unwrap().missed, 30);
    }
}
