//! Turns a watch of objects into steps of the few facts that are kept of each.

use futures::{Stream, StreamExt, future::ready};
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

/// Returns the steps of a watch.
pub(super) fn steps<K, F>(
    events: impl Stream<Item = Event<Guarded<K>>> + Send + 'static,
    facts: impl Fn(K) -> Option<F> + Send + 'static,
) -> impl Stream<Item = Step<F>> + Send + 'static
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + 'static,
    F: Send + 'static,
{
    events.filter_map(move |event| ready(step(event, &facts)))
}

/// Returns the step of an event. An object that does not decode counts as far as it does.
pub(super) fn step<K, F>(event: Event<Guarded<K>>, facts: impl Fn(K) -> Option<F>) -> Option<Step<F>>
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let facts = |object: Guarded<K>| {
        let facts = object.0.map_or_else(Malformed::into_rest, Some).and_then(&facts);
        if facts.is_none() {
            tracing::warn!(kind = %K::kind(&()), "left out an object without a name, a UID or another required field");
        }
        facts
    };
    match event {
        Event::Init => Some(Step::Begin),
        Event::InitDone => Some(Step::Complete),
        Event::Apply(object) | Event::InitApply(object) => facts(object).map(Step::Upsert),
        Event::Delete(object) => facts(object).map(Step::Remove),
    }
}
