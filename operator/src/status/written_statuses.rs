//! Statuses that this operator has written, and writes that fail. Decides what is due.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{api_problems::is_of_server, rollout::apply::ApplyError};

/// Time for which the watch may lag behind our own write; until then, its state is not taken for another client's.
pub(super) const ECHO: Duration = Duration::from_secs(10);
/// Minimum and maximum pause of an object after a failed write. Those of other objects go on.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Maximum pause after a failure of the API server, which ends for all objects at once.
const LONGEST_OF_SERVER: Duration = Duration::from_secs(4);

/// Last written statuses of one kind, by name.
pub(super) struct WrittenStatuses<S> {
    pub statuses: BTreeMap<String, (S, Instant)>,
    /// Objects whose last write failed.
    failing: BTreeMap<String, Failure>,
}

struct Failure {
    retry_at: Instant,
    pause: Duration,
}

impl<S> Default for WrittenStatuses<S> {
    fn default() -> Self {
        Self { statuses: BTreeMap::new(), failing: BTreeMap::new() }
    }
}

/// Urgency of a status write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Write at once.
    Now,
    /// Write of growing numbers, with the time for which they have waited.
    Numbers(Duration),
    /// No write before the pause after a failure has passed.
    Later,
    /// No write.
    No,
}

impl<S: PartialEq + Clone> WrittenStatuses<S> {
    pub fn due(
        &self,
        name: &str,
        desired: &S,
        there: Option<&S>,
        interval: Duration,
        differs: impl Fn(&S, &S) -> bool,
    ) -> Due {
        let own = self.statuses.get(name);
        let echo_pending = own.is_some_and(|(_, at)| at.elapsed() < ECHO);
        let pauses = self.failing.get(name).is_some_and(|failure| Instant::now() < failure.retry_at);
        let now = if pauses { Due::Later } else { Due::Now };
        let (current, waited) = match (own, there) {
            (Some((own, at)), _) if echo_pending => (own, at.elapsed()),
            (own, Some(there)) => (there, own.map_or(Duration::MAX, |(_, at)| at.elapsed())),
            (_, None) => return now,
        };
        if current == desired {
            Due::No
        } else if differs(current, desired) {
            now
        } else if waited >= interval {
            if pauses { Due::Later } else { Due::Numbers(waited) }
        } else {
            Due::No
        }
    }

    pub fn note(&mut self, name: &str, status: S) {
        self.statuses.insert(name.to_owned(), (status, Instant::now()));
        self.failing.remove(name);
    }

    /// Forgets that the last write of an object failed. Returns whether it had.
    pub fn succeed(&mut self, name: &str) -> bool {
        self.failing.remove(name).is_some()
    }

    /// Forgets all but these objects. Returns those of the others whose last write failed.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) -> Vec<String> {
        self.statuses.retain(|name, _| is_there(name));
        self.failing.extract_if(.., |name, _| !is_there(name)).map(|(name, _)| name).collect()
    }

    /// Logs a failed write; as a warning only the first time in a row.
    pub fn fail(&mut self, name: &str, error: &ApplyError) {
        let (least, most) = PAUSES;
        let most = if is_of_server(&error.source) { LONGEST_OF_SERVER } else { most };
        let earlier = self.failing.get(name).map(|failure| failure.pause);
        let pause = earlier.map_or(least, |pause| (pause * 2).min(most));
        self.failing.insert(name.to_owned(), Failure { retry_at: Instant::now() + pause, pause });
        if earlier.is_none() {
            tracing::warn!(name, %error, "cannot write a status; trying again");
        } else {
            tracing::debug!(name, %error, ?pause, "still cannot write a status");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(written: &WrittenStatuses<u32>, name: &str, desired: u32, there: Option<u32>) -> Due {
        written.due(name, &desired, there.as_ref(), Duration::from_secs(15), |one, other| one / 10 != other / 10)
    }

    #[test]
    fn failed_write_waits_and_affects_no_other_object() {
        let mut written = WrittenStatuses::default();
        assert_eq!(due(&written, "a", 1, None), Due::Now);
        let error = ApplyError::new("write", "a", kube::Error::LinesCodecMaxLineLengthExceeded);
        written.fail("a", &error);
        written.fail("a", &error);
        assert_eq!(written.failing["a"].pause, Duration::from_secs(2));
        assert_eq!([due(&written, "a", 1, None), due(&written, "b", 1, None)], [Due::Later, Due::Now]);
        assert_eq!(due(&written, "a", 20, Some(1)), Due::Later);
        assert_eq!(due(&written, "a", 2, Some(1)), Due::Later);
        assert_eq!(due(&written, "a", 1, Some(1)), Due::No, "a write whose answer was lost was applied");
        for _ in 0..9 {
            written.fail("a", &error);
        }
        assert_eq!(written.failing["a"].pause, PAUSES.1);
        written.note("a", 1);
        assert_eq!(due(&written, "a", 20, Some(1)), Due::Now);
        assert!(!written.succeed("a"));
        written.fail("a", &error);
        assert_eq!(written.retain(|name| name != "a"), ["a"]);
        assert_eq!(due(&written, "a", 1, None), Due::Now);
    }
}
