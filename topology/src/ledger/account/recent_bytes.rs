//! Payload that a flow had a short while ago. The agents of a connection's two ends report at different times.

use std::time::{Duration, SystemTime};

/// Least time between two marks, the time for which a report of the other end may be due.
const SPACING: Duration = Duration::from_secs(2);

/// Payload of a flow, sent and received by the end that was observed, since a time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    since: SystemTime,
    bytes: [u64; 2],
}

/// Payload at two times, the later one first. Memory is fixed, so the times are not exact.
#[derive(Clone, Copy, Debug)]
pub(in crate::ledger) struct RecentBytes([Mark; 2]);

impl Default for RecentBytes {
    fn default() -> Self {
        Self([Mark { since: SystemTime::UNIX_EPOCH, bytes: [0; 2] }; 2])
    }
}

impl RecentBytes {
    /// Records payload that was reached at `since` and is about to change. Of several records of one time the last counts: a
    /// flow's first report comes when nothing had been reached before.
    pub(super) fn note(&mut self, since: SystemTime, bytes: [u64; 2]) {
        let [newer, _] = self.0;
        if since == newer.since {
            self.0[0].bytes = bytes;
        } else if since.duration_since(newer.since).is_ok_and(|passed| passed >= SPACING) {
            self.0 = [Mark { since, bytes }, newer];
        }
    }

    /// Returns a lower bound of the payload at `time`.
    pub(in crate::ledger) fn at(&self, time: SystemTime) -> [u64; 2] {
        self.0.iter().find(|mark| mark.since <= time).map_or([0; 2], |mark| mark.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Longest time between two reports.
    const LONGEST: Duration = Duration::from_secs(3);

    #[test]
    fn payload_of_a_first_report_counts_from_its_time_on() {
        let mut recent = RecentBytes::default();
        let first = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        recent.note(first, [0; 2]);
        recent.note(first, [7, 8]);
        assert_eq!(recent.at(first), [7, 8]);
        assert_eq!(recent.at(first - Duration::from_secs(1)), [0; 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bytes_are_a_lower_bound_and_not_much_older(steps in prop::collection::vec((1..3000_u64, 1..100_u64), 1..40)) {
            let mut recent = RecentBytes::default();
            let (mut now, mut bytes) = (SystemTime::UNIX_EPOCH + Duration::from_secs(100), 0);
            let mut states = vec![(now, bytes)];
            for (pause, more) in steps {
                recent.note(now, [bytes, 0]);
                now += Duration::from_millis(pause);
                bytes += more;
                states.push((now, bytes));
                let at = |time: SystemTime| states.iter().rfind(|(since, _)| *since <= time).map_or(0, |(_, bytes)| *bytes);
                let asked = now - SPACING;
                let [sent, _] = recent.at(asked);
                prop_assert!(sent <= at(asked));
                prop_assert!(sent >= at(asked - 2 * (SPACING + LONGEST)));
            }
        }
    }
}
