//! Times of the events that a report describes.
//!
//! A capture looks now and then: what it finds happened between two looks. An agent tells these times as ages, so that
//! no clock of a node has to be right, and the operator makes times of its own clock of them.

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

    /// The flow's first connection or attempt happened, or was found open, at most so long ago; at least [`Self::news`].
    #[must_use]
    pub fn first(&self) -> Duration {
        self.first
    }

    /// Upper bound of the age of unreported changes; at least [`Self::changed`].
    #[must_use]
    pub fn news(&self) -> Duration {
        self.news
    }

    /// All of it happened at least so long ago.
    #[must_use]
    pub fn changed(&self) -> Duration {
        self.changed
    }
}

/// The same by the operator's clock. Invariant: first <= news <= changed <= received.
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

    /// The flow's first connection or attempt happened, or was found open, after this.
    #[must_use]
    pub fn first(&self) -> SystemTime {
        self.first
    }

    /// Lower bound of the time of unreported changes; not before [`Self::first`].
    #[must_use]
    pub fn news(&self) -> SystemTime {
        self.news
    }

    /// Nothing of it happened after this; not before [`Self::news`].
    #[must_use]
    pub fn changed(&self) -> SystemTime {
        self.changed
    }

    /// Time at which the message was received; not before [`Self::changed`].
    #[must_use]
    pub fn received(&self) -> SystemTime {
        self.received
    }
}

/// All of it happened just when it was reported.
impl From<SystemTime> for Sighting {
    fn from(now: SystemTime) -> Self {
        Self { first: now, news: now, changed: now, received: now }
    }
}
