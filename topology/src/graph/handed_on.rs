//! Splits flows whose IP address was reused by several pods. Server-side counts assign connections where only one
//! assignment fits; the rest are assigned by the time they were opened.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{
    edges::Key,
    ends::EndId,
    join::Join,
    matching::Found,
    observed::{Sink, Source, Span, counted},
};
use crate::{
    count,
    directory::{Directory, Owner},
    edge::{EdgeCounters, Peer},
    history::{Counted, Part},
};

/// The two ends of a conversation see it at the same time, but for what clocks and ways differ.
const INEXACT: Duration = Duration::from_millis(500);

/// Connections of a client's flow that are a server's.
#[derive(Clone, Copy, Debug)]
struct Match {
    sink: usize,
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
/// `settled`; oldest first, at least one.
pub(super) fn by_owner<'a>(
    directory: &'a Directory,
    ip: IpAddr,
    parts: &[Part],
    span: Span,
    counters: &EdgeCounters,
    settled: SystemTime,
) -> Vec<Group<'a>> {
    let window = window(parts, span);
    let owner = directory.owner_between(ip, window.from, window.until);
    if parts.len() < 2 || !directory.is_pods_address(ip) || (owner.pod().is_some() && window.until <= settled) {
        return vec![Group { owner, counted: counted(counters), span: window }];
    }
    let mut groups: Vec<Group<'a>> = Vec::new();
    for part in parts {
        let owner = if owner.pod().is_some() { owner } else { directory.owner_between(ip, part.since, part.until) };
        let span = Span { from: part.since, until: part.until };
        let is_one = |group: &Group<'a>| {
            group.owner.is_the_same(&owner) && (group.span.until <= settled) == (span.until <= settled)
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

/// Shares counters out to those who have counted so much, oldest first; what is left over is the oldest one's. The sum is
/// what there was.
pub(super) fn share_out(counters: &EdgeCounters, parts: &[Counted]) -> Vec<EdgeCounters> {
    let mut left = *counters;
    let mut shares = Vec::with_capacity(parts.len());
    for (older, part) in parts.iter().enumerate().rev() {
        let (opened, failed) = (part.opened.min(left.opened), part.failed.min(left.failed));
        let is_all = (opened, failed) == (left.opened, left.failed);
        let share = if older == 0 || is_all {
            left
        } else {
            EdgeCounters {
                failed,
                // What is open was opened last.
                active: left.active.min(opened),
                bytes_sent: part.bytes_sent.min(left.bytes_sent),
                bytes_received: part.bytes_received.min(left.bytes_received),
                ..left.share(opened)
            }
        };
        left = left.without(&share);
        shares.push(share);
    }
    shares.reverse();
    shares
}

impl<'a> Join<'a> {
    /// Returns whether the server's address had several owners, so that these server flows are not simply the other
    /// end.
    pub(super) fn is_handed_on(&self, source: &Source<'a>, sinks: &[usize]) -> bool {
        let ip = source.tuple.server;
        if source.tuple.scope.is_some() || !self.directory.is_pods_address(ip) {
            return false;
        }
        let pod_of = |index: &usize| self.ends.end(self.sinks[*index].end).pod_uid;
        let Some(first) = sinks.first().map(pod_of) else { return false };
        let owner = self.directory.owner_between(ip, source.span.from, source.span.until);
        sinks.iter().any(|index| pod_of(index) != first)
            || first.is_some() && owner.pod().map(|pod| pod.uid.as_str()) != first
    }

    /// Servers' flows between the same two addresses as a client's, those of its time first.
    pub(super) fn nearest_first(&self, source: &Source<'a>, mut sinks: Vec<usize>) -> Vec<usize> {
        let time = self.time_of_source(source);
        sinks.sort_by_key(|index| (time.gap(&self.time_of_sink(&self.sinks[*index])), *index));
        sinks
    }

    /// Joins all client flows and all server flows between the same two addresses at the same port.
    ///
    /// The connections that were found of each server are of these clients. Other clients may have called the server
    /// through Services. This function assigns the connections to their owners.
    pub(super) fn join_handed_on(&mut self, sources: &[(&Source<'a>, Vec<Found>)], sinks: &[usize]) {
        let found = |sink: &usize| {
            let of_all = sources.iter().flat_map(|(_, found)| found).filter(|found| found.sink == *sink);
            of_all.fold(0, |sum, found| count::add(sum, found.opened))
        };
        let offered = sinks.iter().map(found).collect();
        let sources: Vec<&Source<'a>> = sources.iter().map(|(source, _)| *source).collect();
        let matched = self.match_in_time(&sources, sinks, offered);
        for (source, matched) in sources.iter().zip(matched) {
            self.join_by_counts_and_times(source, &matched);
        }
    }

    /// Matches connections of client flows with those that server flows have to offer, where only one assignment fits:
    /// pairs of which one side has no other counterpart at its time. The rest is taken from the server flows without an
    /// owner, so that it adds no edge of its own.
    fn match_in_time(&mut self, sources: &[&Source<'a>], sinks: &[usize], mut offered: Vec<u64>) -> Vec<Vec<Match>> {
        let times: Vec<Span> = sinks.iter().map(|index| self.time_of_sink(&self.sinks[*index])).collect();
        let times_of_sources: Vec<Span> = sources.iter().map(|source| self.time_of_source(source)).collect();
        let is_in_time = |source: usize, sink: usize| times_of_sources[source].gap(&times[sink]) <= INEXACT;
        let mut wanted: Vec<u64> = sources.iter().map(|source| source.counters.opened).collect();
        let mut matched: Vec<Vec<Match>> = vec![Vec::new(); sources.len()];
        let mut take = |source: usize, sink: usize, wanted: &mut [u64], offered: &mut [u64]| {
            let most = wanted[source].min(offered[sink]);
            let taken = self.sinks[sinks[sink]].take(most, Some(sources[source].end)).counters;
            wanted[source] -= taken.opened;
            offered[sink] -= taken.opened;
            taken
        };
        loop {
            let fits = |source: usize, sink: usize| wanted[source] > 0 && offered[sink] > 0 && is_in_time(source, sink);
            let only = |of: usize, all: usize, fits: &dyn Fn(usize) -> bool| {
                let mut fitting = (0..all).filter(|other| fits(*other));
                fitting.next().filter(|_| fitting.next().is_none()).map(|other| (of, other))
            };
            let by_sink = (0..sinks.len())
                .find_map(|sink| only(sink, sources.len(), &|source| fits(source, sink)))
                .map(|(sink, source)| (source, sink));
            let by_source =
                || (0..sources.len()).find_map(|source| only(source, sinks.len(), &|sink| fits(source, sink)));
            let Some((source, sink)) = by_sink.or_else(by_source) else { break };
            let taken = take(source, sink, &mut wanted, &mut offered);
            let (counted, retransmits) = (counted(&taken), taken.retransmits);
            matched[source].push(Match { sink: sinks[sink], counted, retransmits });
        }
        // Times can be off; that both ends have the same two addresses cannot.
        for at_any_time in [false, true] {
            for (source, sink) in (0..sources.len()).flat_map(|source| (0..sinks.len()).map(move |sink| (source, sink)))
            {
                if at_any_time || is_in_time(source, sink) {
                    take(source, sink, &mut wanted, &mut offered);
                }
            }
        }
        matched
    }

    /// No flow goes on for longer than the pod whose it is has its address.
    fn time_of_sink(&self, sink: &Sink<'a>) -> Span {
        self.within_pods_time(sink.end, sink.tuple.server, sink.span)
    }

    fn time_of_source(&self, source: &Source<'a>) -> Span {
        self.within_pods_time(source.end, source.tuple.client, source.span)
    }

    fn within_pods_time(&self, end: EndId, ip: IpAddr, span: Span) -> Span {
        let time = self.ends.end(end).pod_uid.and_then(|uid| self.directory.time_with(uid, ip));
        let Some((begins, ends)) = time else { return span };
        let from = span.from.max(begins);
        let until = ends.map_or(span.until, |end| span.until.min(end));
        if from <= until { Span { from, until } } else { span }
    }

    /// Assigns the servers' counts of a flow to the servers, and the rest to the owners of the address at that time.
    fn join_by_counts_and_times(&mut self, source: &Source<'a>, matched: &[Match]) {
        let mut groups = self.groups_of(source);
        let mut whose: Vec<(Span, Counted, Option<usize>, Option<Owner<'a>>)> = Vec::new();
        for Match { sink: index, counted, .. } in matched {
            let sink = &self.sinks[*index];
            take_from(&mut groups, self.ends.end(sink.end).pod_uid, counted);
            whose.push((sink.span, *counted, Some(*index), None));
        }
        let left = groups.into_iter().filter(|group| (group.counted.opened, group.counted.failed) != (0, 0));
        whose.extend(left.map(|group| (group.span, group.counted, None, Some(group.owner))));
        whose.sort_by_key(|(span, _, index, _)| (span.until, *index));
        let shares = share_out(&source.counters, &whose.iter().map(|(_, counted, ..)| *counted).collect::<Vec<_>>());
        for ((span, _, sink, owner), mut share) in whose.into_iter().zip(shares) {
            match (sink, owner) {
                (Some(index), _) => {
                    for servers in matched.iter().filter(|it| it.sink == index) {
                        share.retransmits = count::add(share.retransmits, servers.retransmits);
                    }
                    self.add_both(source, index, &share, span);
                }
                (None, Some(owner)) => self.add_by_owner(source, &owner, &share, span),
                (None, None) => {}
            }
        }
    }

    /// A client's flow by who had the server's address.
    pub(super) fn groups_of(&self, source: &Source<'a>) -> Vec<Group<'a>> {
        let (ip, settled) = (source.tuple.server, self.options.settled());
        by_owner(self.directory, ip, source.parts, source.span, &source.counters, settled)
    }

    /// Groups the rest of a server's flow by the owner of the client's address.
    pub(super) fn groups_of_rest(&self, sink: &Sink<'a>) -> Vec<Group<'a>> {
        let (ip, settled) = (sink.tuple.client, self.options.settled());
        let mut groups = by_owner(self.directory, ip, &sink.parts, sink.span, &sink.left, settled);
        if groups.len() > 1 {
            for (client, counted) in &sink.taken {
                take_from(&mut groups, client.and_then(|client| self.ends.end(client).pod_uid), counted);
            }
        }
        groups
    }

    fn add_both(&mut self, source: &Source<'a>, index: usize, share: &EdgeCounters, span: Span) {
        let live = self.is_live(source.live, span, share);
        let sink = &mut self.sinks[index];
        let key = Key {
            client: self.ends.peer_of(source.end),
            server: self.ends.peer_of(sink.end),
            service: None,
            port: Some(source.tuple.port),
            protocol: source.tuple.protocol,
        };
        sink.explain(source, key, share.opened);
        let sum = self.sums.at(key);
        sum.counters.add(share);
        sum.add_methods(source.methods.union(sink.methods));
        sum.add_measured_by_client_of_many(&source.measured.within(span, share.active > 0));
        sum.add_measured_by_server(&sink.measured);
        sum.live |= live;
        sum.both_seen = true;
        sum.server_certain = true;
        sum.add_client(source.end, share.opened, share.failed);
        sum.add_server(sink.end, share.opened, share.failed);
    }

    /// Adds a part of a client flow without a server flow to the owner of the address, or to an unknown pod.
    pub(super) fn add_by_owner(&mut self, source: &Source<'a>, owner: &Owner<'a>, share: &EdgeCounters, span: Span) {
        if *share == EdgeCounters::default() {
            return;
        }
        if owner.may_change() && self.waits(span.until) {
            self.unsettled = count::add(self.unsettled, share.opened);
            return;
        }
        let dialled = (source.tuple.server, source.tuple.port, source.tuple.protocol);
        let end = self.ends.server_of(dialled, owner);
        let end = match self.ends.peer(self.ends.peer_of(end)) {
            Peer::External { .. } => self.named_external(source.names).unwrap_or(end),
            _ => end,
        };
        let key = Key {
            client: self.ends.peer_of(source.end),
            server: self.ends.peer_of(end),
            service: None,
            port: Some(source.tuple.port),
            protocol: source.tuple.protocol,
        };
        let live = self.is_live(source.live, span, share);
        let is_all = *share == source.counters;
        let measured = if is_all { source.measured } else { source.measured.within(span, share.active > 0) };
        self.add_part_from_client(source, key, share, &measured, live);
        let sum = self.sums.at(key);
        sum.add_server(end, share.opened, share.failed);
        if source.names.len() > 1 {
            sum.dns_names.extend(source.names);
        }
    }

    /// An external address by the DNS names that led to it: their group, or the name if it is one.
    fn named_external(&mut self, names: &'a [String]) -> Option<EndId> {
        let directory = self.directory;
        match (directory.external_groups().of_dns_names(names), names) {
            (Some(group), _) => Some(self.ends.external_group(group)),
            (None, [name]) => Some(self.ends.external_name(name)),
            (None, _) => None,
        }
    }

    /// A part of a flow lives for as long as its connections are open, and for a while after they were opened.
    pub(super) fn is_live(&self, flow_lives: bool, span: Span, share: &EdgeCounters) -> bool {
        let age = self.options.now.duration_since(span.until).unwrap_or_default();
        flow_lives && (share.active > 0 || age < self.options.retention)
    }
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
