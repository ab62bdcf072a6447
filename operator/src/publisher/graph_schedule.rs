//! Schedules graphs: soon after structure has changed, at intervals while only counts do, never all the time.

use std::time::{Duration, Instant};

use crate::share_of_time::pause_after;

/// Debounce of changes: one graph is built for all changes within this time.
pub(super) const COALESCE: Duration = Duration::from_millis(50);
/// Time to wait after a graph could not be made.
const RETRY: Duration = Duration::from_secs(5);

/// Time of the next graph.
#[derive(Clone, Debug)]
pub(super) struct GraphSchedule {
    next: Option<Instant>,
    last: Option<Last>,
}

/// The last graph.
#[derive(Clone, Copy, Debug)]
struct Last {
    finished: Instant,
    took: Duration,
}

impl GraphSchedule {
    /// Returns a schedule whose first graph is due now.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: Some(now), last: None }
    }

    /// Returns the time at which the next graph is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// The graph that was due is being made: what changes from now on asks for another one.
    pub(super) fn begin(&mut self) {
        self.next = None;
    }

    /// Everything may be different.
    pub(super) fn plan_at_once(&mut self, now: Instant) {
        self.next = Some(now);
    }

    /// Edges may have come or gone.
    pub(super) fn plan_for_structure(&mut self, now: Instant) {
        self.plan(self.soon(now));
    }

    /// Counts have changed, which are shown every `interval`.
    pub(super) fn plan_for_counts(&mut self, now: Instant, interval: Duration) {
        let at_interval = self.last.map_or(now, |last| last.finished + interval);
        self.plan(self.soon(now).max(at_interval));
    }

    /// A graph that was begun at `began` is finished; it changes by itself at `settles`.
    pub(super) fn finish(&mut self, began: Instant, now: Instant, settles: Option<Instant>) {
        self.last = Some(Last { finished: now, took: now.duration_since(began) });
        if let Some(settles) = settles {
            self.plan(settles);
        }
        let soon = self.soon(now);
        self.next = self.next.map(|next| next.max(soon));
    }

    /// No graph could be made.
    pub(super) fn fail(&mut self, now: Instant) {
        self.plan(now + RETRY);
    }

    /// News is not to wait for what was planned for a later time.
    fn plan(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    fn soon(&self, now: Instant) -> Instant {
        let rested = self.last.map_or(now, |last| last.finished + pause_after(last.took, COALESCE));
        (now + COALESCE).max(rested)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Returns a schedule after a graph that took a second and ended at the returned time.
    fn after_graph(settles: Option<Duration>) -> (GraphSchedule, Instant) {
        let began = Instant::now();
        let mut schedule = GraphSchedule::new(began);
        schedule.begin();
        schedule.finish(began, began + SECOND, settles.map(|after| began + after));
        (schedule, began + SECOND)
    }

    #[test]
    fn structure_waits_for_a_pause_and_counts_for_their_interval() {
        let (mut schedule, now) = after_graph(None);
        assert_eq!(schedule.next(), None);
        schedule.plan_for_counts(now, 10 * SECOND);
        assert_eq!(schedule.next(), Some(now + 10 * SECOND));
        schedule.plan_for_structure(now);
        assert_eq!(schedule.next(), Some(now + 3 * SECOND));
        schedule.plan_for_counts(now, 10 * SECOND);
        assert_eq!(schedule.next(), Some(now + 3 * SECOND), "what is planned for later does not hold news up");
        let (mut rested, now) = after_graph(None);
        rested.plan_for_structure(now + 60 * SECOND);
        assert_eq!(rested.next(), Some(now + 60 * SECOND + COALESCE));
    }

    #[test]
    fn graph_that_settles_is_made_again_after_a_pause() {
        let (schedule, now) = after_graph(Some(2 * SECOND));
        assert_eq!(schedule.next(), Some(now + 3 * SECOND));
        let (schedule, now) = after_graph(Some(20 * SECOND));
        assert_eq!(schedule.next(), Some(now + 19 * SECOND));
    }

    #[test]
    fn change_during_a_graph_asks_for_another_one() {
        let began = Instant::now();
        let mut schedule = GraphSchedule::new(began);
        schedule.begin();
        schedule.plan_for_structure(began);
        schedule.finish(began, began + SECOND, None);
        assert_eq!(schedule.next(), Some(began + 4 * SECOND));
        schedule.plan_at_once(began + SECOND);
        assert_eq!(schedule.next(), Some(began + SECOND));
        schedule.begin();
        schedule.fail(began + SECOND);
        assert_eq!(schedule.next(), Some(began + SECOND + RETRY));
    }
}
