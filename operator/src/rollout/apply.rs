//! Writes a rollout's objects by server-side apply, and removes those that are no longer wanted.

use std::collections::BTreeMap;

use crds::{MODE_LABEL, NodeProbe, PROBE_LABEL};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::{PartialObjectMeta, Status},
};
use serde_json::json;

use super::{
    FIELD_MANAGER, NODE_FIELD_MANAGER,
    apply_cache::ApplyCache,
    build::{AGENT_APP, PreparedDaemonSet},
    outcome::Progress,
};
use crate::cluster::NodeFacts;

/// Failed write.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {object}: {}", words(source))]
pub struct ApplyError {
    /// Attempted operation.
    pub verb: &'static str,
    /// On what.
    pub object: String,
    /// Error of the API server.
    pub source: Box<kube::Error>,
}

impl ApplyError {
    /// A failed request.
    pub fn new(verb: &'static str, object: impl Into<String>, source: kube::Error) -> Self {
        Self { verb, object: object.into(), source: Box::new(source) }
    }
}

/// Returns the API server's own words, without the status that has them a second time.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        error => error.to_string(),
    }
}

/// Returns whether the API server reports that the object does not exist.
#[must_use]
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Applies those of a ScopeProbe's DaemonSets that are not as they should be, and deletes those of its DaemonSets that
/// are not among them.
///
/// # Errors
/// The first request that failed.
pub async fn daemon_sets(
    client: &Client,
    namespace: &str,
    probe: &str,
    prepared: &[PreparedDaemonSet],
    cache: &ApplyCache,
) -> Result<Vec<AppliedDaemonSet>, ApplyError> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let selector = format!("app.kubernetes.io/name={AGENT_APP},{PROBE_LABEL}={probe}");
    let there = api.list(&ListParams::default().labels(&selector)).await;
    let there = there.map_err(|source| ApplyError::new("list DaemonSets of", namespace, source))?.items;
    let there: BTreeMap<_, _> = there.into_iter().map(|daemon_set| (daemon_set.name_any(), daemon_set)).collect();
    let mut applied = Vec::with_capacity(prepared.len());
    for wanted in prepared.iter().map(PreparedDaemonSet::object) {
        let name = wanted.name_any();
        if let Some(there) = there.get(&name).filter(|there| cache.is_current(wanted, there)) {
            applied.push(AppliedDaemonSet(there.clone()));
            continue;
        }
        let made = api
            .patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(wanted))
            .await
            .map_err(|source| ApplyError::new("apply DaemonSet", format!("{namespace}/{name}"), source))?;
        cache.note(wanted, &made);
        applied.push(AppliedDaemonSet(made));
    }
    for name in there.into_keys().filter(|name| !prepared.iter().any(|it| it.object().name_any() == *name)) {
        cache.forget(&name);
        delete_daemon_set(&api, namespace, &name).await?;
    }
    Ok(applied)
}

/// Deletes the DaemonSets of a selection.
///
/// # Errors
/// The first request that failed.
pub async fn delete_daemon_sets(api: &Api<DaemonSet>, namespace: &str, selector: &str) -> Result<(), ApplyError> {
    let existing = api
        .list_metadata(&ListParams::default().labels(selector))
        .await
        .map_err(|source| ApplyError::new("list DaemonSets of", namespace, source))?;
    for daemon_set in existing {
        delete_daemon_set(api, namespace, &daemon_set.name_any()).await?;
    }
    Ok(())
}

async fn delete_daemon_set(api: &Api<DaemonSet>, namespace: &str, name: &str) -> Result<(), ApplyError> {
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("delete DaemonSet", format!("{namespace}/{name}"), source)),
    }
}

/// Deletes a NodeProbe, if it is there.
///
/// # Errors
/// Returns an error if the API server refused.
pub async fn delete_node_probe(client: &Client, name: &str) -> Result<(), ApplyError> {
    // The answer may be the object, which may not decode.
    match Api::<PartialObjectMeta<NodeProbe>>::all(client.clone()).delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("delete NodeProbe", name, source)),
    }
}

/// DaemonSet as the API server returned it after it was applied. Only this module makes one.
#[derive(Clone, Debug)]
pub struct AppliedDaemonSet(DaemonSet);

impl AppliedDaemonSet {
    /// Returns its UID if it lacks pods that it should have.
    #[must_use]
    pub fn uid_if_pods_are_missing(&self) -> Option<&str> {
        let status = self.0.status.as_ref()?;
        let is_missing = status.current_number_scheduled < status.desired_number_scheduled;
        self.0.metadata.uid.as_deref().filter(|_| is_missing)
    }

    #[cfg(test)]
    pub(super) fn of(daemon_set: DaemonSet) -> Self {
        Self(daemon_set)
    }
}

/// Returns the progress of applied DaemonSets, by their own status.
#[must_use]
pub fn progress(applied: &[AppliedDaemonSet]) -> Progress {
    let number = |number: i32| u64::try_from(number).unwrap_or_default();
    let mut progress = Progress { observed: true, ..Progress::default() };
    for AppliedDaemonSet(daemon_set) in applied {
        let Some(status) = &daemon_set.status else {
            progress.observed = false;
            continue;
        };
        progress.observed &= status.observed_generation == daemon_set.metadata.generation;
        progress.desired += number(status.desired_number_scheduled);
        let updated = number(status.updated_number_scheduled.unwrap_or_default());
        progress.available += updated.min(number(status.number_available.unwrap_or_default()));
    }
    progress
}

/// Result of labeling a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Labelled {
    /// It has its labels.
    Done,
    /// It is gone, and none to label.
    Gone,
    /// Another field manager set one of our labels to another value; the API server's message.
    Taken(String),
}

/// Sets the labels of a node's agent, except those that another manager holds with another value.
///
/// # Errors
/// Returns an error if the API server refused.
pub async fn label_node(
    client: &Client,
    node: &NodeFacts,
    labels: &BTreeMap<String, String>,
) -> Result<Labelled, ApplyError> {
    // With its UID, so that an apply cannot create a node that has just been deleted, or label its successor.
    let patch = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "uid": node.uid, "labels": labels},
    });
    let api: Api<Node> = Api::all(client.clone());
    match api.patch_metadata(&node.name, &PatchParams::apply(NODE_FIELD_MANAGER), &Patch::Apply(patch)).await {
        Ok(_) => Ok(Labelled::Done),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            Ok(conflict(&status).map_or(Labelled::Gone, Labelled::Taken))
        }
        Err(source) => Err(ApplyError::new("label Node", &node.name, source)),
    }
}

/// Returns the managers of conflicting fields; `None` if the API server refused for another reason.
fn conflict(status: &Status) -> Option<String> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let held: Vec<_> = causes
        .filter(|cause| cause.reason == "FieldManagerConflict")
        .map(|cause| format!("{} ({})", cause.field.trim_start_matches(".metadata.labels."), cause.message))
        .collect();
    Some(held.join(", ")).filter(|held| !held.is_empty())
}

/// Removes our labels from a node, regardless of their field manager.
///
/// # Errors
/// Returns an error if the API server refused.
pub async fn unlabel_node(client: &Client, node: &str) -> Result<(), ApplyError> {
    let patch = json!({"metadata": {"labels": {MODE_LABEL: null, PROBE_LABEL: null}}});
    let api: Api<Node> = Api::all(client.clone());
    match api.patch_metadata(node, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("take labels from Node", node, source)),
    }
}

/// Our labels among a node's.
#[must_use]
pub fn ours(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    [MODE_LABEL, PROBE_LABEL]
        .into_iter()
        .filter_map(|key| labels.get_key_value(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
