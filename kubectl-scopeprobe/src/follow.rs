//! Follows the objects of a cluster by a watch, and checks that the watch works.

mod store;
#[cfg(test)]
mod tests;

use std::{future, time::Duration};

use crds::Topology;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use kube::{
    api::{ListParams, WatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use view::Map;

use self::store::{Check, Step, Store};
use crate::source::Watched;

/// Time in which further changes become part of the same news.
const GATHERING: Duration = Duration::from_millis(200);

/// Time within which the API server has to answer a check.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

type Events = BoxStream<'static, Result<Event<Topology>, watcher::Error>>;

/// News of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Its map as far as it is known; `None` before the first list is complete.
    pub map: Option<Map>,
    /// Reason for which the map may be out of date; empty if it is not.
    pub problem: String,
}

/// Watch of objects that begins again after interruptions.
pub struct Follower {
    watched: Watched,
    events: Events,
    /// The next check, with the time at which it began.
    check: BoxFuture<'static, (Instant, Check)>,
    store: Store,
    /// Time of the last event that the API server has sent.
    heard: Instant,
    /// Time at which changes are shown, if there are any.
    due: Option<Instant>,
}

impl Follower {
    /// Begins to watch.
    pub fn start(watched: Watched) -> Self {
        let store = Store::default();
        let (events, check) = (events(&watched), check(&watched, &store));
        Self { watched, events, check, store, heard: Instant::now(), due: None }
    }

    /// Returns the present state.
    pub fn news(&self) -> News {
        let map = self.store.map(self.watched.caveat.as_deref());
        News { map, problem: self.store.problem().to_owned() }
    }

    /// Waits for news. Events are not lost if the caller stops waiting.
    pub async fn next(&mut self) -> News {
        loop {
            let due = self.due;
            let gathered = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.next() => self.take(event),
                (began, check) = &mut self.check => self.take_check(began, check),
                () = gathered => {
                    self.due = None;
                    return self.news();
                }
            }
        }
    }

    fn take(&mut self, event: Result<Event<Topology>, watcher::Error>) {
        let was_interrupted = self.store.is_interrupted();
        let is_change = match event {
            Ok(event) => {
                if !matches!(event, Event::Init) {
                    self.heard = Instant::now();
                }
                self.store.take(event)
            }
            Err(error) => self.store.interrupt(&reason(&self.watched, error)),
        };
        if is_change {
            self.show();
        }
        if self.store.is_interrupted() && !was_interrupted {
            self.check = check(&self.watched, &self.store);
        }
    }

    fn take_check(&mut self, began: Instant, outcome: Check) {
        // A busy API server may send events before it answers.
        let is_refuted = outcome != Check::Works && self.heard > began;
        let step = if is_refuted { Step::Continue } else { self.store.checked(outcome) };
        match step {
            Step::Continue => (),
            Step::Show => self.show(),
            Step::Restart => self.events = events(&self.watched),
        }
        self.check = check(&self.watched, &self.store);
    }

    fn show(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + GATHERING);
    }
}

fn events(watched: &Watched) -> Events {
    let configuration = watcher::Config { label_selector: watched.selector.clone(), ..watcher::Config::default() };
    watcher::watcher(watched.api.clone(), configuration).default_backoff().boxed()
}

/// Checks the API server after a pause.
fn check(watched: &Watched, store: &Store) -> BoxFuture<'static, (Instant, Check)> {
    let (watched, pause, with_watch) = (watched.clone(), store.pause(), store.is_interrupted());
    async move {
        sleep(pause).await;
        let began = Instant::now();
        let outcome = timeout(ANSWER_LIMIT, request(&watched, with_watch)).await.unwrap_or_else(|_| {
            Check::Failed(format!("the API server has not answered within {} seconds", ANSWER_LIMIT.as_secs()))
        });
        (began, outcome)
    }
    .boxed()
}

/// Lists one object, and begins a watch if that is to be checked.
async fn request(watched: &Watched, with_watch: bool) -> Check {
    let list = match watched.api.list_metadata(&ListParams::default().limit(1)).await {
        Ok(list) => list,
        Err(error) => return failed(watched, "list", error),
    };
    if !with_watch {
        return Check::Works;
    }
    // Without the right to watch, a new list would seem to be the end of the interruption.
    let version = list.metadata.resource_version.unwrap_or_default();
    match watched.api.watch_metadata(&WatchParams::default(), &version).await {
        Ok(_) => Check::Works,
        Err(error) => failed(watched, "watch", error),
    }
}

fn failed(watched: &Watched, verb: &str, error: kube::Error) -> Check {
    let is_refusal = matches!(&error, kube::Error::Api(status) if status.code < 500);
    let reason = format!("{:#}", watched.explained(error, verb));
    if is_refusal { Check::Refused(reason) } else { Check::Failed(reason) }
}

fn reason(watched: &Watched, error: watcher::Error) -> String {
    let (verb, error) = match error {
        watcher::Error::InitialListFailed(error) => ("list", error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => ("watch", error),
        watcher::Error::WatchError(status) => ("watch", kube::Error::Api(status)),
        watcher::Error::NoResourceVersion => return error.to_string(),
    };
    format!("{:#}", watched.explained(error, verb))
}
