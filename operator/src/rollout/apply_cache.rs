//! Skips writes of DaemonSets that are still as this operator applied them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::ResourceExt;

/// Applied DaemonSets, and the API server's result. It is not persisted: a new process applies everything once.
#[derive(Debug, Default)]
pub struct ApplyCache {
    by_name: Mutex<HashMap<String, Record>>,
}

#[derive(Debug)]
struct Record {
    wanted: DaemonSet,
    uid: Option<String>,
    generation: Option<i64>,
}

impl ApplyCache {
    /// Returns whether applying `wanted` would change nothing. The generation reveals changes of the spec by other
    /// clients.
    #[must_use]
    pub fn is_current(&self, wanted: &DaemonSet, there: &DaemonSet) -> bool {
        let by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        by_name.get(&wanted.name_any()).is_some_and(|record| {
            record.wanted == *wanted
                && (&record.uid, record.generation) == (&there.metadata.uid, there.metadata.generation)
                && wanted.labels().iter().all(|(key, value)| there.labels().get(key) == Some(value))
                && there.owner_references() == wanted.owner_references()
        })
    }

    /// Records the result of applying `wanted`.
    pub fn note(&self, wanted: &DaemonSet, made: &DaemonSet) {
        let record =
            Record { wanted: wanted.clone(), uid: made.metadata.uid.clone(), generation: made.metadata.generation };
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).insert(wanted.name_any(), record);
    }

    /// Removes a deleted DaemonSet.
    pub fn forget(&self, name: &str) {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn daemon_set(metadata: &Value, image: &str) -> DaemonSet {
        let mut object = json!({
            "metadata": {"name": "agents", "labels": {"a": "b"}, "ownerReferences": [
                {"apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe", "name": "p", "uid": "1"}
            ]},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "agent", "image": image}]}}},
        });
        for (key, value) in metadata.as_object().unwrap() {
            object["metadata"][key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn what_was_applied_and_left_alone_is_current() {
        let wanted = daemon_set(&json!({}), "one");
        let made = daemon_set(&json!({"uid": "u", "generation": 3}), "one");
        let applied = ApplyCache::default();
        assert!(!applied.is_current(&wanted, &made), "nothing has been applied yet");
        applied.note(&wanted, &made);
        let seen = daemon_set(&json!({"uid": "u", "generation": 3, "labels": {"a": "b", "of": "others"}}), "one");
        assert!(applied.is_current(&wanted, &seen));
    }

    #[test]
    fn what_anybody_has_changed_is_not_current() {
        let wanted = daemon_set(&json!({}), "one");
        let applied = ApplyCache::default();
        applied.note(&wanted, &daemon_set(&json!({"uid": "u", "generation": 3}), "one"));
        for changed in [
            json!({"uid": "u", "generation": 4}),
            json!({"uid": "another", "generation": 3}),
            json!({"uid": "u", "generation": 3, "labels": {}}),
            json!({"uid": "u", "generation": 3, "ownerReferences": []}),
        ] {
            assert!(!applied.is_current(&wanted, &daemon_set(&changed, "one")), "{changed}");
        }
        let there = daemon_set(&json!({"uid": "u", "generation": 3}), "one");
        assert!(!applied.is_current(&daemon_set(&json!({}), "two"), &there), "something else is wanted now");
        applied.forget("agents");
        assert!(!applied.is_current(&wanted, &there));
    }
}
