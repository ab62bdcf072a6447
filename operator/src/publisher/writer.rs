//! Reads and writes Topology objects.

use std::{collections::BTreeMap, fmt, time::Duration};

use crds::{OmittedEdges, Topology, TopologyStatus, Totals};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions},
    core::{PartialObjectMeta, Status},
};
use serde_json::{Value, json};
use topology::entity::Workload;

use super::{
    labels,
    name::{name, name_with_group},
    packed::Packed,
};
use crate::{
    api_problems::is_of_server,
    cluster::{AppLabels, OwnerIdentity},
    guarded::Guarded,
};

/// Field manager of the status.
const FIELD_MANAGER: &str = "scopeprobe-topology";
/// Time limit of a write, which is then aborted and retried.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Key of a Topology.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

impl Key {
    pub(super) fn of(workload: &Workload) -> Self {
        Self { namespace: workload.namespace.clone(), name: name(workload) }
    }

    /// Where it is if a workload of another group has the other name.
    pub(super) fn with_group(workload: &Workload) -> Self {
        Self { namespace: workload.namespace.clone(), name: name_with_group(workload) }
    }
}

/// A Topology as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    pub workload: Workload,
    pub owner: OwnerIdentity,
    pub app: AppLabels,
    /// Sums over the edges of the status.
    pub totals: Totals,
    /// Numbers of edges that the status does not list.
    pub omitted: OmittedEdges,
    pub status: Packed<TopologyStatus>,
}

/// Result of a write.
#[derive(Debug)]
pub(super) enum Written {
    /// The object as it is now.
    Is(Box<Topology>),
    /// There is no such object.
    Gone,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("{}", explained(.0))]
    Api(#[from] kube::Error),
}

impl WriteError {
    /// Returns whether the API server has too much to do.
    pub(super) fn is_overload(&self) -> bool {
        match self {
            Self::Timeout => true,
            // Priority and Fairness answers with 429; a proxy before an API server that is away with 503.
            Self::Api(kube::Error::Api(status)) => matches!(status.code, 429 | 503),
            Self::Api(_) => false,
        }
    }
}

impl WriteError {
    /// Returns whether the API server has failed, for any object. One that does not answer may do so because of the object.
    pub(super) fn is_of_server(&self) -> bool {
        matches!(self, Self::Api(error) if is_of_server(error))
    }
}

fn explained(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("{}; allow the operator's service account what the chart's ClusterRole allows", status.message)
        }
        error => error.to_string(),
    }
}

/// How an object is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Existence {
    /// Not at all, or with another owner than it should have.
    None,
    /// With the right owner.
    Owned {
        uid: Option<String>,
        /// Our labels are as they are to be.
        has_labels: bool,
    },
    /// In a form that does not decode.
    Malformed,
}

impl Existence {
    /// Returns the number of requests of a write.
    pub(super) fn requests(&self) -> u32 {
        match self {
            Self::Owned { has_labels: true, .. } => 1,
            Self::Owned { has_labels: false, .. } | Self::None => 2,
            Self::Malformed => 3,
        }
    }
}

/// Writes the object. Before that, makes it, or its owner reference and labels, where it lacks these.
pub(super) async fn write(
    client: &Client,
    key: &Key,
    desired: &Desired,
    status: &TopologyStatus,
    existence: Existence,
    labels: &BTreeMap<&str, &str>,
) -> Result<Written, WriteError> {
    let api: Api<Topology> = Api::namespaced(client.clone(), &key.namespace);
    within(async {
        let uid = match &existence {
            Existence::Owned { uid, .. } => uid.clone(),
            Existence::None => None,
            Existence::Malformed => {
                reset(client, key).await?;
                None
            }
        };
        let lacks_metadata = !matches!(existence, Existence::Owned { has_labels: true, .. });
        if lacks_metadata
            && let Written::Gone = apply_metadata(&api, key, uid, json!([owner(desired)]), json!(labels)).await?
        {
            return Ok(Written::Gone);
        }
        let body = json!({ "apiVersion": api_version(), "kind": "Topology", "status": status });
        found(api.patch_status(&key.name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(body)).await)
    })
    .await
}

/// Removes the status of any field manager, so that the object decodes again. Deletes the object if that does not help.
async fn reset(client: &Client, key: &Key) -> Result<Written, WriteError> {
    let api: Api<Guarded<Topology>> = Api::namespaced(client.clone(), &key.namespace);
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_status(&key.name, &params, &Patch::Merge(json!({ "status": null }))).await {
        Ok(Guarded(Ok(topology))) => Ok(Written::Is(Box::new(topology))),
        Ok(Guarded(Err(invalid))) => delete(client, key, &invalid.metadata).await,
        Err(kube::Error::Api(status)) if is_not_found(&status) => Ok(Written::Gone),
        Err(error) => Err(error.into()),
    }
}

/// Deletes the object, unless another client wrote to it meanwhile.
async fn delete(client: &Client, key: &Key, known: &ObjectMeta) -> Result<Written, WriteError> {
    // The answer may be the object, which may not decode.
    let api: Api<PartialObjectMeta<Topology>> = Api::namespaced(client.clone(), &key.namespace);
    let preconditions = Preconditions { uid: known.uid.clone(), resource_version: known.resource_version.clone() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&key.name, &params).await {
        Ok(_) => Ok(Written::Gone),
        Err(kube::Error::Api(status)) if is_not_found(&status) => Ok(Written::Gone),
        Err(error) => Err(error.into()),
    }
}

/// Replaces our owner references and labels. A label that another manager set meanwhile is a conflict, and is left alone at
/// the next attempt. A UID prevents the creation of a deleted object.
async fn apply_metadata(
    api: &Api<Topology>,
    key: &Key,
    uid: Option<String>,
    owners: Value,
    labels: Value,
) -> Result<Written, WriteError> {
    let Key { namespace, name } = key;
    let metadata =
        json!({ "name": name, "namespace": namespace, "uid": uid, "ownerReferences": owners, "labels": labels });
    let body = json!({ "apiVersion": api_version(), "kind": "Topology", "metadata": metadata });
    found(api.patch(name, &PatchParams::apply(labels::FIELD_MANAGER), &Patch::Apply(body)).await)
}

/// No edges are left: deletes the object, or empties its status if anybody else has written to it.
pub(super) async fn empty(
    client: &Client,
    key: &Key,
    known: &Topology,
    is_malformed: bool,
) -> Result<Written, WriteError> {
    let api: Api<Topology> = Api::namespaced(client.clone(), &key.namespace);
    within(async {
        let reset = if is_malformed { Some(reset(client, key).await?) } else { None };
        let known = match &reset {
            Some(Written::Gone) => return Ok(Written::Gone),
            Some(Written::Is(topology)) => topology,
            None => known,
        };
        if is_ours(&known.metadata) {
            return delete(client, key, &known.metadata).await;
        }
        if !labels::ours(known).is_empty() {
            apply_metadata(&api, key, known.uid(), json!(known.owner_references()), json!({})).await?;
        }
        let body = json!({ "apiVersion": api_version(), "kind": "Topology" });
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        found(api.patch_status(&key.name, &apply, &Patch::Apply(body)).await)
    })
    .await
}

/// Removes everything that was published: deletes objects without changes of other clients, and empties the status of
/// the others.
///
/// # Errors
/// If the objects cannot be listed, or one of them not be written; the others are written nevertheless.
pub async fn clear(client: &Client) -> Result<(), kube::Error> {
    let mut params = ListParams::default().limit(500);
    let mut failed = None;
    loop {
        let page = Api::<Topology>::all(client.clone()).list_metadata(&params).await?;
        for topology in page.items {
            let key = Key { namespace: topology.namespace().unwrap_or_default(), name: topology.name_any() };
            match within(Box::pin(clear_one(client, &key, &topology.metadata))).await {
                Ok(()) => {}
                Err(WriteError::Api(error)) => failed = Some(error),
                Err(error) => {
                    tracing::warn!(namespace = key.namespace, name = key.name, %error, "cannot clear a Topology");
                }
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return failed.map_or(Ok(()), Err),
        }
    }
}

async fn clear_one(client: &Client, key: &Key, known: &ObjectMeta) -> Result<(), WriteError> {
    if is_ours(known) {
        delete(client, key, known).await?;
        return Ok(());
    }
    if has_our_status(known)
        && let Written::Is(cleared) = reset(client, key).await?
    {
        empty(client, key, &cleared, false).await?;
    }
    Ok(())
}

/// Returns whether no other client has written to the object, so that it may be deleted.
fn is_ours(metadata: &ObjectMeta) -> bool {
    let is_ours = |manager: &str| manager == FIELD_MANAGER || manager == labels::FIELD_MANAGER;
    managers(metadata).all(|entry| entry.manager.as_deref().is_some_and(is_ours))
}

fn has_our_status(metadata: &ObjectMeta) -> bool {
    let is_status = |entry: &ManagedFieldsEntry| entry.subresource.as_deref() == Some("status");
    managers(metadata).any(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) && is_status(entry))
}

fn managers(metadata: &ObjectMeta) -> impl Iterator<Item = &ManagedFieldsEntry> {
    metadata.managed_fields.iter().flatten()
}

fn owner(desired: &Desired) -> Value {
    json!({
        "apiVersion": desired.owner.api_version,
        "kind": desired.workload.kind,
        "name": desired.workload.name,
        "uid": desired.owner.uid,
    })
}

fn api_version() -> String {
    format!("{}/{}", crds::GROUP, crds::VERSION)
}

fn found(result: Result<Topology, kube::Error>) -> Result<Written, WriteError> {
    match result {
        Ok(topology) => Ok(Written::Is(Box::new(topology))),
        Err(kube::Error::Api(status)) if is_not_found(&status) || is_namespace_ending(&status) => Ok(Written::Gone),
        Err(error) => Err(error.into()),
    }
}

fn is_not_found(status: &Status) -> bool {
    status.code == 404
}

/// Nothing can be made any more in a namespace that is being deleted.
fn is_namespace_ending(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

async fn within<T>(write: impl Future<Output = Result<T, WriteError>>) -> Result<T, WriteError> {
    tokio::time::timeout(TIMEOUT, write).await.map_err(|_| WriteError::Timeout)?
}
