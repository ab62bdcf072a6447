//! Delays between attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Attempts take a twentieth of the time at most: each costs as much as starting on a large node does.
const PAUSE: u32 = 20;

/// The longest pause, however long an attempt took.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// Delays that double up to a maximum, with jitter, so that a thousand agents don't come back at once. Never ends.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    max: Duration,
    /// True if an attempt has failed since it worked last.
    has_failed: bool,
}

impl Backoff {
    /// Delays from `min` to `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        // The jitter adds up to one delay.
        let builder =
            ExponentialBuilder::default().with_min_delay(min).with_max_delay(max / 2).with_jitter().without_max_times();
        Self { builder, delays: builder.build(), max, has_failed: false }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.max).min(self.max)
    }

    /// The next delay after an attempt that took so long. After a second one in a row nothing is attempted for
    /// [`PAUSE`] times as long, up to [`LONGEST_PAUSE`].
    pub fn next_delay_after(&mut self, attempt: Duration) -> Duration {
        let pause = if self.has_failed { attempt.saturating_mul(PAUSE).min(LONGEST_PAUSE) } else { Duration::ZERO };
        self.has_failed = true;
        self.next_delay().max(pause)
    }

    /// It worked: begin anew with the shortest delay.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
        self.has_failed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_maximum_and_start_over() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(10));
        let mut backoff = Backoff::new(min, max);
        let first = backoff.next_delay();
        assert!(first >= min && first <= 2 * min, "{first:?}");
        let later: Vec<_> = (0..20).map(|_| backoff.next_delay()).collect();
        assert!(later.iter().all(|delay| *delay >= min && *delay <= max), "{later:?}");
        assert!(later[19] >= max / 2);
        backoff.reset();
        assert!(backoff.next_delay() <= 2 * min);
    }

    #[test]
    fn attempts_that_take_long_are_rare() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut backoff = Backoff::new(min, max);
        assert!(backoff.next_delay_after(Duration::from_secs(3)) <= 2 * min, "it may have been bad luck");
        assert_eq!(backoff.next_delay_after(Duration::from_secs(3)), Duration::from_mins(1));
        assert_eq!(backoff.next_delay_after(Duration::from_hours(1)), LONGEST_PAUSE);
        assert!(backoff.next_delay_after(Duration::from_millis(1)) <= max);
        backoff.reset();
        assert!(backoff.next_delay_after(Duration::from_secs(3)) <= 2 * min);
    }
}
