//! One node's observed and unobserved time, with what was seen and lost in it. Pure.

use crds::MAX_PERIODS;

use super::{
    DAY, HOUR, STEP, UnixMs,
    gap::{Gap, Rate},
    period::{Counts, Period},
};

/// The shortest period that is kept on its own.
const SHORTEST: u64 = 5_000;

/// A report of a capture that runs.
#[derive(Clone, Copy, Debug)]
pub struct CaptureReport<'a> {
    /// The capture's epoch.
    pub epoch: &'a [u8],
    /// Time at which the capture was attached.
    pub attached: UnixMs,
    /// Time at which the report was made.
    pub made: UnixMs,
    /// The counts of all earlier epochs.
    pub earlier: Counts,
    /// The counts of all epochs.
    pub total: Counts,
    /// True if the capture cannot count all that it misses.
    pub sampled: bool,
}

/// One node's observed and unobserved time.
///
/// The periods follow one another without a hole from [`Self::since`] to [`Self::until`], apart from a gap that is
/// still being estimated. The older a period, the longer it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoverageAccount {
    since: UnixMs,
    until: UnixMs,
    epoch: Vec<u8>,
    attached: UnixMs,
    total: Counts,
    periods: Vec<Period>,
    gap: Option<Gap>,
    /// Of a restored account: its end, and what was reported after it.
    unsettled: Option<(UnixMs, Rate)>,
}

/// The settled part of an account: what the next operator continues from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRecord {
    /// Time at which the first capture was attached.
    pub since: UnixMs,
    /// The end of the last period.
    pub until: UnixMs,
    /// Time at which the current epoch's capture was attached.
    pub attached: UnixMs,
    /// The counts of all epochs as of `until`.
    pub total: Counts,
    /// Reported after `until`: it may not have been written, but shows how busy the time was.
    pub unsettled: Rate,
    /// The periods, oldest first; complete ones that follow one another are one.
    pub periods: Vec<Period>,
}

impl CoverageAccount {
    /// An account that begins with a capture's first report.
    #[must_use]
    pub fn begin(first: &CaptureReport<'_>) -> Self {
        let mut account = Self {
            since: first.attached,
            until: first.attached,
            epoch: first.epoch.to_vec(),
            attached: first.attached,
            total: first.earlier,
            periods: Vec::new(),
            gap: None,
            unsettled: None,
        };
        account.observe(first);
        account
    }

    /// The account that an earlier operator has recorded, of this epoch.
    #[must_use]
    pub fn restore(record: AccountRecord, epoch: &[u8]) -> Self {
        let AccountRecord { since, until, attached, total, unsettled, periods } = record;
        let unsettled = Some((until, unsettled));
        Self { since, until, epoch: epoch.to_vec(), attached, total, periods, gap: None, unsettled }
    }

    /// Returns the time at which the first capture was attached.
    #[must_use]
    pub fn since(&self) -> UnixMs {
        self.since
    }

    /// Up to here the account is complete.
    #[must_use]
    pub fn until(&self) -> UnixMs {
        self.until
    }

    /// Takes in a report of a capture that runs. An agent that goes on with its epoch has observed all the time since
    /// its last report. Otherwise nothing is counted from there to the attach of the new epoch.
    ///
    /// The same is so for an epoch that was attached after a restored account's end: what earlier epochs have reported
    /// since then may not have been written.
    pub fn report(&mut self, report: &CaptureReport<'_>) {
        let is_new = self.epoch != report.epoch;
        if is_new {
            self.epoch = report.epoch.to_vec();
            self.attached = report.attached;
        }
        if is_new || self.attached > self.until {
            self.skip_to(self.attached);
            self.total = report.earlier;
        } else if self.unsettled.is_some_and(|(end, _)| end == self.until) {
            self.unsettled = None;
        }
        self.observe(report);
    }

    /// Continues under another epoch, whose counters go on from those of the present one.
    pub fn continue_as(&mut self, epoch: &[u8]) {
        self.epoch = epoch.to_vec();
    }

    /// Counts the time from the last report to `until` as unobserved.
    pub fn interrupt(&mut self, until: UnixMs) {
        self.skip_to(until);
    }

    fn skip_to(&mut self, attached: UnixMs) {
        self.settle();
        if attached > self.until {
            let unsettled = self.unsettled.filter(|(end, _)| *end == self.until).map(|(_, rate)| rate);
            let before = Rate::at_end(&self.periods).or_busier(unsettled.unwrap_or_default());
            self.gap = Some(Gap::new(self.until, attached, before));
            self.until = attached;
        }
    }

    fn observe(&mut self, report: &CaptureReport<'_>) {
        let made = report.made.max(self.until);
        let period = Period::observed(self.until, made, &report.total.since(&self.total), report.sampled);
        if self.gap.as_mut().is_some_and(|gap| gap.measure(&period)) {
            self.settle();
        }
        self.periods.push(period);
        self.until = made;
        self.total = report.total;
        self.compact();
    }

    /// Ends the estimate of the last gap.
    fn settle(&mut self) {
        if let Some(gap) = self.gap.take() {
            let at = self.periods.partition_point(|period| period.to <= gap.from && period.from < gap.to);
            self.periods.insert(at, gap.to_period());
        }
    }

    /// Joins periods that are older than their lengths are of use.
    fn compact(&mut self) {
        let until = self.until;
        join(&mut self.periods, |one, next| next.to.saturating_sub(one.from) <= longest(until.saturating_sub(next.to)));
    }

    /// All periods, the gap that is being estimated included. `blind_until`: there is no capture from the account's end
    /// until then, as far as is known.
    #[must_use]
    pub fn periods(&self, blind_until: Option<UnixMs>) -> Vec<Period> {
        let mut account = self.clone();
        account.settle();
        if let Some(blind_until) = blind_until.filter(|until| *until > account.until) {
            account.skip_to(blind_until);
            account.settle();
        }
        account.periods
    }

    /// The part of the account that was complete at `settled`, for the next operator.
    #[must_use]
    pub fn record(&self, settled: UnixMs) -> AccountRecord {
        let mut periods = self.periods(None);
        let kept = periods.partition_point(|period| period.to <= settled);
        let until = kept.checked_sub(1).map_or(self.since, |last| periods[last].to);
        let mut total = self.total;
        let mut unsettled = self.unsettled.filter(|(end, _)| *end == until).map(|(_, rate)| rate).unwrap_or_default();
        for later in periods.drain(kept..) {
            total = total.since(&later.counts());
            unsettled.add(&later);
        }
        let hour_ago = until.saturating_sub(HOUR);
        join(&mut periods, |one, next| {
            one.is_complete() && next.is_complete() && (next.to <= hour_ago || one.from >= hour_ago)
        });
        // Never so by the lengths above; a record of more than these would be refused.
        while periods.len() > MAX_PERIODS {
            let second = periods.remove(1);
            periods[0].append(&second);
        }
        AccountRecord { since: self.since, until, attached: self.attached, total, unsettled, periods }
    }
}

/// The greatest length of a period that ended so long ago.
fn longest(age: u64) -> u64 {
    // A period that reaches into a window belongs to it as a whole: it grows when it has certainly left.
    if age > DAY + HOUR {
        u64::MAX
    } else if age > HOUR + 2 * STEP {
        HOUR
    } else {
        (age / 4).clamp(SHORTEST, STEP)
    }
}

/// Joins periods that follow one another without a hole, where `fits` allows it.
fn join(periods: &mut Vec<Period>, fits: impl Fn(&Period, &Period) -> bool) {
    periods.dedup_by(|next, one| {
        let joins = one.to == next.from && fits(one, next);
        if joins {
            one.append(next);
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use crds::Losses;

    use super::*;
    use crate::coverage::{MINUTE, period::Shortfall};

    const SECOND: u64 = 1_000;

    fn report(epoch: &[u8], attached: UnixMs, made: UnixMs, seen: u64) -> CaptureReport<'_> {
        let total = Counts { seen, ..Counts::default() };
        CaptureReport { epoch, attached, made, earlier: Counts::default(), total, sampled: false }
    }

    /// An agent that reports every second, with ten connections in each.
    fn observe(account: &mut CoverageAccount, epoch: &[u8], seconds: std::ops::Range<u64>) {
        for second in seconds {
            let seen = account.total.seen + 10;
            account.report(&report(epoch, account.attached, second * SECOND, seen));
        }
    }

    fn sum(periods: &[Period]) -> (u64, Shortfall) {
        let mut all = Shortfall::default();
        periods.iter().filter_map(|period| period.shortfall.as_ref()).for_each(|it| all.add(it));
        (periods.iter().map(|period| period.seen).sum(), all)
    }

    fn began() -> CoverageAccount {
        CoverageAccount::begin(&report(b"1", 0, SECOND, 10))
    }

    #[test]
    fn observed_time_is_complete() {
        let mut account = began();
        observe(&mut account, b"1", 2..7200);
        let periods = account.periods(None);
        assert!(periods.iter().all(Period::is_complete), "{periods:?}");
        assert_eq!((sum(&periods).0, account.since(), account.until()), (71_990, 0, 7_199 * SECOND));
        assert!(periods.len() < 100, "{}", periods.len());
        assert!(periods.windows(2).all(|pair| pair[0].to == pair[1].from), "{periods:?}");
    }

    #[test]
    fn time_from_the_last_report_to_the_next_attach_is_a_gap() {
        let mut account = began();
        observe(&mut account, b"1", 2..11);
        let total = Counts { seen: 105, ..Counts::default() };
        let earlier = account.total;
        account.report(&CaptureReport { earlier, total, ..report(b"2", 12_500, 13_000, 0) });
        let (seen, shortfall) = sum(&account.periods(None));
        assert_eq!((seen, shortfall.unobserved_ms, shortfall.intervals, shortfall.missed), (105, 2_500, 1, 25));
        observe(&mut account, b"2", 14..4000);
        assert_eq!(sum(&account.periods(None)).1, shortfall, "what follows does not change it");
    }

    #[test]
    fn capture_that_overlaps_with_the_one_before_leaves_no_gap() {
        let mut account = began();
        account.report(&CaptureReport { earlier: account.total, ..report(b"2", 900, 2_000, 15) });
        assert_eq!(sum(&account.periods(None)), (15, Shortfall::default()));
    }

    #[test]
    fn later_report_of_one_epoch_never_leaves_a_gap() {
        let mut account = began();
        account.report(&report(b"1", 0, 600 * SECOND, 6_000));
        assert_eq!(sum(&account.periods(None)), (6_000, Shortfall::default()));
    }

    #[test]
    fn blind_time_is_assumed_not_remembered() {
        let mut account = began();
        observe(&mut account, b"1", 2..61);
        let blind = sum(&account.periods(Some(120 * SECOND))).1;
        assert_eq!((blind.unobserved_ms, blind.intervals, blind.missed), (60_000, 1, 600));
        account.report(&report(b"1", 0, 130 * SECOND, 1_300));
        assert_eq!(sum(&account.periods(None)).1, Shortfall::default(), "it had observed all the while");
    }

    #[test]
    fn clock_that_goes_back_adds_no_time() {
        let mut account = began();
        observe(&mut account, b"1", 2..11);
        account.report(&report(b"1", 0, 4 * SECOND, 150));
        assert_eq!((account.until(), sum(&account.periods(None)).0), (10 * SECOND, 150));
        let earlier = account.total;
        account.report(&CaptureReport { earlier, ..report(b"2", 5 * SECOND, 6 * SECOND, 160) });
        assert_eq!((account.until(), sum(&account.periods(None)).1), (10 * SECOND, Shortfall::default()));
    }

    #[test]
    fn losses_stay_where_they_happened() {
        let mut account = began();
        observe(&mut account, b"1", 2..100);
        let losses = Losses { opened: 7, closed: 1, new_flow_notifications: 9, ..Losses::default() };
        let total = Counts { seen: 1_000, losses };
        account.report(&CaptureReport { total, ..report(b"1", 0, 100 * SECOND, 0) });
        for second in 101..9_000 {
            account.report(&CaptureReport { total, ..report(b"1", 0, second * SECOND, 0) });
        }
        let lossy: Vec<_> = account.periods(None).into_iter().filter(|period| !period.is_complete()).collect();
        let [lossy] = &lossy[..] else { panic!("{lossy:?}") };
        let counted = Losses { new_flow_notifications: 0, ..losses };
        assert_eq!(lossy.shortfall.as_ref().unwrap().losses, counted);
        assert!(lossy.from <= 99 * SECOND && lossy.to >= 100 * SECOND && lossy.length() <= HOUR, "{lossy:?}");
    }

    #[test]
    fn record_ends_where_it_is_settled_and_restores_the_same() {
        let mut account = began();
        observe(&mut account, b"1", 2..1_000);
        let record = account.record(900 * SECOND);
        assert!((870 * SECOND..=900 * SECOND).contains(&record.until), "{}", record.until);
        assert_eq!(record.total.seen, record.until / 100);
        assert_eq!(record.periods.len(), 1, "complete periods are one: {:?}", record.periods);
        let mut restored = CoverageAccount::restore(record, b"1");
        restored.report(&report(b"1", 0, 1_100 * SECOND, 11_000));
        assert_eq!(sum(&restored.periods(None)), (11_000, Shortfall::default()));
    }

    #[test]
    fn another_epoch_after_a_restore_leaves_a_gap_from_the_settled_end() {
        let mut account = began();
        observe(&mut account, b"1", 2..1_000);
        let record = account.record(900 * SECOND);
        let settled = record.until;
        let mut restored = CoverageAccount::restore(record, b"1");
        // What the epoch has counted after the settled end is not counted: it may not have been written.
        let earlier = account.total;
        let total = Counts { seen: earlier.seen + 20, ..earlier };
        restored.report(&CaptureReport { earlier, total, ..report(b"2", 1_010 * SECOND, 1_012 * SECOND, 0) });
        let (seen, shortfall) = sum(&restored.periods(None));
        assert_eq!((seen, shortfall.unobserved_ms), (settled / 100 + 20, 1_010 * SECOND - settled));
    }

    #[test]
    fn epoch_that_began_after_the_settled_end_leaves_the_gap_too() {
        let mut account = began();
        observe(&mut account, b"1", 2..1_000);
        let earlier = account.total;
        let total = Counts { seen: earlier.seen + 20, ..earlier };
        let second = CaptureReport { earlier, total, ..report(b"2", 1_000 * SECOND, 1_002 * SECOND, 0) };
        account.report(&second);
        let record = account.record(980 * SECOND);
        let settled = record.until;
        let mut restored = CoverageAccount::restore(record, b"2");
        restored.report(&CaptureReport { made: 1_003 * SECOND, ..second });
        let (seen, shortfall) = sum(&restored.periods(None));
        assert_eq!((seen, shortfall.unobserved_ms), (settled / 100 + 20, 1_000 * SECOND - settled));
        assert_eq!(shortfall.intervals, 1);
    }

    #[test]
    fn what_was_reported_and_not_settled_tells_how_busy_the_gap_was() {
        let mut account = began();
        observe(&mut account, b"1", 2..1_000);
        let settled = account.record(900 * SECOND);
        let (until, unsettled) = (settled.until, settled.unsettled);
        assert_eq!((unsettled.happened, unsettled.observed_ms), (9_990 - until / 100, 999 * SECOND - until));
        // Nothing happens any more, through two operators.
        let mut restored = CoverageAccount::restore(settled, b"1");
        let earlier = account.total;
        let quiet = CaptureReport { earlier, total: earlier, ..report(b"2", 1_100 * SECOND, 1_101 * SECOND, 0) };
        restored.report(&quiet);
        assert_eq!(sum(&restored.periods(None)).1.missed, (1_100 * SECOND - until) / 100);
        let mut again = CoverageAccount::restore(restored.record(1_050 * SECOND), b"2");
        again.report(&CaptureReport { epoch: b"3", attached: 1_200 * SECOND, made: 1_230 * SECOND, ..quiet });
        let missed = sum(&again.periods(None)).1.missed;
        let happened = (1_200 * SECOND - until) / 100;
        assert!((happened * 9 / 10..=happened).contains(&missed), "{missed} of {happened}");
        assert_eq!(again.record(1_230 * SECOND).unsettled, Rate::default(), "it is settled");
    }

    #[test]
    fn account_of_many_days_stays_small() {
        let mut account = began();
        for hour in 1..24 * 30 {
            for step in 0..60 {
                let made = (hour * 60 + step) * MINUTE;
                account.report(&report(b"1", 0, made, made / 100));
            }
            let earlier = account.total;
            let epoch = u64::to_le_bytes(hour);
            let made = account.until() + 2_000;
            account.report(&CaptureReport { earlier, total: earlier, ..report(&epoch, made - 1_000, made, 0) });
            account.epoch = b"1".to_vec();
        }
        let record = account.record(account.until());
        assert!(account.periods.len() < 100 && record.periods.len() < 80, "{}", account.periods.len());
        assert_eq!(sum(&record.periods).1.intervals, 24 * 30 - 1);
        assert_eq!(record.periods[0].from, 0);
    }
}
