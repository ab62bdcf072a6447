//! Every version of the objects of a kind, as a watch gives them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt as _;
use kube::{
    Api, Client, ResourceExt as _,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
    runtime::watcher::{self, Event},
};
use serde_json::Value;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{Error, Result};

#[derive(Debug, Default)]
struct Seen {
    /// By `namespace/name` (or name), in their order.
    versions: BTreeMap<String, Vec<Value>>,
    removed: Vec<String>,
    interrupted: Option<String>,
}

/// A watch that records; ends when dropped.
#[derive(Debug)]
pub struct Versions {
    seen: Arc<Mutex<Seen>>,
    watching: JoinHandle<()>,
}

impl Versions {
    /// Begins to record the objects of a kind of ours in all namespaces, those that are there first.
    ///
    /// # Errors
    /// Returns an error if the watch ends before it starts.
    pub async fn of(client: &Client, kind: &str, plural: &str) -> Result<Self> {
        let kind = GroupVersionKind::gvk(crds::GROUP, crds::VERSION, kind);
        let api = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (listed, is_listed) = oneshot::channel();
        let watching = tokio::spawn(record(api, Arc::clone(&seen), listed));
        is_listed.await.map_err(|_| Error::Unexpected(format!("cannot watch {plural}")))?;
        Ok(Self { seen, watching })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the latest version of each object, converted by `look`.
    #[must_use]
    pub fn latest(&self, look: impl Fn(Value) -> Value) -> BTreeMap<String, Value> {
        let latest = |(name, versions): (&String, &Vec<Value>)| Some((name.clone(), look(versions.last()?.clone())));
        self.seen().versions.iter().filter_map(latest).collect()
    }

    /// From now on only the latest version of each object and what comes after it count.
    pub fn forget_earlier(&self) {
        let mut seen = self.seen();
        seen.removed.clear();
        for versions in seen.versions.values_mut() {
            versions.drain(..versions.len().saturating_sub(1));
        }
    }

    /// All versions of each object.
    ///
    /// # Panics
    /// Returns an error if the watch was interrupted: a version may be missing then.
    #[must_use]
    pub fn taken(&self) -> BTreeMap<String, Vec<Value>> {
        let seen = self.seen();
        assert!(seen.interrupted.is_none(), "the watch was interrupted: {:?}", seen.interrupted);
        seen.versions.clone()
    }

    /// The names of objects that were deleted.
    #[must_use]
    pub fn removed(&self) -> Vec<String> {
        self.seen().removed.clone()
    }
}

impl Drop for Versions {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

async fn record(api: Api<DynamicObject>, seen: Arc<Mutex<Seen>>, listed: oneshot::Sender<()>) {
    let mut listed = Some(listed);
    let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
    while let Some(event) = events.next().await {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                let name = name(&object);
                seen.versions.entry(name).or_default().push(serde_json::to_value(object).unwrap_or_default());
            }
            Ok(Event::Delete(object)) => {
                let name = name(&object);
                seen.versions.remove(&name);
                seen.removed.push(name);
            }
            Ok(Event::InitDone) => drop(listed.take().map(|listed| listed.send(()))),
            Ok(Event::Init) if listed.is_none() => seen.interrupted = Some("it began anew".to_owned()),
            // A watch that has ended is resumed where it was, if that is possible.
            Ok(Event::Init) | Err(watcher::Error::WatchFailed(_) | watcher::Error::WatchStartFailed(_)) => {}
            Err(error) => seen.interrupted = Some(error.to_string()),
        }
    }
}

fn name(object: &DynamicObject) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}
