//! Results of each ScopeProbe's last rollout: written by the controller, read by the status writer.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

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
