//! The index as the tasks of the operator share it: the watches write, the publisher reads.

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use topology::{external::ExternalGroups, ledger::Ledger};

use super::index::{Index, Update};

/// Names and owners in the cluster. Clones share their state.
#[derive(Clone, Debug)]
pub struct ClusterIndex {
    index: Arc<RwLock<Index>>,
    changed: Arc<watch::Sender<()>>,
    complete: Arc<watch::Sender<bool>>,
}

impl Default for ClusterIndex {
    fn default() -> Self {
        Self {
            index: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
            complete: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl ClusterIndex {
    /// Locks the index for reading. The guard must not be held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a receiver that is notified of each change of a name.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns whether everything was listed once.
    #[must_use]
    pub fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// Copies the offsets of the nodes' clocks from the ledger.
    pub fn set_clocks(&self, ledger: &Ledger) {
        let known = self.read();
        let news: Vec<_> = ledger.clocks().filter(|(node, clock)| !known.directory().has_clock(node, clock)).collect();
        drop(known);
        if !news.is_empty() {
            self.index.write().unwrap_or_else(PoisonError::into_inner).set_clocks(&news);
        }
    }

    /// Gives names to addresses outside of the cluster.
    pub fn name_external_groups(&self, groups: ExternalGroups) {
        if self.index.write().unwrap_or_else(PoisonError::into_inner).name_external_groups(groups) {
            self.changed.send_replace(());
        }
    }

    /// Notes by which API versions an earlier operator has referred to kinds.
    pub fn note_api_versions<'a>(&self, references: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for (api_version, kind) in references {
            index.note_api_version(api_version, kind);
        }
    }

    /// Removes the objects that were deleted at least `retention` ago.
    pub fn forget_removed(&self, now: SystemTime, retention: Duration) {
        self.index.write().unwrap_or_else(PoisonError::into_inner).forget_removed(now, retention);
    }

    /// Waits for the first list of each of these kinds before it is complete.
    pub(super) fn await_lists(&self, kinds: impl IntoIterator<Item = &'static str>) {
        self.index.write().unwrap_or_else(PoisonError::into_inner).await_lists(kinds);
    }

    /// Applies changes. Returns the nodes that are gone.
    pub(super) fn take_in(&self, updates: Vec<Update>, now: SystemTime) -> Vec<String> {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut is_news = false;
        for Update { change, listed } in updates {
            is_news |= index.apply(change, now);
            if let Some(kind) = listed {
                index.note_list(kind);
            }
        }
        let complete = index.is_complete();
        let gone = index.take_gone_nodes();
        drop(index);
        self.complete.send_if_modified(|known| std::mem::replace(known, complete) != complete);
        if is_news {
            self.changed.send_replace(());
        }
        gone
    }
}
