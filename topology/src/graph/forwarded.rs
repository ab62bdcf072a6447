//! Connections of servers whose client has a node's address: clients of the node opened them, or the node has forwarded
//! them, with its own address in the place of the client's.
//!
//! They are forwarded if the node's agent has reported all connections that clients of the node opened at that time, and
//! these are none of them.

use std::time::SystemTime;

use super::{
    address::Called,
    candidates::Candidates,
    join::Join,
    nodes::At,
    observed::{ClientFlow, ExplainedAt, ServerFlow, Span, counted},
    placement::Surplus,
    shares::share_out,
};
use crate::{
    count,
    directory::Owner,
    edge::EdgeCounters,
    flow::Protocol,
    history::{Counted, Part},
    ledger::Observed,
};

/// Connections that were opened at times of which a node's agent has reported as much.
#[derive(Clone, Copy, Debug, Default)]
struct OpenedThen {
    counted: Counted,
    span: Option<Span>,
}

impl OpenedThen {
    fn add(&mut self, part: &Part) {
        let span = Span { from: part.since, until: part.until };
        self.counted.add(&part.counted);
        self.span = Some(self.span.map_or(span, |known| known.with(&span)));
    }

    /// Returns so many of them, with their share of the bytes.
    fn part(&self, opened: u64) -> Counted {
        if opened == 0 {
            // Payload without connections does not wait with any.
            return Counted::default();
        }
        let Counted { opened: all, bytes_sent, bytes_received, .. } = self.counted;
        let whole = EdgeCounters { opened: all, bytes_sent, bytes_received, ..EdgeCounters::default() };
        Counted { opened, ..counted(&whole.share(opened)) }
    }
}

impl<'a> Join<'a> {
    /// Returns the node whose own address the client of a server's flow has, and no pod had.
    pub(super) fn node_of_client(&self, server_flow: &ServerFlow<'a>) -> Option<&'a str> {
        let ip = server_flow.tuple.client;
        if server_flow.tuple.scope.is_loopback() || self.directory.is_pods_address(ip) {
            return None;
        }
        match self.ends.nodes.at(ip) {
            Some(At::Node(node)) => Some(node),
            Some(At::PodNetwork) | None => None,
        }
    }

    /// Notes connections of a client that no server's agent has counted, although servers were observed where it called:
    /// its node may have replaced its address in a way that the join does not follow.
    pub(super) fn note_unexplained(&mut self, client_flow: &ClientFlow<'a>, candidates: &Candidates<'a>, left: u64) {
        if candidates.service.is_some() || left < client_flow.counters.opened {
            return;
        }
        let settled = left.saturating_sub(client_flow.fresh.opened);
        for (ip, port) in candidates.backends.keys() {
            self.add_unexplained(client_flow.node, candidates.at(*ip, *port), settled);
        }
    }

    /// Notes connections of a client in a node's network with a loopback address, at a port of the node that leads to a pod.
    pub(super) fn note_unexplained_loopback(&mut self, client_flow: &ClientFlow<'a>, left: u64) {
        if self.own_pod(client_flow.end).is_some() {
            return;
        }
        let (directory, node, called) = (self.directory, client_flow.node, client_flow.tuple.called());
        for (pod, port) in directory.pods_at_host_port(node, called.ip, called.port, called.protocol) {
            for ip in pod.ips.iter().filter(|ip| ip.is_ipv4() == called.ip.is_ipv4()) {
                self.add_unexplained(node, Called { ip: *ip, port, ..called.in_cluster() }, left);
            }
        }
    }

    fn add_unexplained(&mut self, node: &'a str, called: Called<'a>, opened: u64) {
        if opened > 0 {
            let calls = self.unexplained_calls.entry((node, called)).or_default();
            *calls = count::add(*calls, opened);
        }
    }

    /// Adds what no client flow explains of a server's connections with an address of this node.
    pub(super) fn add_from_node<'f>(
        &mut self,
        server_flow: &'f ServerFlow<'a>,
        node: &'a str,
        surplus: &mut Vec<Surplus<'a, 'f>>,
    ) {
        let left = server_flow.left;
        let [own, forwarded, pending] = self.opened_by_evidence(server_flow, node);
        let [by_others, mut waiting] = self.count_forwarded(server_flow, node, forwarded.counted.opened);
        // The wait ends with a report of an agent, which may come at any time.
        if waiting > 0 && !self.waits(self.options.now) {
            self.names_change_at = Some(self.options.now);
            waiting = 0;
        }
        self.unsettled = count::add(self.unsettled, waiting);
        let own_count = left.opened - by_others - waiting;
        let parts = [own.part(own_count), forwarded.part(by_others), pending.part(waiting)];
        let mut shares = share_out(&left, &parts);
        // Those that are shown do not close because another one waits.
        let mut active = left.active;
        for index in [1, 0, 2] {
            shares[index].active = active.min(shares[index].opened);
            active -= shares[index].active;
        }
        let by_node = self.ends.client_of(server_flow.tuple.client, &Owner::NoPod, server_flow.tuple.scope);
        let behind_node = self.ends.behind_node(node);
        for (client, then, part) in [(by_node, own, shares[0]), (behind_node, forwarded, shares[1])] {
            if part == EdgeCounters::default() {
                continue;
            }
            let live = self.is_live(server_flow.live, then.span.unwrap_or(server_flow.span), &part);
            let by = self.edge_of(server_flow, &Owner::NoPod).filter(|_| client == by_node);
            let direct = self.direct_key(server_flow, client);
            surplus.push(Surplus { server_flow, by, client, direct, part, live });
        }
    }

    /// Returns a server's connections by the time at which they were opened: when the node's agent may have missed clients,
    /// when it has reported all of them, and of which a report may still come.
    fn opened_by_evidence(&self, server_flow: &ServerFlow<'a>, node: &str) -> [OpenedThen; 3] {
        let mut opened = [OpenedThen::default(); 3];
        for part in server_flow.parts() {
            let waits = self.is_fresh(server_flow, &part);
            let observed = match self.observed_clients(server_flow, node, &part) {
                Observed::Partly if !waits => 0,
                Observed::Wholly => 1,
                Observed::Partly | Observed::NotYet => 2,
            };
            opened[observed].add(&part);
        }
        opened
    }

    /// Returns whether the node's agent has reported all clients that opened a server's connections at some time.
    fn observed_clients(&self, server_flow: &ServerFlow<'a>, node: &str, part: &Part) -> Observed {
        let protocol = server_flow.tuple.protocol;
        // Both ends delimit UDP conversations differently.
        let is_comparable = protocol == Protocol::Tcp || server_flow.explanations.is_empty();
        if !is_comparable {
            return Observed::Partly;
        }
        self.ledger.observed_clients(node, part, protocol, self.options.now)
    }

    /// Returns whether the report of a client that is known may be on its way.
    fn is_fresh(&self, server_flow: &ServerFlow<'a>, part: &Part) -> bool {
        part.until.max(server_flow.first_seen) > self.options.settled()
            && server_flow.explanation().is_some_and(|by| !by.sampled || by.translated)
    }

    /// Returns how many of the connections that are left the node has forwarded, out of so many at times of which its agent
    /// has reported all clients, and how many wait for a report.
    fn count_forwarded(&self, server_flow: &ServerFlow<'a>, node: &'a str, forwarded: u64) -> [u64; 2] {
        let unexplained = self.unexplained_calls.get(&(node, server_flow.tuple.called())).copied().unwrap_or_default();
        let parts = server_flow.parts();
        let observed = |part: &Part| self.observed_clients(server_flow, node, part);
        let whole: Vec<&Part> = parts.iter().filter(|part| observed(part) == Observed::Wholly).collect();
        let not_forwarded = [taken_within(server_flow, &whole), unexplained, server_flow.left.inferred];
        let not_forwarded = not_forwarded.into_iter().fold(0, count::add);
        let last = whole.iter().map(|part| part.until).max();
        let waiting_at = |is_then: &dyn Fn(&Part) -> bool| {
            opened_at(&parts, is_then).saturating_sub(taken_at(server_flow, last, is_then))
        };
        let not_yet = waiting_at(&|part| observed(part) == Observed::NotYet);
        let fresh = waiting_at(&|part| observed(part) == Observed::Partly && self.is_fresh(server_flow, part));
        let forwarded = forwarded.saturating_sub(not_forwarded).min(server_flow.left.opened);
        [forwarded, count::add(not_yet, fresh).min(server_flow.left.opened - forwarded)]
    }
}

/// Returns how many connections were opened at such times.
fn opened_at(parts: &[Part], is_then: impl Fn(&Part) -> bool) -> u64 {
    parts.iter().filter(|part| is_then(part)).fold(0, |sum, part| count::add(sum, part.counted.opened))
}

/// Returns how many of a server's connections known clients may have opened within some of its parts, at most. The parts are
/// in the order of their times.
fn taken_within(server_flow: &ServerFlow<'_>, within: &[&Part]) -> u64 {
    let mut calls: Vec<(SystemTime, SystemTime, u64)> = Vec::new();
    for ExplainedAt { older, parts, inexact, .. } in &server_flow.explained_at {
        let begins = parts.first().map_or(server_flow.span.until, |first| first.since);
        calls.push((SystemTime::UNIX_EPOCH, begins + *inexact, *older));
        let earlier = |time: SystemTime| time.checked_sub(*inexact).unwrap_or(SystemTime::UNIX_EPOCH);
        calls.extend(parts.iter().map(|part| (earlier(part.since), part.until + *inexact, part.counted.opened)));
    }
    // Those that end first have the fewest parts to choose from, so that as many as possible find one.
    calls.sort_unstable_by_key(|(_, until, _)| *until);
    let mut within_parts = 0;
    for part in within {
        let mut room = part.counted.opened;
        for (since, until, left) in &mut calls {
            if *since < part.until && part.since < *until {
                let taken = room.min(*left);
                (room, *left) = (room - taken, *left - taken);
                within_parts = count::add(within_parts, taken);
            }
        }
    }
    let taken = server_flow.taken.iter().fold(0, |sum, (_, counted)| count::add(sum, counted.opened));
    let explained = server_flow.explained_at.iter().fold(0, |sum, by| count::add(sum, by.opened));
    count::add(within_parts.min(explained), taken.saturating_sub(explained))
}

/// Returns how many of a server's connections known clients opened at such times, all of them after `since`.
fn taken_at(server_flow: &ServerFlow<'_>, since: Option<SystemTime>, is_then: &dyn Fn(&Part) -> bool) -> u64 {
    let taken = server_flow.explained_at.iter().map(|by| {
        let is_later = |part: &Part| since.is_none_or(|since| since + by.inexact <= part.since);
        opened_at(by.parts, |part| is_later(part) && is_then(part)).min(by.opened)
    });
    taken.fold(0, count::add)
}
