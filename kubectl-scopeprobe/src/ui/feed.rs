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
use kube::{
    api::ListParams,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::{sync::watch, time};
use view::{
    live::{Graph, Journal},
    read,
};

use crate::source::{Source, Watched};

/// Time in which further changes become part of the same revision.
const GATHERING: Duration = Duration::from_millis(200);

/// Time after which an interrupted watch is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

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
    if source.is_of_files() {
        publisher.publish(Graph::of(&source.read().await?));
        // The page would take the end of the events for an interruption.
        tokio::spawn(async move { publisher.revisions.closed().await });
    } else {
        let watched = source.watched().await?;
        tokio::spawn(follow(watched, publisher));
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

/// Objects by namespace and name.
type ByName = BTreeMap<(Option<String>, Option<String>), Topology>;

/// Objects of the watch.
#[derive(Default)]
struct Objects {
    /// Those of the last complete list, with all changes since; `None` before the first.
    known: Option<ByName>,
    /// Those of a list that is not complete yet.
    listed: Option<ByName>,
    problem: String,
}

impl Objects {
    fn take(&mut self, event: Result<Event<Topology>, watcher::Error>) {
        let key = |object: &Topology| (object.metadata.namespace.clone(), object.metadata.name.clone());
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let text = format!("The watch of the cluster is interrupted: {error}");
                self.problem = view::map::printable(&text);
                return;
            }
        };
        self.problem.clear();
        match event {
            Event::Init => self.listed = Some(BTreeMap::new()),
            Event::InitApply(object) => _ = self.listed.get_or_insert_default().insert(key(&object), object),
            Event::InitDone => self.known = self.listed.take(),
            Event::Apply(object) => _ = self.known.get_or_insert_default().insert(key(&object), object),
            Event::Delete(object) => _ = self.known.get_or_insert_default().remove(&key(&object)),
        }
    }

    /// Returns the graph of the objects, or `None` if there is nothing to show yet.
    fn graph(&self, caveat: Option<&String>) -> Option<Graph> {
        let empty = BTreeMap::new();
        let known = match &self.known {
            Some(known) => known,
            None if self.problem.is_empty() => return None,
            None => &empty,
        };
        let mut map = read::objects(known.values());
        map.caveats.extend(caveat.cloned());
        if self.known.as_ref().is_some_and(BTreeMap::is_empty) {
            map.caveats.push("There are no Topology objects here.".to_owned());
        }
        Some(Graph { problem: self.problem.clone(), ..Graph::of(&map) })
    }
}

async fn follow(watched: Watched, publisher: Publisher) {
    let configuration = watcher::Config { label_selector: watched.selector, ..watcher::Config::default() };
    let mut events = pin!(watcher::watcher(watched.api.clone(), configuration).default_backoff().into_stream());
    let mut objects = Objects::default();
    loop {
        let check = time::sleep(CHECK_INTERVAL);
        tokio::select! {
            event = events.next() => match event {
                Some(event) => objects.take(event),
                None => return,
            },
            // A watch that works again reports no event before the next change.
            () = check, if !objects.problem.is_empty() => {
                if watched.api.list(&ListParams::default().limit(1)).await.is_ok() {
                    objects.problem.clear();
                }
            }
        }
        let end = time::Instant::now() + GATHERING;
        while let Ok(Some(event)) = time::timeout_at(end, events.next()).await {
            objects.take(event);
        }
        if let Some(graph) = objects.graph(watched.caveat.as_ref()) {
            publisher.publish(graph);
        }
    }
}
