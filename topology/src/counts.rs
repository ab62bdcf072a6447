//! Counters of an edge, in total and per endpoint.

use std::collections::BTreeMap;

use crate::{
    count,
    edge::{Edge, EdgeCounters, Endpoint},
};

/// An edge's counters and its endpoints' parts in them, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of it.
    pub counters: EdgeCounters,
    /// The client's pods and containers.
    pub clients: Vec<Endpoint>,
    /// The server's pods and containers.
    pub servers: Vec<Endpoint>,
}

/// Part of an edge that an operator would not learn from agents if it began now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    /// The part.
    pub counts: Counts,
    /// Connections among these that servers' agents report nevertheless, as those of unknown clients.
    pub known_to_servers: u64,
}

impl Earlier {
    /// Returns what both ends' objects have of it: either may know more.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        Self {
            counts: self.counts.at_least(&other.counts),
            known_to_servers: self.known_to_servers.max(other.known_to_servers),
        }
    }
}

impl Counts {
    /// Those of an edge.
    #[must_use]
    pub fn of(edge: &Edge) -> Self {
        Self { counters: edge.counters, clients: edge.clients.clone(), servers: edge.servers.clone() }
    }

    /// Returns the part of an edge that only servers' agents have counted.
    #[must_use]
    pub fn from_servers(edge: &Edge) -> Self {
        Self {
            counters: edge.from_servers,
            clients: edge.clients_from_servers.clone(),
            servers: edge.servers_from_servers.clone(),
        }
    }

    /// Makes these an edge's.
    pub fn write_to(self, edge: &mut Edge) {
        (edge.counters, edge.clients, edge.servers) = (self.counters, self.clients, self.servers);
    }

    /// Both together, at most [`count::MAX_COUNT`] each.
    ///
    /// Invariant: no count is less than in either.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut counters = self.counters;
        counters.add(&other.counters);
        self.merged(other, counters, count::add)
    }

    /// Returns the difference to `other`, at least 0; endpoints without a rest are omitted.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = self.merged(other, self.counters.without(&other.counters), u64::saturating_sub);
        for endpoints in [&mut left.clients, &mut left.servers] {
            endpoints.retain(|end| end.opened > 0 || end.failed > 0);
        }
        left
    }

    /// The greater count of each; what is open or pending now is as it is here.
    ///
    /// Invariant: but for what is open or pending, no count is less than in either.
    #[must_use]
    pub fn at_least(&self, other: &Self) -> Self {
        let EdgeCounters { active, pending, .. } = self.counters;
        let counters = EdgeCounters { active, pending, ..self.counters.at_least(&other.counters) };
        self.merged(other, counters, u64::max)
    }

    /// With the endpoints of both; the greater count of each.
    ///
    /// Invariant: the edge's own counters stay.
    #[must_use]
    pub fn with_endpoints_of(&self, other: &Self) -> Self {
        self.merged(other, self.counters, u64::max)
    }

    /// Without the endpoints that `other` does not have.
    ///
    /// Invariant: no count grows.
    #[must_use]
    pub fn of_endpoints_in(mut self, other: &Self) -> Self {
        let known = |end: &Endpoint, others: &[Endpoint]| {
            others.iter().any(|other| (&other.pod, &other.container) == (&end.pod, &end.container))
        };
        self.clients.retain(|end| known(end, &other.clients));
        self.servers.retain(|end| known(end, &other.servers));
        self
    }

    fn merged(&self, other: &Self, counters: EdgeCounters, merge: fn(u64, u64) -> u64) -> Self {
        Self {
            counters,
            clients: merged(&self.clients, &other.clients, merge),
            servers: merged(&self.servers, &other.servers, merge),
        }
    }
}

fn merged(one: &[Endpoint], other: &[Endpoint], merge: fn(u64, u64) -> u64) -> Vec<Endpoint> {
    let mut by_name: BTreeMap<(&str, &str), [(u64, u64); 2]> = BTreeMap::new();
    for (index, endpoints) in [one, other].into_iter().enumerate() {
        for end in endpoints {
            by_name.entry((&end.pod, &end.container)).or_default()[index] = (end.opened, end.failed);
        }
    }
    by_name
        .into_iter()
        .map(|((pod, container), [one, other])| Endpoint {
            pod: pod.to_owned(),
            container: container.to_owned(),
            opened: merge(one.0, other.0),
            failed: merge(one.1, other.1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(opened: u64, active: u64, clients: &[(&str, u64)]) -> Counts {
        let end = |(pod, opened): &(&str, u64)| Endpoint {
            pod: (*pod).to_owned(),
            container: String::new(),
            opened: *opened,
            failed: 0,
        };
        let counters = EdgeCounters { opened, active, ..EdgeCounters::default() };
        Counts { counters, clients: clients.iter().map(end).collect(), servers: Vec::new() }
    }

    #[test]
    fn endpoints_are_merged_by_name() {
        let (one, other) = (counts(5, 1, &[("a", 3), ("b", 2)]), counts(4, 2, &[("b", 2), ("c", 2)]));
        assert_eq!(one.plus(&other), counts(9, 3, &[("a", 3), ("b", 4), ("c", 2)]));
        assert_eq!(one.without(&other), counts(1, 0, &[("a", 3)]));
        assert_eq!(other.at_least(&one), counts(5, 2, &[("a", 3), ("b", 2), ("c", 2)]));
        assert_eq!(one.of_endpoints_in(&other), counts(5, 1, &[("b", 2)]));
    }
}
