//! Times in 8 bytes instead of 16, exact to a microsecond.

use std::time::{Duration, Instant};

/// A time, in microseconds after the clock's start; negative before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(i64);

impl Moment {
    /// Time since an earlier moment; none since a later one.
    pub(super) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or_default())
    }
}

/// Makes moments of times and times of moments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn starting_at(start: Instant) -> Self {
        Self { start }
    }

    /// The last moment that is not after this.
    pub(super) fn floor(self, time: Instant) -> Moment {
        match time.checked_duration_since(self.start) {
            Some(after) => Moment(micros(after)),
            None => Moment(-micros(self.start.duration_since(time)) - 1),
        }
    }

    /// The first moment that is not before this.
    pub(super) fn ceil(self, time: Instant) -> Moment {
        let floor = self.floor(time);
        if self.time(floor) == time { floor } else { Moment(floor.0 + 1) }
    }

    pub(super) fn time(self, moment: Moment) -> Instant {
        let distance = Duration::from_micros(moment.0.unsigned_abs());
        // What lies before the beginning of the system's clock has not been.
        if moment.0 < 0 { self.start.checked_sub(distance).unwrap_or(self.start) } else { self.start + distance }
    }
}

/// Up to 292,000 years.
fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_within_a_microsecond_on_the_safe_side() {
        let hour = Duration::from_hours(1);
        let first = Instant::now();
        let (start, last) = (first + hour, first + 2 * hour);
        let clock = Clock::starting_at(start);
        let before = |time: Instant, distance| time.checked_sub(distance).unwrap();
        for nanos in [0, 1, 999, 1_000, 1_001, 1_234_567_890] {
            let distance = Duration::from_nanos(nanos);
            for time in [start + distance, before(last, distance), first + distance, before(start, distance)] {
                let (floor, ceil) = (clock.time(clock.floor(time)), clock.time(clock.ceil(time)));
                assert!(floor <= time && time <= ceil, "{nanos}");
                assert!(ceil - floor <= Duration::from_micros(1), "{nanos}");
            }
        }
    }
}
