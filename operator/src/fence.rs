//! Fence before the API server: stops writes after the end of the lease. A task may run before it is notified of that, for
//! example after the process was stopped for longer than its lease.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Time until which this operator may write, by its monotonic clock. Closed at first. All clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// Returns whether this operator may write at this time.
    #[must_use]
    pub fn is_open(&self, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }

    /// Lets writes pass until this time.
    pub fn open_until(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Stops writes at once.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn fence_closes_by_itself_at_the_end_of_the_lease() {
        let (fence, now) = (Fence::default(), Instant::now());
        assert!(!fence.is_open(now));
        let until = now + Duration::from_secs(5);
        fence.clone().open_until(until);
        assert!(fence.is_open(until - Duration::from_nanos(1)));
        assert!(!fence.is_open(until));
        fence.close();
        assert!(!fence.is_open(now));
    }
}
