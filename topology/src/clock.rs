//! Estimates the offset between a node's clock and the operator's, from the node's messages.

use std::time::{Duration, SystemTime};

/// Upper bound of a message's delay, after which its sender gives up. A longer delay means that a clock differs or was
/// set.
const LONGEST_WAY: Duration = Duration::from_secs(30);

/// Duration for which the shortest delay counts. Clocks drift by about 100 ms per hour.
const WINDOW: Duration = Duration::from_mins(10);

/// The difference between two clocks in nanoseconds, of any sign, as `received - sent`.
type Difference = i128;

/// Estimated offset of one node's clock.
///
/// Of many messages, the one with the shortest delay gives the best estimate. The estimate is too great by that delay
/// (a few milliseconds) and never too small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeClock {
    /// The least difference of this window, and of the one before.
    least: Option<Difference>,
    before: Option<Difference>,
    /// Start of this window.
    since: Option<SystemTime>,
}

impl NodeClock {
    /// Records a message that was sent at `sent` by the node's clock and received at `received` by the operator's.
    /// Messages are recorded in the order of their receipt.
    ///
    /// Returns its sending time by the operator's clock: at most `received`, and at most 30 s before it.
    pub fn observe(&mut self, sent: SystemTime, received: SystemTime) -> SystemTime {
        let difference = nanos(received) - nanos(sent);
        let longest = Difference::try_from(LONGEST_WAY.as_nanos()).unwrap_or(Difference::MAX);
        if self.difference().is_some_and(|least| difference - least > longest) {
            // One of the clocks was set.
            *self = Self::default();
        }
        if self.since.is_none_or(|since| received.duration_since(since).map_or(true, |age| age >= WINDOW)) {
            (self.before, self.least, self.since) = (self.least, None, Some(received));
        }
        self.least = Some(self.least.map_or(difference, |least| least.min(difference)));
        self.to_operator(sent).min(received)
    }

    /// Converts a time of the node's clock to the operator's. Returns it unchanged before the first message.
    #[must_use]
    pub fn to_operator(&self, time: SystemTime) -> SystemTime {
        let moved = nanos(time) + self.difference().unwrap_or(0);
        from_nanos(moved)
    }

    /// Returns whether both clocks agree within a twentieth of a second.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        const CLOSE: Difference = 50_000_000;
        (self.difference().unwrap_or(0) - other.difference().unwrap_or(0)).abs() <= CLOSE
    }

    /// Returns how far the operator's clock is ahead of the node's (negative if behind), too great by at most one
    /// message's delay. `None` before the first message.
    fn difference(&self) -> Option<Difference> {
        match (self.least, self.before) {
            (Some(least), Some(before)) => Some(least.min(before)),
            (least, before) => least.or(before),
        }
    }
}

fn nanos(time: SystemTime) -> Difference {
    let signed = |duration: Duration| Difference::try_from(duration.as_nanos()).unwrap_or(Difference::MAX);
    time.duration_since(SystemTime::UNIX_EPOCH).map_or_else(|before| -signed(before.duration()), signed)
}

/// Converts nanoseconds since 1970 to a time. Earlier ones become 1970, and unrepresentable ones the last possible time.
fn from_nanos(nanos: Difference) -> SystemTime {
    const SECOND: Difference = 1_000_000_000;
    let seconds = u64::try_from(nanos.max(0) / SECOND).unwrap_or(u64::MAX);
    let rest = u32::try_from(nanos.max(0) % SECOND).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, rest)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    /// Sends messages every second from `from_ms` on, by the operator's clock, each of which takes so long; the node's clock
    /// is ahead by so much. Returns by how much each is said to have taken.
    fn send(clock: &mut NodeClock, from_ms: u64, ahead_ms: i64, took_ms: &[u64]) -> Vec<u64> {
        let sent = |(number, took_ms): (u64, &u64)| {
            let sent_ms = from_ms + 1_000 * number;
            let received = at(sent_ms + took_ms);
            let told = clock.observe(at(sent_ms.saturating_add_signed(ahead_ms)), received);
            u64::try_from(received.duration_since(told).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
        };
        (0..).zip(took_ms).map(sent).collect()
    }

    #[test]
    fn the_shortest_way_tells_how_far_clocks_are_apart() {
        for ahead_ms in [0, 3_600_000, -3_600_000] {
            let mut clock = NodeClock::default();
            assert_eq!(send(&mut clock, 10 * HOUR_MS, ahead_ms, &[40, 5, 90]), [0, 0, 85]);
            let noon = 12 * HOUR_MS;
            assert_eq!(clock.to_operator(at(noon.saturating_add_signed(ahead_ms))), at(noon + 5));
        }
    }

    #[test]
    fn a_clock_that_is_set_is_believed_at_once() {
        for (before_ms, after_ms) in [(0, 3_600_000), (0, -3_600_000), (500, -45_000)] {
            let mut clock = NodeClock::default();
            send(&mut clock, 10 * HOUR_MS, before_ms, &[5, 5]);
            assert_eq!(send(&mut clock, 11 * HOUR_MS, after_ms, &[7, 20]), [0, 13], "{before_ms} {after_ms}");
        }
    }

    #[test]
    fn a_clock_that_drifts_is_followed() {
        let mut clock = NodeClock::default();
        send(&mut clock, 10 * HOUR_MS, 0, &[5; 60]);
        // It falls behind, so that messages seem to take longer.
        for minutes in 0..40 {
            send(&mut clock, 10 * HOUR_MS + 60_000 * (minutes + 1), -200, &[5; 60]);
        }
        assert_eq!(send(&mut clock, 11 * HOUR_MS, -200, &[5]), [0]);
    }

    #[test]
    fn times_at_the_ends_of_what_a_clock_can_show_do_not_panic() {
        let mut clock = NodeClock::default();
        let last = at(253_402_300_799_999);
        assert_eq!(clock.observe(last, SystemTime::UNIX_EPOCH), SystemTime::UNIX_EPOCH);
        assert_eq!(clock.to_operator(SystemTime::UNIX_EPOCH), SystemTime::UNIX_EPOCH);
        assert_eq!(clock.observe(SystemTime::UNIX_EPOCH, last), last);
    }
}
