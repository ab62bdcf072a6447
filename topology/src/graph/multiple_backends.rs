//! Joins calls of a Service that may lead to several workloads: the servers' counts divide the client's flow.

use super::{
    candidates::Candidates,
    join::Join,
    key::{Key, ServiceKey},
    matching::Found,
    observed::ClientFlow,
};
use crate::edge::EdgeCounters;

impl<'a> Join<'a> {
    /// The servers' counts say who got how much. Returns what they leave.
    pub(super) fn divide(
        &mut self,
        client_flow: &ClientFlow<'a>,
        candidates: &Candidates<'a>,
        found: &[Found],
    ) -> EdgeCounters {
        let mut left = client_flow.counters;
        for found in found {
            // Where the counts leave a choice, how much is whose is a guess.
            self.divide_to(client_flow, candidates.service, found, &mut left, !found.is_contested);
        }
        left
    }

    /// Gives a backend as much of what is left of a client's flow as was found to be its.
    pub(super) fn divide_to(
        &mut self,
        client_flow: &ClientFlow<'a>,
        service: Option<ServiceKey>,
        found: &Found,
        left: &mut EdgeCounters,
        certain: bool,
    ) {
        if found.opened == 0 {
            return;
        }
        let server_flow = &mut self.server_flows[found.server_flow];
        let took = server_flow.take(found.opened, Some(client_flow.end));
        let taken = took.counters;
        let share = if taken.opened == left.opened {
            // The two ends' bytes differ by what is on its way; the client's are the ones that count.
            EdgeCounters { failed: 0, pending: 0, ..*left }
        } else {
            EdgeCounters {
                opened: taken.opened,
                active: taken.active.min(left.active),
                failed: 0,
                pending: 0,
                bytes_sent: taken.bytes_sent.min(left.bytes_sent),
                bytes_received: taken.bytes_received.min(left.bytes_received),
                without_bytes: taken.without_bytes.max(left.without_bytes).min(taken.opened),
                inferred: left.inferred.min(taken.opened),
                retransmits: left.share(taken.opened).retransmits,
            }
        };
        *left = left.without(&share);
        let share = took.complete(&share);
        let (server_end, port, via, methods, measured) =
            (server_flow.end, server_flow.port, server_flow.via, server_flow.methods, server_flow.measured);
        let key = Key {
            client: self.ends.peer_of(client_flow.end),
            server: self.ends.peer_of(server_end),
            service,
            port: Some(port),
            protocol: client_flow.tuple.protocol,
        };
        self.server_flows[found.server_flow].explain(client_flow, key, taken.opened);
        let sum = self.sums.at(key);
        sum.counters.add(&share);
        sum.counters.add_retransmits_of(&taken);
        sum.add_methods(client_flow.methods.union(methods));
        sum.add_measured_by_client_of_many(&client_flow.measured);
        sum.add_measured_by_server(&measured);
        sum.live |= client_flow.live;
        sum.add_via(client_flow.via, via);
        sum.both_seen = true;
        sum.server_certain |= certain;
        sum.add_client(client_flow.end, share.opened, 0);
        sum.add_server(server_end, share.opened, 0);
    }

    /// Leaves at the Service, or at the address that was called, what has no known backend: failed and pending attempts, and
    /// connections that no server has counted.
    /// Servers' reports of the newest connections may still arrive; otherwise the Service is all that is known.
    pub(super) fn leave_at_service(
        &mut self,
        client_flow: &ClientFlow<'a>,
        candidates: &Candidates<'a>,
        mut left: EdgeCounters,
    ) {
        if candidates.observed && left.opened > 0 && !candidates.is_one_server() {
            let waiting = self.wait_for_backends(client_flow, candidates, left.opened);
            left = left.without(&left.share(waiting));
        }
        if left == EdgeCounters::default() {
            return;
        }
        match self.key_of_service(client_flow, candidates) {
            Some(key) => self.add_from_client(client_flow, key, &left),
            None => self.join_by_address(client_flow, left),
        }
    }
}
