//! Schedules writes: structure at once, counters periodically, failed writes later.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

/// Between two writes of an object.
const MIN_INTERVAL: Duration = Duration::from_millis(500);
/// After the first failure, doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest pause after failures that concern the object.
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// The longest pause after failures of the API server, which end for all objects at once.
const MAX_BACKOFF_OF_SERVER: Duration = Duration::from_secs(4);

/// Urgency of a write; the first is the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Edges have appeared or disappeared.
    Structure,
    /// Only counters have.
    Counters,
    /// Only counters have, and by so little that it can wait until they rest.
    Noise,
}

#[derive(Clone, Copy, Debug, Default)]
struct Past {
    written: Option<Instant>,
    failures: u32,
    failed: Option<Instant>,
    /// True if the API server has failed, for any object.
    is_of_server: bool,
}

impl Past {
    /// Returns the time before which a failed write is not repeated.
    fn retry_at(&self) -> Option<Instant> {
        let longest = if self.is_of_server { MAX_BACKOFF_OF_SERVER } else { MAX_BACKOFF };
        self.failed.map(|failed| failed + backoff(self.failures, longest))
    }
}

/// Pending writes with their times.
#[derive(Clone, Debug)]
pub(super) struct Schedule<K> {
    past: HashMap<K, Past>,
    pending: HashMap<K, (Urgency, Instant)>,
    structure: BTreeSet<(Instant, K)>,
    counts: BTreeSet<(Instant, K)>,
}

impl<K: Clone + Ord + std::hash::Hash> Schedule<K> {
    pub(super) fn new() -> Self {
        Self { past: HashMap::new(), pending: HashMap::new(), structure: BTreeSet::new(), counts: BTreeSet::new() }
    }

    /// An object differs from what it should be.
    pub(super) fn plan(&mut self, key: &K, urgency: Urgency, counter_interval: Duration, now: Instant) {
        let past = self.past.get(key).copied().unwrap_or_default();
        let pause = match urgency {
            Urgency::Structure => MIN_INTERVAL,
            Urgency::Counters | Urgency::Noise => counter_interval.max(MIN_INTERVAL),
        };
        let after_write = past.written.map(|written| written + pause);
        let after_failure = past.retry_at();
        let at = [Some(now), after_write, after_failure].into_iter().flatten().max().unwrap_or(now);
        self.plan_at(key, urgency, at);
    }

    /// An object differs by noise only, and has not changed since a time: it is due when it has not for so long.
    pub(super) fn plan_at_rest(&mut self, key: &K, since: Instant, rest: Duration) {
        let past = self.past.get(key).copied().unwrap_or_default();
        let after_failure = past.retry_at().unwrap_or(since);
        self.cancel(key);
        self.plan_at(key, Urgency::Noise, (since + rest).max(after_failure));
    }

    fn plan_at(&mut self, key: &K, urgency: Urgency, at: Instant) {
        // What was planned for an earlier time stays: counters that go on changing do not put off their writing.
        if let Some((planned, planned_at)) = self.pending.get(key).copied() {
            if planned == urgency && planned_at <= at {
                return;
            }
            self.due_mut(planned).remove(&(planned_at, key.clone()));
        }
        self.pending.insert(key.clone(), (urgency, at));
        self.due_mut(urgency).insert((at, key.clone()));
    }

    /// An object is as it should be.
    pub(super) fn cancel(&mut self, key: &K) {
        if let Some((urgency, at)) = self.pending.remove(key) {
            self.due_mut(urgency).remove(&(at, key.clone()));
        }
    }

    /// Returns the planned objects of an urgency. Counters and noise take turns.
    fn due_mut(&mut self, urgency: Urgency) -> &mut BTreeSet<(Instant, K)> {
        match urgency {
            Urgency::Structure => &mut self.structure,
            Urgency::Counters | Urgency::Noise => &mut self.counts,
        }
    }

    /// Returns the number of objects that are planned.
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Returns the times at which the next object is due for its structure, and for its counts.
    pub(super) fn next(&self) -> [Option<Instant>; 2] {
        [&self.structure, &self.counts].map(|due| due.first().map(|(at, _)| *at))
    }

    /// Returns the object that has been due for longest among those of this urgency; it is no longer planned then.
    pub(super) fn take(&mut self, urgency: Urgency, now: Instant) -> Option<K> {
        let due = self.due_mut(urgency).first().filter(|(at, _)| *at <= now);
        let key = due.map(|(_, key)| key.clone())?;
        self.cancel(&key);
        Some(key)
    }

    pub(super) fn written(&mut self, key: &K, now: Instant) {
        self.past.insert(key.clone(), Past { written: Some(now), ..Past::default() });
    }

    /// A write has failed: for a reason of the API server's, or of the object's.
    pub(super) fn failed(&mut self, key: &K, is_of_server: bool, now: Instant) {
        let past = self.past.entry(key.clone()).or_default();
        past.failures = past.failures.saturating_add(1);
        (past.failed, past.is_of_server) = (Some(now), is_of_server);
    }

    /// Returns the number of consecutive failed writes of an object.
    pub(super) fn failures(&self, key: &K) -> u32 {
        self.past.get(key).map_or(0, |past| past.failures)
    }

    pub(super) fn forget(&mut self, key: &K) {
        self.cancel(key);
        self.past.remove(key);
    }
}

fn backoff(failures: u32, longest: Duration) -> Duration {
    (FIRST_BACKOFF * 2_u32.saturating_pow(failures.saturating_sub(1).min(10))).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    #[test]
    fn structure_is_due_at_once_and_counters_after_their_interval() {
        let start = Instant::now();
        let mut schedule = Schedule::new();
        schedule.plan(&"a", Urgency::Structure, INTERVAL, start);
        assert_eq!(schedule.take(Urgency::Structure, start), Some("a"));
        schedule.written(&"a", start);
        schedule.plan(&"a", Urgency::Counters, INTERVAL, start);
        schedule.plan(&"a", Urgency::Counters, INTERVAL, start + INTERVAL / 2);
        assert_eq!(schedule.next(), [None, Some(start + INTERVAL)]);
        assert_eq!(schedule.take(Urgency::Counters, start + INTERVAL / 2), None);
        schedule.plan(&"a", Urgency::Structure, INTERVAL, start + Duration::from_millis(100));
        assert_eq!(schedule.next(), [Some(start + MIN_INTERVAL), None]);
        assert_eq!(schedule.take(Urgency::Structure, start + MIN_INTERVAL), Some("a"));
        assert_eq!(schedule.next(), [None, None]);
    }

    #[test]
    fn objects_take_turns() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new();
        for (key, urgency, seconds) in [
            ("b", Urgency::Counters, 0),
            ("d", Urgency::Structure, 3),
            ("c", Urgency::Structure, 1),
            ("a", Urgency::Noise, 2),
        ] {
            schedule.plan(&key, urgency, INTERVAL, at(seconds));
        }
        let later = at(5);
        let structure: Vec<_> = (0..3).map_while(|_| schedule.take(Urgency::Structure, later)).collect();
        let counts: Vec<_> = (0..3).map_while(|_| schedule.take(Urgency::Counters, later)).collect();
        assert_eq!((structure, counts), (vec!["c", "d"], vec!["b", "a"]));
    }

    #[test]
    fn noise_is_due_when_it_rests() {
        let start = Instant::now();
        let mut schedule = Schedule::new();
        schedule.written(&"a", start);
        for seconds in [10, 20, 40] {
            schedule.plan_at_rest(&"a", start + Duration::from_secs(seconds), INTERVAL);
            assert_eq!(schedule.next(), [None, Some(start + Duration::from_secs(seconds) + INTERVAL)]);
        }
        schedule.plan(&"a", Urgency::Counters, INTERVAL, start + Duration::from_secs(50));
        assert_eq!(schedule.next(), [None, Some(start + Duration::from_secs(50))], "news does not wait for it");
    }

    #[test]
    fn failures_are_tried_again_ever_more_rarely() {
        let start = Instant::now();
        let pauses = |is_of_server| {
            let mut schedule = Schedule::new();
            let mut pauses = [0; 8];
            for pause in &mut pauses {
                schedule.failed(&"a", is_of_server, start);
                schedule.plan(&"a", Urgency::Structure, INTERVAL, start);
                *pause = schedule.next()[0].expect("it is planned").duration_since(start).as_secs();
                schedule.cancel(&"a");
            }
            pauses
        };
        assert_eq!(pauses(false), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses(true), [1, 2, 4, 4, 4, 4, 4, 4], "all objects are written soon after the API server is well");
    }
}
