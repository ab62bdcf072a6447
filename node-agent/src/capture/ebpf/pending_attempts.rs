//! Pending attempts: those that have waited for an answer for a while. The kernel program has an entry for each attempt from
//! the first retransmission of its SYN on. It marks the entry before it counts the answer, and removes it after that. Pure.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use node_agent_common::{FlowKey, PendingAttempt};

/// Time for which the kernel must have had an entry. Its SYN was sent about a second earlier.
const MIN_AGE: Duration = Duration::from_secs(1);

/// Time without a retransmission after which an entry is stale: its answer was missed. TCP retransmits after two minutes at
/// the latest (`TCP_RTO_MAX`).
const STALE_AFTER: Duration = Duration::from_secs(150);

/// Time after which an answer is taken as counted although its entry is still marked. Programs take microseconds; this
/// suffices for one that was preempted on a busy machine.
const MAX_COUNTING: Duration = Duration::from_secs(5);

/// State of an attempt in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttemptState {
    /// It has no answer, and none is counted.
    Waiting,
    /// A program counts its answer just now: the counters may have it or not.
    BeingCounted,
    /// Its answer is counted.
    Counted,
}

/// The kernel's states of attempts, and its counters.
pub(super) trait AnswerSource {
    type Error;

    /// Returns the state of one attempt.
    fn state(&self, cookie: u64) -> Result<AttemptState, Self::Error>;

    /// Reads the counters, those of these flows among them: answers of their attempts are counted.
    fn collect_answers(&mut self, flows: &[FlowKey]) -> Result<(), Self::Error>;

    /// Waits a moment for the programs that count just now.
    fn pause(&mut self);

    /// Removes the entries of these attempts from the kernel.
    fn remove_entries(&mut self, cookies: &[u64]);
}

/// One attempt.
#[derive(Clone, Copy, Debug)]
struct Entry {
    flow: FlowKey,
    since: Instant,
    retransmits: u64,
    retransmitted_at: Instant,
}

/// Attempts that wait for an answer, by the cookies of their sockets.
#[derive(Debug, Default)]
pub(super) struct PendingAttempts {
    entries: HashMap<u64, Entry>,
}

impl PendingAttempts {
    /// Adds the attempts that wait now. Returns the stale ones, which are removed. Those that are `unwatched` have no
    /// retransmissions that show. Attempts that are not present stay until [`Self::settle`].
    pub(super) fn update(
        &mut self,
        present: impl IntoIterator<Item = (u64, PendingAttempt)>,
        unwatched: &HashSet<u64>,
        now: Instant,
    ) -> Vec<u64> {
        let mut stale = Vec::new();
        for (cookie, PendingAttempt { flow, retransmits, .. }) in present {
            let new = Entry { flow, since: now, retransmits, retransmitted_at: now };
            let entry = self.entries.entry(cookie).or_insert(new);
            if entry.retransmits != retransmits || unwatched.contains(&cookie) {
                (entry.retransmits, entry.retransmitted_at) = (retransmits, now);
            }
            if now.saturating_duration_since(entry.retransmitted_at) >= STALE_AFTER {
                stale.push(cookie);
                self.entries.remove(&cookie);
            }
        }
        stale
    }

    /// Removes the attempts whose answers are counted, and collects these counts. Each attempt that stays has waited since
    /// the counters were read for the last time, so that they do not contain it.
    pub(super) fn settle<S: AnswerSource>(&mut self, source: &mut S) -> Result<(), S::Error> {
        let mut waits_since = Instant::now();
        loop {
            let (answered, being_counted) = self.answers(source)?;
            if !answered.is_empty() {
                self.take_answers(source, &answered)?;
                waits_since = Instant::now();
            } else if being_counted.is_empty() {
                return Ok(());
            } else if waits_since.elapsed() < MAX_COUNTING {
                source.pause();
            } else {
                source.remove_entries(&being_counted);
                self.take_answers(source, &being_counted)?;
            }
        }
    }

    /// Returns the attempts whose answers are counted, and those whose answers are being counted.
    fn answers<S: AnswerSource>(&self, source: &S) -> Result<(Vec<u64>, Vec<u64>), S::Error> {
        let (mut answered, mut being_counted) = (Vec::new(), Vec::new());
        for cookie in self.entries.keys() {
            match source.state(*cookie)? {
                AttemptState::Waiting => {}
                AttemptState::BeingCounted => being_counted.push(*cookie),
                AttemptState::Counted => answered.push(*cookie),
            }
        }
        Ok((answered, being_counted))
    }

    fn take_answers<S: AnswerSource>(&mut self, source: &mut S, answered: &[u64]) -> Result<(), S::Error> {
        let flows: Vec<_> =
            answered.iter().filter_map(|cookie| self.entries.remove(cookie)).map(|it| it.flow).collect();
        source.collect_answers(&flows)
    }

    /// Returns the numbers of attempts that are pending at `now`, by the row that `row_of` returns for their flow.
    pub(super) fn count(&self, now: Instant, row_of: impl Fn(&FlowKey) -> FlowKey) -> HashMap<FlowKey, u64> {
        let mut counts = HashMap::new();
        for entry in self.entries.values() {
            if now.saturating_duration_since(entry.since) >= MIN_AGE {
                *counts.entry(row_of(&entry.flow)).or_default() += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests;
