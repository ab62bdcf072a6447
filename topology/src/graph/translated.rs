//! Servers' flows in which the client's address has been replaced by another one on the way.

use std::{collections::HashMap, net::IpAddr, rc::Rc, time::Duration};

use super::{
    join::{Candidates, Join},
    observed::{Sink, Source},
};
use crate::{directory::Directory, edge::EdgeCounters, flow::Protocol};

/// A client's flow through a Service, and what of it no server's flow matches.
type Rest<'s, 'a, T> = (&'s Source<'a>, Rc<Candidates<'a>>, T);

/// Maximum time between the reports of two ends that do not share an address.
const FAR: Duration = Duration::from_mins(1);

/// Behind whose address a client can be hidden from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disguise {
    /// It dialled a Service and reached its own pod: the connection leaves the pod and comes back with another address.
    Hairpin,
    /// A node's or its bridge's, if no backend has seen the client's own address, or if that is the node's, too.
    Node,
}

/// Server flows whose client address may stand for another client: a node's or its bridge's.
pub(super) struct Translated {
    by_server: HashMap<(IpAddr, u16, Protocol), Vec<usize>>,
}

impl Translated {
    pub(super) fn new(sinks: &[Sink<'_>], directory: &Directory) -> Self {
        let mut by_server: HashMap<(IpAddr, u16, Protocol), Vec<usize>> = HashMap::new();
        for (index, sink) in sinks.iter().enumerate() {
            let own = sink.tuple.client == sink.tuple.server;
            if sink.tuple.scope.is_none()
                && sink.left.opened > 0
                && (own || !directory.is_pods_address(sink.tuple.client))
            {
                by_server.entry((sink.tuple.server, sink.tuple.port, sink.tuple.protocol)).or_default().push(index);
            }
        }
        Self { by_server }
    }

    /// Returns the server flows that the rest of a client flow may have reached.
    pub(super) fn sinks_of(
        &self,
        join: &Join<'_>,
        source: &Source<'_>,
        candidates: &Candidates<'_>,
        left: u64,
        by: Disguise,
    ) -> Vec<usize> {
        let none_matched = left == source.counters.opened;
        // What calls from a node's own address is seen with that by some backends, and with its bridge's by those beside it.
        let at_node = join.ends.nodes.of(source.tuple.client);
        if left == 0 || self.by_server.is_empty() || (by == Disguise::Node && !none_matched && at_node.is_none()) {
            return Vec::new();
        }
        let own_pod = join.ends.end(source.end).pod_uid;
        let mut found: Vec<usize> = candidates
            .backends
            .keys()
            .filter_map(|(ip, port)| self.by_server.get(&(*ip, *port, source.tuple.protocol)))
            .flatten()
            .copied()
            .filter(|index| join.is_backend(*index, candidates))
            .filter(|index| {
                let sink = &join.sinks[*index];
                let fits = match by {
                    Disguise::Hairpin => own_pod.is_some() && join.ends.end(sink.end).pod_uid == own_pod,
                    Disguise::Node => {
                        let behind = join.ends.nodes.of(sink.tuple.client);
                        behind.is_some() && (none_matched || behind == at_node)
                    }
                };
                // With other addresses than the client's, only the time tells.
                let in_time = source.span.gap(&sink.span) <= FAR;
                fits && in_time && sink.tuple.client.is_ipv4() == source.tuple.client.is_ipv4()
            })
            .collect();
        found.sort_unstable();
        join.in_time(source, found)
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
        let translated = Translated::new(&self.sinks, self.directory);
        if translated.by_server.is_empty() {
            return;
        }
        for by in [Disguise::Hairpin, Disguise::Node] {
            let rest: Vec<(&Source<'a>, &Candidates<'a>, u64)> =
                (to_one.iter().map(|(source, to, left)| (*source, &**to, *left)))
                    .chain(to_many.iter().map(|(source, to, left)| (*source, &**to, left.opened)))
                    .collect();
            let found: Vec<Vec<usize>> =
                rest.iter().map(|(source, to, left)| translated.sinks_of(self, source, to, *left, by)).collect();
            let mut matched =
                self.match_rest(rest.iter().map(|(source, _, left)| (*source, *left)), &found).into_iter();
            for ((source, candidates, left), found) in to_one.iter_mut().zip(&mut matched) {
                self.note_translated(source, candidates, &found, left, by);
            }
            for ((source, candidates, left), found) in to_many.iter_mut().zip(&mut matched) {
                for found in found {
                    self.divide_to(source, candidates, &found, left, by == Disguise::Hairpin);
                }
            }
        }
    }
}
