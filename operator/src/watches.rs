//! Follows the cluster's own objects, so that addresses and cgroups get names.

mod api_versions;
mod app;
mod catalog;
mod listed;
mod namespaces;
mod nodes;
mod owners;
mod pods;
mod profile;
mod referenced;
mod services;
mod steps;
mod workload_facts;

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, future::ready, stream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Client, core::PartialObjectMeta};
use tokio::sync::watch;
use topology::{external::ExternalGroups, ledger::Ledger};

pub use self::{app::AppLabels, catalog::Catalog, referenced::OwnerIdentity, workload_facts::WorkloadFacts};
use self::{catalog::Change, steps::steps};
use crate::{guarded_watch::watch as watch_all, shared_ledger::Accounts};

/// Maximum number of changes applied before a notification.
const BATCH: usize = 512;

/// Names and owners in the cluster. Clones share their state.
#[derive(Clone, Debug)]
pub struct Names {
    catalog: Arc<RwLock<Catalog>>,
    changed: Arc<watch::Sender<()>>,
    complete: Arc<watch::Sender<bool>>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            catalog: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
            complete: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Names {
    /// Everything that is known now. Not to be held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marked as changed with every change of a name.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns whether everything was listed once.
    #[must_use]
    pub fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// Takes over what is known of the nodes' clocks.
    pub fn set_clocks(&self, ledger: &Ledger) {
        let known = self.read();
        let news: Vec<_> = ledger.clocks().filter(|(node, clock)| !known.directory().has_clock(node, clock)).collect();
        drop(known);
        if !news.is_empty() {
            self.catalog.write().unwrap_or_else(PoisonError::into_inner).set_clocks(&news);
        }
    }

    /// Gives names to addresses outside of the cluster.
    pub fn name_external_groups(&self, groups: ExternalGroups) {
        if self.catalog.write().unwrap_or_else(PoisonError::into_inner).name_external_groups(groups) {
            self.changed.send_replace(());
        }
    }

    /// Notes by which API versions an earlier operator has referred to kinds.
    pub fn note_api_versions<'a>(&self, references: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        for (api_version, kind) in references {
            catalog.note_api_version(api_version, kind);
        }
    }

    /// Forgets what has been gone for `retention`.
    pub fn forget_removed(&self, now: SystemTime, retention: Duration) {
        self.catalog.write().unwrap_or_else(PoisonError::into_inner).forget_removed(now, retention);
    }

    fn take_in(&self, changes: Vec<Change>, now: SystemTime) -> Vec<String> {
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        let mut is_news = false;
        for change in changes {
            is_news |= catalog.apply(change, now);
        }
        let complete = catalog.is_complete();
        let gone = catalog.take_gone_nodes();
        drop(catalog);
        self.complete.send_if_modified(|known| std::mem::replace(known, complete) != complete);
        if is_news {
            self.changed.send_replace(());
        }
        gone
    }
}

/// Follows all objects that matter until it is dropped. What cannot be watched is tried again with growing pauses.
pub async fn run(client: Client, names: Names, accounts: Accounts) {
    let all = vec![
        steps("pods", watch_all::<Pod>(&client), pods::facts, |step| Change::Pod(Box::new(step))),
        steps("services", watch_all::<Service>(&client), services::service, Change::Service),
        steps("endpointslices", watch_all::<EndpointSlice>(&client), services::slice, Change::Slice),
        steps("nodes", watch_all::<Node>(&client), nodes::facts, Change::Node),
        steps("namespaces", watch_all::<PartialObjectMeta<Namespace>>(&client), namespaces::facts, Change::Namespace),
        owners::<ReplicaSet>(&client),
        selecting_owners::<Deployment>(&client),
        selecting_owners::<StatefulSet>(&client),
        selecting_owners::<DaemonSet>(&client),
        owners::<Job>(&client),
        owners::<CronJob>(&client),
    ];
    stream::select_all(all)
        .ready_chunks(BATCH)
        .for_each(|changes| {
            let gone = names.take_in(changes, SystemTime::now());
            let accounts = accounts.clone();
            async move {
                for node in gone {
                    if accounts.ledger().lock().await.remove_node(&node, SystemTime::now()) {
                        accounts.mark_changed();
                    }
                }
                ready(()).await;
            }
        })
        .await;
}

/// Owners are needed by name, UID and owner only.
fn owners<K>(client: &Client) -> stream::BoxStream<'static, Change>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + k8s_openapi::Resource
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let watched = watch_all::<PartialObjectMeta<K>>(client);
    steps(K::KIND, watched, owners::facts::<K>, |step| Change::Owner(K::KIND, K::API_VERSION, step))
}

/// Owners of these kinds have an immutable selector of their pods, which is needed, too.
fn selecting_owners<K>(client: &Client) -> stream::BoxStream<'static, Change>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + k8s_openapi::Resource
        + Clone
        + std::fmt::Debug
        + Send
        + 'static,
{
    let watched = watch_all::<owners::Selecting<K>>(client);
    steps(K::KIND, watched, owners::selecting_facts::<K>, |step| Change::Owner(K::KIND, K::API_VERSION, step))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use topology::entity::Workload;

    use super::{steps::Step, *};

    fn pod(metadata: &Value) -> Change {
        let object: Pod = serde_json::from_value(json!({"metadata": metadata})).expect("it is a pod");
        Change::Pod(Box::new(Step::Upsert(pods::facts(object).expect("it has all that it needs"))))
    }

    fn owner<K>(metadata: &Value) -> Change
    where
        K: kube::Resource<DynamicType = ()> + k8s_openapi::Resource,
    {
        let object: PartialObjectMeta<K> =
            serde_json::from_value(json!({"metadata": metadata})).expect("it has metadata");
        let facts = owners::facts(object).expect("it has all that it needs");
        Change::Owner(K::KIND, K::API_VERSION, Step::Upsert(facts))
    }

    fn begins<K: k8s_openapi::Resource>() -> Change {
        Change::Owner(K::KIND, K::API_VERSION, Step::Begin)
    }

    fn controller(api_version: &str, kind: &str, name: &str) -> Value {
        json!([{"apiVersion": api_version, "kind": kind, "name": name, "uid": format!("{kind}-{name}"), "controller": true}])
    }

    fn catalog(changes: impl IntoIterator<Item = Change>) -> Catalog {
        let mut catalog = Catalog::default();
        for change in changes {
            catalog.apply(change, SystemTime::UNIX_EPOCH);
        }
        catalog
    }

    #[test]
    fn a_static_pod_is_found_by_the_hash_that_its_node_knows() {
        let hash = "0123456789abcdef0123456789abcdef";
        let metadata = json!({
            "namespace": "kube-system", "name": "etcd-node-1", "uid": "u",
            "annotations": {"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
        });
        let mut catalog = catalog([pod(&metadata)]);
        let name = |catalog: &Catalog| catalog.directory().pod(hash).map(|pod| (pod.uid.clone(), pod.name.clone()));
        assert_eq!(name(&catalog), Some(("u".to_owned(), "etcd-node-1".to_owned())));
        // Its object is made again, and the old one forgotten.
        let mut again = metadata.clone();
        again["uid"] = json!("v");
        catalog.apply(pod(&again), SystemTime::UNIX_EPOCH);
        let object = serde_json::from_value(json!({"metadata": metadata})).expect("it is a pod");
        let gone = pods::facts(object).expect("it has all that it needs");
        catalog.apply(Change::Pod(Box::new(Step::Remove(gone))), SystemTime::UNIX_EPOCH);
        catalog.forget_removed(SystemTime::UNIX_EPOCH, Duration::ZERO);
        assert_eq!(name(&catalog), Some(("v".to_owned(), "etcd-node-1".to_owned())));
    }

    #[test]
    fn kinds_of_the_same_name_in_other_groups_are_not_taken_for_ours() {
        let own = |name: &str, owners: Value| {
            pod(&json!({"namespace": "shop", "name": name, "uid": name, "ownerReferences": owners}))
        };
        let job = json!({
            "namespace": "shop", "name": "report", "uid": "job",
            "ownerReferences": controller("batch/v1", "CronJob", "nightly"),
        });
        let catalog = catalog([
            begins::<Job>(),
            begins::<CronJob>(),
            owner::<CronJob>(&json!({"namespace": "shop", "name": "nightly", "uid": "cron"})),
            owner::<Job>(&job),
            own("ours", controller("batch/v1", "Job", "report")),
            own("other", controller("batch.example.com/v1", "Job", "report")),
        ]);
        let workload_of = |uid: &str| catalog.directory().pod(uid).expect("it is known").workload.clone();
        let named = |kind: &str, name: &str, group: &str| Workload {
            namespace: "shop".to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            group: group.to_owned(),
        };
        assert_eq!(workload_of("ours"), named("CronJob", "nightly", "batch"));
        assert_eq!(workload_of("other"), named("Job", "report", "batch.example.com"));
        let owner = catalog.owner_identity(&named("CronJob", "nightly", "batch")).expect("it exists");
        assert_eq!((owner.api_version.as_str(), owner.uid.as_str()), ("batch/v1", "cron"));
    }
}
