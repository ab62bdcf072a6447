//! Servers' flows in which the client's address has been replaced by another one on the way.

use std::{net::IpAddr, rc::Rc, time::Duration};

use super::{
    address::Called,
    candidates::Candidates,
    join::Join,
    observed::{ClientFlow, Tuple},
};
use crate::{edge::EdgeCounters, hash::HashMap};

/// A client's flow through a Service, and what of it no server's flow matches.
type Rest<'s, 'a, T> = (&'s ClientFlow<'a>, Rc<Candidates<'a>>, T);

/// Maximum time between the reports of two ends that do not share an address.
const FAR: Duration = Duration::from_mins(1);

/// Reason for which the server observes another address than the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RewrittenSource {
    /// The client is in a network inside of its pod, and left that with the pod's address.
    Inside,
    /// The client called a Service and reached its own pod: the connection returns to the pod with another address.
    Hairpin,
    /// A node's or its bridge's, if no backend has seen the client's own address, or if that is the node's, too.
    Masquerade,
}

impl RewrittenSource {
    /// All of them, most certain first.
    const ALL: [Self; 3] = [Self::Inside, Self::Hairpin, Self::Masquerade];

    /// Returns whether the address that the server observes is of the client's own pod.
    pub(super) fn is_clients_own(self) -> bool {
        matches!(self, Self::Inside | Self::Hairpin)
    }
}

/// Server flows whose client address may stand for another client: a node's or its bridge's.
pub(super) struct RewrittenSources<'a> {
    by_server: HashMap<Called<'a>, Vec<usize>>,
}

impl<'a> RewrittenSources<'a> {
    fn new(join: &Join<'a>) -> Self {
        let mut by_server: HashMap<Called<'a>, Vec<usize>> = HashMap::default();
        let may_stand_for_others = |seen: IpAddr, server: IpAddr| {
            seen == server || join.directory.is_pods_address(seen) || join.ends.nodes.of(seen).is_some()
        };
        for (index, server_flow) in join.server_flows.iter().enumerate() {
            // Addresses of a folded row are external: none of them stands for a client of the cluster.
            let Tuple { client, server, scope, .. } = server_flow.tuple;
            if !scope.is_loopback()
                && !client.is_unspecified()
                && may_stand_for_others(client, server)
                && server_flow.left.opened > 0
            {
                by_server.entry(server_flow.tuple.called()).or_default().push(index);
            }
        }
        Self { by_server }
    }

    /// Returns the server flows that the rest of a client flow may have reached.
    pub(super) fn server_flows_of(
        &self,
        join: &Join<'_>,
        client_flow: &ClientFlow<'_>,
        candidates: &Candidates<'_>,
        left: u64,
        by: RewrittenSource,
    ) -> Vec<usize> {
        let none_matched = left == client_flow.counters.opened;
        // What calls from a node's own address is seen with that by some backends, and with its bridge's by those beside it.
        let at_node = join.ends.nodes.of(client_flow.tuple.client);
        if left == 0
            || self.by_server.is_empty()
            || (by == RewrittenSource::Masquerade && !none_matched && at_node.is_none())
        {
            return Vec::new();
        }
        let own_pod = join.own_pod(client_flow.end);
        if by == RewrittenSource::Inside && own_pod.is_none_or(|pod| pod.ips.contains(&client_flow.tuple.client)) {
            return Vec::new();
        }
        let mut found: Vec<usize> = candidates
            .backends
            .keys()
            .filter_map(|(ip, port)| self.by_server.get(&candidates.at(*ip, *port)))
            .flatten()
            .copied()
            .filter(|index| join.is_backend(*index, candidates))
            .filter(|index| {
                let server_flow = &join.server_flows[*index];
                let seen = server_flow.tuple.client;
                let may_be_others = || seen == server_flow.tuple.server || !join.directory.is_pods_address(seen);
                let fits = match by {
                    RewrittenSource::Inside => own_pod.is_some_and(|pod| pod.ips.contains(&seen)),
                    RewrittenSource::Hairpin => {
                        let server = join.ends.end(server_flow.end).pod_uid();
                        own_pod.is_some_and(|pod| Some(pod.uid.as_str()) == server) && may_be_others()
                    }
                    RewrittenSource::Masquerade => {
                        let behind = join.ends.nodes.of(seen);
                        // Any node may replace the address of a Service's client. Otherwise the client's own does, but not
                        // between pods.
                        let Tuple { client, server, .. } = client_flow.tuple;
                        let are_pods = [client, server].into_iter().all(|ip| join.directory.is_pods_address(ip));
                        let is_possible = candidates.service.is_some() || behind == Some(client_flow.node) && !are_pods;
                        behind.is_some() && is_possible && (none_matched || behind == at_node) && may_be_others()
                    }
                };
                // The addresses differ from the client's, so only the time can exclude a flow.
                let in_time = client_flow.span.gap(&server_flow.span) <= FAR;
                fits && in_time && server_flow.tuple.client.is_ipv4() == client_flow.tuple.client.is_ipv4()
            })
            .collect();
        found.sort_unstable();
        join.in_time(client_flow, found)
    }
}

impl<'a> Join<'a> {
    /// Joins the rests of both sides if servers saw other addresses than their clients'. Matches flows through Services
    /// that lead to one workload, then those that lead to several.
    pub(super) fn join_translated(
        &mut self,
        to_one: &mut [Rest<'_, 'a, u64>],
        to_many: &mut [Rest<'_, 'a, EdgeCounters>],
    ) {
        let translated = RewrittenSources::new(self);
        if translated.by_server.is_empty() {
            return;
        }
        for by in RewrittenSource::ALL {
            let rest: Vec<(&ClientFlow<'a>, &Candidates<'a>, u64)> =
                (to_one.iter().map(|(client_flow, to, left)| (*client_flow, &**to, *left)))
                    .chain(to_many.iter().map(|(client_flow, to, left)| (*client_flow, &**to, left.opened)))
                    .collect();
            let found: Vec<Vec<usize>> = rest
                .iter()
                .map(|(client_flow, to, left)| translated.server_flows_of(self, client_flow, to, *left, by))
                .collect();
            let mut matched =
                self.match_rest(rest.iter().map(|(client_flow, _, left)| (*client_flow, *left)), &found).into_iter();
            for ((client_flow, candidates, left), found) in to_one.iter_mut().zip(&mut matched) {
                self.note_translated(client_flow, candidates, &found, left, by);
            }
            for ((client_flow, candidates, left), found) in to_many.iter_mut().zip(&mut matched) {
                let is_certain = by.is_clients_own() || candidates.is_one_server();
                for found in found {
                    self.divide_to(client_flow, candidates.service, &found, left, is_certain);
                }
            }
        }
    }
}
