//! Times of the events that a report describes.
//!
//! A capture finds an event between two scans. An agent reports the times as ages, so that no clock of a node has to be
//! right. The operator converts them to times of its own clock.

use std::time::{Duration, SystemTime};

/// Ages of a flow's events when a message was made. Invariant: first >= news >= changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    first: Duration,
    news: Duration,
    changed: Duration,
}

impl Ages {
    /// Returns ages of the flow's first connection or attempt (upper bound), of its unreported changes (upper bound)
    /// and of its last change (lower bound). Values that contradict the invariant are increased.
    #[must_use]
    pub fn of(first: Duration, news: Duration, changed: Duration) -> Self {
        let news = news.max(changed);
        Self { first: first.max(news), news, changed }
    }

    /// Returns the upper bound of the age of the flow's first connection or attempt; at least [`Self::news`].
    #[must_use]
    pub fn first(&self) -> Duration {
        self.first
    }

    /// Returns the upper bound of the age of unreported changes; at least [`Self::changed`].
    #[must_use]
    pub fn news(&self) -> Duration {
        self.news
    }

    /// Returns the lower bound of the age of the flow's last change.
    #[must_use]
    pub fn changed(&self) -> Duration {
        self.changed
    }
}

/// Times of a flow's events by the operator's clock. Invariant: first <= news <= changed <= received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    first: SystemTime,
    news: SystemTime,
    changed: SystemTime,
    received: SystemTime,
}

impl Sighting {
    /// Converts the ages of a message that was made at `sent`, by the operator's clock, and received at `received`. If
    /// `sent` is later than `received`, `received` is used. Ages beyond the start of time end there.
    #[must_use]
    pub fn new(ages: &Ages, sent: SystemTime, received: SystemTime) -> Self {
        let sent = sent.min(received);
        let ago = |age: Duration| sent.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH).min(sent);
        Self { first: ago(ages.first), news: ago(ages.news), changed: ago(ages.changed), received }
    }

    /// Returns the lower bound of the time at which the flow's first connection or attempt happened or was found open.
    #[must_use]
    pub fn first(&self) -> SystemTime {
        self.first
    }

    /// Returns the lower bound of the time of unreported changes; not before [`Self::first`].
    #[must_use]
    pub fn news(&self) -> SystemTime {
        self.news
    }

    /// Returns the upper bound of the time of the flow's last event; not before [`Self::news`].
    #[must_use]
    pub fn changed(&self) -> SystemTime {
        self.changed
    }

    /// Returns the time at which the message was received; not before [`Self::changed`].
    #[must_use]
    pub fn received(&self) -> SystemTime {
        self.received
    }
}

/// Sets all times to the time of the report.
impl From<SystemTime> for Sighting {
    fn from(now: SystemTime) -> Self {
        Self { first: now, news: now, changed: now, received: now }
    }
}
