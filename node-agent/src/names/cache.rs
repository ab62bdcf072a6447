//! Cache of DNS responses: for each client and address, the names that led to it. Bounded. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use report::MAX_REMOTE_NAMES;

use super::Answer;

/// Bounds of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamesBounds {
    /// The most addresses of clients that are remembered; of more, those that were answered longest ago go.
    pub addresses: usize,
    /// The same of the bytes that their names take.
    pub bytes: usize,
    /// Minimum lifetime of a name, also for a shorter TTL: the client will connect soon.
    pub least: Duration,
    /// And for no longer than this.
    pub most: Duration,
}

impl Default for NamesBounds {
    fn default() -> Self {
        Self { addresses: 16_384, bytes: 4 << 20, least: Duration::from_mins(1), most: Duration::from_hours(1) }
    }
}

/// Client's cgroup, and an address that it was given.
type Key = (u64, IpAddr);

#[derive(Debug)]
struct CachedName {
    /// The latest answer last.
    names: Vec<(Arc<str>, Instant)>,
    /// Its place in the order of answers.
    turn: u64,
}

/// The names.
#[derive(Debug, Default)]
pub struct Names {
    bounds: NamesBounds,
    known: HashMap<Key, CachedName>,
    /// By the turn of the latest answer.
    order: BTreeMap<u64, Key>,
    turn: u64,
    /// Bytes of all names, as if no two addresses shared one.
    bytes: usize,
}

impl CachedName {
    fn bytes(&self) -> usize {
        self.names.iter().map(|(name, _)| name.len()).sum()
    }
}

impl Names {
    /// None yet.
    #[must_use]
    pub fn new(bounds: NamesBounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// A client has been answered.
    pub fn learn(&mut self, cgroup: u64, answer: &Answer, now: Instant) {
        let until = now + answer.ttl.clamp(self.bounds.least, self.bounds.most);
        let name: Arc<str> = answer.name.as_str().into();
        for address in &answer.addresses {
            self.note((cgroup, *address), &name, until, now);
        }
        while self.known.len() > self.bounds.addresses || self.bytes > self.bounds.bytes {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.bytes -= self.known.remove(&oldest).map_or(0, |known| known.bytes());
        }
    }

    fn note(&mut self, key: Key, name: &Arc<str>, until: Instant, now: Instant) {
        self.turn += 1;
        let known = self.known.entry(key).or_insert_with(|| CachedName { names: Vec::new(), turn: 0 });
        self.order.remove(&known.turn);
        self.order.insert(self.turn, key);
        known.turn = self.turn;
        let before = known.bytes();
        known.names.retain(|(other, until)| other != name && *until > now);
        known.names.push((Arc::clone(name), until));
        if known.names.len() > MAX_REMOTE_NAMES {
            known.names.remove(0);
        }
        self.bytes = self.bytes - before + known.bytes();
    }

    /// The names that lead a client to an address now, in alphabetical order; at most [`MAX_REMOTE_NAMES`], of more the
    /// latest.
    #[must_use]
    pub fn of(&self, cgroup: u64, address: IpAddr, now: Instant) -> Vec<Arc<str>> {
        let Some(known) = self.known.get(&(cgroup, address)) else { return Vec::new() };
        let holding = known.names.iter().filter(|(_, until)| *until > now);
        let mut names: Vec<_> = holding.map(|(name, _)| Arc::clone(name)).collect();
        names.sort_unstable();
        names
    }

    /// Returns the number of cached addresses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Returns whether the cache is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &str, addresses: &[u8], ttl: u64) -> Answer {
        let addresses = addresses.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect();
        Answer { name: name.into(), addresses, ttl: Duration::from_secs(ttl) }
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn names_are_the_clients_own_and_hold_for_a_time() {
        let (mut names, start) = (Names::new(NamesBounds::default()), Instant::now());
        names.learn(1, &answer("b.example", &[1, 2], 0), start);
        names.learn(1, &answer("a.example", &[1], 300), start);
        names.learn(2, &answer("c.example", &[1], 300), start);
        let of =
            |cgroup, last, now| names.of(cgroup, ip(last), now).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(1, 1, start), ["a.example", "b.example"]);
        assert_eq!(of(1, 2, start), ["b.example"]);
        assert_eq!(of(2, 1, start), ["c.example"]);
        assert!(names.of(2, ip(2), start).is_empty());
        let later = start + Duration::from_secs(61);
        assert_eq!(of(1, 1, later), ["a.example"], "what was to hold for 0 s has held for a minute");
    }

    #[test]
    fn the_latest_names_and_addresses_stay() {
        let (mut names, now) = (Names::new(NamesBounds { addresses: 3, ..NamesBounds::default() }), Instant::now());
        for name in ["e", "d", "c", "b", "a", "d"] {
            names.learn(1, &answer(name, &[1], 300), now);
        }
        assert_eq!(names.of(1, ip(1), now), ["a", "b", "c", "d"].map(Arc::from));
        for last in 2..=3 {
            names.learn(1, &answer("x", &[last], 300), now);
        }
        names.learn(1, &answer("e", &[1], 300), now);
        names.learn(1, &answer("x", &[4], 300), now);
        let known: Vec<_> = (1..=4).filter(|last| !names.of(1, ip(*last), now).is_empty()).collect();
        assert_eq!((known, names.len(), names.order.len()), (vec![1, 3, 4], 3, 3));
    }

    #[test]
    fn names_take_no_more_bytes_than_they_may() {
        let bounds = NamesBounds { bytes: 1000, ..NamesBounds::default() };
        let (mut names, now) = (Names::new(bounds), Instant::now());
        for number in 0..100_u8 {
            names.learn(1, &answer(&format!("{number:0100}"), &[number, number.wrapping_add(1)], 300), now);
            let held: usize = names.known.values().map(CachedName::bytes).sum();
            assert!(names.bytes == held && held <= 1000, "{held}");
        }
        assert!(!names.of(1, ip(99), now).is_empty() && names.of(1, ip(1), now).is_empty(), "the latest stay");
    }
}
