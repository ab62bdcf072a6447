//! The index as the tasks of the operator share it: the watches write, the publisher reads.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use topology::{directory::RecordedPod, external::ExternalGroups, ledger::Ledger};

use super::index::{Index, Update};

/// Names and owners in the cluster. Clones share their state.
#[derive(Clone, Debug)]
pub struct ClusterIndex {
    index: Arc<RwLock<Arc<Index>>>,
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
    /// Returns the present state. Changes that come while a caller has it go into a copy.
    #[must_use]
    pub fn read(&self) -> Arc<Index> {
        Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds Nodes.
    #[cfg(test)]
    pub(crate) fn add_nodes(&self, nodes: impl IntoIterator<Item = topology::entity::Node>) {
        use super::{index::Change, steps::Step};
        for node in nodes {
            self.change(|index| index.apply(Change::Node(Step::Upsert(node)), SystemTime::UNIX_EPOCH));
        }
    }

    /// Has everything listed.
    #[cfg(test)]
    pub(crate) fn mark_complete(&self) {
        self.complete.send_replace(true);
    }

    fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut index))
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
        let clocks = ledger.clocks().map(|(node, clock)| (node, *clock));
        let news: BTreeMap<_, _> = clocks.filter(|(node, clock)| !known.directory().has_clock(node, clock)).collect();
        drop(known);
        if !news.is_empty() {
            self.change(|index| index.set_clocks(&news));
        }
    }

    /// Gives names to addresses outside of the cluster.
    pub fn name_external_groups(&self, groups: ExternalGroups) {
        if self.change(|index| index.name_external_groups(groups)) {
            self.changed.send_replace(());
        }
    }

    /// Notes by which API versions an earlier operator has referred to kinds.
    pub fn note_api_versions<'a>(&self, references: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.change(|index| {
            for (api_version, kind) in references {
                index.note_api_version(api_version, kind);
            }
        });
    }

    /// Adds pods that an earlier operator recorded. Only the first call of a process has an effect.
    pub fn restore_pods(&self, pods: Vec<RecordedPod<'static>>, now: SystemTime) {
        self.change(|index| index.restore_pods(pods, now));
    }

    /// Removes the objects that were deleted at least `retention` ago.
    pub fn forget_removed(&self, now: SystemTime, retention: Duration) {
        self.change(|index| index.forget_removed(now, retention));
    }

    /// Waits for the first list of each of these kinds before it is complete.
    pub(super) fn await_lists(&self, kinds: impl IntoIterator<Item = &'static str>) {
        self.change(|index| index.await_lists(kinds));
    }

    /// Applies changes. Returns the nodes that are gone.
    pub(super) fn take_in(&self, updates: Vec<Update>, now: SystemTime) -> Vec<String> {
        let (is_news, complete, gone) = self.change(|index| {
            let mut is_news = false;
            for Update { change, listed } in updates {
                is_news |= index.apply(change, now);
                if let Some(kind) = listed {
                    index.note_list(kind);
                }
            }
            (is_news, index.is_complete(), index.take_gone_nodes())
        });
        self.complete.send_if_modified(|known| std::mem::replace(known, complete) != complete);
        if is_news {
            self.changed.send_replace(());
        }
        gone
    }
}
