//! Maps of a cluster as it changes.

use std::{pin::Pin, time::Duration};

use anyhow::{Context as _, Result};
use crds::Topology;
use futures::{Stream, StreamExt as _};
use kube::runtime::{
    WatchStreamExt as _,
    reflector::{self, Store},
    watcher::{self, Event},
};
use tokio::time::{Instant, sleep_until};
use view::{Map, read};

use super::state::News;
use crate::{
    cli::Selection,
    source::{Source, explained},
};

/// Smallest time between two maps: changes in between are shown together.
const PAUSE: Duration = Duration::from_millis(300);

type Events = Pin<Box<dyn Stream<Item = Result<Event<Topology>, watcher::Error>>>>;

/// Watch of the objects of a source.
pub struct Feed {
    events: Events,
    objects: Store<Topology>,
    selection: Selection,
    place: String,
    gap: Option<String>,
    is_listed: bool,
    due: Option<Instant>,
}

impl Feed {
    /// Begins to watch.
    ///
    /// # Errors
    /// Returns an error if no cluster is configured.
    pub async fn start(source: &Source, selection: &Selection) -> Result<Self> {
        let scope = source.scope().await?;
        let place = scope.place();
        let label_selector = source.selector().map(str::to_owned);
        let config = watcher::Config { label_selector, ..watcher::Config::default() };
        let (objects, writer) = reflector::store();
        let events = watcher::watcher(scope.api::<Topology>(), config).default_backoff().reflect(writer);
        let (gap, selection) = (source.gap(&place), selection.clone());
        Ok(Self { events: events.boxed_local(), objects, selection, place, gap, is_listed: false, due: None })
    }

    /// Waits for the next map, or for a problem with the cluster. What it has read is kept if the caller stops waiting.
    ///
    /// # Errors
    /// Returns an error if the selection's time is out of range.
    pub async fn next(&mut self) -> Result<News> {
        loop {
            let due = self.due;
            let pause = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.events.next() => match event.context("the watch has ended")? {
                    Ok(Event::Init | Event::InitApply(_)) => (),
                    Ok(Event::InitDone) => {
                        self.is_listed = true;
                        self.change();
                    }
                    Ok(_) => self.change(),
                    Err(error) => return Ok(News::Problem(self.words(error))),
                },
                () = pause => {
                    self.due = None;
                    return Ok(News::Map(Box::new(self.map()?)));
                }
            }
        }
    }

    fn change(&mut self) {
        if self.is_listed {
            self.due.get_or_insert_with(|| Instant::now() + PAUSE);
        }
    }

    fn map(&self) -> Result<Map> {
        let objects = self.objects.state();
        let map = read::objects(objects.iter().map(AsRef::as_ref));
        self.selection.select(Map::new(map.edges, map.caveats.into_iter().chain(self.gap.clone()).collect()))
    }

    fn words(&self, error: watcher::Error) -> String {
        let error = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error,
            other => return other.to_string(),
        };
        format!("{:#}", explained(error, "topologies.scopeprobe.io", &self.place))
    }
}
