//! A client dialled a Service that leads to one workload at one port: whichever pod answered, the edge is known.

use super::{
    edges::Key,
    join::{Candidates, Join},
    matching::Found,
    observed::Source,
    translated::Disguise,
};

impl<'a> Join<'a> {
    /// Joins a flow with the only workload and port behind a Service, regardless of the backend. Returns the counters
    /// without a server flow.
    pub(super) fn join_only_backend(
        &mut self,
        source: &Source<'a>,
        candidates: &Candidates<'a>,
        found: &[Found],
    ) -> u64 {
        let mut left = source.counters.opened;
        let Some(key) = self.key_of_only(source, candidates) else { return left };
        self.add_from_client(source, key, &source.counters);
        for found in found {
            left -= self.note_backend(source, key, found, true);
        }
        left
    }

    /// A backend has seen (a part of) a flow whose edge is known already. `certain`: whether it can have been no other.
    /// Returns how many connections.
    fn note_backend(&mut self, source: &Source<'a>, key: Key<'a>, found: &Found, certain: bool) -> u64 {
        let sink = &mut self.sinks[found.sink];
        let took = sink.take_of(found.opened, source);
        let taken = took.counters;
        sink.explain(source, key, taken.opened);
        let sum = self.sums.at(key);
        if taken.opened == source.counters.opened {
            let known = took.complete(&source.counters);
            sum.counters = sum.counters.without(&source.counters);
            sum.counters.add(&known);
        }
        sum.counters.add_retransmits_of(&taken);
        sum.add_methods(sink.methods);
        sum.add_measured_by_server(&sink.measured);
        sum.both_seen = true;
        sum.server_certain |= certain;
        sum.add_server(sink.end, taken.opened, 0);
        taken.opened
    }

    /// Backends of the only workload have seen (parts of) a flow with another address than the client's.
    pub(super) fn note_translated(
        &mut self,
        source: &Source<'a>,
        candidates: &Candidates<'a>,
        found: &[Found],
        left: &mut u64,
        by: Disguise,
    ) {
        let Some(key) = self.key_of_only(source, candidates) else { return };
        let is_hairpin = by == Disguise::Hairpin;
        let one_end = found.iter().all(|it| self.sinks[it.sink].end == self.sinks[found[0].sink].end);
        for found in found {
            *left -= if is_hairpin || candidates.observed {
                self.note_backend(source, key, found, is_hairpin || one_end)
            } else {
                self.take_uncertain(source, key, found)
            };
        }
    }

    /// Takes a backend's counts of a flow that another, unobserved backend may also have served, so that they add no
    /// other edge. Returns the number of connections.
    fn take_uncertain(&mut self, source: &Source<'a>, key: Key<'a>, found: &Found) -> u64 {
        let sink = &mut self.sinks[found.sink];
        let taken = sink.take(found.opened, Some(source.end)).counters;
        let sum = self.sums.at(key);
        sum.counters.add_retransmits_of(&taken);
        sum.add_measured_by_server(&sink.measured);
        taken.opened
    }

    pub(super) fn key_of_only(&self, source: &Source<'a>, candidates: &Candidates<'a>) -> Option<Key<'a>> {
        let (server, port) = candidates.only?;
        Some(Key {
            client: self.ends.peer_of(source.end),
            server,
            service: Some(candidates.service),
            port: Some(port),
            protocol: source.tuple.protocol,
        })
    }
}
