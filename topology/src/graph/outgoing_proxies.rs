//! Transparent proxies beside clients: a pod's network redirects outgoing connections to a proxy, and the proxy calls the
//! server.
//!
//! [`super::interceptors`] has the proxies. The application's call and the proxy's lead to the same address, or the proxy
//! calls a backend of the Service that the application called.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::SystemTime,
};

use super::{
    address::Scope,
    join::Join,
    key::Key,
    legs::{Leg, Matched, deal, only, remove, take_attempts},
    names::{EndpointId, PeerId},
    observed::{ClientFlow, Fresh, ServerFlow, Tuple},
    placed_legs::PlacedLeg,
};
use crate::{
    count,
    edge::{EdgeCounters, Side},
    flow::Protocol,
    hash::{HashMap, HashSet},
    rtt::RttHistogram,
};

/// Stands for all ports of a pod.
const ANY_PORT: u16 = 0;

/// Calls of one pod that lead to common servers.
#[derive(Debug, Default)]
struct Calls {
    servers: BTreeSet<(IpAddr, u16)>,
    /// The applications' flows.
    of_applications: Vec<usize>,
    /// The proxies' flows.
    of_proxies: Vec<usize>,
}

/// Result of comparing the calls of applications and proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    /// Neither leads through the other.
    Separate,
    /// One of the proxy's for each of the applications'.
    OneForOne,
    /// The proxy shares or repeats connections.
    Pooled,
    /// Reports that decide it are on their way.
    Waiting,
    /// One of the two has none.
    Alone,
}

impl<'a> Join<'a> {
    /// Removes the servers' flows of redirected connections: their clients' flows have all that they have.
    pub(super) fn drop_intercepted(&self, client_flows: &[ClientFlow<'a>], server_flows: &mut Vec<ServerFlow<'a>>) {
        let is_intercepted = |flow: &ServerFlow<'a>| {
            let Tuple { client, server, protocol, .. } = flow.tuple;
            protocol == Protocol::Tcp
                && server.is_loopback()
                && !client.is_loopback()
                && self.interceptors.has(flow.node, flow.netns)
                && self.directory.is_pods_address(client)
        };
        if !server_flows.iter().any(is_intercepted) {
            return;
        }
        // An application may call a loopback address with another of its own.
        let called: HashSet<Tuple<'a>> = client_flows.iter().map(|flow| flow.tuple).collect();
        server_flows.retain(|flow| !is_intercepted(flow) || called.contains(&flow.tuple));
    }

    /// Removes the proxies' part of calls that pass a proxy one for one. Of others, joins the applications' part with the
    /// proxy. Returns the flows that are left.
    pub(super) fn follow_outgoing_proxies(&mut self, mut client_flows: Vec<ClientFlow<'a>>) -> Vec<ClientFlow<'a>> {
        let mut gone = HashSet::default();
        for calls in self.intercepted_calls(&client_flows) {
            gone.extend(self.place_calls(&calls, &mut client_flows));
        }
        for flow in &client_flows {
            self.remember(flow.node, flow.id, flow.leg);
        }
        remove(&mut client_flows, &gone);
        client_flows
    }

    /// Places calls of one pod on edges. Returns the flows of which nothing is left.
    fn place_calls(&mut self, calls: &Calls, client_flows: &mut [ClientFlow<'a>]) -> Vec<usize> {
        let relation = self.relation(calls, client_flows);
        let (is_one_for_one, is_pooled) = (relation == Relation::OneForOne, relation == Relation::Pooled);
        let left_out = if is_one_for_one {
            self.match_legs(calls, client_flows)
        } else {
            calls.all().map(|index| (index, self.left_out(relation, &client_flows[index]))).collect()
        };
        let proxy = self.proxy_of(calls, client_flows);
        let mut gone = Vec::new();
        for (index, out) in left_out {
            let flow = &mut client_flows[index];
            flow.leg.is_pooled |= is_pooled && proxy.is_some();
            let via = proxy.map(|(end, _)| (Side::Client, end));
            if relation == Relation::Separate {
                flow.leg.apart = count::add(flow.leg.apart, self.undecided(flow));
            }
            let waiting = if self.is_interceptors(flow) {
                flow.leg.is_proxys = true;
                flow.via = via.filter(|_| is_pooled);
                place_proxys(flow, out, is_one_for_one)
            } else {
                flow.via = via.filter(|_| is_pooled || flow.leg.matched > 0);
                let (rest, waiting) = place_applications(flow, out);
                if let Some((end, port)) = proxy {
                    if flow.leg.is_pooled && flow.leg.proxys_port == 0 {
                        flow.leg.proxys_port = port.unwrap_or_default();
                    }
                    let port = Some(flow.leg.proxys_port).filter(|port| *port > 0);
                    self.join_with_proxy(flow, (end, port), &rest);
                }
                waiting
            };
            if waiting > 0 {
                self.hold(waiting, &client_flows[index].fresh);
            }
            if client_flows[index].counters == EdgeCounters::default() {
                gone.push(index);
            }
        }
        note_evident(relation, calls, client_flows);
        move_measurements(calls, client_flows);
        gone
    }

    /// Matches the connections of both legs as far as both have them. Returns the others.
    fn match_legs(&self, calls: &Calls, client_flows: &mut [ClientFlow<'a>]) -> Vec<(usize, LeftOut)> {
        let (accepted, opened) = self.legs(calls, client_flows);
        let Matched { both, unanswered, certainly } = Leg::matched(&accepted, &opened);
        let of_applications = |flow: &ClientFlow<'_>| flow.leg.undecided_of_application(&flow.counters);
        let of_proxies = |flow: &ClientFlow<'_>| flow.leg.undecided_of_proxy(&flow.counters);
        let waiting = accepted.opened - unanswered - both;
        let left_out = deal(waiting, &calls.of_applications, client_flows, of_applications);
        let mut left_out: Vec<_> =
            left_out.into_iter().map(|(index, waiting)| (index, LeftOut { waiting, pending: 0 })).collect();
        let mut failed = take_attempts(calls.of_proxies.iter(), client_flows, certainly);
        let mut pending = unanswered - failed;
        for (index, out) in &mut left_out {
            let flow = &mut client_flows[*index];
            let left = of_applications(flow) - out.waiting;
            let without = failed.min(left);
            failed -= without;
            out.pending = pending.min(left - without);
            pending -= out.pending;
            flow.leg.unanswered += without;
            flow.leg.matched = count::add(flow.leg.matched, left - without - out.pending);
        }
        let of_proxies = deal(opened.opened - both, &calls.of_proxies, client_flows, of_proxies);
        left_out.extend(of_proxies.into_iter().map(|(index, waiting)| (index, LeftOut { waiting, pending: 0 })));
        left_out
    }

    /// Returns the connections of a flow that are on no edge yet, where legs are not matched.
    fn left_out(&self, relation: Relation, flow: &ClientFlow<'a>) -> LeftOut {
        let undecided = self.undecided(flow);
        let waiting = match relation {
            Relation::Alone => undecided.min(flow.fresh.opened),
            Relation::Waiting => undecided,
            Relation::Separate | Relation::OneForOne | Relation::Pooled => 0,
        };
        LeftOut { waiting, pending: 0 }
    }

    fn undecided(&self, flow: &ClientFlow<'a>) -> u64 {
        if self.is_interceptors(flow) {
            flow.leg.undecided_of_proxy(&flow.counters)
        } else {
            flow.leg.undecided_of_application(&flow.counters)
        }
    }

    /// Returns the undecided connections of applications and proxies.
    fn legs(&self, calls: &Calls, client_flows: &[ClientFlow<'a>]) -> (Leg, Leg) {
        let settled = self.options.settled();
        let accepted = calls.of_applications.iter().map(|index| &client_flows[*index]);
        let opened = calls.of_proxies.iter().map(|index| &client_flows[*index]);
        (Leg::of_applications(accepted, settled), Leg::of_proxies(opened, settled))
    }

    /// Returns the proxy of a pod, and the port at which it accepts connections if there is only one.
    fn proxy_of(&mut self, calls: &Calls, client_flows: &[ClientFlow<'a>]) -> Option<(EndpointId, Option<u16>)> {
        let flow = calls.of_proxies.first().or(calls.of_applications.first()).map(|index| &client_flows[*index])?;
        let (node, netns, end) = (flow.node, flow.netns, flow.end);
        let (end, cgroup_id) = if self.is_interceptors(flow) {
            (end, Some(flow.cgroup_id))
        } else if let Some(cgroup_id) = self.interceptors.cgroup_in(node, netns) {
            let owner = self.ledger.records_of(node).and_then(|records| records.owner_of(cgroup_id));
            (self.ends.by_cgroup(node, owner), Some(cgroup_id))
        } else {
            // It is in the pod, and none of its flows is known any more.
            (self.own_loopback(node, end), None)
        };
        let ports = cgroup_id.and_then(|cgroup_id| self.interceptors.ports(node, netns, cgroup_id));
        Some((end, ports.and_then(only)))
    }

    /// Has connections wait for reports.
    pub(super) fn hold(&mut self, opened: u64, fresh: &Fresh) {
        if !fresh.since.is_some_and(|since| self.waits(since)) {
            // The wait ends with an agent's report, which may come at any time.
            self.waits(self.options.now);
        }
        self.unsettled = count::add(self.unsettled, opened);
    }

    /// Returns the calls of pods with interceptors, as far as applications and proxies call common servers.
    fn intercepted_calls(&mut self, client_flows: &[ClientFlow<'a>]) -> Vec<Calls> {
        // Numbers of network namespaces are used again: the address tells pods apart.
        let mut by_pod: BTreeMap<(&str, u32, IpAddr), Vec<usize>> = BTreeMap::new();
        for (index, flow) in client_flows.iter().enumerate() {
            if flow.tuple.protocol == Protocol::Tcp
                && (self.interceptors.has(flow.node, flow.netns) || flow.leg.is_proxied())
                && flow.via.is_none()
                && !flow.is_relayed
                && (self.is_interceptors(flow) || self.own_pod(flow.end).is_some())
            {
                by_pod.entry((flow.node, flow.netns, flow.tuple.client)).or_default().push(index);
            }
        }
        by_pod.into_values().flat_map(|flows| self.with_common_servers(&flows, client_flows)).collect()
    }

    /// Divides the flows of a pod into those that lead to common servers.
    fn with_common_servers(&mut self, flows: &[usize], client_flows: &[ClientFlow<'a>]) -> Vec<Calls> {
        let mut all: Vec<Calls> = Vec::new();
        let pods = self.pods_called_at_proxies(flows.iter().map(|index| &client_flows[*index]));
        // Of each server, the place in `all` of the calls that lead there; of each place, the one that it was merged into.
        let (mut by_server, mut places): (HashMap<(IpAddr, u16), usize>, Vec<usize>) = Default::default();
        for index in flows {
            let flow = &client_flows[*index];
            let mut calls = Calls { servers: self.servers_of(flow), ..Calls::default() };
            let any_port = calls.servers.iter().map(|(ip, _)| *ip).filter(|ip| pods.contains(ip));
            calls.servers.extend(any_port.map(|ip| (ip, ANY_PORT)).collect::<Vec<_>>());
            if self.is_interceptors(flow) { &mut calls.of_proxies } else { &mut calls.of_applications }.push(*index);
            let same = calls.servers.iter().filter_map(|at| by_server.get(at));
            let same: BTreeSet<usize> = same.map(|at| merged_into(&places, *at)).collect();
            let largest = same.iter().copied().max_by_key(|place| all[*place].servers.len());
            let place = largest.unwrap_or_else(|| {
                all.push(Calls::default());
                places.push(places.len());
                places.len() - 1
            });
            by_server.extend(calls.servers.iter().map(|at| (*at, place)));
            all[place].add(calls);
            for other in same.into_iter().filter(|other| *other != place) {
                places[other] = place;
                let other = std::mem::take(&mut all[other]);
                all[place].add(other);
            }
        }
        all.retain(|calls| !calls.is_empty());
        all.iter_mut().for_each(Calls::sort);
        all
    }

    pub(super) fn is_interceptors(&self, flow: &ClientFlow<'a>) -> bool {
        flow.leg.is_proxys || self.interceptors.ports(flow.node, flow.netns, flow.cgroup_id).is_some()
    }

    /// Returns the pods that interceptors call at the ports of the pods' own proxies: these may lead to any port there.
    fn pods_called_at_proxies<'f>(&self, flows: impl Iterator<Item = &'f ClientFlow<'a>>) -> HashSet<IpAddr>
    where
        'a: 'f,
    {
        let calls_proxy = |flow: &&ClientFlow<'a>| {
            let Tuple { server, port, .. } = flow.tuple;
            self.is_interceptors(flow) && self.redirected.get(&server).is_some_and(|it| it.ports.contains(&port))
        };
        flows.filter(calls_proxy).map(|flow| flow.tuple.server).collect()
    }

    /// Returns the address that a flow called, and where it may lead.
    fn servers_of(&mut self, flow: &ClientFlow<'a>) -> BTreeSet<(IpAddr, u16)> {
        let backends = self.candidates_of(flow);
        let backends = backends.iter().flat_map(|candidates| candidates.backends.keys().copied());
        backends.chain([(flow.tuple.server, flow.tuple.port)]).collect()
    }

    fn relation(&mut self, calls: &Calls, client_flows: &[ClientFlow<'a>]) -> Relation {
        if calls.all().any(|index| client_flows[index].leg.is_pooled) {
            return Relation::Pooled;
        }
        if !calls.has_both() {
            return Relation::Alone;
        }
        let (accepted, opened) = self.legs(calls, client_flows);
        if Leg::is_one_for_one(&accepted, &opened) {
            return Relation::OneForOne;
        }
        let known = self.known_to_servers(calls, client_flows);
        let settled = self.options.settled();
        let reported = self.reported_by(calls, client_flows).min(settled);
        let served = |settled| {
            let served = self.servers_flows_of(calls, client_flows).map(|index| &self.server_flows[index]);
            Leg::settled_of_servers(served, settled)
        };
        // More than the proxy opened: the applications reached the servers without it.
        if served(reported) > known {
            Relation::Separate
        } else if reported < settled && served(settled) > known {
            // The agent of the pod's node reports later than the servers' agents.
            Relation::Waiting
        } else {
            Relation::Pooled
        }
    }

    /// Returns the connections that servers count of calls, but for those that reached them without the proxy since.
    fn known_to_servers(&self, calls: &Calls, client_flows: &[ClientFlow<'a>]) -> u64 {
        let sum = |indexes: &[usize], part: fn(&ClientFlow<'_>) -> u64| {
            indexes.iter().map(|index| part(&client_flows[*index])).fold(0, count::add)
        };
        let by_proxies = sum(&calls.of_proxies, |flow| flow.counters.opened);
        let apart = sum(&calls.of_applications, |flow| flow.leg.apart);
        // The proxy's flows of some may be gone.
        let matched = sum(&calls.of_applications, |flow| flow.leg.matched);
        let gone = matched.saturating_sub(sum(&calls.of_proxies, |flow| flow.leg.placed.opened));
        let known = [by_proxies, apart, gone].into_iter().fold(0, count::add);
        if self.forgotten.is_empty() {
            return known;
        }
        let client = calls.all().next().map(|index| self.ends.peer_of(client_flows[index].end));
        let servers: BTreeSet<(PeerId, u16)> = self
            .servers_flows_of(calls, client_flows)
            .map(|index| (self.ends.peer_of(self.server_flows[index].end), self.server_flows[index].port))
            .collect();
        let forgotten = servers.into_iter().zip(client.into_iter().cycle()).map(|((server, port), client)| {
            let (client, server) = (self.ends.peer(client), self.ends.peer(server));
            self.forgotten.counted(client, server, (port, Protocol::Tcp))
        });
        forgotten.fold(known, count::add)
    }

    /// Returns the time up to which the agent of a pod has reported its calls.
    fn reported_by(&self, calls: &Calls, client_flows: &[ClientFlow<'a>]) -> SystemTime {
        let node = calls.all().next().map(|index| client_flows[index].node);
        let node = node.filter(|node| self.ledger.observes(node, self.options.now));
        let heard = node.and_then(|node| self.ledger.heard(node)).unwrap_or(self.options.now);
        heard.checked_sub(self.options.settle).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Returns the servers' flows that can be the other ends of calls.
    fn servers_flows_of(
        &self,
        calls: &Calls,
        client_flows: &[ClientFlow<'a>],
    ) -> impl Iterator<Item = usize> + use<'_, 'a> {
        let indexes = calls.of_applications.iter().chain(&calls.of_proxies);
        let flows: Vec<&ClientFlow<'a>> = indexes.map(|index| &client_flows[*index]).collect();
        let span = flows.iter().map(|flow| flow.span).reduce(|one, next| one.with(&next));
        let ends = flows.iter().flat_map(|flow| [flow.tuple.scope, Scope::Cluster].map(|it| (it, flow.tuple.client)));
        let ends: BTreeSet<(Scope<'a>, IpAddr)> = ends.collect();
        let ports_of = |(ip, port): &(IpAddr, u16)| {
            let redirected = self.redirected.get(ip).into_iter().flat_map(|it| it.ports.iter().copied());
            redirected.chain([*port]).collect::<Vec<u16>>()
        };
        let at_ports = calls.servers.iter().map(|at| (at.0, ports_of(at)));
        let servers: BTreeSet<(IpAddr, u16)> =
            at_ports.flat_map(|(ip, ports)| ports.into_iter().map(move |port| (ip, port))).collect();
        let tuples = ends.into_iter().flat_map(move |(scope, client)| {
            let tuple = move |(server, port)| Tuple { scope, client, server, port, protocol: Protocol::Tcp };
            servers.clone().into_iter().map(tuple)
        });
        // The address may have been another client's.
        let is_in_time = move |index: &usize| {
            span.is_some_and(|span| span.gap(&self.server_flows[*index].span) <= self.options.settle)
        };
        tuples.filter_map(|tuple| self.by_tuple(&tuple)).flatten().filter(is_in_time)
    }

    /// Joins an application's connections with the proxy that accepted them.
    fn join_with_proxy(
        &mut self,
        flow: &ClientFlow<'a>,
        (server, port): (EndpointId, Option<u16>),
        counters: &EdgeCounters,
    ) {
        if *counters == EdgeCounters::default() {
            return;
        }
        let service = self.candidates_of(flow).and_then(|candidates| candidates.service);
        let key = Key {
            client: self.ends.peer_of(flow.end),
            server: self.ends.peer_of(server),
            service,
            port,
            protocol: Protocol::Tcp,
        };
        self.add_from_client(flow, key, counters);
        let sum = self.sums.at(key);
        sum.both_seen = true;
        sum.server_certain = true;
        sum.add_server(server, counters.opened, counters.failed);
    }
}

/// Connections of a flow that are on no edge yet.
#[derive(Clone, Copy, Debug, Default)]
struct LeftOut {
    /// Connections that wait for reports.
    waiting: u64,
    /// Connections of which the other leg is an attempt that is pending, or that failed and may be repeated.
    pending: u64,
}

/// Leaves a proxy's flow its own calls, and the attempts without a connection. Returns how many connections wait.
fn place_proxys(flow: &mut ClientFlow<'_>, out: LeftOut, is_one_for_one: bool) -> u64 {
    let counters = flow.counters;
    let decided = flow.leg.undecided_of_proxy(&counters) - out.waiting;
    if is_one_for_one {
        flow.leg.place_more(&counters, decided);
    } else {
        flow.leg.apart = count::add(flow.leg.apart, decided);
    }
    let own = counters.without(&flow.leg.placed);
    let own = if flow.leg.apart == 0 { EdgeCounters::default() } else { own.share(flow.leg.apart) };
    flow.counters = EdgeCounters { failed: counters.failed, pending: counters.pending, ..own };
    flow.fresh.opened = flow.fresh.opened.min(own.opened);
    out.waiting
}

/// Leaves an application's flow the connections with the server. Returns those with the proxy, and how many wait.
fn place_applications(flow: &mut ClientFlow<'_>, out: LeftOut) -> (EdgeCounters, u64) {
    let counters = flow.counters;
    let EdgeCounters { failed, pending, .. } = counters;
    let unanswered = flow.leg.unanswered;
    if !flow.leg.is_pooled {
        let opened = counters.opened.saturating_sub(unanswered).saturating_sub(out.waiting).saturating_sub(out.pending);
        let shown = flow.leg.place(&counters, opened);
        flow.leg.placed.failed = failed;
        flow.counters = EdgeCounters { failed, pending, ..shown };
        let left_out = counters.opened - shown.opened;
        flow.fresh.opened = flow.fresh.opened.saturating_sub(left_out);
        return (EdgeCounters::default(), left_out.saturating_sub(unanswered).saturating_sub(out.pending));
    }
    let shown = flow.leg.place(&counters, 0);
    flow.counters = EdgeCounters { failed: flow.leg.placed.failed, ..shown };
    flow.fresh = Fresh::default();
    let rest = counters.without(&flow.counters);
    let opened = rest.opened.saturating_sub(unanswered);
    let of_proxy = if opened == 0 { EdgeCounters::default() } else { rest.share(opened) };
    (EdgeCounters { failed: rest.failed, pending, ..of_proxy }, 0)
}

/// Notes on the flows whether their counts alone show what was decided.
fn note_evident(relation: Relation, calls: &Calls, client_flows: &mut [ClientFlow<'_>]) {
    let sum = |indexes: &[usize], part: fn(&PlacedLeg) -> u64| {
        indexes.iter().map(|index| part(&client_flows[*index].leg)).fold(0, count::add)
    };
    let matched = sum(&calls.of_applications, |leg| leg.matched);
    let hidden = sum(&calls.of_proxies, |leg| leg.placed.opened);
    let is_plain = calls.all().all(|index| {
        let leg = &client_flows[index].leg;
        (leg.unanswered, leg.attempts, leg.inward) == (0, 0, 0)
    });
    let apart = calls.all().map(|index| client_flows[index].leg.apart).fold(0, count::add);
    let is_evident = is_plain
        && match relation {
            Relation::OneForOne => matched == hidden && apart == 0,
            Relation::Alone => (matched, hidden) == (0, 0),
            Relation::Separate | Relation::Pooled | Relation::Waiting => false,
        };
    for index in calls.all() {
        client_flows[index].leg.is_evident = is_evident;
    }
}

/// Gives the applications' flows what the proxies' connections measured: their own times are those of the way to the proxy.
fn move_measurements(calls: &Calls, client_flows: &mut [ClientFlow<'_>]) {
    if !calls.of_proxies.iter().any(|index| client_flows[*index].leg.placed.opened > 0) {
        return;
    }
    let of_proxies = || calls.of_proxies.iter();
    let rtt = of_proxies().fold(RttHistogram::default(), |sum, index| sum.plus(&client_flows[*index].measured.rtt));
    let retransmits = of_proxies().fold(EdgeCounters::default(), |mut sum, index| {
        sum.add_retransmits_of(&client_flows[*index].leg.placed);
        sum
    });
    for index in &calls.of_applications {
        client_flows[*index].measured.rtt = RttHistogram::default();
    }
    if let [only] = calls.of_applications[..] {
        client_flows[only].measured.rtt = rtt;
    }
    let first = calls.of_applications.iter().find(|index| client_flows[**index].counters.opened > 0);
    if let Some(first) = first {
        client_flows[*first].counters.add_retransmits_of(&retransmits);
    }
}

impl Calls {
    fn add(&mut self, other: Self) {
        self.servers.extend(other.servers);
        self.of_applications.extend(other.of_applications);
        self.of_proxies.extend(other.of_proxies);
    }

    fn sort(&mut self) {
        self.of_applications.sort_unstable();
        self.of_proxies.sort_unstable();
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        self.of_applications.iter().chain(&self.of_proxies).copied()
    }

    fn is_empty(&self) -> bool {
        self.of_applications.is_empty() && self.of_proxies.is_empty()
    }

    fn has_both(&self) -> bool {
        !self.of_applications.is_empty() && !self.of_proxies.is_empty()
    }
}

/// Returns the place into which a place was merged, itself if it was not.
fn merged_into(places: &[usize], mut place: usize) -> usize {
    while places[place] != place {
        place = places[place];
    }
    place
}
