//! A client dialled a Service that may lead to several workloads: the servers' counts divide its flow.

use super::{
    edges::Key,
    join::{Candidates, Join},
    matching::Found,
    observed::Source,
};
use crate::edge::EdgeCounters;

impl<'a> Join<'a> {
    /// The servers' counts say who got how much. Returns what they leave.
    pub(super) fn divide(&mut self, source: &Source<'a>, candidates: &Candidates<'a>, found: &[Found]) -> EdgeCounters {
        let mut left = source.counters;
        for found in found {
            // Where the counts leave a choice, how much is whose is a guess.
            self.divide_to(source, candidates, found, &mut left, !found.is_contested);
        }
        left
    }

    /// Gives a backend as much of what is left of a client's flow as was found to be its.
    pub(super) fn divide_to(
        &mut self,
        source: &Source<'a>,
        candidates: &Candidates<'a>,
        found: &Found,
        left: &mut EdgeCounters,
        certain: bool,
    ) {
        if found.opened == 0 {
            return;
        }
        let sink = &mut self.sinks[found.sink];
        let took = sink.take(found.opened, Some(source.end));
        let taken = took.counters;
        let share = if taken.opened == left.opened {
            // The two ends' bytes differ by what is on its way; the client's are the ones that count.
            EdgeCounters { failed: 0, ..*left }
        } else {
            EdgeCounters {
                opened: taken.opened,
                active: taken.active.min(left.active),
                failed: 0,
                bytes_sent: taken.bytes_sent.min(left.bytes_sent),
                bytes_received: taken.bytes_received.min(left.bytes_received),
                without_bytes: taken.without_bytes.max(left.without_bytes).min(taken.opened),
                inferred: left.inferred.min(taken.opened),
                retransmits: left.share(taken.opened).retransmits,
            }
        };
        *left = left.without(&share);
        let share = took.complete(&share);
        let (server_end, port, methods, measured) = (sink.end, sink.tuple.port, sink.methods, sink.measured);
        let key = Key {
            client: self.ends.peer_of(source.end),
            server: self.ends.peer_of(server_end),
            service: Some(candidates.service),
            port: Some(port),
            protocol: source.tuple.protocol,
        };
        self.sinks[found.sink].explain(source, key, taken.opened);
        let sum = self.sums.at(key);
        sum.counters.add(&share);
        sum.counters.add_retransmits_of(&taken);
        sum.add_methods(source.methods.union(methods));
        sum.add_measured_by_client_of_many(&source.measured);
        sum.add_measured_by_server(&measured);
        sum.live |= source.live;
        sum.both_seen = true;
        sum.server_certain |= certain;
        sum.add_client(source.end, share.opened, 0);
        sum.add_server(server_end, share.opened, 0);
    }

    /// Leaves at the Service what has no known backend: failed attempts, and connections that no server has counted.
    /// Servers' reports of the newest connections may still arrive; otherwise the Service is all that is known.
    pub(super) fn leave_at_service(
        &mut self,
        source: &Source<'a>,
        candidates: &Candidates<'a>,
        mut left: EdgeCounters,
    ) {
        if candidates.observed && left.opened > 0 {
            let waiting = self.wait_for_backends(source, candidates, left.opened);
            left = left.without(&left.share(waiting));
        }
        if left == EdgeCounters::default() {
            return;
        }
        let server = self.ends.service(candidates.service.service);
        let key = Key {
            client: self.ends.peer_of(source.end),
            server,
            service: Some(candidates.service),
            port: None,
            protocol: source.tuple.protocol,
        };
        self.add_from_client(source, key, &left);
    }
}
