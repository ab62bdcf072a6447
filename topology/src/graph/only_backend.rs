//! A client dialled a Service that leads to one workload at one port: whichever pod answered, the edge is known.

use super::{
    edges::Key,
    join::{Candidates, Join},
    observed::Source,
    translated::Disguise,
};

impl<'a> Join<'a> {
    /// Whatever backend it was, it is the same workload at the same port. Returns what no server's flow matches.
    pub(super) fn join_only_backend(&mut self, source: &Source<'a>, candidates: &Candidates<'a>) -> u64 {
        let mut wanted = source.counters.opened;
        let Some(key) = self.key_of_only(source, candidates) else { return wanted };
        self.add_from_client(source, key, &source.counters);
        for index in self.in_time(source, self.sinks_of(source, candidates)) {
            self.note_backend(source, key, index, true, &mut wanted);
        }
        wanted
    }

    /// A backend has seen (a part of) a flow whose edge is known already. `certain`: whether it can have been no other.
    pub(super) fn note_backend(
        &mut self,
        source: &Source<'a>,
        key: Key<'a>,
        index: usize,
        certain: bool,
        wanted: &mut u64,
    ) {
        let sink = &mut self.sinks[index];
        let took = sink.take_of(*wanted, &source.counters);
        sink.explain(source, key);
        let taken = took.counters;
        *wanted -= taken.opened;
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
    }

    /// Backends of the only workload have seen (parts of) a flow with another address than the client's.
    pub(super) fn note_translated(
        &mut self,
        source: &Source<'a>,
        candidates: &Candidates<'a>,
        found: &[usize],
        left: &mut u64,
        by: Disguise,
    ) {
        let Some(key) = self.key_of_only(source, candidates) else { return };
        let is_hairpin = by == Disguise::Hairpin;
        let one_end = found.iter().all(|index| self.sinks[*index].end == self.sinks[found[0]].end);
        for index in found {
            if is_hairpin || candidates.observed {
                self.note_backend(source, key, *index, is_hairpin || one_end, left);
            } else {
                *left -= self.take_uncertain(key, *index, *left);
            }
        }
    }

    /// A backend has counted (a part of) a flow, and another one that nobody sees may have: its counts are taken, so that
    /// they make no other edge. Returns how many connections.
    fn take_uncertain(&mut self, key: Key<'a>, index: usize, wanted: u64) -> u64 {
        let taken = self.sinks[index].take(wanted).counters;
        let sum = self.sums.at(key);
        sum.counters.add_retransmits_of(&taken);
        sum.add_measured_by_server(&self.sinks[index].measured);
        taken.opened
    }

    pub(super) fn key_of_only(&self, source: &Source<'a>, candidates: &Candidates<'a>) -> Option<Key<'a>> {
        let (server, port) = candidates.only?;
        Some(Key {
            client: self.ends.peer_of(source.end),
            server,
            service: Some(candidates.service),
            port,
            protocol: source.tuple.protocol,
        })
    }
}
