//! Feeds the map from files, which do not change, or from a watch of Topology objects.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Result;
use crds::Topology;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::runtime::{
    WatchStreamExt as _,
    watcher::{self, Event},
};
use tokio::{sync::watch, time};
use view::{
    live::{Graph, Journal},
    read,
};

use crate::source::{Source, Watched};

/// Time in which further changes become part of the same revision.
const GATHERING: Duration = Duration::from_millis(200);

/// The journal of the map, and the news of its changes.
pub struct Feed {
    journal: Arc<RwLock<Journal>>,
    revisions: watch::Receiver<u64>,
    is_live: bool,
}

/// Reader of a feed, which waits for changes.
pub struct Reader {
    journal: Arc<RwLock<Journal>>,
    revisions: watch::Receiver<u64>,
}

/// Starts a feed. It ends with the process.
///
/// # Errors
/// Returns an error if the objects cannot be read.
pub async fn start(source: &Source) -> Result<Feed> {
    let journal = Arc::new(RwLock::new(Journal::default()));
    let (sender, revisions) = watch::channel(0);
    let feed = Feed { journal: Arc::clone(&journal), revisions, is_live: !source.is_of_files() };
    let publisher = Publisher { journal, revisions: sender };
    if !source.is_of_files() {
        let watched = source.watched().await?;
        tokio::spawn(follow(watched, publisher));
    } else {
        publisher.publish(Graph::of(&source.read().await?));
        // The page would take the end of the events for an interruption.
        tokio::spawn(async move { publisher.revisions.closed().await });
    }
    Ok(feed)
}

impl Feed {
    /// Returns whether the map follows a cluster.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Returns a reader, which has not seen any change.
    pub fn reader(&self) -> Reader {
        Reader { journal: Arc::clone(&self.journal), revisions: self.revisions.clone() }
    }

    /// Reads the journal.
    pub fn read<T>(&self, of: impl FnOnce(&Journal) -> T) -> T {
        of(&self.journal.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reader {
    /// Reads the journal. Later changes wake [`Self::changed`].
    pub fn read<T>(&mut self, of: impl FnOnce(&Journal) -> T) -> T {
        self.revisions.mark_unchanged();
        of(&self.journal.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a change. Returns `None` when there will be no more.
    pub async fn changed(&mut self) -> Option<()> {
        self.revisions.changed().await.ok()
    }
}

/// Writes to a feed.
struct Publisher {
    journal: Arc<RwLock<Journal>>,
    revisions: watch::Sender<u64>,
}

impl Publisher {
    fn publish(&self, graph: Graph) {
        let mut journal = self.journal.write().unwrap_or_else(PoisonError::into_inner);
        if journal.record(graph) {
            self.revisions.send_replace(journal.revision());
        }
    }
}

/// Objects of the watch.
#[derive(Default)]
struct Objects {
    known: BTreeMap<(Option<String>, Option<String>), Topology>,
    /// Those of a list that is not complete yet.
    listed: Option<BTreeMap<(Option<String>, Option<String>), Topology>>,
    problem: String,
}

impl Objects {
    fn take(&mut self, event: Result<Event<Topology>, watcher::Error>) {
        let key = |object: &Topology| (object.metadata.namespace.clone(), object.metadata.name.clone());
        match event {
            Ok(Event::Init) => self.listed = Some(BTreeMap::new()),
            Ok(Event::InitApply(object)) => _ = self.listed.get_or_insert_default().insert(key(&object), object),
            Ok(Event::InitDone) => {
                self.known = self.listed.take().unwrap_or_default();
                self.problem.clear();
            }
            Ok(Event::Apply(object)) => {
                self.known.insert(key(&object), object);
                self.problem.clear();
            }
            Ok(Event::Delete(object)) => _ = self.known.remove(&key(&object)),
            Err(error) => {
                self.problem = view::map::printable(&format!("The watch of the cluster is interrupted: {error}"))
            }
        }
    }

    fn graph(&self, caveat: Option<&String>) -> Graph {
        let mut map = read::objects(self.known.values());
        map.caveats.extend(caveat.cloned());
        if self.known.is_empty() {
            map.caveats.push("There are no Topology objects here.".to_owned());
        }
        Graph { problem: self.problem.clone(), ..Graph::of(&map) }
    }
}

async fn follow(watched: Watched, publisher: Publisher) {
    let Watched { api, selector, caveat } = watched;
    let mut configuration = watcher::Config::default();
    configuration.label_selector = selector;
    let mut events = pin!(watcher::watcher(api, configuration).default_backoff().into_stream());
    let mut objects = Objects::default();
    while let Some(event) = events.next().await {
        objects.take(event);
        let end = time::Instant::now() + GATHERING;
        while let Ok(Some(event)) = time::timeout_at(end, events.next()).await {
            objects.take(event);
        }
        // Before the first list is complete, there is no map to show.
        if objects.listed.is_none() || !objects.problem.is_empty() {
            publisher.publish(objects.graph(caveat.as_ref()));
        }
    }
}
