//! The counts between two times. Pure.

use crds::Losses;
use topology::count;

use super::UnixMs;

/// Connections and failed attempts: those that were seen, and those that could not be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Seen.
    pub seen: u64,
    /// Not recorded, by cause.
    pub losses: Losses,
}

impl Counts {
    /// The part that came after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self { seen: self.seen.saturating_sub(earlier.seen), losses: self.losses.since(&earlier.losses) }
    }

    /// Connections and failed attempts, seen or lost.
    #[must_use]
    pub fn happened(&self) -> u64 {
        count::add(self.seen, self.losses.lost())
    }
}

/// The incomplete part of a period's counts. All fields are above zero only where something is or may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortfall {
    /// Time without a capture, in milliseconds.
    pub unobserved_ms: u64,
    /// Number of times without a capture that ended in the period.
    pub intervals: u64,
    /// Estimate of the connections and failed attempts in the unobserved time.
    pub missed: u64,
    /// Counted losses.
    pub losses: Losses,
    /// True if the capture could not count all that it missed.
    pub sampled: bool,
}

impl Shortfall {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.unobserved_ms = self.unobserved_ms.saturating_add(other.unobserved_ms);
        self.intervals = self.intervals.saturating_add(other.intervals);
        self.missed = count::add(self.missed, other.missed);
        self.losses = self.losses.plus(&other.losses);
        self.sampled |= other.sampled;
    }
}

/// The counts between two times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// Its beginning.
    pub from: UnixMs,
    /// Its end, not before its beginning.
    pub to: UnixMs,
    /// Connections and failed attempts that were seen.
    pub seen: u64,
    /// The incomplete part; none where all was observed and nothing was lost.
    pub shortfall: Option<Box<Shortfall>>,
}

impl Period {
    /// A period under observation.
    #[must_use]
    pub fn observed(from: UnixMs, to: UnixMs, counts: &Counts, sampled: bool) -> Self {
        // Flows that came with a later read are not missing, and closes count bytes: neither makes a count incomplete.
        let losses = Losses { new_flow_notifications: 0, closes_unseen: 0, ..counts.losses };
        Self::new(from, to, counts.seen, Shortfall { losses, sampled, ..Shortfall::default() })
    }

    /// A period without a capture, and the estimate of what happened in it.
    #[must_use]
    pub fn unobserved(from: UnixMs, to: UnixMs, missed: u64) -> Self {
        let unobserved_ms = to.saturating_sub(from);
        Self::new(from, to, 0, Shortfall { unobserved_ms, intervals: 1, missed, ..Shortfall::default() })
    }

    /// A period with what is incomplete about it, if anything is.
    #[must_use]
    pub fn new(from: UnixMs, to: UnixMs, seen: u64, shortfall: Shortfall) -> Self {
        let shortfall = Some(shortfall).filter(|it| *it != Shortfall::default()).map(Box::new);
        Self { from, to: to.max(from), seen, shortfall }
    }

    /// Returns whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.shortfall.is_none()
    }

    /// Its length in milliseconds.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// Time under observation, in milliseconds.
    #[must_use]
    pub fn observed_ms(&self) -> u64 {
        self.length().saturating_sub(self.shortfall.as_ref().map_or(0, |it| it.unobserved_ms))
    }

    /// Returns its counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { seen: self.seen, losses: self.shortfall.as_ref().map(|it| it.losses).unwrap_or_default() }
    }

    /// Appends the period that follows it.
    pub fn append(&mut self, next: &Self) {
        self.to = next.to;
        self.seen = count::add(self.seen, next.seen);
        if let Some(more) = &next.shortfall {
            self.shortfall.get_or_insert_default().add(more);
        }
    }
}
