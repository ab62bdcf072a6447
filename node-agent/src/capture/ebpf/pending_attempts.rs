//! Pending attempts: those that have waited for an answer for a while. The kernel program has an entry for each attempt from
//! the first retransmission of its SYN on, and removes the entry before it counts the answer. Pure.

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
    /// Replaces the attempts by those that wait now. Returns the stale ones, which are left out. Those that are
    /// `unwatched` have no retransmissions that show.
    pub(super) fn replace(
        &mut self,
        present: impl IntoIterator<Item = (u64, PendingAttempt)>,
        unwatched: &HashSet<u64>,
        now: Instant,
    ) -> Vec<u64> {
        let mut before = std::mem::take(&mut self.entries);
        let mut stale = Vec::new();
        for (cookie, PendingAttempt { flow, retransmits }) in present {
            let new = Entry { flow, since: now, retransmits, retransmitted_at: now };
            let mut entry = before.remove(&cookie).unwrap_or(new);
            if entry.retransmits != retransmits || unwatched.contains(&cookie) {
                (entry.retransmits, entry.retransmitted_at) = (retransmits, now);
            }
            if now.saturating_duration_since(entry.retransmitted_at) >= STALE_AFTER {
                stale.push(cookie);
            } else {
                self.entries.insert(cookie, entry);
            }
        }
        stale
    }

    /// Removes the attempts for which `is_waiting` returns false. Returns whether there were any.
    pub(super) fn remove_answered<E>(&mut self, is_waiting: impl Fn(u64) -> Result<bool, E>) -> Result<bool, E> {
        let mut answered = Vec::new();
        for cookie in self.entries.keys() {
            if !is_waiting(*cookie)? {
                answered.push(*cookie);
            }
        }
        for cookie in &answered {
            self.entries.remove(cookie);
        }
        Ok(!answered.is_empty())
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
mod tests {
    use std::convert::Infallible;

    use node_agent_common::Role;
    use proptest::prelude::*;

    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new(1, 1, Role::Client, port, [1; 16], [2; 16])
    }

    fn attempt(port: u16, retransmits: u64) -> PendingAttempt {
        PendingAttempt { flow: key(port), retransmits }
    }

    fn counts(attempts: &PendingAttempts, now: Instant) -> HashMap<FlowKey, u64> {
        attempts.count(now, |flow| *flow)
    }

    #[test]
    fn young_attempts_are_not_pending() {
        let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
        let none = HashSet::new();
        attempts.replace([(1, attempt(80, 1)), (2, attempt(80, 1))], &none, start);
        assert_eq!(counts(&attempts, start), HashMap::new());
        let later = start + MIN_AGE;
        attempts.replace([(1, attempt(80, 1)), (3, attempt(80, 1)), (2, attempt(80, 2))], &none, later);
        assert_eq!(counts(&attempts, later), HashMap::from([(key(80), 2)]));
        attempts.remove_answered(|cookie| Ok::<_, Infallible>(cookie != 1)).unwrap();
        assert_eq!(counts(&attempts, later), HashMap::from([(key(80), 1)]));
    }

    #[test]
    fn entry_without_retransmissions_is_stale() {
        let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
        let unwatched = HashSet::from([3]);
        let present = |retransmits| [(1, attempt(80, 1)), (2, attempt(81, retransmits)), (3, attempt(82, 0))];
        attempts.replace(present(1), &unwatched, start);
        let last = start + STALE_AFTER;
        assert_eq!(attempts.replace(present(1), &unwatched, start + MIN_AGE), Vec::<u64>::new());
        assert_eq!(attempts.replace(present(2), &unwatched, last), [1]);
        assert_eq!(counts(&attempts, last), HashMap::from([(key(81), 1), (key(82), 1)]));
    }

    proptest! {
        /// Model: each attempt waits during a range of seconds, with an entry in the kernel.
        #[test]
        fn pending_attempts_are_those_that_have_waited(
            waits in prop::collection::vec((0_u64..20, 0_u64..20, 0_u16..3), 0..20),
        ) {
            let (mut attempts, start) = (PendingAttempts::default(), Instant::now());
            for second in 0..40 {
                let now = start + Duration::from_secs(second);
                let present = waits.iter().zip(0_u64..).filter(|((from, length, _), _)| (*from..from + length).contains(&second));
                let present: Vec<_> = present.map(|((from, _, port), cookie)| (cookie, *from, *port)).collect();
                let stale =
                    attempts.replace(present.iter().map(|(cookie, _, port)| (*cookie, attempt(*port, 1))), &HashSet::new(), now);
                prop_assert_eq!(stale, Vec::<u64>::new());
                let mut expected = HashMap::new();
                for (_, from, port) in present {
                    if second >= from + MIN_AGE.as_secs() {
                        *expected.entry(key(port)).or_default() += 1;
                    }
                }
                prop_assert_eq!(counts(&attempts, now), expected);
            }
        }
    }
}
