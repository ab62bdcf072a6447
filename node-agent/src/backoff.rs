//! How long to wait before something that failed is tried again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays that double up to a maximum, with jitter, so that a thousand agents don't come back at once. Never ends.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// Delays from `min` to `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        // The jitter adds up to one delay.
        let builder =
            ExponentialBuilder::default().with_min_delay(min).with_max_delay(max / 2).with_jitter().without_max_times();
        Self { builder, delays: builder.build(), max }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.max).min(self.max)
    }

    /// It worked: begin anew with the shortest delay.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
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
}
