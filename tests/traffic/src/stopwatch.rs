//! Start and duration of an operation.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::protocol::Outcome;

/// Runs from its making.
#[derive(Debug)]
pub struct Stopwatch {
    began: SystemTime,
    monotonic: Instant,
}

impl Stopwatch {
    /// Begins now.
    #[must_use]
    pub fn start() -> Self {
        Self { began: SystemTime::now(), monotonic: Instant::now() }
    }

    /// The outcome with the time until now.
    #[must_use]
    pub fn time(&self, outcome: Outcome) -> Outcome {
        let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Outcome {
            began_unix_micros: micros(self.began.duration_since(UNIX_EPOCH).unwrap_or_default()),
            micros: micros(self.monotonic.elapsed()),
            ..outcome
        }
    }
}
