//! Edges of connections that only a server has counted. Through which Service they came is a guess, which stays as it was
//! shown first.

use crate::hash::HashMap;

use super::{
    edges::edge_key,
    join::Join,
    key::{Key, ServiceKey},
    names::EndpointId,
    observed::{Explanation, ServerFlow},
};
use crate::{
    count,
    edge::{EdgeCounters, EdgeKey},
    entity::ServicePortRef,
};

/// Connections that only a server has counted.
pub(super) struct Surplus<'a, 'f> {
    pub(super) server_flow: &'f ServerFlow<'a>,
    /// The client's flow that explains others of the server's connections, if any.
    pub(super) by: Option<Explanation>,
    /// Client by the address that the server saw.
    pub(super) client: EndpointId,
    /// Key of the edge without a Service, which stands for all edges between these peers.
    pub(super) direct: Key,
    pub(super) part: EdgeCounters,
    pub(super) live: bool,
}

impl Surplus<'_, '_> {
    /// Returns the key of the edge that these connections belong to, as far as agents know.
    fn key(&self) -> Key {
        self.by.map_or(self.direct, |by| by.key)
    }
}

/// Connections that were shown on edges although only servers had counted them.
#[derive(Debug, Default)]
pub(super) struct Placed<'a> {
    /// Edges that were shown, and their parts, by their edge without a Service.
    by_direct: HashMap<EdgeKey, Vec<(Option<&'a ServicePortRef>, EdgeCounters)>>,
    /// Number of connections that no server's flow has been found for, by the edge without a Service.
    left: HashMap<EdgeKey, u64>,
}

impl<'a> Placed<'a> {
    pub(super) fn new(placed: &'a std::collections::HashMap<EdgeKey, EdgeCounters>) -> Self {
        let mut this = Self::default();
        let mut shown: Vec<_> = placed.iter().collect();
        shown.sort_unstable_by_key(|(key, _)| *key);
        for (key, part) in shown {
            let left = this.left.entry(key.direct()).or_default();
            *left = count::add(*left, part.opened);
            if part.opened > 0 {
                this.by_direct.entry(key.direct()).or_default().push((key.service.as_ref(), *part));
            }
        }
        this
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes up to so many connections of an edge without a Service, and returns their number.
    pub(super) fn take(&mut self, direct: &EdgeKey, opened: u64) -> u64 {
        let Some(left) = self.left.get_mut(direct) else { return 0 };
        let taken = opened.min(*left);
        *left -= taken;
        taken
    }
}

/// Edges between the same peers, each with the part of it that only servers had counted when it was shown last.
type Places = Vec<(Key, EdgeCounters)>;

impl<'a> Join<'a> {
    /// Adds connections that only servers counted to the edges on which they were shown before, and the others to the edges
    /// of the clients' flows that explain others of a server's connections.
    pub(super) fn place_all(&mut self, surplus: Vec<Surplus<'a, '_>>) {
        let mut places = self.places(&surplus);
        let mut groups: HashMap<Key, Vec<Surplus<'a, '_>>> = HashMap::default();
        for surplus in surplus {
            if places.contains_key(&surplus.direct) {
                groups.entry(surplus.direct).or_default().push(surplus);
            } else {
                self.add_to_edge(surplus.key(), &surplus, &surplus.part);
            }
        }
        for (direct, surplus) in groups {
            self.place(&surplus, places.remove(&direct).unwrap_or_default());
        }
    }

    /// Returns the edges on which such connections were shown, by their edge without a Service. Those that a client's agent
    /// has counted connections of come first.
    fn places(&mut self, surplus: &[Surplus<'a, '_>]) -> HashMap<Key, Places> {
        let mut places = HashMap::default();
        if self.placed.is_empty() {
            return places;
        }
        for direct in surplus.iter().map(|surplus| surplus.direct) {
            let Some(found) = self.placed.by_direct.remove(&edge_key(&direct, &self.ends)) else { continue };
            let mut key = |service: &ServicePortRef| ServiceKey {
                service: self.ends.service_id(&service.service),
                port: service.port,
            };
            let mut found: Places = found
                .into_iter()
                .map(|(service, part)| (Key { service: service.map(&mut key), ..direct }, part))
                .collect();
            found.sort_by_key(|(key, _)| !self.is_clients(key));
            places.insert(direct, found);
        }
        places
    }

    /// Adds what only servers counted between two peers to the edges in `places`, and the rest to the edges that it is
    /// likely to belong to.
    ///
    /// Invariant: an edge that keeps its connections keeps their bytes.
    fn place(&mut self, surplus: &[Surplus<'a, '_>], mut places: Places) {
        let all = sum(surplus.iter().map(|surplus| &surplus.part));
        let fits = all.opened >= sum(places.iter().map(|(_, part)| part)).opened;
        let is_estimate = surplus.iter().any(|surplus| surplus.server_flow.has_shared_bytes);
        let mut left = Bytes::of(&all);
        let (mut rest, mut last) = (Vec::new(), None);
        for surplus in surplus {
            let mut part = surplus.part;
            for (key, before) in &mut places {
                let kept = before.share(part.opened);
                if kept.opened == 0 {
                    continue;
                }
                *before = before.without(&kept);
                let share = part.share(kept.opened);
                part = part.without(&share);
                let bytes = match (fits, is_estimate) {
                    // Clients' agents have counted some of them since, with bytes that are not known apart.
                    (false, _) => Bytes::of(&kept).min(&left),
                    (true, true) => Bytes::of(&kept).max(&Bytes::of(&share)),
                    (true, false) => Bytes::of(&kept),
                };
                left = left.without(&bytes);
                self.add_to_edge(*key, surplus, &bytes.put_into(&share));
                last = Some((*key, surplus));
            }
            if part.opened > 0 {
                rest.push((surplus, part));
            }
        }
        if is_estimate {
            left = Bytes::of(&sum(rest.iter().map(|(_, part)| part)));
        }
        let mut opened = sum(rest.iter().map(|(_, part)| part)).opened;
        if let (Some((key, surplus)), 0, false) = (last, opened, is_estimate) {
            self.add_to_edge(key, surplus, &left.put_into(&EdgeCounters::default()));
        }
        for (surplus, part) in rest {
            let bytes = left.share(part.opened, opened);
            left = left.without(&bytes);
            opened = opened.saturating_sub(part.opened);
            self.add_to_edge(surplus.key(), surplus, &bytes.put_into(&part));
        }
    }

    /// Returns whether a client's agent has counted connections of an edge.
    fn is_clients(&self, key: &Key) -> bool {
        self.sums.by_key.get(key).is_some_and(|sum| sum.client_seen || sum.both_seen)
    }

    /// Adds a part of what only a server counted to an edge between these peers.
    fn add_to_edge(&mut self, key: Key, surplus: &Surplus<'a, '_>, part: &EdgeCounters) {
        match surplus.by {
            Some(by) if self.is_clients(&key) => {
                self.add_surplus(surplus.server_flow, &Explanation { key, ..by }, part, surplus.live);
            }
            _ => self.add_at(key, surplus.server_flow, surplus.client, part, surplus.live),
        }
    }
}

fn sum<'a>(parts: impl Iterator<Item = &'a EdgeCounters>) -> EdgeCounters {
    parts.fold(EdgeCounters::default(), |mut sum, part| {
        sum.add(part);
        sum
    })
}

/// Payload from client to server, and from server to client.
#[derive(Clone, Copy, Debug, Default)]
struct Bytes([u64; 2]);

impl Bytes {
    fn of(counters: &EdgeCounters) -> Self {
        Self([counters.bytes_sent, counters.bytes_received])
    }

    fn put_into(self, counters: &EdgeCounters) -> EdgeCounters {
        let Self([bytes_sent, bytes_received]) = self;
        EdgeCounters { bytes_sent, bytes_received, ..*counters }
    }

    fn with(self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let (Self([sent, received]), Self([other_sent, other_received])) = (self, *other);
        Self([combine(sent, other_sent), combine(received, other_received)])
    }

    fn max(self, other: &Self) -> Self {
        self.with(other, u64::max)
    }

    fn min(self, other: &Self) -> Self {
        self.with(other, u64::min)
    }

    fn without(self, other: &Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    /// Returns the share of `opened` of `all` connections; all of it where these are all.
    fn share(self, opened: u64, all: u64) -> Self {
        let whole = EdgeCounters { opened: all, ..self.put_into(&EdgeCounters::default()) };
        Self::of(&whole.share(opened))
    }
}
