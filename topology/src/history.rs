//! Times at which a flow's connections were opened and its attempts failed. The remote address may have belonged to
//! several pods, one after the other.

use std::time::{Duration, SystemTime};

use crate::{count, flow::FlowTotals};

/// More is not told apart: what has happened so close together is one part.
const GRAIN: Duration = Duration::from_secs(1);

/// The most parts that are kept. Beyond that those that are closest together become one.
const MAX_PARTS: usize = 16;

/// Of a flow that never rests, so much before its end stays told apart: what has to wait are its newest connections only.
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
    /// Payload received by it.
    pub bytes_received: u64,
}

impl Counted {
    /// Returns the growth of an account; zero if it did not grow.
    ///
    /// Invariant: what is there before and this are at least what is there after.
    #[must_use]
    pub fn between(before: &FlowTotals, after: &FlowTotals) -> Self {
        Self {
            opened: after.opened.saturating_sub(before.opened),
            failed: after.failed.saturating_sub(before.failed),
            bytes_sent: after.bytes_sent.saturating_sub(before.bytes_sent),
            bytes_received: after.bytes_received.saturating_sub(before.bytes_received),
        }
    }

    /// Adds another one's; stays at the greatest number where the sum is beyond it.
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
    /// After this.
    pub since: SystemTime,
    /// Not after this.
    pub until: SystemTime,
    /// So much.
    pub counted: Counted,
}

impl Part {
    /// Both, without telling them apart: the times of either are within it.
    ///
    /// Invariant: its counts are the sums.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut counted = self.counted;
        counted.add(&other.counted);
        Self { since: self.since.min(other.since), until: self.until.max(other.until), counted }
    }
}

/// The parts of one flow, oldest first. A part can only become longer: what is not told apart is not known better than
/// it is, and never worse.
#[derive(Clone, Debug, Default)]
pub struct History {
    parts: Vec<Part>,
}

impl History {
    /// All parts, at most 16, by the time of their end.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Adds what happened between two moments; `since` beyond `until` counts as `until`. Payload without a new connection
    /// is that of the connections that there were.
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
        self.parts.insert(at, part);
        self.condense(|one, next| next.until.duration_since(one.since).unwrap_or_default() <= GRAIN);
        if self.parts.len() > MAX_PARTS {
            self.join_closest();
        }
    }

    /// Makes one part of any two that follow one another and need not be told apart.
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
