//! Matches clients' flows with the servers' flows that may be their other ends, and divides their connections.

use super::{
    candidates::Candidates,
    edges::edge_key,
    join::Join,
    key::Key,
    matching::{Count, Found, Matching, Plan},
    observed::{ClientFlow, Fresh, ServerFlow},
    path::{Call, Path},
};
use crate::{edge::EdgeKey, hash::HashMap};

impl<'a> Join<'a> {
    /// All clients' flows of which servers' flows, or backends, can be the other end; those of which none can are named by
    /// the address that they called.
    pub(super) fn calls<'s>(&mut self, client_flows: &'s [ClientFlow<'a>]) -> Vec<Call<'s, 'a>> {
        let address_reuse = self.address_reuse(client_flows);
        let mut calls = Vec::new();
        for client_flow in client_flows {
            if let Some(range) = self.by_tuple(&client_flow.tuple) {
                let (path, server_flows) = if address_reuse.contains(&client_flow.tuple) {
                    (Path::AddressReuse, self.nearest_first(client_flow, range.collect()))
                } else {
                    (Path::Direct, self.in_time(client_flow, range.collect()))
                };
                calls.push(Call { client_flow, path, server_flows });
                continue;
            }
            let Some(candidates) = self.candidates_of(client_flow) else {
                self.join_by_address(client_flow, client_flow.counters);
                continue;
            };
            let server_flows = self.in_time(client_flow, self.server_flows_of(client_flow, &candidates));
            let path = if candidates.only.is_some() { Path::ToOne(candidates) } else { Path::ToMany(candidates) };
            calls.push(Call { client_flow, path, server_flows });
        }
        // Stable: among those that are as certain the ledger's order.
        calls.sort_by_key(|call| call.path.rank());
        calls
    }

    /// Returns for each call how many of its connections are on edges to backends that no agent reports any more.
    pub(super) fn with_backends(&mut self, calls: &[Call<'_, 'a>]) -> Vec<u64> {
        if self.with_backends.is_empty() {
            return vec![0; calls.len()];
        }
        // Several ends may have one name, as pods of a StatefulSet one after the other: they share what was published.
        let mut left: HashMap<(EdgeKey, String, String), u64> = HashMap::default();
        let of_call = |call: &Call<'_, 'a>| {
            let Path::ToMany(candidates) = &call.path else { return 0 };
            let Some(key) = self.key_of_service(call.client_flow, candidates) else { return 0 };
            let client = self.ends.end(call.client_flow.end);
            let of_client = (edge_key(&key, &self.ends), client.pod.to_string(), client.container.to_string());
            let published = self.with_backends.get(&of_client).copied().unwrap_or_default();
            let left = left.entry(of_client).or_insert(published);
            let taken = call.client_flow.counters.opened.min(*left);
            *left -= taken;
            taken
        };
        calls.iter().map(of_call).collect()
    }

    /// Returns the key of the edge from a client to the Service that it called.
    pub(super) fn key_of_service(&mut self, client_flow: &ClientFlow<'a>, candidates: &Candidates<'a>) -> Option<Key> {
        let service = candidates.service?;
        Some(Key {
            client: self.ends.peer_of(client_flow.end),
            server: self.ends.service_peer(service.service),
            service: Some(service),
            port: None,
            protocol: client_flow.tuple.protocol,
        })
    }

    /// Divides the connections of each call among servers' flows, apart from those that are on edges already.
    pub(super) fn match_calls(&self, calls: &[Call<'_, 'a>], with_backends: &[u64]) -> Vec<Vec<Found>> {
        let wanted = calls.iter().zip(with_backends).map(|(call, with_backends)| {
            count(call.client_flow, call.client_flow.counters.opened.saturating_sub(*with_backends))
        });
        let found: Vec<&[usize]> = calls.iter().map(|call| call.server_flows.as_slice()).collect();
        let direct = calls.iter().take_while(|call| call.path.rank() == 0).count();
        let server_of = |server_flow: usize| {
            let ServerFlow { end, tuple, port, .. } = &self.server_flows[server_flow];
            (self.ends.peer_of(*end), *port, tuple.protocol)
        };
        // Servers in the order of their flows: that of their numbers depends on what was joined before.
        let mut firsts = HashMap::default();
        let numbers = if direct < calls.len() { 0..self.server_flows.len() } else { 0..0 };
        for server_flow in numbers {
            firsts.entry(server_of(server_flow)).or_insert(server_flow);
        }
        self.match_up(wanted.collect(), &found, |matching| {
            matching.plan(direct, |server_flow| firsts.get(&server_of(server_flow)).copied())
        })
    }

    /// Divides those connections of each client's flow that have no other end yet among the servers' flows that were
    /// found for it.
    pub(super) fn match_rest<'s>(
        &self,
        rest: impl ExactSizeIterator<Item = (&'s ClientFlow<'a>, u64)>,
        found: &[Vec<usize>],
    ) -> Vec<Vec<Found>>
    where
        'a: 's,
    {
        let plan = Plan::greedy(rest.len());
        let found: Vec<&[usize]> = found.iter().map(Vec::as_slice).collect();
        self.match_up(rest.map(|(client_flow, left)| count(client_flow, left)).collect(), &found, |_| plan)
    }

    fn match_up(
        &self,
        wanted: Vec<Count>,
        found: &[&[usize]],
        plan: impl FnOnce(&mut Matching) -> Plan,
    ) -> Vec<Vec<Found>> {
        let mut matching = Matching::new(wanted);
        for (client_flow, server_flows) in found.iter().enumerate() {
            for index in *server_flows {
                let server_flow = &self.server_flows[*index];
                matching.add(client_flow, *index, || Count::new(server_flow.left.opened, server_flow.fresh.opened));
            }
        }
        let plan = plan(&mut matching);
        matching.divide(&plan);
        (0..found.len()).map(|client_flow| matching.found(client_flow)).collect()
    }

    /// Returns how many of a client's connections must wait for servers' reports. These are connections that no server
    /// has counted, and that were opened after its backends' agents reported last, or shortly before.
    pub(super) fn wait_for_backends(
        &mut self,
        client_flow: &ClientFlow<'a>,
        candidates: &Candidates<'a>,
        left: u64,
    ) -> u64 {
        let spoken = candidates.heard.map_or(self.options.now, |heard| heard.min(self.options.now));
        let settled = spoken.checked_sub(self.options.settle).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
        let fresh = Fresh::of(client_flow.counters.opened, client_flow.first_seen, client_flow.parts, settled);
        self.wait(left, &fresh)
    }
}

fn count(client_flow: &ClientFlow<'_>, left: u64) -> Count {
    Count::new(left, client_flow.fresh.opened)
}
