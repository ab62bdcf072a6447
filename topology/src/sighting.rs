//! When what a report tells of a flow happened.
//!
//! A capture looks now and then: what it finds happened between two looks. An agent tells these times as ages, so that
//! no clock of a node has to be right, and the operator makes times of its own clock of them.

use std::time::{Duration, SystemTime};

/// How long before a message was made something happened. Invariant: first >= news >= changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    first: Duration,
    news: Duration,
    changed: Duration,
}

impl Ages {
    /// Of the flow's first connection or attempt (at most so long ago), of what is news to whom it is told (at most so
    /// long ago), of the last change (at least so long ago). What contradicts the invariant is made longer.
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

    /// What is news happened at most so long ago; at least [`Self::changed`].
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
    /// Of a message that was made at `sent`, by the operator's clock, and came in at `received`; a message that would
    /// have been made later than it came in was made when it came in. Ages beyond the beginning of time end there.
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

    /// What is news happened after this; not before [`Self::first`].
    #[must_use]
    pub fn news(&self) -> SystemTime {
        self.news
    }

    /// Nothing of it happened after this; not before [`Self::news`].
    #[must_use]
    pub fn changed(&self) -> SystemTime {
        self.changed
    }

    /// When the message came in; not before [`Self::changed`].
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
