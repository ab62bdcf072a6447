//! Matches clients' flows with the servers' flows that may be their other ends, and divides their connections.

use std::rc::Rc;

use super::{
    join::{Candidates, Join},
    matching::{Count, Found, Matching, Plan},
    observed::{Fresh, Source},
};

/// Path from a client to its servers, most certain first: that leaves less to guess.
#[derive(Clone, Debug)]
pub(super) enum Way<'a> {
    /// Both ends see the same addresses, of which one has had several owners.
    HandedOn,
    /// Both ends see the same addresses.
    Direct,
    /// Through a Service that leads to one workload at one port.
    ToOne(Rc<Candidates<'a>>),
    /// Through a Service that leads to several.
    ToMany(Rc<Candidates<'a>>),
}

impl Way<'_> {
    fn rank(&self) -> usize {
        match self {
            Self::HandedOn | Self::Direct => 0,
            Self::ToOne(_) => 1,
            Self::ToMany(_) => 2,
        }
    }
}

/// A client's flow with the servers' flows that may be its other end, best first.
#[derive(Debug)]
pub(super) struct Call<'s, 'a> {
    pub(super) source: &'s Source<'a>,
    pub(super) way: Way<'a>,
    sinks: Vec<usize>,
}

impl<'a> Join<'a> {
    /// All clients' flows of which servers' flows, or backends, can be the other end; those of which none can are named by
    /// the address that they called.
    pub(super) fn calls<'s>(&mut self, sources: &'s [Source<'a>]) -> Vec<Call<'s, 'a>> {
        let handed_on = self.handed_on(sources);
        let mut calls = Vec::new();
        for source in sources {
            if let Some(range) = self.by_tuple(&source.tuple) {
                let (way, sinks) = if handed_on.contains(&source.tuple) {
                    (Way::HandedOn, self.nearest_first(source, range.collect()))
                } else {
                    (Way::Direct, self.in_time(source, range.collect()))
                };
                calls.push(Call { source, way, sinks });
                continue;
            }
            let Some(candidates) = self.candidates_of(source) else {
                self.join_by_address(source);
                continue;
            };
            let sinks = self.in_time(source, self.sinks_of(source, &candidates));
            let way = if candidates.only.is_some() { Way::ToOne(candidates) } else { Way::ToMany(candidates) };
            calls.push(Call { source, way, sinks });
        }
        // Stable: among those that are as certain the ledger's order.
        calls.sort_by_key(|call| call.way.rank());
        calls
    }

    /// Divides the connections of each call among servers' flows.
    pub(super) fn match_calls(&self, calls: &[Call<'_, 'a>]) -> Vec<Vec<Found>> {
        let wanted = calls.iter().map(|call| count(call.source, call.source.counters.opened));
        let found: Vec<&[usize]> = calls.iter().map(|call| call.sinks.as_slice()).collect();
        let direct = calls.iter().take_while(|call| call.way.rank() == 0).count();
        self.match_up(wanted.collect(), &found, |matching| {
            matching.plan(direct, |sink| (self.ends.peer_of(self.sinks[sink].end), self.sinks[sink].tuple.port))
        })
    }

    /// Divides those connections of each client's flow that have no other end yet among the servers' flows that were
    /// found for it.
    pub(super) fn match_rest<'s>(
        &self,
        rest: impl ExactSizeIterator<Item = (&'s Source<'a>, u64)>,
        found: &[Vec<usize>],
    ) -> Vec<Vec<Found>>
    where
        'a: 's,
    {
        let plan = Plan::greedy(rest.len());
        let found: Vec<&[usize]> = found.iter().map(Vec::as_slice).collect();
        self.match_up(rest.map(|(source, left)| count(source, left)).collect(), &found, |_| plan)
    }

    fn match_up(
        &self,
        wanted: Vec<Count>,
        found: &[&[usize]],
        plan: impl FnOnce(&mut Matching) -> Plan,
    ) -> Vec<Vec<Found>> {
        let mut matching = Matching::new(wanted);
        for (source, sinks) in found.iter().enumerate() {
            for index in *sinks {
                let sink = &self.sinks[*index];
                matching.add(source, *index, || Count::new(sink.left.opened, sink.fresh.opened));
            }
        }
        let plan = plan(&mut matching);
        matching.divide(&plan);
        (0..found.len()).map(|source| matching.found(source)).collect()
    }

    /// Returns how many of a client's connections must wait for servers' reports. These are connections that no server
    /// has counted, and that were opened after its backends' agents reported last, or shortly before.
    pub(super) fn wait_for_backends(&mut self, source: &Source<'a>, candidates: &Candidates<'a>, left: u64) -> u64 {
        let spoken = candidates.heard.map_or(self.options.now, |heard| heard.min(self.options.now));
        let settled = spoken.checked_sub(self.options.settle).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
        let fresh = Fresh::of(source.counters.opened, source.first_seen, source.parts, settled);
        self.wait(left, &fresh)
    }
}

fn count(source: &Source<'_>, left: u64) -> Count {
    Count::new(left, source.fresh.opened)
}
