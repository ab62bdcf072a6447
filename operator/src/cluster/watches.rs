//! Watches of everything that has a name, and their application to the index.

use std::{fmt::Debug, time::SystemTime};

use futures::{
    Stream, StreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
};
use kube::{Client, Resource, core::PartialObjectMeta};
use serde::de::DeserializeOwned;
use topology::ledger::News;

use super::{
    index::{Change, Update},
    namespaces,
    nodes::NodeSteps,
    owners, pods, services,
    shared_index::ClusterIndex,
    steps::{Step, steps},
};
use crate::{guarded_watch::watch, shared_ledger::SharedLedger};

/// Maximum number of changes applied before a notification.
const BATCH: usize = 512;

/// Watch of one kind, as updates of the index.
struct KindWatch {
    kind: &'static str,
    updates: BoxStream<'static, Update>,
}

impl KindWatch {
    fn new<K, F>(
        steps: impl Stream<Item = Step<F>> + Send + 'static,
        change: impl Fn(Step<F>) -> Change + Send + 'static,
    ) -> Self
    where
        K: k8s_openapi::Resource,
    {
        let update = move |step| {
            let listed = matches!(step, Step::Complete).then_some(K::KIND);
            Update { change: change(step), listed }
        };
        Self { kind: K::KIND, updates: steps.map(update).boxed() }
    }
}

/// Keeps the index up to date until it is dropped. Failed watches are retried with growing pauses.
pub async fn run(client: Client, nodes: NodeSteps, index: ClusterIndex, shared_ledger: SharedLedger) {
    let watches = all(&client, nodes);
    index.await_lists(watches.iter().map(|watch| watch.kind));
    stream::select_all(watches.into_iter().map(|watch| watch.updates))
        .ready_chunks(BATCH)
        .for_each(|updates| {
            let gone = index.take_in(updates, SystemTime::now());
            let shared_ledger = shared_ledger.clone();
            async move {
                for node in gone {
                    if shared_ledger.ledger().lock().await.remove_node(&node, SystemTime::now()) {
                        shared_ledger.mark(News::Structure);
                    }
                }
                ready(()).await;
            }
        })
        .await;
}

/// Returns the watches of all kinds. The index is complete when each has listed its objects.
fn all(client: &Client, nodes: NodeSteps) -> Vec<KindWatch> {
    let pods = steps(watch::<Pod>(client), pods::facts);
    let services = steps(watch::<Service>(client), services::service);
    let slices = steps(watch::<EndpointSlice>(client), services::slice);
    let namespaces = steps(watch::<PartialObjectMeta<Namespace>>(client), namespaces::facts);
    vec![
        KindWatch::new::<Pod, _>(pods, |step| Change::Pod(Box::new(step))),
        KindWatch::new::<Service, _>(services, Change::Service),
        KindWatch::new::<EndpointSlice, _>(slices, Change::Slice),
        KindWatch::new::<Node, _>(nodes.into_stream(), Change::Node),
        KindWatch::new::<Namespace, _>(namespaces, Change::Namespace),
        owners::<ReplicaSet>(client),
        selecting_owners::<Deployment>(client),
        selecting_owners::<StatefulSet>(client),
        selecting_owners::<DaemonSet>(client),
        owners::<Job>(client),
        owners::<CronJob>(client),
    ]
}

/// Returns the watch of a kind of owners, of which name, UID and owner are needed.
fn owners<K>(client: &Client) -> KindWatch
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + k8s_openapi::Resource
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let steps = steps(watch::<PartialObjectMeta<K>>(client), owners::facts::<K>);
    KindWatch::new::<K, _>(steps, |step| Change::Owner(K::KIND, K::API_VERSION, step))
}

/// Returns the watch of a kind of owners that have an immutable selector of their pods, which is needed, too.
fn selecting_owners<K>(client: &Client) -> KindWatch
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + k8s_openapi::Resource
        + Clone
        + Debug
        + Send
        + 'static,
{
    let steps = steps(watch::<owners::Selecting<K>>(client), owners::selecting_facts::<K>);
    KindWatch::new::<K, _>(steps, |step| Change::Owner(K::KIND, K::API_VERSION, step))
}
