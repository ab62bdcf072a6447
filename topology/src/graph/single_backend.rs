//! Joins calls of a Service that leads to one workload at one port: whichever pod answered, the edge is known.

use super::{
    candidates::Candidates,
    join::Join,
    key::Key,
    matching::Found,
    observed::{ClientFlow, Taken},
    rewritten_source::RewrittenSource,
};
use crate::edge::EdgeCounters;

impl<'a> Join<'a> {
    /// Joins a flow with the only workload and port behind a Service, regardless of the backend. Returns the counters
    /// without a server flow.
    pub(super) fn join_single_backend(
        &mut self,
        client_flow: &ClientFlow<'a>,
        candidates: &Candidates<'a>,
        found: &[Found],
    ) -> u64 {
        let opened = client_flow.counters.opened;
        let Some(key) = self.key_of_only(client_flow, candidates) else { return opened };
        let (mut taken, mut certain) = (0, EdgeCounters::default());
        for found in found {
            let took = self.note_backend(client_flow, key, found, true);
            taken += took.counters.opened;
            certain.add(&took.if_certain());
        }
        self.add_from_client(client_flow, key, &client_flow.counters.with_bytes_known_to(&certain));
        opened - taken
    }

    /// A backend has seen (a part of) a flow whose edge is known already. `certain`: whether it can have been no other.
    /// Returns the connections.
    fn note_backend(&mut self, client_flow: &ClientFlow<'a>, key: Key, found: &Found, certain: bool) -> Taken {
        let server_flow = &mut self.server_flows[found.server_flow];
        let took = server_flow.take_of(found.opened, client_flow);
        let taken = took.counters;
        server_flow.explain(client_flow, key, taken.opened);
        let sum = self.sums.at(key);
        sum.counters.add_retransmits_of(&taken);
        sum.add_methods(server_flow.methods);
        sum.add_measured_by_server(&server_flow.measured);
        sum.add_via(None, server_flow.via);
        sum.both_seen = true;
        sum.server_certain |= certain;
        sum.add_server(server_flow.end, taken.opened, 0);
        took
    }

    /// Backends of the only workload have seen (parts of) a flow with another address than the client's.
    pub(super) fn note_translated(
        &mut self,
        client_flow: &ClientFlow<'a>,
        candidates: &Candidates<'a>,
        found: &[Found],
        left: &mut u64,
        by: RewrittenSource,
    ) {
        let Some(key) = self.key_of_only(client_flow, candidates) else { return };
        let is_certain = by.is_clients_own();
        let one_end =
            found.iter().all(|it| self.server_flows[it.server_flow].end == self.server_flows[found[0].server_flow].end);
        for found in found {
            *left -= if is_certain || candidates.observed {
                self.note_backend(client_flow, key, found, is_certain || one_end).counters.opened
            } else {
                self.take_uncertain(client_flow, key, found)
            };
        }
    }

    /// Takes a backend's counts of a flow that another, unobserved backend may also have served, so that they add no
    /// other edge. Returns the number of connections.
    fn take_uncertain(&mut self, client_flow: &ClientFlow<'a>, key: Key, found: &Found) -> u64 {
        let server_flow = &mut self.server_flows[found.server_flow];
        let taken = server_flow.take(found.opened, Some(client_flow.end)).counters;
        let sum = self.sums.at(key);
        sum.counters.add_retransmits_of(&taken);
        sum.add_measured_by_server(&server_flow.measured);
        taken.opened
    }

    pub(super) fn key_of_only(&self, client_flow: &ClientFlow<'a>, candidates: &Candidates<'a>) -> Option<Key> {
        let (server, port) = candidates.only?;
        Some(Key {
            client: self.ends.peer_of(client_flow.end),
            server,
            service: candidates.service,
            port: Some(port),
            protocol: client_flow.tuple.protocol,
        })
    }
}
