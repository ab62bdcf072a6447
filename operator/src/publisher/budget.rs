//! Write budget: a rate per second, and a burst after a quiet time.

use std::time::{Duration, Instant};

/// A token bucket.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    interval: Duration,
    burst: u32,
    /// Time at which the bucket would be full.
    full_at: Instant,
}

impl Budget {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / per_second, burst, full_at: now }
    }

    /// Returns the time of the next allowed write, if none is allowed now.
    pub(super) fn available(&self, now: Instant) -> Option<Instant> {
        let full_at = self.full_at.max(now);
        let at = (full_at + self.interval).checked_sub(self.interval * self.burst)?;
        (at > now).then_some(at)
    }

    /// Takes a write.
    pub(super) fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(10, 3, start);
        let mut at_once = |now| {
            let allowed = |budget: &mut Budget| budget.available(now).is_none().then(|| budget.take(now));
            (0..5).map_while(|_| allowed(&mut budget)).count()
        };
        assert_eq!(at_once(start), 3);
        assert_eq!(at_once(start), 0);
        assert_eq!(at_once(start + Duration::from_millis(99)), 0);
        assert_eq!(at_once(start + Duration::from_millis(100)), 1);
        assert_eq!(at_once(start + Duration::from_mins(1)), 3);
    }
}
