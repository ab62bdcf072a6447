//! Results of each ScopeProbe's last rollout: written by the controller, read by the status writer.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use jiff::Timestamp;
use tokio::sync::watch;

/// One ScopeProbe's last rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The generation of the `spec` that was rolled out.
    pub generation: i64,
    /// Error.
    pub problem: Option<Problem>,
    /// Progress of the DaemonSets.
    pub progress: Progress,
    /// Obstacle that keeps agents from running, if it is known.
    pub obstacle: Option<Obstacle>,
    /// Nodes whose labels another field manager holds, with its name. They keep their agents.
    pub taken_labels: Vec<String>,
    /// Since when the rollout has failed for the same reason, or has made no progress; `None` if it is complete.
    pub since: Option<Timestamp>,
}

impl Outcome {
    /// Returns the outcome with the time since when it has been like this, given the earlier one.
    #[must_use]
    pub fn after(self, earlier: Option<&Self>, now: Timestamp) -> Self {
        let is_done = self.problem.is_none() && self.progress.complete();
        let state = |outcome: &Self| {
            let problem = outcome.problem.as_ref().map(|problem| problem.reason);
            let obstacle = outcome.obstacle.as_ref().map(|obstacle| obstacle.reason);
            (outcome.generation, problem, obstacle, outcome.progress.available, outcome.progress.desired)
        };
        let is_same = |earlier: &&Self| state(earlier) == state(&self);
        let since = earlier.filter(is_same).and_then(|earlier| earlier.since);
        Self { since: (!is_done).then(|| since.unwrap_or(now)), ..self }
    }
}

/// Error that kept a rollout from completing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Reason of the condition.
    pub reason: &'static str,
    /// Human-readable explanation of `reason`.
    pub message: String,
    /// True if only a user can fix it; otherwise it is retried.
    pub permanent: bool,
}

/// Obstacle that keeps agents from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Reason of the condition.
    pub reason: &'static str,
    /// The nodes concerned, in words; empty for the API server.
    pub place: String,
    /// The words of the API server or the kubelet, and what to do where that is known.
    pub message: String,
}

/// Progress of DaemonSets, by their own status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pods that there should be.
    pub desired: u64,
    /// Pods of the newest template that are available.
    pub available: u64,
    /// True if all DaemonSets' controllers have observed their newest template.
    pub observed: bool,
}

impl Progress {
    /// Returns whether the rollout is complete.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.observed && self.available >= self.desired
    }
}

/// All outcomes, by ScopeProbe. Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct Outcomes {
    outcomes: Arc<RwLock<BTreeMap<String, Outcome>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self { outcomes: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }
}

impl Outcomes {
    /// Records the result of a rollout.
    pub fn set(&self, probe: &str, outcome: Outcome) {
        let mut outcomes = self.outcomes.write().unwrap_or_else(PoisonError::into_inner);
        if outcomes.get(probe) != Some(&outcome) {
            outcomes.insert(probe.to_owned(), outcome);
            drop(outcomes);
            self.changed.send_replace(());
        }
    }

    /// Returns the result of a ScopeProbe's last rollout, if there was one.
    #[must_use]
    pub fn get(&self, probe: &str) -> Option<Outcome> {
        self.outcomes.read().unwrap_or_else(PoisonError::into_inner).get(probe).cloned()
    }

    /// Removes the results of other ScopeProbes than these.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.outcomes.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| keep(name));
    }

    /// Returns a receiver that is notified of each change of an outcome.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_begins_anew_with_another_agent() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let of =
            |available| Outcome { progress: Progress { desired: 9, available, observed: true }, ..Outcome::default() };
        let first = of(1).after(None, at(1));
        let second = of(2).after(Some(&first), at(400));
        assert_eq!(of(2).after(Some(&second), at(401)).since, Some(at(400)), "it goes on, if slowly");
    }

    #[test]
    fn time_of_a_failure_begins_anew_with_another_reason_or_spec() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let failed = |generation, reason| {
            let problem = Some(Problem { reason, message: String::new(), permanent: false });
            Outcome { generation, problem, ..Outcome::default() }
        };
        let first = failed(1, "A").after(None, at(1));
        let second = failed(1, "A").after(Some(&first), at(2));
        let third = failed(1, "B").after(Some(&second), at(3));
        let fourth = failed(2, "B").after(Some(&third), at(4));
        let incomplete = Outcome { generation: 2, ..Outcome::default() }.after(Some(&fourth), at(5));
        let progress = Progress { observed: true, ..Progress::default() };
        let done = Outcome { generation: 2, progress, ..Outcome::default() }.after(Some(&incomplete), at(6));
        let since = [first, second, third, fourth, incomplete, done].map(|outcome| outcome.since);
        assert_eq!(since, [Some(at(1)), Some(at(1)), Some(at(3)), Some(at(4)), Some(at(5)), None]);
    }
}
