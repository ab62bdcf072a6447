//! The flows of this epoch, bounded, and which of them the operator hasn't been told of yet.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map},
    time::{Duration, Instant},
};

use topology::flow::{FlowCounters, FlowKey};

/// What keeps the store small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The most flows that are kept.
    pub flows: usize,
    /// How long the flows of a cgroup that is gone are kept after their last change.
    pub retention: Duration,
}

/// The flows.
#[derive(Debug)]
pub struct FlowStore {
    flows: HashMap<FlowKey, Entry>,
    /// Flows with news, in the order in which it came, each once; flows that have left since may be among them.
    news: VecDeque<FlowKey>,
    bounds: Bounds,
    evicted: u64,
}

#[derive(Debug)]
struct Entry {
    counters: FlowCounters,
    changed: Instant,
    is_news: bool,
}

impl FlowStore {
    /// An empty store.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { flows: HashMap::new(), news: VecDeque::new(), bounds, evicted: 0 }
    }

    /// Takes a flow's counters as they are now. Returns whether that is news.
    pub fn record(&mut self, key: FlowKey, counters: FlowCounters, now: Instant) -> bool {
        let entry = match self.flows.entry(key) {
            hash_map::Entry::Occupied(entry) => {
                let entry = entry.into_mut();
                if entry.counters == counters {
                    return false;
                }
                entry.counters = counters;
                entry.changed = now;
                entry
            }
            hash_map::Entry::Vacant(entry) => entry.insert(Entry { counters, changed: now, is_news: false }),
        };
        if !entry.is_news {
            entry.is_news = true;
            self.news.push_back(key);
        }
        true
    }

    /// The counters of a flow.
    #[must_use]
    pub fn get(&self, key: &FlowKey) -> Option<FlowCounters> {
        self.flows.get(key).map(|entry| entry.counters)
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
            if let Some(entry) = self.flows.get_mut(&key).filter(|entry| entry.is_news) {
                entry.is_news = false;
                taken.push((key, entry.counters));
            }
        }
        taken
    }

    /// All flows, for a snapshot; from here on, news is what changes after this.
    pub fn begin_snapshot(&mut self) -> Vec<FlowKey> {
        self.news.clear();
        self.flows
            .iter_mut()
            .map(|(key, entry)| {
                entry.is_news = false;
                *key
            })
            .collect()
    }

    /// Removes what has had its time, then, oldest first, what is too much. Returns what has left.
    ///
    /// Over the bound, quiet flows of dead cgroups leave before quiet flows of living ones, and open connections last.
    pub fn expire(&mut self, now: Instant, is_live: impl Fn(u64) -> bool) -> Vec<FlowKey> {
        let mut left: Vec<FlowKey> = self
            .flows
            .iter()
            .filter(|(key, entry)| {
                entry.counters.active() == 0
                    && now.duration_since(entry.changed) >= self.bounds.retention
                    && !is_live(key.cgroup_id)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in &left {
            self.flows.remove(key);
        }
        if self.flows.len() > self.bounds.flows {
            left.extend(self.evict(is_live));
        }
        left
    }

    /// Whether the bound is exceeded, so that [`FlowStore::expire`] shouldn't wait.
    #[must_use]
    pub fn is_over_bound(&self) -> bool {
        self.flows.len() > self.bounds.flows
    }

    /// How many flows have left because there were too many, not because their time was over.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
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

    /// Forgets all flows: a new epoch begins. What was evicted stays counted.
    pub fn clear(&mut self) {
        self.flows.clear();
        self.news.clear();
    }

    /// Makes a little more room than is needed, so that a full store isn't sorted for each new flow.
    fn evict(&mut self, is_live: impl Fn(u64) -> bool) -> Vec<FlowKey> {
        let keep = self.bounds.flows - self.bounds.flows / 16;
        let mut by_worth: Vec<_> = self
            .flows
            .iter()
            .map(|(key, entry)| ((entry.counters.active() > 0, is_live(key.cgroup_id), entry.changed), *key))
            .collect();
        let surplus = by_worth.len().saturating_sub(keep);
        if surplus > 0 && surplus < by_worth.len() {
            by_worth.select_nth_unstable(surplus);
        }
        by_worth.truncate(surplus);
        for (_, key) in &by_worth {
            self.flows.remove(key);
        }
        self.evicted += by_worth.len() as u64;
        by_worth.into_iter().map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use topology::flow::Role;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn key(cgroup_id: u64, port: u16) -> FlowKey {
        let ip = Ipv4Addr::LOCALHOST.into();
        FlowKey { cgroup_id, netns: 1, role: Role::Client, local: ip, remote: ip, port }
    }

    fn counters(opened: u64, closed: u64) -> FlowCounters {
        FlowCounters { opened, closed, ..FlowCounters::default() }
    }

    fn store(flows: usize) -> FlowStore {
        FlowStore::new(Bounds { flows, retention: HOUR })
    }

    #[test]
    fn news_is_what_changed_and_comes_once() {
        let mut store = store(10);
        let now = Instant::now();
        assert!(store.record(key(1, 1), counters(1, 0), now));
        assert!(store.record(key(1, 2), counters(1, 0), now));
        assert!(store.record(key(1, 1), counters(2, 0), now));
        assert_eq!(store.take_news(1), [(key(1, 1), counters(2, 0))]);
        assert_eq!(store.take_news(9), [(key(1, 2), counters(1, 0))]);
        assert!(!store.has_news());
        assert!(!store.record(key(1, 1), counters(2, 0), now), "the same again");
        assert!(!store.has_news());
        assert!(store.record(key(1, 1), counters(2, 1), now));
        assert_eq!(store.take_news(9), [(key(1, 1), counters(2, 1))]);
    }

    #[test]
    fn a_snapshot_has_all_and_news_is_what_comes_after() {
        let mut store = store(10);
        let now = Instant::now();
        store.record(key(1, 1), counters(1, 0), now);
        store.record(key(1, 2), counters(1, 0), now);
        store.take_news(1);
        let mut all = store.begin_snapshot();
        all.sort();
        assert_eq!(all, [key(1, 1), key(1, 2)]);
        assert!(!store.has_news());
        store.record(key(1, 1), counters(2, 0), now);
        assert_eq!(store.take_news(9), [(key(1, 1), counters(2, 0))]);
    }

    #[test]
    fn quiet_flows_of_dead_cgroups_leave_after_the_retention() {
        let mut store = store(10);
        let start = Instant::now();
        for (cgroup, closed) in [(1, 1), (2, 1), (2, 0)] {
            let port = u16::try_from(closed).unwrap();
            store.record(key(cgroup, port), counters(1, closed), start);
        }
        let dead = |id| id == 1;
        assert_eq!(store.expire(start + HOUR / 2, |_| false), []);
        assert_eq!(store.expire(start + HOUR, dead), [key(2, 1)], "1 lives, and 2's other connection is open");
        assert_eq!(store.evicted(), 0);
        assert_eq!(store.take_news(9).len(), 2, "what has left isn't news");
    }

    #[test]
    fn over_the_bound_the_least_worth_leave_and_are_counted() {
        let mut store = store(3);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        store.record(key(1, 1), counters(1, 0), at(0));
        store.record(key(1, 2), counters(1, 1), at(1));
        store.record(key(1, 3), counters(1, 1), at(2));
        assert!(!store.is_over_bound());
        store.record(key(2, 4), counters(1, 1), at(3));
        assert!(store.is_over_bound());
        assert_eq!(store.expire(at(4), |id| id == 1), [key(2, 4)], "of a dead cgroup, although youngest");
        store.record(key(1, 5), counters(1, 1), at(5));
        assert_eq!(store.expire(at(6), |_| true), [key(1, 2)], "oldest of the quiet ones");
        assert_eq!((store.len(), store.evicted()), (3, 2));
        assert!(store.get(&key(1, 1)).is_some(), "an open connection stays");
    }

    #[test]
    fn a_flow_that_left_and_came_back_is_news_once() {
        let mut store = store(10);
        let start = Instant::now();
        store.record(key(1, 1), counters(1, 1), start);
        store.expire(start + HOUR, |_| false);
        store.record(key(1, 1), counters(3, 3), start + HOUR);
        assert_eq!(store.take_news(9), [(key(1, 1), counters(3, 3))]);
    }

    proptest! {
        /// Whoever takes all news knows the latest counters of all that have not left.
        #[test]
        fn news_is_complete(steps in prop::collection::vec((0u64..3, 0u16..5, 1u64..4, 0usize..4), 1..60)) {
            let mut store = store(6);
            let start = Instant::now();
            let mut told = HashMap::new();
            for (second, (cgroup, port, opened, take)) in (0..).zip(steps) {
                let now = start + Duration::from_secs(second);
                store.record(key(cgroup, port), counters(opened, 0), now);
                told.extend(store.take_news(take));
                if store.is_over_bound() {
                    for key in store.expire(now, |_| true) {
                        told.remove(&key);
                    }
                }
                prop_assert!(store.len() <= 6);
            }
            told.extend(store.take_news(usize::MAX));
            prop_assert_eq!(told, store.iter().map(|(key, counters)| (*key, *counters)).collect::<HashMap<_, _>>());
        }
    }
}
