//! What servers have counted and no client's flow explains: it is to come, or the client is known by its address only.

use super::{
    edges::Key,
    ends::EndId,
    handed_on::share_out,
    join::Join,
    observed::{Explanation, Sink},
};
use crate::edge::EdgeCounters;

impl<'a> Join<'a> {
    /// What no client's flow explains is known by its servers only.
    pub(super) fn join_servers_alone(&mut self) {
        let mut sinks = std::mem::take(&mut self.sinks);
        for sink in &mut sinks {
            self.take_forgotten(sink);
            let is_pods_address = self.directory.is_pods_address(sink.tuple.client);
            let sampled = sink.explanation.filter(|by| by.sampled);
            if let Some(by) = sampled.filter(|by| !by.translated) {
                self.add_surplus(sink, &by);
                continue;
            }
            if sink.explained && sampled.is_none() {
                let shared_address = !is_pods_address && sink.tuple.scope.is_none();
                // A client in a network of its own is seen whole, and what its server counts beyond is to come. An
                // address that others use too (a node's) may stand for them; a small rest is more likely to come, too.
                if !shared_address || sink.left.opened <= sink.counters.opened / 8 {
                    self.unsettled += sink.left.opened;
                    continue;
                }
            } else if self.is_to_come(sink) {
                self.unsettled += sink.left.opened;
                continue;
            }
            self.divide_by_callers(sink);
            self.add_from_server(sink);
        }
    }

    /// Whether a client's report of the rest may be on its way.
    fn is_to_come(&mut self, sink: &Sink<'a>) -> bool {
        if sink.explained {
            let latest = sink.parts.last().map_or(sink.first_seen, |part| part.until);
            return sink.left.opened == 0 || self.waits(latest);
        }
        self.is_client_observed(sink) && self.waits(sink.first_seen)
    }

    /// The client's agent looks now and then, and has missed what the server has counted beyond it.
    fn add_surplus(&mut self, sink: &Sink<'a>, by: &Explanation<'a>) {
        let sum = self.sums.at(by.key);
        sum.counters.add(&sink.left);
        sum.from_servers.add(&sink.left);
        sum.live |= sink.live;
        sum.add_client(by.client, sink.left.opened, sink.left.failed);
        sum.add_server(sink.end, sink.left.opened, sink.left.failed);
    }

    /// What the client's agent has forgotten is on an edge already.
    fn take_forgotten(&mut self, sink: &mut Sink<'a>) {
        if self.forgotten.is_empty() || sink.left.opened == 0 {
            return;
        }
        let client = self.client_of(sink);
        let (client, server) = (self.ends.peer_of(client), self.ends.peer_of(sink.end));
        let (client, server) = (self.ends.peer(client), self.ends.peer(server));
        let at = (sink.tuple.port, sink.tuple.protocol);
        let taken = self.forgotten.take(client, server, at, sink.left.opened);
        if taken > 0 {
            sink.take(taken);
        }
    }

    /// Who a server's client is, by its address.
    fn client_of(&mut self, sink: &Sink<'a>) -> EndId {
        if sink.tuple.scope.is_some() {
            self.own_loopback(sink.node, sink.end)
        } else {
            let owner = self.directory.owner_between(sink.tuple.client, sink.span.from, sink.span.until);
            self.ends.client_of(sink.tuple.client, &owner)
        }
    }

    fn is_client_observed(&self, sink: &Sink<'a>) -> bool {
        if sink.tuple.scope.is_some() {
            return true;
        }
        let pods = self.directory.possible_owners(sink.tuple.client, sink.span.from, sink.span.until);
        let node = pods.last().map(|pod| pod.node.as_str()).or_else(|| self.ends.nodes.of(sink.tuple.client));
        node.is_some_and(|node| self.ledger.observes(node, self.options.now))
    }

    fn add_from_server(&mut self, sink: &Sink<'a>) {
        if sink.tuple.scope.is_some() {
            let client = self.own_loopback(sink.node, sink.end);
            return self.add_part_from_server(sink, client, &sink.left, sink.live);
        }
        let ip = sink.tuple.client;
        let groups = self.groups_of_rest(sink);
        let counted: Vec<_> = groups.iter().map(|group| group.counted).collect();
        for (group, share) in groups.iter().zip(share_out(&sink.left, &counted)) {
            if share == EdgeCounters::default() {
                continue;
            }
            if group.owner.may_change() && self.waits(group.span.until) {
                self.unsettled += share.opened;
                continue;
            }
            let client = self.ends.client_of(ip, &group.owner);
            let live = self.is_live(sink.live, group.span, &share);
            self.add_part_from_server(sink, client, &share, live);
        }
    }

    pub(super) fn add_part_from_server(&mut self, sink: &Sink<'a>, client_end: EndId, part: &EdgeCounters, live: bool) {
        let key = Key {
            client: self.ends.peer_of(client_end),
            server: self.ends.peer_of(sink.end),
            service: None,
            port: sink.tuple.port,
            protocol: sink.tuple.protocol,
        };
        let sum = self.sums.at(key);
        sum.counters.add(part);
        sum.from_servers.add(part);
        sum.live |= live;
        sum.server_seen = true;
        sum.client_certain |= sink.tuple.scope.is_some();
        sum.server_certain = true;
        sum.add_methods(sink.methods);
        sum.add_measured_by_server(&sink.measured);
        sum.add_client(client_end, part.opened, part.failed);
        sum.add_server(sink.end, part.opened, part.failed);
    }
}
