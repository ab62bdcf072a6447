//! Turns a watch of objects into steps of the few facts that are kept of each.

use futures::{Stream, StreamExt, future::ready, stream::BoxStream};
use kube::{Resource, runtime::watcher::Event};
use serde::de::DeserializeOwned;

use crate::guarded::{Guarded, Malformed};

/// Change of the set of all objects of a kind.
#[derive(Clone, Debug)]
pub enum Step<F> {
    /// All objects are listed (again).
    Begin,
    /// One of the list, or one that has changed.
    Upsert(F),
    /// All have been listed; what was not is gone.
    Complete,
    /// One is gone.
    Remove(F),
}

/// Returns the steps of a watch. An object that does not decode counts as far as it does.
pub(super) fn steps<K, F, C>(
    kind: &'static str,
    watched: impl Stream<Item = Event<Guarded<K>>> + Send + 'static,
    facts: impl Fn(K) -> Option<F> + Send + 'static,
    change: impl Fn(Step<F>) -> C + Send + 'static,
) -> BoxStream<'static, C>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + 'static,
    F: Send + 'static,
    C: Send + 'static,
{
    let facts = move |object: Guarded<K>| {
        let object = object.0.map_or_else(Malformed::into_rest, Some);
        logged(kind, object.and_then(&facts))
    };
    watched
        .filter_map(move |event| {
            let step = match event {
                Event::Init => Some(Step::Begin),
                Event::InitDone => Some(Step::Complete),
                Event::Apply(object) | Event::InitApply(object) => facts(object).map(Step::Upsert),
                Event::Delete(object) => facts(object).map(Step::Remove),
            };
            ready(step.map(&change))
        })
        .boxed()
}

fn logged<F>(kind: &'static str, facts: Option<F>) -> Option<F> {
    if facts.is_none() {
        tracing::warn!(kind, "left out an object without a name, a UID or what else it has to have");
    }
    facts
}
