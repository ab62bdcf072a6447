//! Feeds the map from files, which do not change, or from a watch of Topology objects.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Result;
use tokio::sync::watch;
use view::live::{Graph, Journal};

use crate::{
    follow::{Follower, News},
    source::{Source, of_one_cluster},
};

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
        publisher.publish(Graph::of(&of_one_cluster(source.read().await?)?));
        // The page would take the end of the events for an interruption.
        tokio::spawn(async move { publisher.revisions.closed().await });
    } else {
        let follower = Follower::start(source.watched().await?);
        // A page without it would seem to be up to date.
        publisher.publish(graph(follower.news()));
        tokio::spawn(follow(follower, publisher));
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

fn graph(news: News) -> Graph {
    let graph = news.map.as_ref().map(Graph::of).unwrap_or_default();
    Graph { problem: news.problem, ..graph }
}

async fn follow(mut follower: Follower, publisher: Publisher) {
    loop {
        publisher.publish(graph(follower.next().await));
    }
}
