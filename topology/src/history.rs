//! Times at which a flow's connections were opened and its attempts failed. The remote address may have belonged to
//! several pods, one after the other.

use std::time::{Duration, SystemTime};

use crate::{count, flow::FlowTotals};

/// Resolution of the history: events closer together than this are one part.
const GRAIN: Duration = Duration::from_secs(1);

/// Maximum number of parts. Beyond it, the two closest ones are merged.
const MAX_PARTS: usize = 16;

/// Time before the end of a busy flow in which its parts stay separate, so that only its newest connections have to wait.
const RECENT: Duration = Duration::from_secs(4);

/// Counts within a time range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Connections established, or found open.
    pub opened: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Payload sent by the end that was observed.
    pub bytes_sent: u64,
    /// Payload received by the end that was observed.
    pub bytes_received: u64,
}

impl Counted {
    /// Returns the growth of an account; zero if it did not grow.
    ///
    /// Invariant: the account before plus the growth is at least the account after.
    #[must_use]
    pub fn between(before: &FlowTotals, after: &FlowTotals) -> Self {
        Self {
            opened: after.opened.saturating_sub(before.opened),
            failed: after.failed.saturating_sub(before.failed),
            bytes_sent: after.bytes_sent.saturating_sub(before.bytes_sent),
            bytes_received: after.bytes_received.saturating_sub(before.bytes_received),
        }
    }

    /// Adds other counts; a sum beyond the greatest number stays at that number.
    pub fn add(&mut self, other: &Self) {
        self.opened = count::add(self.opened, other.opened);
        self.failed = count::add(self.failed, other.failed);
        self.bytes_sent = count::add(self.bytes_sent, other.bytes_sent);
        self.bytes_received = count::add(self.bytes_received, other.bytes_received);
    }
}

/// Counts between two moments. Invariant: `since <= until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Lower bound of the time, exclusive.
    pub since: SystemTime,
    /// Upper bound of the time, inclusive.
    pub until: SystemTime,
    /// Counts in this range.
    pub counted: Counted,
}

impl Part {
    /// Returns both parts as one, which contains the times of either.
    ///
    /// Invariant: its counts are the sums.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut counted = self.counted;
        counted.add(&other.counted);
        Self { since: self.since.min(other.since), until: self.until.max(other.until), counted }
    }
}

/// Parts of one flow, oldest first. A part can only become longer, so its times are never more precise than observed.
#[derive(Clone, Debug, Default)]
pub struct History {
    parts: Vec<Part>,
}

impl History {
    /// Returns all parts, at most 16, by the time of their end.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Adds counts between two times; `since` beyond `until` counts as `until`. Payload without a new connection belongs
    /// to the earlier connections.
    ///
    /// Invariants: the parts' sum grows by exactly this; there are at most 16.
    pub fn add(&mut self, since: SystemTime, until: SystemTime, counted: &Counted) {
        if *counted == Counted::default() {
            return;
        }
        if (counted.opened, counted.failed) == (0, 0)
            && let Some(last) = self.parts.last_mut()
        {
            last.counted.add(counted);
            return;
        }
        let part = Part { since: since.min(until), until, counted: *counted };
        let at = self.parts.partition_point(|known| known.until <= until);
        if self.parts.len() == self.parts.capacity() {
            // Most flows have one or two.
            self.parts.reserve_exact(1);
        }
        self.parts.insert(at, part);
        self.condense(|one, next| next.until.duration_since(one.since).unwrap_or_default() <= GRAIN);
        if self.parts.len() > MAX_PARTS {
            self.join_closest();
        }
    }

    /// Returns whether [`Self::condense`] would merge any parts.
    #[must_use]
    pub fn is_condensable(&self, are_one: impl Fn(&Part, &Part) -> bool) -> bool {
        self.parts.iter().zip(self.parts.iter().skip(1)).any(|(one, next)| are_one(one, next))
    }

    /// Merges any two consecutive parts for which `are_one` returns true.
    ///
    /// Invariant: the parts' sum stays.
    pub fn condense(&mut self, are_one: impl Fn(&Part, &Part) -> bool) {
        self.parts.dedup_by(|next, one| {
            let joined = are_one(one, next);
            if joined {
                *one = one.with(next);
            }
            joined
        });
        if self.parts.capacity() > 2 * self.parts.len().max(2) {
            self.parts.shrink_to_fit();
        }
    }

    fn join_closest(&mut self) {
        let length = |at: &usize| {
            let both = self.parts[*at].with(&self.parts[at + 1]);
            both.until.duration_since(both.since).unwrap_or_default()
        };
        let latest = self.parts.last().map_or(SystemTime::UNIX_EPOCH, |last| last.until);
        let is_recent = |at: &usize| latest.duration_since(self.parts[at + 1].until).unwrap_or_default() < RECENT;
        let Some(at) = (0..self.parts.len() - 1).min_by_key(|at| (is_recent(at), length(at))) else { return };
        let next = self.parts.remove(at + 1);
        self.parts[at] = self.parts[at].with(&next);
    }
}
