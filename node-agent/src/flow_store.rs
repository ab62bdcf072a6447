//! Bounded store of this epoch's flows, and the changes that the operator has not acknowledged yet.
//!
//! A flow is removed in two steps, so that nothing is lost or counted twice. The capture drops its account, only if
//! nothing is open. Then the operator acknowledges all of its counts. If the flow returns before the second step, its
//! counters continue; afterwards, they restart from zero in a new run.

mod clock;
mod entry;
mod news;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use indexmap::{IndexMap, map};
use topology::flow::{FlowCounters, FlowKey};

pub use self::news::News;
use self::{
    clock::Clock,
    entry::{FlowEntry, ReportState},
    news::Queues,
};
use crate::malloc::is_worth_shrinking;

/// Bounds of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of flows; flows with open connections are kept beyond it.
    pub flows: usize,
    /// Time for which the flows of a removed cgroup are kept after their last change.
    pub retention: Duration,
}

impl Bounds {
    /// Returns the number of flows above which the least valuable ones are evicted. The remaining room is for flows with
    /// unreported changes.
    fn comfortable(self) -> usize {
        self.flows - self.flows / 4
    }
}

/// Maximum size of the names of all flows' remote addresses, in bytes; further flows have none.
const MAX_NAME_BYTES: usize = 4 << 20;

/// Flows that were evicted unreported, for lack of room: upper bound of what is missing in the operator's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvictedUnreported {
    /// Flows.
    pub flows: u64,
    /// Their connections.
    pub opened: u64,
    /// Their failed attempts.
    pub failed: u64,
}

/// Flows of this epoch. A store of 100,000 flows takes about 150 bytes for each.
#[derive(Debug)]
pub struct FlowStore {
    flows: IndexMap<FlowKey, FlowEntry>,
    /// Flows with unreported changes, each once, and removed ones.
    news: Queues,
    bounds: Bounds,
    clock: Clock,
    /// Run of flows that are added now: greater than that of any removed flow.
    run: u64,
    /// Lower bound of the time of events that are recorded now.
    looked: Option<Instant>,
    /// Number of flows that were removed since the last snapshot.
    left: usize,
    /// Number of flows that the capture has dropped and that stay until the operator has acknowledged them.
    leaving: usize,
    evicted: u64,
    evicted_unreported: EvictedUnreported,
    name_bytes: usize,
    unnamed: u64,
}

/// Times of a flow's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Lower bound of the time of its first connection or attempt.
    pub before_first: Instant,
    /// Lower bound of the time of unreported changes.
    pub before_news: Instant,
    /// Upper bound of the time of all its events.
    pub changed: Instant,
}

/// Remaining part of a snapshot. It is taken from the end of the table to its beginning: a removed flow is replaced by
/// the last one, which was already taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    rest: usize,
}

impl Snapshot {
    /// Returns whether all of it has been taken.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.rest == 0
    }
}

impl FlowStore {
    /// Returns an empty store.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            flows: IndexMap::new(),
            news: Queues::default(),
            bounds,
            clock: Clock::starting_at(Instant::now()),
            run: 0,
            looked: None,
            left: 0,
            leaving: 0,
            evicted: 0,
            evicted_unreported: EvictedUnreported::default(),
            name_bytes: 0,
            unnamed: 0,
        }
    }

    /// Sets the lower bound of the time of the events that are recorded next: all earlier events are recorded already.
    /// Before the first call, the bound is the time of recording.
    pub fn looked(&mut self, before: Instant) {
        self.looked = Some(before);
    }

    /// Stores a flow's present counters. Returns whether they changed.
    pub fn record(&mut self, key: FlowKey, counters: FlowCounters, now: Instant) -> bool {
        let before = self.clock.floor(self.looked.map_or(now, |looked| looked.min(now)));
        let now = self.clock.ceil(now);
        let is_urgent;
        let entry = match self.flows.entry(key) {
            map::Entry::Occupied(entry) => {
                let entry = entry.into_mut();
                let known = entry.counters();
                if std::mem::take(&mut entry.is_dropped) {
                    self.leaving -= 1;
                    entry.rare.get_or_insert_default().dropped = Some(known);
                }
                let counters = match entry.rare.as_ref().and_then(|rare| rare.dropped) {
                    Some(dropped) => dropped.followed_by(&counters),
                    None => FlowCounters { run: known.run, ..counters },
                };
                if known == counters {
                    return false;
                }
                // An edge may appear or disappear with it.
                is_urgent = (known.pending() > 0) != (counters.pending() > 0);
                entry.counters = (&counters).into();
                entry.changed = now;
                if entry.state == ReportState::Acknowledged {
                    entry.before_news = before;
                }
                entry
            }
            map::Entry::Vacant(entry) => {
                is_urgent = true;
                entry.insert(FlowEntry {
                    counters: (&FlowCounters { run: self.run, ..counters }).into(),
                    rare: None,
                    is_dropped: false,
                    before_first: before,
                    before_news: before,
                    changed: now,
                    state: ReportState::Acknowledged,
                })
            }
        };
        let is_queued = entry.state == ReportState::Changed;
        if is_urgent || !is_queued {
            entry.state = ReportState::Changed;
            if is_queued {
                self.news.note_stale();
            }
            if is_urgent { self.news.push_flow(key) } else { self.news.push_counters(key) }
        }
        true
    }

    /// Returns whether DNS names led to a flow's remote address.
    #[must_use]
    pub fn has_names(&self, key: &FlowKey) -> bool {
        !self.names(key).is_empty()
    }

    /// Returns the DNS names that led to a flow's remote address.
    #[must_use]
    pub fn names(&self, key: &FlowKey) -> &[Arc<str>] {
        self.flows.get(key).map(FlowEntry::names).unwrap_or_default()
    }

    /// Stores the DNS names that led to a flow's remote address. Returns whether they changed.
    pub fn name(&mut self, key: &FlowKey, names: Vec<Arc<str>>) -> bool {
        let Some(entry) = self.flows.get_mut(key).filter(|entry| entry.names() != names) else { return false };
        let others = self.name_bytes - entry.name_bytes();
        let bytes = others + names.iter().map(|name| name.len()).sum::<usize>();
        if bytes > MAX_NAME_BYTES {
            self.unnamed += 1;
            return false;
        }
        self.name_bytes = bytes;
        entry.rare.get_or_insert_default().names = names.into();
        if entry.state != ReportState::Changed {
            entry.state = ReportState::Changed;
            self.news.push_flow(*key);
        }
        true
    }

    /// Returns how often there was no room for names.
    #[must_use]
    pub fn unnamed(&self) -> u64 {
        self.unnamed
    }

    /// Returns the counters of a flow.
    #[must_use]
    pub fn get(&self, key: &FlowKey) -> Option<FlowCounters> {
        self.flows.get(key).map(FlowEntry::counters)
    }

    /// Returns the times of a flow's events.
    #[must_use]
    pub fn times(&self, key: &FlowKey) -> Option<Times> {
        self.flows.get(key).map(|entry| Times {
            before_first: self.clock.time(entry.before_first),
            before_news: self.clock.time(entry.before_news),
            changed: self.clock.time(entry.changed),
        })
    }

    /// Starts a stream to a receiver that may have no flow yet.
    pub fn begin_stream(&mut self) {
        for entry in self.flows.values_mut() {
            entry.before_news = entry.before_first;
        }
    }

    /// Returns whether [`FlowStore::take_news`] may return something.
    #[must_use]
    pub fn has_news(&self, kind: News) -> bool {
        !self.news.is_empty(kind)
    }

    /// Returns up to `most` flows that have changed since they were last taken, new ones first.
    pub fn take_news(&mut self, kind: News, most: usize) -> Vec<(FlowKey, FlowCounters)> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(key) = self.news.pop(kind)
        {
            // A flow that was removed and added again is in the queue twice: the second entry is no change.
            if let Some(entry) = self.flows.get_mut(&key).filter(|entry| entry.state == ReportState::Changed) {
                entry.state = ReportState::Sent;
                taken.push((key, entry.counters()));
            }
        }
        taken
    }

    /// Begins a snapshot of all flows. Unreported changes are those after this call.
    pub fn begin_snapshot(&mut self) -> Snapshot {
        self.news = Queues::default();
        self.left = 0;
        for entry in self.flows.values_mut() {
            entry.state = ReportState::Sent;
        }
        Snapshot { rest: self.flows.len() }
    }

    /// Returns up to `most` further flows of a snapshot.
    pub fn take_of_snapshot(&self, snapshot: &mut Snapshot, most: usize) -> Vec<(FlowKey, FlowCounters)> {
        let end = snapshot.rest.min(self.flows.len());
        snapshot.rest = end.saturating_sub(most);
        let range = self.flows.get_range(snapshot.rest..end).into_iter().flatten();
        range.map(|(key, entry)| (*key, entry.counters())).collect()
    }

    /// Returns the number of removed flows that the last snapshot contained.
    #[must_use]
    pub fn left_since_snapshot(&self) -> usize {
        self.left
    }

    /// Marks these counters as acknowledged by the operator.
    pub fn acknowledge(&mut self, told: &[(FlowKey, FlowCounters)]) {
        for (key, counters) in told {
            let Some(entry) = self.flows.get_mut(key) else { continue };
            if entry.state == ReportState::Sent && entry.counters() == *counters {
                entry.state = ReportState::Acknowledged;
                if entry.is_dropped {
                    self.remove(key);
                }
            }
        }
    }

    /// Marks everything as acknowledged.
    pub fn acknowledge_all(&mut self) {
        self.begin_snapshot();
        let mut dropped = Vec::new();
        for (key, entry) in &mut self.flows {
            entry.state = ReportState::Acknowledged;
            if entry.is_dropped {
                dropped.push(*key);
            }
        }
        for key in &dropped {
            self.remove(key);
        }
    }

    /// Returns the flows that the capture should drop if it can.
    ///
    /// These are the flows that are over. If the store is crowded, quiet flows of dead cgroups are added, then those of
    /// live cgroups. In each group, acknowledged flows precede unacknowledged ones, and older flows precede newer ones.
    #[must_use]
    pub fn dispensable(&self, now: Instant, is_live: impl Fn(u64) -> bool) -> Vec<FlowKey> {
        let quiet = || self.flows.iter().enumerate().filter(|(_, (_, entry))| entry.is_quiet());
        if !self.is_crowded() {
            let over = quiet().filter(|(_, (key, entry))| self.is_over(key, entry, now, &is_live));
            return over.map(|(_, (key, _))| *key).collect();
        }
        // Some more than necessary, so that a full store isn't sorted for each new flow.
        let keep = self.bounds.comfortable() - self.bounds.comfortable() / 16;
        let mut over = 0;
        let mut by_worth: Vec<_> = quiet()
            .map(|(index, (key, entry))| {
                let is_over = self.is_over(key, entry, now, &is_live);
                over += usize::from(is_over);
                ((!is_over, is_live(key.cgroup_id), entry.state != ReportState::Acknowledged, entry.changed), index)
            })
            .collect();
        let wanted = over.max(self.staying().saturating_sub(keep));
        if wanted < by_worth.len() {
            by_worth.select_nth_unstable(wanted);
            by_worth.truncate(wanted);
        }
        by_worth.into_iter().filter_map(|(_, index)| self.flows.get_index(index)).map(|(key, _)| *key).collect()
    }

    /// Marks flows as dropped by the capture, which counts them from zero if they return. Removes the fully acknowledged
    /// ones, and, if there is no room for the others, the oldest of those.
    pub fn drop_flows(&mut self, keys: &[FlowKey], now: Instant, is_live: impl Fn(u64) -> bool) {
        for key in keys {
            let Some(entry) = self.flows.get(key) else { continue };
            self.evicted += u64::from(!self.is_over(key, entry, now, &is_live));
            let Some(entry) = self.flows.get_mut(key) else { continue };
            self.leaving += usize::from(!std::mem::replace(&mut entry.is_dropped, true));
            if entry.state == ReportState::Acknowledged {
                self.remove(key);
            }
        }
        let surplus = self.flows.len().saturating_sub(self.bounds.flows);
        if surplus > 0 {
            self.evict_unreported(surplus);
        }
    }

    /// Returns whether the store is almost full, so that [`FlowStore::dispensable`] should be called soon.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.staying() > self.bounds.comfortable() || self.flows.len() > self.bounds.flows
    }

    fn staying(&self) -> usize {
        self.flows.len() - self.leaving
    }

    /// Frees memory that was needed only at the peak number of flows. Returns whether there was any.
    pub fn shrink(&mut self) -> bool {
        if self.news.are_stale() {
            self.drop_stale_news();
        }
        let flows = is_worth_shrinking(self.flows.capacity(), self.flows.len());
        if flows {
            self.flows.shrink_to(2 * self.flows.len());
        }
        let news = self.news.shrink();
        flows || news
    }

    /// Returns the number of flows dropped for lack of room, not by age.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Returns what was removed before the operator acknowledged it.
    #[must_use]
    pub fn evicted_unreported(&self) -> EvictedUnreported {
        self.evicted_unreported
    }

    /// Returns the number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns whether there is no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Returns the cgroups of all flows.
    #[must_use]
    pub fn cgroups(&self) -> HashSet<u64> {
        self.flows.keys().map(|key| key.cgroup_id).collect()
    }

    /// Returns all flows and their counters.
    pub fn iter(&self) -> impl Iterator<Item = (FlowKey, FlowCounters)> {
        self.flows.iter().map(|(key, entry)| (*key, entry.counters()))
    }

    /// Removes everything for a new epoch.
    pub fn clear(&mut self) {
        *self = Self::new(self.bounds);
    }

    fn is_over(&self, key: &FlowKey, entry: &FlowEntry, now: Instant, is_live: impl Fn(u64) -> bool) -> bool {
        self.clock.ceil(now).since(entry.changed) >= self.bounds.retention && !is_live(key.cgroup_id)
    }

    fn remove(&mut self, key: &FlowKey) {
        if let Some(entry) = self.flows.swap_remove(key) {
            self.name_bytes -= entry.name_bytes();
            self.leaving -= usize::from(entry.is_dropped);
            if entry.state == ReportState::Changed {
                self.news.note_stale();
            }
            self.run += 1;
            self.left += 1;
        }
    }

    fn evict_unreported(&mut self, surplus: usize) {
        let entries = self.flows.values().enumerate();
        let mut by_age: Vec<_> =
            entries.filter(|(_, entry)| entry.is_dropped).map(|(index, entry)| (entry.changed, index)).collect();
        if surplus < by_age.len() {
            by_age.select_nth_unstable(surplus);
            by_age.truncate(surplus);
        }
        let oldest = by_age.into_iter().filter_map(|(_, index)| self.flows.get_index(index));
        let oldest: Vec<_> = oldest.map(|(key, entry)| (*key, entry.counters())).collect();
        for (key, counters) in oldest {
            self.evicted_unreported.flows += 1;
            self.evicted_unreported.opened += counters.opened + counters.preexisting;
            self.evicted_unreported.failed += counters.failed;
            self.remove(&key);
        }
    }

    /// Keeps each flow with unreported changes in the queues once, at its first place.
    fn drop_stale_news(&mut self) {
        self.news.clean(|key| {
            let entry = self.flows.get_mut(key).filter(|entry| entry.state == ReportState::Changed);
            entry.is_some_and(|entry| {
                entry.state = ReportState::Sent;
                true
            })
        });
        for key in self.news.iter() {
            if let Some(entry) = self.flows.get_mut(key) {
                entry.state = ReportState::Changed;
            }
        }
    }
}

#[cfg(test)]
mod tests;
