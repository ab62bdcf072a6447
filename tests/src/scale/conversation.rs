//! Connections of two pods over time: both agents and the oracle compute the same counts from it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Number of seconds after which a conversation has one connection more. A tenth of all grow each second.
pub const PERIOD: u64 = 10;
/// Bytes that the client sends on a connection.
pub const SENT: u64 = 500;
/// Bytes that the client receives on a connection.
pub const RECEIVED: u64 = 2_000;

/// Time since a run began, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    /// Time now.
    #[must_use]
    pub fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Moment of a time.
    #[must_use]
    pub fn at(self, milliseconds: u64) -> Instant {
        self.0 + Duration::from_millis(milliseconds)
    }
}

/// Connections between two pods: one at the beginning, and one more every [`PERIOD`] seconds. The last one is open until the
/// conversation ends.
#[derive(Debug)]
pub struct Conversation {
    born: u64,
    phase: u64,
    ended: AtomicU64,
}

impl Conversation {
    /// Begins a conversation. `phase` spreads the growth of many over the seconds.
    #[must_use]
    pub fn begin(now: u64, phase: u64) -> Self {
        Self { born: now, phase: phase % PERIOD, ended: AtomicU64::new(u64::MAX) }
    }

    /// Time of its first connection.
    #[must_use]
    pub fn born(&self) -> u64 {
        self.born
    }

    /// Ends it after `now`: no connection is open then, and none follows. Counts up to `now` stay as they are.
    pub fn end(&self, now: u64) {
        self.ended.fetch_min(now + 1, Ordering::Relaxed);
    }

    /// Returns whether it has ended by that time.
    #[must_use]
    pub fn has_ended(&self, now: u64) -> bool {
        self.ended.load(Ordering::Relaxed) <= now
    }

    /// Number of connections that were opened until then.
    #[must_use]
    pub fn opened(&self, now: u64) -> u64 {
        let until = now.min(self.ended.load(Ordering::Relaxed));
        1 + (until.saturating_sub(self.born) / 1_000 + self.phase) / PERIOD
    }

    /// Number of these that are closed.
    #[must_use]
    pub fn closed(&self, now: u64) -> u64 {
        self.opened(now) - u64::from(!self.has_ended(now))
    }

    /// Time of its last change until then.
    #[must_use]
    pub fn changed(&self, now: u64) -> u64 {
        let ended = self.ended.load(Ordering::Relaxed);
        if ended <= now { ended } else { self.opened_at(self.opened(now)) }
    }

    /// Time of the first change after a connection of this number was opened.
    #[must_use]
    pub fn change_after(&self, opened: u64) -> u64 {
        self.opened_at(opened + 1).min(self.ended.load(Ordering::Relaxed))
    }

    /// Time at which a connection opens, by its number from 1.
    fn opened_at(&self, number: u64) -> u64 {
        self.born + 1_000 * ((number - 1) * PERIOD).saturating_sub(self.phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_every_ten_seconds() {
        let conversation = Conversation::begin(500, 3);
        assert_eq!((conversation.opened(500), conversation.closed(500)), (1, 0));
        assert_eq!((conversation.opened(7_499), conversation.opened(7_500)), (1, 2));
        assert_eq!(conversation.changed(9_000), 7_500);
        assert_eq!(conversation.change_after(1), 7_500);
        conversation.end(8_000);
        conversation.end(9_000);
        assert_eq!((conversation.closed(8_000), conversation.closed(8_001)), (1, 2));
        assert_eq!((conversation.opened(60_000), conversation.closed(60_000)), (2, 2));
        assert_eq!((conversation.changed(60_000), conversation.change_after(2)), (8_001, 8_001));
    }

    #[test]
    fn tenth_of_all_conversations_grows_each_second() {
        let all: Vec<_> = (0..100).map(|phase| Conversation::begin(0, phase)).collect();
        let sum = |now| all.iter().map(|it| it.opened(now)).sum::<u64>();
        assert_eq!((sum(0), sum(1_000), sum(10_000)), (100, 110, 200));
    }
}
