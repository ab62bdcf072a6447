//! The flows of this epoch, bounded, and which of them the operator hasn't been told of yet.
//!
//! A flow leaves in two steps, so that nothing is counted twice or not at all: the capture drops its account (which it
//! does only where nothing is open), then the operator acknowledges all that had been counted. If the flow comes back
//! before the second step, its counters go on; after it, they begin at zero in a new run.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map},
    time::{Duration, Instant},
};

use topology::flow::{FlowCounters, FlowKey};

/// What keeps the store small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The most flows that are kept, but for those that have open connections.
    pub flows: usize,
    /// How long the flows of a cgroup that is gone are kept after their last change.
    pub retention: Duration,
}

impl Bounds {
    /// With more flows than this, the least worth are asked to leave; the rest of the room is for those that the operator
    /// still has to be told of.
    fn comfortable(self) -> usize {
        self.flows - self.flows / 4
    }
}

/// What has left untold, because there was no room: at most so much of it is missing in the operator's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// Flows.
    pub flows: u64,
    /// Their connections.
    pub opened: u64,
    /// Their failed attempts.
    pub failed: u64,
}

/// The flows.
#[derive(Debug)]
pub struct FlowStore {
    flows: HashMap<FlowKey, Entry>,
    /// Flows with news, in the order in which it came, each once; flows that have left since may be among them.
    news: VecDeque<FlowKey>,
    bounds: Bounds,
    /// The run of flows that come now: greater than that of any flow that has left.
    run: u64,
    /// What is recorded now happened after this.
    looked: Option<Instant>,
    /// Flows that have left since the last snapshot.
    left: usize,
    evicted: u64,
    untold: Untold,
}

#[derive(Debug)]
struct Entry {
    /// Of the whole run.
    counters: FlowCounters,
    /// The part of it that the capture has dropped.
    dropped: Option<Box<FlowCounters>>,
    /// The capture has dropped it and seen nothing of it since.
    is_dropped: bool,
    /// Nothing of it had happened then.
    before_first: Instant,
    /// Nothing had happened then of what the operator does not know yet; of no meaning while it knows everything.
    before_news: Instant,
    /// The last change was found then.
    changed: Instant,
    state: State,
    /// Names that have led to the remote address.
    names: Box<[String]>,
}

/// When something of a flow happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Its first connection or attempt: after this.
    pub before_first: Instant,
    /// What the operator does not know yet: after this.
    pub before_news: Instant,
    /// All of it: not after this.
    pub changed: Instant,
}

/// What the operator knows of a flow's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They stand in the queue of news.
    News,
    /// They are on their way.
    Underway,
    /// It has acknowledged them.
    Known,
}

impl FlowStore {
    /// An empty store.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            flows: HashMap::new(),
            news: VecDeque::new(),
            bounds,
            run: 0,
            looked: None,
            left: 0,
            evicted: 0,
            untold: Untold::default(),
        }
    }

    /// What is recorded from here on happened after `before`: whatever had happened by then has been recorded. Until this
    /// is called, the time at which something is recorded is all that is known.
    pub fn looked(&mut self, before: Instant) {
        self.looked = Some(before);
    }

    /// Takes a flow's counters as the capture has them now. Returns whether that is news.
    pub fn record(&mut self, key: FlowKey, counters: FlowCounters, now: Instant) -> bool {
        let before = self.looked.map_or(now, |looked| looked.min(now));
        let entry = match self.flows.entry(key) {
            hash_map::Entry::Occupied(entry) => {
                let entry = entry.into_mut();
                if std::mem::take(&mut entry.is_dropped) {
                    entry.dropped = Some(Box::new(entry.counters));
                }
                let counters = match &entry.dropped {
                    Some(dropped) => dropped.followed_by(&counters),
                    None => FlowCounters { run: entry.counters.run, ..counters },
                };
                if entry.counters == counters {
                    return false;
                }
                entry.counters = counters;
                entry.changed = now;
                if entry.state == State::Known {
                    entry.before_news = before;
                }
                entry
            }
            hash_map::Entry::Vacant(entry) => entry.insert(Entry {
                counters: FlowCounters { run: self.run, ..counters },
                dropped: None,
                is_dropped: false,
                before_first: before,
                before_news: before,
                changed: now,
                state: State::Known,
                names: Box::default(),
            }),
        };
        if entry.state != State::News {
            entry.state = State::News;
            self.news.push_back(key);
        }
        true
    }

    /// Whether names are known that have led to a flow's remote address.
    #[must_use]
    pub fn has_names(&self, key: &FlowKey) -> bool {
        !self.names(key).is_empty()
    }

    /// The names that have led to a flow's remote address.
    #[must_use]
    pub fn names(&self, key: &FlowKey) -> &[String] {
        self.flows.get(key).map(|entry| &*entry.names).unwrap_or_default()
    }

    /// Names have led to a flow's remote address. Returns whether that is news.
    pub fn name(&mut self, key: &FlowKey, names: Vec<String>) -> bool {
        let Some(entry) = self.flows.get_mut(key).filter(|entry| *entry.names != *names) else { return false };
        entry.names = names.into();
        if entry.state != State::News {
            entry.state = State::News;
            self.news.push_back(*key);
        }
        true
    }

    /// The counters of a flow.
    #[must_use]
    pub fn get(&self, key: &FlowKey) -> Option<FlowCounters> {
        self.flows.get(key).map(|entry| entry.counters)
    }

    /// When something of a flow happened.
    #[must_use]
    pub fn times(&self, key: &FlowKey) -> Option<Times> {
        self.flows.get(key).map(|entry| Times {
            before_first: entry.before_first,
            before_news: entry.before_news,
            changed: entry.changed,
        })
    }

    /// Somebody else is told from here on, who may know nothing of any flow.
    pub fn begin_stream(&mut self) {
        for entry in self.flows.values_mut() {
            entry.before_news = entry.before_first;
        }
    }

    /// Whether [`FlowStore::take_news`] may have something.
    #[must_use]
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// Up to `most` flows whose counters have changed since they were last taken.
    pub fn take_news(&mut self, most: usize) -> Vec<(FlowKey, FlowCounters)> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(key) = self.news.pop_front()
        {
            // A flow that left and came back stands in the queue twice: the second time it isn't news.
            if let Some(entry) = self.flows.get_mut(&key).filter(|entry| entry.state == State::News) {
                entry.state = State::Underway;
                taken.push((key, entry.counters));
            }
        }
        taken
    }

    /// All flows, for a snapshot; from here on, news is what changes after this.
    pub fn begin_snapshot(&mut self) -> Vec<FlowKey> {
        self.news.clear();
        self.left = 0;
        self.flows
            .iter_mut()
            .map(|(key, entry)| {
                entry.state = State::Underway;
                *key
            })
            .collect()
    }

    /// How many flows have left that the last snapshot has named.
    #[must_use]
    pub fn left_since_snapshot(&self) -> usize {
        self.left
    }

    /// The operator has taken these in.
    pub fn acknowledge(&mut self, told: &[(FlowKey, FlowCounters)]) {
        for (key, counters) in told {
            let Some(entry) = self.flows.get_mut(key) else { continue };
            if entry.state == State::Underway && entry.counters == *counters {
                entry.state = State::Known;
                if entry.is_dropped {
                    self.remove(key);
                }
            }
        }
    }

    /// Nobody is to be told of what there is now.
    pub fn acknowledge_all(&mut self) {
        let told: Vec<_> = self.begin_snapshot().into_iter().filter_map(|key| Some((key, self.get(&key)?))).collect();
        self.acknowledge(&told);
    }

    /// The flows that the capture should drop, as far as it can: those that have had their time, and, where there are too
    /// many, quiet ones of dead cgroups, then of living ones, oldest first.
    #[must_use]
    pub fn dispensable(&self, now: Instant, is_live: impl Fn(u64) -> bool) -> Vec<FlowKey> {
        let quiet = || self.flows.iter().filter(|(_, entry)| entry.counters.active() == 0 && !entry.is_dropped);
        if !self.is_crowded() {
            let over = quiet().filter(|(key, entry)| self.is_over(key, entry, now, &is_live));
            return over.map(|(key, _)| *key).collect();
        }
        // Some more than necessary, so that a full store isn't sorted for each new flow.
        let keep = self.bounds.comfortable() - self.bounds.comfortable() / 16;
        let mut by_worth: Vec<_> = quiet()
            .map(|(key, entry)| {
                let is_over = self.is_over(key, entry, now, &is_live);
                ((!is_over, is_live(key.cgroup_id), entry.changed), *key)
            })
            .collect();
        by_worth.sort_unstable();
        let over = by_worth.iter().take_while(|((stays, ..), _)| !stays).count();
        by_worth.truncate(over.max(self.flows.len() - keep));
        by_worth.into_iter().map(|(_, key)| key).collect()
    }

    /// The capture has dropped these flows: should they come back, it counts from zero. Those leave of which the operator
    /// knows all, and, where there is no room for the others, the oldest of them.
    pub fn drop_flows(&mut self, keys: &[FlowKey], now: Instant, is_live: impl Fn(u64) -> bool) {
        for key in keys {
            let Some(entry) = self.flows.get(key) else { continue };
            self.evicted += u64::from(!self.is_over(key, entry, now, &is_live));
            let Some(entry) = self.flows.get_mut(key) else { continue };
            entry.is_dropped = true;
            if entry.state == State::Known {
                self.remove(key);
            }
        }
        let surplus = self.flows.len().saturating_sub(self.bounds.flows);
        if surplus > 0 {
            self.remove_untold(surplus);
        }
    }

    /// Whether it is getting full, so that [`FlowStore::dispensable`] shouldn't wait.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.flows.len() > self.bounds.comfortable()
    }

    /// How many flows the capture has dropped because there were too many, not because their time was over.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// What has left without the operator's knowing all of it.
    #[must_use]
    pub fn untold(&self) -> Untold {
        self.untold
    }

    /// How many flows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The cgroups that flows refer to.
    #[must_use]
    pub fn cgroups(&self) -> HashSet<u64> {
        self.flows.keys().map(|key| key.cgroup_id).collect()
    }

    /// All flows and their counters.
    pub fn iter(&self) -> impl Iterator<Item = (&FlowKey, &FlowCounters)> {
        self.flows.iter().map(|(key, entry)| (key, &entry.counters))
    }

    /// Forgets everything: a new epoch begins.
    pub fn clear(&mut self) {
        *self = Self::new(self.bounds);
    }

    fn is_over(&self, key: &FlowKey, entry: &Entry, now: Instant, is_live: impl Fn(u64) -> bool) -> bool {
        now.duration_since(entry.changed) >= self.bounds.retention && !is_live(key.cgroup_id)
    }

    fn remove(&mut self, key: &FlowKey) {
        if self.flows.remove(key).is_some() {
            self.run += 1;
            self.left += 1;
        }
    }

    fn remove_untold(&mut self, surplus: usize) {
        let dropped = self.flows.iter().filter(|(_, entry)| entry.is_dropped);
        let mut by_age: Vec<_> = dropped.map(|(key, entry)| (entry.changed, *key)).collect();
        by_age.sort_unstable();
        for (_, key) in by_age.iter().take(surplus) {
            let Some(counters) = self.get(key) else { continue };
            self.untold.flows += 1;
            self.untold.opened += counters.opened + counters.preexisting;
            self.untold.failed += counters.failed;
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
