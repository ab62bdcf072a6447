//! Turns a watch of objects into steps of the few facts that are kept of each.

use futures::{Stream, StreamExt, future::ready, stream::BoxStream};
use kube::runtime::watcher::{self, Event};

/// What happens to the set of all objects of a kind.
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

/// The steps of a watch. What has an unexpected shape, and errors, are logged and left out.
pub(super) fn steps<K, F, C>(
    kind: &'static str,
    watched: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
    facts: impl Fn(K) -> Option<F> + Send + 'static,
    change: impl Fn(Step<F>) -> C + Send + 'static,
) -> BoxStream<'static, C>
where
    K: Send + 'static,
    F: Send + 'static,
    C: Send + 'static,
{
    watched
        .filter_map(move |event| {
            let step = match event {
                Ok(Event::Init) => Some(Step::Begin),
                Ok(Event::InitDone) => Some(Step::Complete),
                Ok(Event::Apply(object) | Event::InitApply(object)) => logged(kind, facts(object)).map(Step::Upsert),
                Ok(Event::Delete(object)) => logged(kind, facts(object)).map(Step::Remove),
                Err(error) => {
                    tracing::warn!(kind, %error, "cannot watch; trying again");
                    None
                }
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
