//! Queues of flows with unreported changes.

use std::collections::VecDeque;

use topology::flow::FlowKey;

use crate::malloc::is_worth_shrinking;

/// Number of removed flows in the queues above which they are cleaned.
pub(super) const MANY_STALE: usize = 4096;

/// Kinds of unreported changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// New flows, new names of flows, and flows whose first attempt became pending or whose last one ended.
    Flows,
    /// Changes of counters as well.
    All,
}

/// Flows with unreported changes, in the order of their changes. Removed flows may be among them.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Those of [`News::Flows`]. One whose counters have changed before is in both queues.
    flows: VecDeque<FlowKey>,
    /// Others, whose counters have changed.
    counters: VecDeque<FlowKey>,
    /// Upper bound of the number of entries in both that are not needed.
    stale: usize,
}

impl Queues {
    pub(super) fn push_flow(&mut self, key: FlowKey) {
        self.flows.push_back(key);
    }

    pub(super) fn push_counters(&mut self, key: FlowKey) {
        self.counters.push_back(key);
    }

    /// Returns the next flow, new ones first.
    pub(super) fn pop(&mut self, kind: News) -> Option<FlowKey> {
        let new = self.flows.pop_front();
        if kind == News::All { new.or_else(|| self.counters.pop_front()) } else { new }
    }

    pub(super) fn is_empty(&self, kind: News) -> bool {
        self.flows.is_empty() && (kind == News::Flows || self.counters.is_empty())
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len() + self.counters.len()
    }

    /// Notes that an entry of the queues is not needed: the flow was removed, or has another entry.
    pub(super) fn note_stale(&mut self) {
        self.stale += 1;
    }

    /// Returns whether many removed flows may be in the queues.
    pub(super) fn are_stale(&mut self) -> bool {
        self.stale = self.stale.min(self.len());
        self.stale > MANY_STALE.max(self.len() / 2)
    }

    /// Keeps the flows for which `is_wanted` returns true, which is called once for each entry.
    pub(super) fn clean(&mut self, mut is_wanted: impl FnMut(&FlowKey) -> bool) {
        for queue in [&mut self.flows, &mut self.counters] {
            queue.retain(&mut is_wanted);
        }
        self.stale = 0;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &FlowKey> {
        self.flows.iter().chain(&self.counters)
    }

    /// Frees memory that was needed only at the peak number of flows. Returns whether there was any.
    pub(super) fn shrink(&mut self) -> bool {
        let mut has_shrunk = false;
        for queue in [&mut self.flows, &mut self.counters] {
            if is_worth_shrinking(queue.capacity(), queue.len()) {
                queue.shrink_to(2 * queue.len());
                has_shrunk = true;
            }
        }
        has_shrunk
    }
}
