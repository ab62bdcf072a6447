//! Counts of servers that no client flow explains: the client's report is still due, or only its address is known.

use super::{
    edges::Key,
    ends::EndId,
    handed_on::share_out,
    join::Join,
    observed::{Explanation, Sink},
};
use crate::{count, directory::Owner, edge::EdgeCounters, flow::Protocol};

impl<'a> Join<'a> {
    /// Adds what no client flow explains, from the servers' side only.
    pub(super) fn join_servers_alone(&mut self) {
        let mut sinks = std::mem::take(&mut self.sinks);
        for sink in &mut sinks {
            self.take_forgotten(sink);
            if !sink.explained {
                if self.is_client_observed(sink) && self.waits(sink.first_seen) {
                    self.unsettled = count::add(self.unsettled, sink.left.opened);
                    continue;
                }
            } else if sink.left.opened == 0 || !self.has_rest(sink) {
                continue;
            }
            self.divide_by_callers(sink);
            self.add_from_server(sink);
        }
    }

    /// Returns whether there is more than clients' flows explain, apart from what has to wait, which is taken.
    fn has_rest(&mut self, sink: &mut Sink<'a>) -> bool {
        let by = sink.explanation().copied();
        if by.is_some_and(|by| by.sampled && !by.translated) {
            // The client's agent looks now and then, and has missed it.
            return true;
        }
        let shared_address = sink.tuple.scope.is_none() && !self.directory.is_pods_address(sink.tuple.client);
        // An address that others use too (a node's) may stand for them; a small rest is more likely to come.
        let is_others =
            shared_address && by.is_none_or(|by| !by.sampled) && sink.left.opened > sink.counters.opened / 8;
        if is_others {
            return true;
        }
        if sink.tuple.protocol == Protocol::Udp {
            // Both ends tell conversations apart in their own ways; where the client is seen, its count is the one.
            return false;
        }
        // What is missing are the newest ones, of which the client's report may be on its way.
        let waiting = self.wait(sink.left.opened, &sink.fresh);
        sink.leave(waiting, self.options.settled());
        sink.left.opened > 0
    }

    /// The edge of a client's flow that explains a part of what the server has counted, if that client is this owner:
    /// the rest of the owner's is there, too.
    fn edge_of(&self, sink: &Sink<'a>, owner: &Owner<'a>) -> Option<Explanation<'a>> {
        let is_owners = |by: &&Explanation<'a>| match owner {
            Owner::Pod(pod) => self.ends.end(by.client).pod_uid == Some(pod.uid.as_str()),
            Owner::NoPod => by.sampled && !by.translated,
            Owner::Contested | Owner::Unknown => false,
        };
        let mut owners = sink.explanations.iter().rev().filter(is_owners);
        owners.clone().find(|by| by.opened > 0).or_else(|| owners.next()).copied()
    }

    /// The client's agent has not counted what the server has counted beyond it.
    fn add_surplus(&mut self, sink: &Sink<'a>, by: &Explanation<'a>, part: &EdgeCounters, live: bool) {
        let sum = self.sums.at(by.key);
        sum.counters.add(part);
        sum.from_servers.add(part);
        sum.live |= live;
        sum.add_client(by.client, part.opened, part.failed);
        sum.add_server(sink.end, part.opened, part.failed);
    }

    /// Removes connections that the client's agent evicted; an edge already has them.
    fn take_forgotten(&mut self, sink: &mut Sink<'a>) {
        if self.forgotten.is_empty() || sink.left.opened == 0 {
            return;
        }
        let client_end = self.client_of(sink);
        let (client, server) = (self.ends.peer_of(client_end), self.ends.peer_of(sink.end));
        let (client, server) = (self.ends.peer(client), self.ends.peer(server));
        let at = (sink.tuple.port, sink.tuple.protocol);
        let taken = self.forgotten.take(client, server, at, sink.left.opened);
        if taken > 0 {
            sink.take(taken, Some(client_end));
        }
    }

    /// Returns a server's client, by its address.
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
            if let Some(by) = sink.explanation().copied() {
                return self.add_surplus(sink, &by, &sink.left, sink.live);
            }
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
            let live = self.is_live(sink.live, group.span, &share);
            if let Some(by) = self.edge_of(sink, &group.owner) {
                self.add_surplus(sink, &by, &share, live);
                continue;
            }
            if group.owner.may_change() && self.waits(group.span.until) {
                self.unsettled = count::add(self.unsettled, share.opened);
                continue;
            }
            let client = self.ends.client_of(ip, &group.owner);
            self.add_part_from_server(sink, client, &share, live);
        }
    }

    pub(super) fn add_part_from_server(&mut self, sink: &Sink<'a>, client_end: EndId, part: &EdgeCounters, live: bool) {
        let key = Key {
            client: self.ends.peer_of(client_end),
            server: self.ends.peer_of(sink.end),
            service: None,
            port: Some(sink.tuple.port),
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
