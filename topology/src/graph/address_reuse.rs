//! Splits flows whose IP address was reused by several pods. Server-side counts assign connections where only one
//! assignment fits; the rest are assigned by the time they were opened.

use std::{net::IpAddr, time::SystemTime};

use super::{
    address::Scope,
    join::Join,
    key::Key,
    matching::Found,
    names::EndpointId,
    observed::{ClientFlow, INEXACT, ServerFlow, Span, counted},
    shares::share_out,
};
use crate::{
    count,
    directory::{Directory, Owner},
    edge::{EdgeCounters, Peer},
    entity::Pod,
    history::{Counted, Part},
};

/// Connections of a client's flow that are a server's.
#[derive(Clone, Copy, Debug)]
struct Match {
    server_flow: usize,
    counted: Counted,
    /// The server's.
    retransmits: u64,
}

/// Part of a flow that belongs to one owner of the remote address.
#[derive(Clone, Debug)]
pub(super) struct Group<'a> {
    pub(super) owner: Owner<'a>,
    /// As the client would count.
    pub(super) counted: Counted,
    pub(super) span: Span,
}

/// Tells a flow's connections apart by who had the address at its other end, and those apart that were opened after
/// `settled`; oldest first, at least one. At an address of no pod, `listener` returns who answered by then.
pub(super) fn by_owner<'a>(
    directory: &'a Directory,
    ip: IpAddr,
    parts: &[Part],
    span: Span,
    counters: &EdgeCounters,
    settled: SystemTime,
    listener: impl Fn(SystemTime) -> Option<EndpointId>,
) -> Vec<Group<'a>> {
    let window = window(parts, span);
    let owner = directory.owner_between(ip, window.from, window.until);
    let is_pods = directory.is_pods_address(ip);
    let is_one = if is_pods {
        owner.pod().is_some() && window.until <= settled
    } else {
        parts.first().is_none_or(|first| listener(first.until) == listener(window.until))
    };
    if parts.len() < 2 || is_one {
        return vec![Group { owner, counted: counted(counters), span: window }];
    }
    let mut groups: Vec<Group<'a>> = Vec::new();
    for part in parts {
        let owner = if owner.pod().is_some() { owner } else { directory.owner_between(ip, part.since, part.until) };
        let span = Span { from: part.since, until: part.until };
        let is_one = |group: &Group<'a>| {
            group.owner.is_the_same(&owner)
                && if is_pods {
                    (group.span.until <= settled) == (span.until <= settled)
                } else {
                    listener(group.span.until) == listener(span.until)
                }
        };
        match groups.iter_mut().find(|group| is_one(group)) {
            Some(group) => {
                group.counted.add(&part.counted);
                group.span = group.span.with(&span);
            }
            None => groups.push(Group { owner, counted: part.counted, span }),
        }
    }
    groups
}

/// Returns the time range in which a flow's connections were opened.
pub(super) fn window(parts: &[Part], span: Span) -> Span {
    let whole = parts.iter().copied().reduce(|one, next| one.with(&next));
    whole.map_or(span, |whole| Span { from: whole.since, until: whole.until })
}

impl<'a> Join<'a> {
    /// Returns whether the server's address had several owners, so that these server flows are not simply the other
    /// end.
    pub(super) fn is_address_reused(&self, client_flow: &ClientFlow<'a>, server_flows: &[usize]) -> bool {
        let ip = client_flow.tuple.server;
        if client_flow.tuple.scope != Scope::Cluster || !self.directory.is_pods_address(ip) {
            return false;
        }
        let pod_of = |index: &usize| self.ends.end(self.server_flows[*index].end).pod_uid();
        let Some(first) = server_flows.first().map(pod_of) else { return false };
        let Span { from, until } = client_flow.span;
        server_flows.iter().any(|index| pod_of(index) != first)
            || first.is_some_and(|pod| !self.is_only_owner(pod, ip, from, until))
    }

    /// Returns whether no pod but this one is known to have held an address between two times, at some time of which it did.
    fn is_only_owner(&self, pod: &str, ip: IpAddr, from: SystemTime, until: SystemTime) -> bool {
        let is_it = |owner: &Pod| owner.uid == pod;
        self.directory.owner_between(ip, from, until).pod().is_some_and(is_it)
            // The time may begin before the first pod became known, and so before the pod by less than a report's precision.
            || matches!(*self.directory.possible_owners(ip, from, until), [only] if is_it(only))
    }

    /// Holds connections to an address of several pods that are more than its servers have counted. Until their agents had
    /// time to report again, they may be those of a pod that has got the address since. Returns them, without their bytes,
    /// which cannot be distinguished from those of others.
    pub(super) fn wait_for_successor(&mut self, client_flow: &ClientFlow<'a>) -> EdgeCounters {
        let tuple = &client_flow.tuple;
        if tuple.scope.is_loopback() || !self.directory.is_reused(tuple.server) {
            return EdgeCounters::default();
        }
        let servers: Vec<&ServerFlow<'a>> =
            self.by_tuple(tuple).into_iter().flatten().map(|index| &self.server_flows[index]).collect();
        if !servers.iter().any(|server| self.ledger.observes(server.node, self.options.now)) {
            return EdgeCounters::default();
        }
        let counters = &client_flow.counters;
        // All that they have counted, of any client: how much of it is this one's may be known better later.
        let mut of_servers = EdgeCounters::default();
        for server in servers {
            of_servers.add(&server.counters);
        }
        let opened = self.wait(counters.opened.saturating_sub(of_servers.opened), &client_flow.fresh);
        let shown = counters.opened - opened;
        EdgeCounters {
            opened,
            active: counters.active.saturating_sub(of_servers.active).min(opened),
            without_bytes: counters.without_bytes.saturating_sub(shown),
            inferred: counters.inferred.saturating_sub(shown),
            ..EdgeCounters::default()
        }
    }

    /// Servers' flows between the same two addresses as a client's, those of its time first.
    pub(super) fn nearest_first(&self, client_flow: &ClientFlow<'a>, mut server_flows: Vec<usize>) -> Vec<usize> {
        let time = self.time_of_client_flow(client_flow);
        server_flows.sort_by_key(|index| (time.gap(&self.time_of_server_flow(&self.server_flows[*index])), *index));
        server_flows
    }

    /// Joins all client flows and all server flows between the same two addresses at the same port.
    ///
    /// The connections that were found of each server are of these clients. Other clients may have called the server
    /// through Services. This function assigns the connections to their owners.
    pub(super) fn join_reused_address(
        &mut self,
        client_flows: &[(&ClientFlow<'a>, Vec<Found>)],
        server_flows: &[usize],
    ) {
        let found = |server_flow: &usize| {
            let of_all =
                client_flows.iter().flat_map(|(_, found)| found).filter(|found| found.server_flow == *server_flow);
            of_all.fold(0, |sum, found| count::add(sum, found.opened))
        };
        let offered = server_flows.iter().map(found).collect();
        let client_flows: Vec<&ClientFlow<'a>> = client_flows.iter().map(|(client_flow, _)| *client_flow).collect();
        let matched = self.match_in_time(&client_flows, server_flows, offered);
        for (client_flow, matched) in client_flows.iter().zip(matched) {
            self.join_by_counts_and_times(client_flow, &matched);
        }
    }

    /// Matches connections of client flows with those that server flows have to offer, where only one assignment fits:
    /// pairs of which one side has no other counterpart at its time. The rest is taken from the server flows without an
    /// owner, so that it adds no edge of its own.
    fn match_in_time(
        &mut self,
        client_flows: &[&ClientFlow<'a>],
        server_flows: &[usize],
        mut offered: Vec<u64>,
    ) -> Vec<Vec<Match>> {
        let times: Vec<Span> =
            server_flows.iter().map(|index| self.time_of_server_flow(&self.server_flows[*index])).collect();
        let times_of_client_flows: Vec<Span> =
            client_flows.iter().map(|client_flow| self.time_of_client_flow(client_flow)).collect();
        let is_in_time = |client_flow: usize, server_flow: usize| {
            times_of_client_flows[client_flow].gap(&times[server_flow]) <= INEXACT
        };
        let mut wanted: Vec<u64> = client_flows.iter().map(|client_flow| client_flow.counters.opened).collect();
        let mut matched: Vec<Vec<Match>> = vec![Vec::new(); client_flows.len()];
        let mut take = |client_flow: usize, server_flow: usize, wanted: &mut [u64], offered: &mut [u64]| {
            let most = wanted[client_flow].min(offered[server_flow]);
            let taken =
                self.server_flows[server_flows[server_flow]].take(most, Some(client_flows[client_flow].end)).counters;
            wanted[client_flow] -= taken.opened;
            offered[server_flow] -= taken.opened;
            taken
        };
        loop {
            let fits = |client_flow: usize, server_flow: usize| {
                wanted[client_flow] > 0 && offered[server_flow] > 0 && is_in_time(client_flow, server_flow)
            };
            let only = |of: usize, all: usize, fits: &dyn Fn(usize) -> bool| {
                let mut fitting = (0..all).filter(|other| fits(*other));
                fitting.next().filter(|_| fitting.next().is_none()).map(|other| (of, other))
            };
            let by_server_flow = (0..server_flows.len())
                .find_map(|server_flow| {
                    only(server_flow, client_flows.len(), &|client_flow| fits(client_flow, server_flow))
                })
                .map(|(server_flow, client_flow)| (client_flow, server_flow));
            let by_client_flow = || {
                (0..client_flows.len()).find_map(|client_flow| {
                    only(client_flow, server_flows.len(), &|server_flow| fits(client_flow, server_flow))
                })
            };
            let Some((client_flow, server_flow)) = by_server_flow.or_else(by_client_flow) else { break };
            let taken = take(client_flow, server_flow, &mut wanted, &mut offered);
            let (counted, retransmits) = (counted(&taken), taken.retransmits);
            matched[client_flow].push(Match { server_flow: server_flows[server_flow], counted, retransmits });
        }
        // Times can be off; that both ends have the same two addresses cannot.
        for at_any_time in [false, true] {
            for (client_flow, server_flow) in (0..client_flows.len())
                .flat_map(|client_flow| (0..server_flows.len()).map(move |server_flow| (client_flow, server_flow)))
            {
                if at_any_time || is_in_time(client_flow, server_flow) {
                    take(client_flow, server_flow, &mut wanted, &mut offered);
                }
            }
        }
        matched
    }

    /// No flow goes on for longer than the pod whose it is has its address.
    fn time_of_server_flow(&self, server_flow: &ServerFlow<'a>) -> Span {
        self.within_pods_time(server_flow.end, server_flow.tuple.server, server_flow.span)
    }

    fn time_of_client_flow(&self, client_flow: &ClientFlow<'a>) -> Span {
        self.within_pods_time(client_flow.end, client_flow.tuple.client, client_flow.span)
    }

    fn within_pods_time(&self, end: EndpointId, ip: IpAddr, span: Span) -> Span {
        let time = self.ends.end(end).pod_uid().and_then(|uid| self.directory.time_with(uid, ip));
        let Some((begins, ends)) = time else { return span };
        let from = span.from.max(begins);
        let until = ends.map_or(span.until, |end| span.until.min(end));
        if from <= until { Span { from, until } } else { span }
    }

    /// Assigns the servers' counts of a flow to the servers, and the rest to the owners of the address at that time.
    fn join_by_counts_and_times(&mut self, client_flow: &ClientFlow<'a>, matched: &[Match]) {
        let mut groups = self.groups_of(client_flow);
        let mut whose: Vec<(Span, Counted, Option<usize>, Option<Owner<'a>>)> = Vec::new();
        for Match { server_flow: index, counted, .. } in matched {
            let server_flow = &self.server_flows[*index];
            take_from(&mut groups, self.ends.end(server_flow.end).pod_uid(), counted);
            whose.push((server_flow.span, *counted, Some(*index), None));
        }
        // Without any counts, pending attempts are left.
        let has_rest = |group: &Group<'_>| (group.counted.opened, group.counted.failed) != (0, 0) || matched.is_empty();
        let left = groups.into_iter().filter(has_rest);
        whose.extend(left.map(|group| (group.span, group.counted, None, Some(group.owner))));
        whose.sort_by_key(|(span, _, index, _)| (span.until, *index));
        let shares =
            share_out(&client_flow.counters, &whose.iter().map(|(_, counted, ..)| *counted).collect::<Vec<_>>());
        for ((span, _, server_flow, owner), mut share) in whose.into_iter().zip(shares) {
            match (server_flow, owner) {
                (Some(index), _) => {
                    for servers in matched.iter().filter(|it| it.server_flow == index) {
                        share.retransmits = count::add(share.retransmits, servers.retransmits);
                    }
                    self.add_both(client_flow, index, &share, span);
                }
                (None, Some(owner)) => self.add_by_owner(client_flow, &owner, &share, span),
                (None, None) => {}
            }
        }
    }

    /// A client's flow by who had the server's address.
    pub(super) fn groups_of(&self, client_flow: &ClientFlow<'a>) -> Vec<Group<'a>> {
        let (ip, settled) = (client_flow.tuple.server, self.options.settled());
        let called = client_flow.tuple.called();
        let listener = |until| self.ends.listener(&called, until);
        by_owner(self.directory, ip, client_flow.parts, client_flow.span, &client_flow.counters, settled, listener)
    }

    /// Groups the rest of a server's flow by the owner of the client's address.
    pub(super) fn groups_of_rest(&self, server_flow: &ServerFlow<'a>) -> Vec<Group<'a>> {
        let (ip, settled) = (server_flow.tuple.client, self.options.settled());
        let mut groups =
            by_owner(self.directory, ip, &server_flow.parts(), server_flow.span, &server_flow.left, settled, |_| None);
        if groups.len() > 1 {
            for (client, counted) in &server_flow.taken {
                take_from(&mut groups, client.and_then(|client| self.ends.end(client).pod_uid()), counted);
            }
        }
        groups
    }

    fn add_both(&mut self, client_flow: &ClientFlow<'a>, index: usize, share: &EdgeCounters, span: Span) {
        let live = self.is_live(client_flow.live, span, share);
        let server_flow = &mut self.server_flows[index];
        let key = Key {
            client: self.ends.peer_of(client_flow.end),
            server: self.ends.peer_of(server_flow.end),
            service: None,
            port: Some(client_flow.tuple.port),
            protocol: client_flow.tuple.protocol,
        };
        server_flow.explain(client_flow, key, share.opened);
        let sum = self.sums.at(key);
        sum.counters.add(share);
        sum.add_methods(client_flow.methods.union(server_flow.methods));
        sum.add_measured_by_client_of_many(&client_flow.measured.within(span, goes_on(share)));
        sum.add_measured_by_server(&server_flow.measured);
        sum.live |= live;
        sum.add_via(client_flow.via, server_flow.via);
        sum.both_seen = true;
        sum.server_certain = true;
        sum.add_client(client_flow.end, share.opened, share.failed);
        sum.add_server(server_flow.end, share.opened, share.failed);
    }

    /// Adds a part of a client flow without a server flow to the owner of the address, or to an unknown pod.
    pub(super) fn add_by_owner(
        &mut self,
        client_flow: &ClientFlow<'a>,
        owner: &Owner<'a>,
        share: &EdgeCounters,
        span: Span,
    ) {
        if *share == EdgeCounters::default() {
            return;
        }
        // Attempts that are or were pending have waited: their edge must not leave for a moment when they end.
        let is_new = count::add(share.opened, share.failed) > client_flow.pending_ended;
        if is_new && owner.may_change() && self.waits(span.until) {
            self.unsettled = count::add(self.unsettled, share.opened);
            return;
        }
        let end = self.ends.server_of(&client_flow.tuple.called(), owner, span.until);
        let end = match self.ends.peer(self.ends.peer_of(end)) {
            Peer::External { .. } => self.named_external(client_flow.names).unwrap_or(end),
            _ => end,
        };
        let key = Key {
            client: self.ends.peer_of(client_flow.end),
            server: self.ends.peer_of(end),
            service: None,
            port: Some(client_flow.tuple.port),
            protocol: client_flow.tuple.protocol,
        };
        let live = self.is_live(client_flow.live, span, share);
        let is_all = *share == client_flow.counters;
        let measured = if is_all { client_flow.measured } else { client_flow.measured.within(span, goes_on(share)) };
        self.add_part_from_client(client_flow, key, share, &measured, live);
        let sum = self.sums.at(key);
        sum.add_server(end, share.opened, share.failed);
        if client_flow.names.len() > 1 {
            sum.dns_names.extend(client_flow.names.iter().cloned());
        }
    }

    /// An external address by the DNS names that led to it: their group, or the name if it is one.
    fn named_external(&mut self, names: &'a [String]) -> Option<EndpointId> {
        let directory = self.directory;
        match (directory.external_groups().of_dns_names(names), names) {
            (Some(group), _) => Some(self.ends.external_group(group)),
            (None, [name]) => Some(self.ends.external_name(name)),
            (None, _) => None,
        }
    }

    /// A part of a flow lives for as long as its connections are open or its attempts pending, and for a while after they
    /// were opened.
    pub(super) fn is_live(&self, flow_lives: bool, span: Span, share: &EdgeCounters) -> bool {
        let age = self.options.now.duration_since(span.until).unwrap_or_default();
        flow_lives && (goes_on(share) || age < self.options.retention)
    }
}

/// Returns whether connections are open or attempts are pending.
fn goes_on(share: &EdgeCounters) -> bool {
    share.active > 0 || share.pending > 0
}

/// Subtracts a server's count from connections opened while its pod held the address, then from those without an owner.
fn take_from(groups: &mut [Group<'_>], pod: Option<&str>, counted: &Counted) {
    let mut left = *counted;
    let is_pods = |group: &Group<'_>| group.owner.pod().map(|owner| owner.uid.as_str()) == pod;
    let is_nobodys = |group: &Group<'_>| group.owner.pod().is_none();
    let orders: [&dyn Fn(&Group<'_>) -> bool; 3] = [&is_pods, &is_nobodys, &|_| true];
    for order in orders {
        for group in groups.iter_mut().filter(|group| order(group)) {
            for (has, wants) in [
                (&mut group.counted.opened, &mut left.opened),
                (&mut group.counted.bytes_sent, &mut left.bytes_sent),
                (&mut group.counted.bytes_received, &mut left.bytes_received),
            ] {
                let taken = (*has).min(*wants);
                *has -= taken;
                *wants -= taken;
            }
        }
    }
}
