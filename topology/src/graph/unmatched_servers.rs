//! Counts of servers that no client flow explains: the client's report is still due, or only its address is known.

use std::collections::{HashMap, HashSet};

use super::{
    edges::edge_key,
    endpoints::EndpointId,
    join::Join,
    key::Key,
    observed::{Explanation, ServerFlow},
    shares::share_out,
};
use crate::{count, directory::Owner, edge::EdgeCounters, flow::Protocol};

/// Connections that a server has counted beyond a client's flow that explains others of them.
struct Surplus<'a, 'f> {
    server_flow: &'f ServerFlow<'a>,
    by: Explanation<'a>,
    /// Client by the address that the server saw.
    client: EndpointId,
    /// Key of the edge without a Service, which stands for all edges between these peers.
    direct: Key<'a>,
    part: EdgeCounters,
    live: bool,
}

fn direct_of<'a>(key: &Key<'a>) -> Key<'a> {
    Key { service: None, ..*key }
}

impl<'a> Join<'a> {
    /// Adds what no client flow explains, from the servers' side only.
    pub(super) fn join_unmatched_servers(&mut self) {
        let mut server_flows = std::mem::take(&mut self.server_flows);
        let mut surplus = Vec::new();
        for server_flow in &mut server_flows {
            self.take_forgotten(server_flow);
            if !server_flow.explained {
                if self.is_client_observed(server_flow) && self.waits(server_flow.first_seen) {
                    self.unsettled = count::add(self.unsettled, server_flow.left.opened);
                    continue;
                }
            } else if server_flow.left.opened == 0 || !self.has_rest(server_flow) {
                continue;
            }
            self.divide_by_callers(server_flow);
            self.add_from_server(server_flow, &mut surplus);
        }
        let places = self.published_places(&surplus);
        for part in &surplus {
            self.place(part, places.get(&part.direct).map(Vec::as_slice).unwrap_or_default());
        }
    }

    /// Returns the published edges that such counts may belong to, by their direct edge, with the counters that they should
    /// have.
    fn published_places(&self, surplus: &[Surplus<'a, '_>]) -> HashMap<Key<'a>, Vec<(Key<'a>, EdgeCounters)>> {
        let mut places: HashMap<Key<'a>, Vec<(Key<'a>, EdgeCounters)>> = HashMap::new();
        if self.published.is_empty() {
            return places;
        }
        let direct: HashSet<Key<'a>> = surplus.iter().map(|part| part.direct).collect();
        let absent = |key: &&Key<'a>| self.is_fixed && !self.sums.by_key.contains_key(*key);
        let all = self.sums.by_key.keys().filter(|key| direct.contains(&direct_of(key)));
        let mut found: Vec<_> = all
            .chain(direct.iter().filter(absent))
            .map(|key| (edge_key(key, &self.ends), *key))
            .filter_map(|(edge, key)| Some((*self.published.get(&edge)?, edge, key)))
            .collect();
        found.sort_unstable_by(|(_, one, _), (_, other, _)| one.cmp(other));
        for (counters, _, key) in found {
            places.entry(direct_of(&key)).or_default().push((key, counters));
        }
        places
    }

    /// Returns whether there is more than clients' flows explain, apart from what has to wait, which is taken.
    fn has_rest(&mut self, server_flow: &mut ServerFlow<'a>) -> bool {
        let by = server_flow.explanation().copied();
        if by.is_some_and(|by| by.sampled && !by.translated) {
            // The client's agent scans at intervals, and has missed it.
            return true;
        }
        let shared_address =
            server_flow.tuple.scope.is_none() && !self.directory.is_pods_address(server_flow.tuple.client);
        // An address that others use too (a node's) may stand for them; a small rest is more likely to come.
        let is_others = shared_address
            && by.is_none_or(|by| !by.sampled)
            && server_flow.left.opened > server_flow.counters.opened / 8;
        if is_others {
            return true;
        }
        if server_flow.tuple.protocol == Protocol::Udp {
            // Both ends delimit UDP conversations differently; if the client was observed, its count applies.
            return false;
        }
        // What is missing are the newest ones, of which the client's report may be on its way.
        let waiting = self.wait(server_flow.left.opened, &server_flow.fresh);
        server_flow.leave(waiting, self.options.settled());
        server_flow.left.opened > 0
    }

    /// The edge of a client's flow that explains a part of what the server has counted, if that client is this owner:
    /// the rest of the owner's is there, too.
    fn edge_of(&self, server_flow: &ServerFlow<'a>, owner: &Owner<'a>) -> Option<Explanation<'a>> {
        let is_owners = |by: &&Explanation<'a>| match owner {
            Owner::Pod(pod) => self.ends.end(by.client).pod_uid == Some(pod.uid.as_str()),
            Owner::NoPod => by.sampled && !by.translated,
            Owner::Contested | Owner::Unknown => false,
        };
        let mut owners = server_flow.explanations.iter().rev().filter(is_owners);
        owners.clone().find(|by| by.opened > 0).or_else(|| owners.next()).copied()
    }

    /// The client's agent has not counted what the server has counted beyond it.
    fn add_surplus(&mut self, server_flow: &ServerFlow<'a>, by: &Explanation<'a>, part: &EdgeCounters, live: bool) {
        let sum = self.sums.at(by.key);
        sum.add_from_server(by.client, server_flow.end, part);
        sum.live |= live;
    }

    /// Adds a surplus to the edge of the client's flow, except what other edges lack that were published with more.
    fn place(&mut self, surplus: &Surplus<'a, '_>, published: &[(Key<'a>, EdgeCounters)]) {
        let &Surplus { server_flow, by, client, mut part, live, .. } = surplus;
        let own = published.iter().find(|(key, _)| *key == by.key);
        let own = own.map_or(0, |(key, published)| self.lack(key, published).opened);
        for (key, published) in published.iter().filter(|(key, _)| *key != by.key) {
            let lack = self.lack(key, published);
            let missing = lack.opened.min(part.opened.saturating_sub(own));
            if missing == 0 {
                continue;
            }
            let mut returned = part.share(missing);
            if missing == lack.opened {
                // Its bytes were published, too.
                returned.bytes_sent = lack.bytes_sent.min(part.bytes_sent);
                returned.bytes_received = lack.bytes_received.min(part.bytes_received);
            }
            part = part.without(&returned);
            if key.service.is_none() {
                self.add_part_from_server(server_flow, client, &returned, live);
            } else {
                self.add_surplus(server_flow, &Explanation { key: *key, ..by }, &returned, live);
            }
        }
        if part != EdgeCounters::default() {
            self.add_surplus(server_flow, &by, &part, live);
        }
    }

    /// Returns what an edge has less than it should have.
    fn lack(&self, key: &Key<'a>, published: &EdgeCounters) -> EdgeCounters {
        published.without(&self.sums.by_key.get(key).map(|sum| sum.counters).unwrap_or_default())
    }

    /// Removes connections that the client's agent evicted; an edge already has them.
    fn take_forgotten(&mut self, server_flow: &mut ServerFlow<'a>) {
        if self.forgotten.is_empty() || server_flow.left.opened == 0 {
            return;
        }
        let client_end = self.client_of(server_flow);
        let (client, server) = (self.ends.peer_of(client_end), self.ends.peer_of(server_flow.end));
        let (client, server) = (self.ends.peer(client), self.ends.peer(server));
        let at = (server_flow.tuple.port, server_flow.tuple.protocol);
        let pod = self.ends.end(server_flow.end).pod;
        let taken = self.forgotten.take((client, server, at), pod, server_flow.left.opened);
        if taken.opened > 0 {
            server_flow.take_known(&taken, client_end);
        }
    }

    /// Returns a server's client, by its address.
    fn client_of(&mut self, server_flow: &ServerFlow<'a>) -> EndpointId {
        if server_flow.tuple.scope.is_some() {
            self.own_loopback(server_flow.node, server_flow.end)
        } else {
            let owner =
                self.directory.owner_between(server_flow.tuple.client, server_flow.span.from, server_flow.span.until);
            self.ends.client_of(server_flow.tuple.client, &owner)
        }
    }

    fn is_client_observed(&self, server_flow: &ServerFlow<'a>) -> bool {
        if server_flow.tuple.scope.is_some() {
            return true;
        }
        let pods =
            self.directory.possible_owners(server_flow.tuple.client, server_flow.span.from, server_flow.span.until);
        let node = pods.last().map(|pod| pod.node.as_str()).or_else(|| self.ends.nodes.of(server_flow.tuple.client));
        node.is_some_and(|node| self.ledger.observes(node, self.options.now))
    }

    fn add_from_server<'f>(&mut self, server_flow: &'f ServerFlow<'a>, surplus: &mut Vec<Surplus<'a, 'f>>) {
        if server_flow.tuple.scope.is_some() {
            if let Some(by) = server_flow.explanation().copied() {
                return self.add_surplus(server_flow, &by, &server_flow.left, server_flow.live);
            }
            let client = self.own_loopback(server_flow.node, server_flow.end);
            return self.add_part_from_server(server_flow, client, &server_flow.left, server_flow.live);
        }
        let ip = server_flow.tuple.client;
        let groups = self.groups_of_rest(server_flow);
        let counted: Vec<_> = groups.iter().map(|group| group.counted).collect();
        for (group, share) in groups.iter().zip(share_out(&server_flow.left, &counted)) {
            if share == EdgeCounters::default() {
                continue;
            }
            let live = self.is_live(server_flow.live, group.span, &share);
            if let Some(by) = self.edge_of(server_flow, &group.owner) {
                let client = self.ends.client_of(ip, &group.owner);
                let direct = self.direct_key(server_flow, client);
                surplus.push(Surplus { server_flow, by, client, direct, part: share, live });
                continue;
            }
            if group.owner.may_change() && self.waits(group.span.until) {
                self.unsettled = count::add(self.unsettled, share.opened);
                continue;
            }
            let client = self.ends.client_of(ip, &group.owner);
            self.add_part_from_server(server_flow, client, &share, live);
        }
    }

    /// Returns the key of the edge without a Service.
    fn direct_key(&self, server_flow: &ServerFlow<'a>, client_end: EndpointId) -> Key<'a> {
        Key {
            client: self.ends.peer_of(client_end),
            server: self.ends.peer_of(server_flow.end),
            service: None,
            port: Some(server_flow.tuple.port),
            protocol: server_flow.tuple.protocol,
        }
    }

    pub(super) fn add_part_from_server(
        &mut self,
        server_flow: &ServerFlow<'a>,
        client_end: EndpointId,
        part: &EdgeCounters,
        live: bool,
    ) {
        let sum = self.sums.at(self.direct_key(server_flow, client_end));
        sum.add_from_server(client_end, server_flow.end, part);
        sum.live |= live;
        sum.server_seen = true;
        sum.client_certain |= server_flow.tuple.scope.is_some();
        sum.server_certain = true;
        sum.add_methods(server_flow.methods);
        sum.add_measured_by_server(&server_flow.measured);
    }
}
