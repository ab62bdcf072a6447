//! Follows the cluster's own objects, so that addresses and cgroups get names.

mod catalog;
mod nodes;
mod owners;
mod pods;
mod services;
mod steps;

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, future::ready, stream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::{CronJob, Job},
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;

pub use self::catalog::{Catalog, OwnerIdentity};
use self::{catalog::Change, steps::steps};
use crate::collector::Accounts;

/// How many changes are taken in at once before anybody is told.
const BATCH: usize = 512;

/// Who is who in the cluster. Cheap to clone; all clones are the same.
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

    /// Whether everything has been listed once.
    #[must_use]
    pub fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
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
    let config = || watcher::Config::default();
    let all = vec![
        steps("pods", watcher(Api::<Pod>::all(client.clone()), config()).default_backoff(), pods::facts, Change::Pod),
        steps(
            "services",
            watcher(Api::<Service>::all(client.clone()), config()).default_backoff(),
            services::service,
            Change::Service,
        ),
        steps(
            "endpointslices",
            watcher(Api::<EndpointSlice>::all(client.clone()), config()).default_backoff(),
            services::slice,
            Change::Slice,
        ),
        steps(
            "nodes",
            watcher(Api::<Node>::all(client.clone()), config()).default_backoff(),
            nodes::facts,
            Change::Node,
        ),
        owners::<ReplicaSet>(&client),
        owners::<Deployment>(&client),
        owners::<StatefulSet>(&client),
        owners::<DaemonSet>(&client),
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
                    if accounts.ledger().lock().await.end_node(&node, SystemTime::now()) {
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
    let watched =
        watcher(Api::<PartialObjectMeta<K>>::all(client.clone()), watcher::Config::default()).default_backoff();
    steps(K::KIND, watched, owners::facts::<K>, |step| Change::Owner(K::KIND, step))
}
