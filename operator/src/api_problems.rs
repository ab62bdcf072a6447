//! Requests that the API server refuses again and again, for the condition `Published` of ScopeProbes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time for which a request has to fail before that counts: what passes by itself is no problem.
const LASTING: Duration = Duration::from_secs(10);

/// Returns whether a request failed because of the API server, not of the object. Such failures end for all objects at once.
#[must_use]
pub fn is_of_server(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        error => matches!(error, kube::Error::HyperError(_)),
    }
}

/// Request that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failing {
    /// Name of the object; empty for a whole kind.
    object: String,
    /// The API server's words.
    words: String,
    since: Instant,
}

/// The first failing request of each operation. Cheap to clone; all clones share one state.
#[derive(Clone, Debug, Default)]
pub struct ApiProblems(Arc<Mutex<BTreeMap<&'static str, Failing>>>);

impl ApiProblems {
    /// Records that a request has failed. `operation` is a phrase like `write Topology`; `object` is empty for a whole
    /// kind. Further objects are recorded when the first one succeeds.
    pub fn failed(&self, operation: &'static str, object: &str, words: &str, now: Instant) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = failing.entry(operation).or_insert_with(|| Failing {
            object: object.to_owned(),
            words: String::new(),
            since: now,
        });
        if known.object == object {
            words.clone_into(&mut known.words);
        }
    }

    /// Records that a request has succeeded, or is not made any more.
    pub fn succeeded(&self, operation: &'static str, object: &str) {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failing.get(operation).is_some_and(|known| known.object == object) {
            failing.remove(operation);
        }
    }

    /// Forgets an operation's failures, because another task performs it from now on.
    pub fn forget(&self, operation: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(operation);
    }

    /// Returns what fails and has failed for a while, in words; empty if nothing does.
    #[must_use]
    pub fn lasting(&self, now: Instant) -> Vec<String> {
        let failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting = failing.iter().filter(|(_, failing)| now.duration_since(failing.since) >= LASTING);
        let words = lasting.map(|(operation, Failing { object, words, .. })| match object.as_str() {
            "" => format!("cannot {operation}: {words}"),
            object => format!("cannot {operation} {object}: {words}"),
        });
        words.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_object_stands_for_others_until_it_succeeds() {
        let problems = ApiProblems::default();
        let start = Instant::now();
        let later = start + LASTING;
        problems.failed("write Topology", "a/x", "refused", start);
        problems.failed("write Topology", "a/y", "also refused", start);
        assert_eq!(problems.lasting(start), Vec::<String>::new(), "it may pass");
        assert_eq!(problems.lasting(later), ["cannot write Topology a/x: refused"]);
        problems.succeeded("write Topology", "a/y");
        assert_eq!(problems.lasting(later).len(), 1);
        problems.succeeded("write Topology", "a/x");
        assert_eq!(problems.lasting(later), Vec::<String>::new());
        problems.failed("watch Topologies", "", "no such kind", start);
        assert_eq!(problems.lasting(later), ["cannot watch Topologies: no such kind"]);
        problems.forget("watch Topologies");
        assert_eq!(problems.lasting(later), Vec::<String>::new());
    }
}
