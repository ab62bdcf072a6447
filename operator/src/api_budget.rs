//! Budget of the requests to the API server, one for all writers.
//!
//! Requests for structure may come in bursts, such as the first map of a cluster. Requests for counts have a low rate, from
//! which all others are taken. While the API server is slow or refuses requests, there are fewer of both.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Requests per second over a long time, except for bursts of structure.
const REQUESTS_PER_SECOND: u32 = 20;
/// Requests at once after a quiet time.
const BURST: u32 = 60;
/// Requests for structure per second. An API server on two shared processors answered 164 of them within milliseconds
/// (decision 0022).
const STRUCTURE_PER_SECOND: u32 = 150;
/// Requests for structure at once.
const STRUCTURE_BURST: u32 = 150;
/// Part of the burst that is not for the counts of Topologies: NodeProbes are few, and take turns with them.
const RESERVE: u32 = 10;
/// Longest time for which counts wait because of a burst of structure.
const LONGEST_DEBT: Duration = Duration::from_secs(10);
/// Time of a request that says that the API server has too much to do.
const SLOW: Duration = Duration::from_secs(2);
/// Time between two changes of the rates.
const ADAPTATION: Duration = Duration::from_secs(5);
/// Greatest factor by which the rates are reduced.
const MOST_REDUCED: u32 = 16;

/// Reason of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Something has come or gone.
    Structure,
    /// Only counts of a NodeProbe have changed.
    NodeCounts,
    /// Only counts of a Topology have changed.
    Counts,
}

/// Response of the API server to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Within so much time.
    After(Duration),
    /// It refused the request because there are too many.
    TooMany,
}

/// The budget. All clones are the same one.
#[derive(Clone, Debug)]
pub struct ApiBudget {
    state: Arc<Mutex<State>>,
}

impl ApiBudget {
    /// Returns a budget that is full now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let bucket = |per_second, burst| Bucket { interval: Duration::from_secs(1) / per_second, burst, full_at: now };
        let state = State {
            all: bucket(REQUESTS_PER_SECOND, BURST),
            structure: bucket(STRUCTURE_PER_SECOND, STRUCTURE_BURST),
            reduction: 1,
            adapted: None,
            is_pressed: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn with<T>(&self, of: impl FnOnce(&mut State) -> T) -> T {
        of(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the time of the next allowed request, if none is allowed now.
    #[must_use]
    pub fn available(&self, reason: Reason, now: Instant) -> Option<Instant> {
        self.with(|state| state.available(reason, now))
    }

    /// Takes so many requests, whether they are allowed or not.
    pub fn take(&self, reason: Reason, requests: u32, now: Instant) {
        self.with(|state| state.take(reason, requests, now));
    }

    /// Takes a request, if it is allowed now.
    #[must_use]
    pub fn try_take(&self, reason: Reason, now: Instant) -> bool {
        self.with(|state| {
            let is_allowed = state.available(reason, now).is_none();
            if is_allowed {
                state.take(reason, 1, now);
            }
            is_allowed
        })
    }

    /// Notes how the API server took a request, and adapts the rates.
    pub fn note(&self, answer: Answer, now: Instant) {
        self.with(|state| state.note(answer, now));
    }

    /// Returns the time in which so many counts can be written.
    #[must_use]
    pub fn time_for(&self, requests: usize) -> Duration {
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        self.with(|state| state.all.interval * state.reduction).saturating_mul(requests)
    }
}

#[derive(Debug)]
struct State {
    all: Bucket,
    structure: Bucket,
    /// Factor by which the rates are reduced.
    reduction: u32,
    /// Time of the last look at the rates.
    adapted: Option<Instant>,
    /// True if a request since then was slow or refused.
    is_pressed: bool,
}

impl State {
    fn available(&self, reason: Reason, now: Instant) -> Option<Instant> {
        match reason {
            Reason::Structure => self.structure.available(0, self.reduction, now),
            Reason::NodeCounts => self.all.available(0, self.reduction, now),
            Reason::Counts => self.all.available(RESERVE, self.reduction, now),
        }
    }

    fn take(&mut self, reason: Reason, requests: u32, now: Instant) {
        if reason == Reason::Structure {
            self.structure.take(requests, self.reduction, now);
        }
        self.all.take(requests, self.reduction, now);
    }

    fn note(&mut self, answer: Answer, now: Instant) {
        self.is_pressed |= match answer {
            Answer::After(time) => time >= SLOW,
            Answer::TooMany => true,
        };
        let since = *self.adapted.get_or_insert(now);
        if now.duration_since(since) < ADAPTATION {
            return;
        }
        self.adapted = Some(now);
        self.reduction = if std::mem::take(&mut self.is_pressed) {
            (self.reduction * 2).min(MOST_REDUCED)
        } else {
            (self.reduction / 2).max(1)
        };
    }
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    interval: Duration,
    burst: u32,
    /// Time at which it would be full.
    full_at: Instant,
}

impl Bucket {
    /// Returns the time at which more than `reserve` requests are left.
    fn available(&self, reserve: u32, reduction: u32, now: Instant) -> Option<Instant> {
        let interval = self.interval * reduction;
        let at = (self.full_at.max(now) + interval).checked_sub(interval * (self.burst - reserve))?;
        (at > now).then_some(at)
    }

    fn take(&mut self, requests: u32, reduction: u32, now: Instant) {
        let interval = self.interval * reduction;
        let most = now + interval * self.burst + LONGEST_DEBT;
        self.full_at = (self.full_at.max(now) + interval * requests).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_once(budget: &ApiBudget, reason: Reason, now: Instant) -> usize {
        (0..1000).take_while(|_| budget.try_take(reason, now)).count()
    }

    #[test]
    fn allows_a_burst_and_then_a_rate() {
        let start = Instant::now();
        let budget = ApiBudget::new(start);
        let mut taken = |after| at_once(&budget, Reason::Counts, start + Duration::from_millis(after));
        assert_eq!([0, 0, 49, 50, 60_000].map(&mut taken), [50, 0, 0, 1, 50]);
    }

    #[test]
    fn node_probes_and_structure_do_not_wait_for_counts_of_topologies() {
        let start = Instant::now();
        let budget = ApiBudget::new(start);
        assert_eq!(at_once(&budget, Reason::Counts, start), 50);
        assert_eq!(at_once(&budget, Reason::NodeCounts, start), 10);
        assert_eq!(at_once(&budget, Reason::Structure, start), 150);
        assert_eq!(at_once(&budget, Reason::Structure, start + Duration::from_millis(100)), 15);
    }

    #[test]
    fn counts_wait_for_structure_but_not_for_ever() {
        let start = Instant::now();
        let budget = ApiBudget::new(start);
        budget.take(Reason::Structure, 10_000, start);
        let next = budget.available(Reason::Counts, start).expect("all is taken");
        assert_eq!(next.duration_since(start), LONGEST_DEBT + (RESERVE + 1) * Duration::from_millis(50));
    }

    #[test]
    fn a_slow_api_server_gets_fewer_requests_until_it_is_quick_again() {
        let start = Instant::now();
        let budget = ApiBudget::new(start);
        let mut now = start;
        let mut seconds_for_twenty = |answer| {
            budget.note(answer, now);
            now += ADAPTATION;
            budget.time_for(20).as_secs()
        };
        let quick = Answer::After(Duration::from_millis(5));
        let answers = [quick, Answer::After(SLOW), Answer::TooMany, quick, quick, quick];
        assert_eq!(answers.map(&mut seconds_for_twenty), [1, 2, 4, 2, 1, 1]);
        assert_eq!([Answer::TooMany; 6].map(&mut seconds_for_twenty), [2, 4, 8, 16, 16, 16]);
    }
}
