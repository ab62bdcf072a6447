//! Transparent proxies beside clients: a pod's network redirects outgoing connections to a proxy, and the proxy calls the
//! server.
//!
//! [`super::interceptors`] has the proxies. The application's call and the proxy's lead to the same address, or the proxy
//! calls a backend of the Service that the application called.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    address::Scope,
    join::Join,
    key::Key,
    legs::{Leg, leave_unanswered, only, remove},
    observed::{ClientFlow, ServerFlow, Tuple},
};
use crate::{
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
            match self.relation(&calls, &client_flows) {
                Relation::Separate => {}
                Relation::OneForOne => gone.extend(lead_through(&calls, &mut client_flows)),
                Relation::Pooled => {
                    gone.extend(&calls.of_applications);
                    self.join_with_proxy(&calls, &mut client_flows);
                }
            }
        }
        remove(&mut client_flows, &gone);
        client_flows
    }

    /// Returns the calls of pods with interceptors, as far as applications and proxies call common servers.
    fn intercepted_calls(&mut self, client_flows: &[ClientFlow<'a>]) -> Vec<Calls> {
        // Numbers of network namespaces are used again: the address tells pods apart.
        let mut by_pod: BTreeMap<(&str, u32, IpAddr), Vec<usize>> = BTreeMap::new();
        for (index, flow) in client_flows.iter().enumerate() {
            if flow.tuple.protocol == Protocol::Tcp
                && self.interceptors.has(flow.node, flow.netns)
                && flow.via.is_none()
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
        all.retain(Calls::has_both);
        all.iter_mut().for_each(Calls::sort);
        all
    }

    pub(super) fn is_interceptors(&self, flow: &ClientFlow<'a>) -> bool {
        self.interceptors.ports(flow.node, flow.netns, flow.cgroup_id).is_some()
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

    fn relation(&self, calls: &Calls, client_flows: &[ClientFlow<'a>]) -> Relation {
        let settled = self.options.settled();
        let accepted = Leg::of_clients(calls.of_applications.iter().map(|index| &client_flows[*index]), settled);
        let opened = Leg::of_clients(calls.of_proxies.iter().map(|index| &client_flows[*index]), settled);
        if Leg::is_one_for_one(&accepted, &opened) {
            return Relation::OneForOne;
        }
        let served = self.servers_flows_of(calls, client_flows).map(|index| &self.server_flows[index]);
        let served = Leg::of_servers(served, settled);
        // More than the proxy opened: the applications reached the servers without it.
        if served.settled() > opened.opened { Relation::Separate } else { Relation::Pooled }
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

    /// Joins the applications' connections with the proxy that accepted them, and notes it on its own calls.
    fn join_with_proxy(&mut self, calls: &Calls, client_flows: &mut [ClientFlow<'a>]) {
        let Some(proxy) = calls.of_proxies.first().map(|index| &client_flows[*index]) else { return };
        let ports = self.interceptors.ports(proxy.node, proxy.netns, proxy.cgroup_id);
        let port = ports.and_then(only);
        let via = Some((Side::Client, proxy.end));
        let server = proxy.end;
        for index in &calls.of_applications {
            client_flows[*index].via = via;
            let flow = &client_flows[*index];
            let service = self.candidates_of(flow).and_then(|candidates| candidates.service);
            let key = Key {
                client: self.ends.peer_of(flow.end),
                server: self.ends.peer_of(server),
                service,
                port,
                protocol: Protocol::Tcp,
            };
            let counters = flow.counters;
            self.add_from_client(flow, key, &counters);
            let sum = self.sums.at(key);
            sum.both_seen = true;
            sum.server_certain = true;
            sum.add_server(server, counters.opened, counters.failed);
        }
        for index in &calls.of_proxies {
            client_flows[*index].via = via;
        }
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

    fn has_both(&self) -> bool {
        !self.of_applications.is_empty() && !self.of_proxies.is_empty()
    }
}

/// Notes the proxy on the applications' calls, with what its connections measured. Returns the proxies' flows that are no
/// calls of their own.
fn lead_through(calls: &Calls, client_flows: &mut [ClientFlow<'_>]) -> Vec<usize> {
    let of_proxies = || calls.of_proxies.iter();
    let rtt = of_proxies().fold(RttHistogram::default(), |sum, index| sum.plus(&client_flows[*index].measured.rtt));
    let retransmits = of_proxies().fold(EdgeCounters::default(), |mut sum, index| {
        sum.add_retransmits_of(&client_flows[*index].counters);
        sum
    });
    let via = of_proxies().next().map(|index| (Side::Client, client_flows[*index].end));
    for index in &calls.of_applications {
        let flow = &mut client_flows[*index];
        flow.via = via;
        // Its own times are those of the way to the proxy.
        flow.measured.rtt = RttHistogram::default();
    }
    if let [only] = calls.of_applications[..] {
        client_flows[only].measured.rtt = rtt;
    }
    if let Some(first) = calls.of_applications.first() {
        client_flows[*first].counters.add_retransmits_of(&retransmits);
    }
    of_proxies().copied().filter(|index| !leave_unanswered(&mut client_flows[*index])).collect()
}

/// Returns the place into which a place was merged, itself if it was not.
fn merged_into(places: &[usize], mut place: usize) -> usize {
    while places[place] != place {
        place = places[place];
    }
    place
}
