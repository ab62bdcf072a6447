//! Counts of servers that no client flow explains: the client's report is still due, or only its address is known.

use super::{
    edges::edge_key,
    join::Join,
    key::Key,
    names::EndpointId,
    observed::{Explanation, ServerFlow},
    placement::Surplus,
    shares::share_out,
};
use crate::{count, directory::Owner, edge::EdgeCounters, flow::Protocol};

impl<'a> Join<'a> {
    /// Adds what no client flow explains, from the servers' side only.
    pub(super) fn join_unmatched_servers(&mut self) {
        let mut server_flows = std::mem::take(&mut self.server_flows);
        let mut surplus = Vec::new();
        self.note_forgotten(&server_flows);
        if !self.forgotten.is_empty() {
            // Which pods were reached is not known for certain: clients' flows may have left others' connections.
            for to_any in [false, true] {
                for server_flow in &mut server_flows {
                    self.take_forgotten(server_flow, to_any);
                }
            }
        }
        for server_flow in &mut server_flows {
            let known = self.take_placed(server_flow);
            if !server_flow.explained {
                if self.is_client_observed(server_flow) && self.waits(server_flow.first_seen) {
                    let waiting = server_flow.left.opened - known;
                    self.unsettled = count::add(self.unsettled, waiting);
                    if known == 0 {
                        continue;
                    }
                    server_flow.leave(waiting, self.options.settled());
                    // By an edge that was shown.
                    server_flow.explained = true;
                }
            } else if server_flow.left.opened == 0 || !self.has_rest(server_flow, known) {
                continue;
            }
            if server_flow.leave_fresh_bytes() {
                self.waits(server_flow.changed);
            }
            self.divide_by_callers(server_flow);
            self.add_from_server(server_flow, &mut surplus);
        }
        self.place_all(surplus);
    }

    /// Takes connections that were shown on edges although only servers had counted them, as far as this one has, and
    /// returns their number: they need not wait.
    fn take_placed(&mut self, server_flow: &ServerFlow<'a>) -> u64 {
        if self.placed.is_empty() || server_flow.left.opened == 0 {
            return 0;
        }
        let client = self.client_of(server_flow);
        let direct = edge_key(&self.direct_key(server_flow, client), &self.ends);
        self.placed.take(&direct, server_flow.left.opened)
    }

    /// Returns whether there is more than clients' flows explain, apart from what has to wait, which is taken. `known`
    /// connections were shown before and do not wait.
    fn has_rest(&mut self, server_flow: &mut ServerFlow<'a>, known: u64) -> bool {
        let by = server_flow.explanation().copied();
        if by.is_some_and(|by| by.sampled && !by.translated) {
            // The client's agent scans at intervals, and has missed it.
            return true;
        }
        let shared_address =
            !server_flow.tuple.scope.is_loopback() && !self.directory.is_pods_address(server_flow.tuple.client);
        // An address that others use too (a node's) may stand for them; a small rest is more likely to come.
        let is_others = shared_address
            && by.is_none_or(|by| !by.sampled)
            && server_flow.left.opened > server_flow.counters.opened / 8;
        if server_flow.tuple.protocol == Protocol::Udp && !is_others {
            // Both ends delimit UDP conversations differently; if the client was observed, its count applies.
            return false;
        }
        if self.node_of_client(server_flow).is_some() {
            // Which of them wait depends on the reports of the node's agent.
            return true;
        }
        // What is missing are the newest ones, of which the client's report may be on its way.
        let waiting = self.wait(server_flow.left.opened - known, &server_flow.fresh);
        server_flow.leave(waiting, self.options.settled());
        server_flow.left.opened > 0
    }

    /// The edge of a client's flow that explains a part of what the server has counted, if that client is this owner:
    /// the rest of the owner's is there, too.
    pub(super) fn edge_of(&self, server_flow: &ServerFlow<'a>, owner: &Owner<'a>) -> Option<Explanation> {
        let is_owners = |by: &&Explanation| match owner {
            Owner::Pod(pod) => self.ends.end(by.client).pod_uid() == Some(pod.uid.as_str()),
            Owner::NoPod => by.sampled && !by.translated,
            Owner::Contested | Owner::Unknown => false,
        };
        let mut owners = server_flow.explanations.iter().rev().filter(is_owners);
        owners.clone().find(|by| by.opened > 0).or_else(|| owners.next()).copied()
    }

    /// Adds connections to an edge of which the client's agent has counted others.
    pub(super) fn add_surplus(
        &mut self,
        server_flow: &ServerFlow<'a>,
        by: &Explanation,
        part: &EdgeCounters,
        live: bool,
    ) {
        let sum = self.sums.at(by.key);
        sum.add_from_server(by.client, server_flow.end, part);
        sum.live |= live;
        sum.add_via(None, server_flow.via);
    }

    /// Records what servers' agents no longer report.
    fn note_forgotten(&mut self, server_flows: &[ServerFlow<'a>]) {
        for server_flow in server_flows.iter().filter(|server_flow| server_flow.forgotten > 0) {
            let client = self.client_of(server_flow);
            let (direct, pod) = (self.direct_key(server_flow, client), self.ends.end(server_flow.end).pod.clone());
            let sum = self.forgotten_by_servers.entry((direct, pod)).or_default();
            *sum = count::add(*sum, server_flow.forgotten);
        }
    }

    /// Removes connections that the client's agent evicted; an edge already has them.
    fn take_forgotten(&mut self, server_flow: &mut ServerFlow<'a>, to_any: bool) {
        if server_flow.left.opened == 0 {
            return;
        }
        let client_end = self.client_of(server_flow);
        let (client, server) = (self.ends.peer_of(client_end), self.ends.peer_of(server_flow.end));
        let (client, server) = (self.ends.peer(client), self.ends.peer(server));
        let pod = &self.ends.end(server_flow.end).pod;
        let protocol = server_flow.tuple.protocol;
        // Behind a proxy, an edge has the port that the client called.
        let behind = server_flow.ports_behind.clone();
        for port in std::iter::once(server_flow.port).chain(behind.iter().flat_map(|ports| ports.iter().copied())) {
            let left = server_flow.left.opened;
            let (taken, is_exact) = self.forgotten.take((client, server, (port, protocol)), pod, to_any, left);
            if taken.opened > 0 && is_exact {
                server_flow.take_known(&taken, client_end);
            } else if taken.opened > 0 {
                server_flow.take(taken.opened, Some(client_end));
            }
        }
    }

    /// Returns a server's client, by its address.
    fn client_of(&mut self, server_flow: &ServerFlow<'a>) -> EndpointId {
        if server_flow.tuple.scope.is_loopback() {
            self.own_loopback(server_flow.node, server_flow.end)
        } else {
            let owner =
                self.directory.owner_between(server_flow.tuple.client, server_flow.span.from, server_flow.span.until);
            self.ends.client_of(server_flow.tuple.client, &owner, server_flow.tuple.scope)
        }
    }

    /// Returns whether an agent observes a server's client.
    pub(super) fn is_client_observed(&self, server_flow: &ServerFlow<'a>) -> bool {
        if server_flow.tuple.scope.is_loopback() {
            return true;
        }
        let pods =
            self.directory.possible_owners(server_flow.tuple.client, server_flow.span.from, server_flow.span.until);
        let node = pods.last().map(|pod| pod.node.as_str()).or_else(|| self.ends.nodes.of(server_flow.tuple.client));
        node.is_some_and(|node| self.ledger.observes(node, self.options.now))
    }

    fn add_from_server<'f>(&mut self, server_flow: &'f ServerFlow<'a>, surplus: &mut Vec<Surplus<'a, 'f>>) {
        if server_flow.tuple.scope.is_loopback() {
            if let Some(by) = server_flow.explanation().copied() {
                return self.add_surplus(server_flow, &by, &server_flow.left, server_flow.live);
            }
            let client = self.own_loopback(server_flow.node, server_flow.end);
            return self.add_part_from_server(server_flow, client, &server_flow.left, server_flow.live);
        }
        if let Some(node) = self.node_of_client(server_flow) {
            return self.add_from_node(server_flow, node, surplus);
        }
        let ip = server_flow.tuple.client;
        let groups = self.groups_of_rest(server_flow);
        let counted: Vec<_> = groups.iter().map(|group| group.counted).collect();
        for (group, share) in groups.iter().zip(share_out(&server_flow.left, &counted)) {
            if share == EdgeCounters::default() {
                continue;
            }
            let live = self.is_live(server_flow.live, group.span, &share);
            let by = self.edge_of(server_flow, &group.owner);
            if by.is_none() && group.owner.may_change() && self.waits(group.span.until) {
                self.unsettled = count::add(self.unsettled, share.opened);
                continue;
            }
            let client = self.ends.client_of(ip, &group.owner, server_flow.tuple.scope);
            let direct = self.direct_key(server_flow, client);
            surplus.push(Surplus { server_flow, by, client, direct, part: share, live });
        }
    }

    /// Returns the key of the edge without a Service.
    pub(super) fn direct_key(&self, server_flow: &ServerFlow<'a>, client_end: EndpointId) -> Key {
        Key {
            client: self.ends.peer_of(client_end),
            server: self.ends.peer_of(server_flow.end),
            service: None,
            port: Some(server_flow.port),
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
        self.add_at(self.direct_key(server_flow, client_end), server_flow, client_end, part, live);
    }

    pub(super) fn add_at(
        &mut self,
        key: Key,
        server_flow: &ServerFlow<'a>,
        client_end: EndpointId,
        part: &EdgeCounters,
        live: bool,
    ) {
        let sum = self.sums.at(key);
        sum.add_from_server(client_end, server_flow.end, part);
        sum.live |= live;
        sum.add_via(None, server_flow.via);
        sum.server_seen = true;
        sum.client_certain |= server_flow.tuple.scope.is_loopback();
        sum.server_certain = true;
        sum.add_methods(server_flow.methods);
        sum.add_measured_by_server(&server_flow.measured);
    }
}
