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
    join::Join,
    key::Key,
    legs::{Leg, leave_unanswered, remove},
    observed::{ClientFlow, ServerFlow, Tuple},
};
use crate::{
    edge::{EdgeCounters, Side},
    flow::Protocol,
    hash::HashSet,
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
        let mut by_namespace: BTreeMap<(&str, u32), Vec<usize>> = BTreeMap::new();
        for (index, flow) in client_flows.iter().enumerate() {
            if flow.tuple.protocol == Protocol::Tcp
                && self.interceptors.has(flow.node, flow.netns)
                && flow.via.is_none()
                && (self.is_interceptors(flow) || self.own_pod(flow.end).is_some())
            {
                by_namespace.entry((flow.node, flow.netns)).or_default().push(index);
            }
        }
        let mut all = Vec::new();
        for flows in by_namespace.into_values() {
            let mut of_namespace: Vec<Calls> = Vec::new();
            let pods = self.pods_called_at_proxies(flows.iter().map(|index| &client_flows[*index]));
            for index in flows {
                let mut calls = Calls { servers: self.servers_of(&client_flows[index]), ..Calls::default() };
                let any_port = calls.servers.iter().map(|(ip, _)| *ip).filter(|ip| pods.contains(ip));
                calls.servers.extend(any_port.map(|ip| (ip, ANY_PORT)).collect::<Vec<_>>());
                let is_proxys = self.is_interceptors(&client_flows[index]);
                if is_proxys { &mut calls.of_proxies } else { &mut calls.of_applications }.push(index);
                let (same, mut others): (Vec<Calls>, Vec<Calls>) =
                    of_namespace.into_iter().partition(|other| !other.servers.is_disjoint(&calls.servers));
                others.push(same.into_iter().fold(calls, Calls::with));
                of_namespace = others;
            }
            all.extend(of_namespace.into_iter().filter(Calls::has_both));
        }
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
        let accepted = Leg::of_clients(calls.of_applications.iter().map(|index| &client_flows[*index]));
        let opened = Leg::of_clients(calls.of_proxies.iter().map(|index| &client_flows[*index]));
        if Leg::is_one_for_one(&accepted, &opened) {
            return Relation::OneForOne;
        }
        let clients: BTreeSet<IpAddr> = calls.of_applications.iter().map(|it| client_flows[*it].tuple.client).collect();
        let of_clients = clients.iter().filter_map(|client| self.by_client.get(client).cloned()).flatten();
        let is_called = |tuple: &Tuple<'a>| {
            let is_redirected = self.redirected.get(&tuple.server).is_some_and(|it| it.ports.contains(&tuple.port));
            calls.servers.contains(&(tuple.server, tuple.port))
                || is_redirected && calls.servers.iter().any(|(ip, _)| *ip == tuple.server)
        };
        let server_flows = of_clients.map(|index| &self.server_flows[index]).filter(|flow| is_called(&flow.tuple));
        // More than the proxy opened: the applications reached the servers without it.
        let served = Leg::of_servers(server_flows);
        if served.settled() > opened.opened { Relation::Separate } else { Relation::Pooled }
    }

    /// Joins the applications' connections with the proxy that accepted them, and notes it on its own calls.
    fn join_with_proxy(&mut self, calls: &Calls, client_flows: &mut [ClientFlow<'a>]) {
        let Some(proxy) = calls.of_proxies.first().map(|index| &client_flows[*index]) else { return };
        let ports = self.interceptors.ports(proxy.node, proxy.netns, proxy.cgroup_id);
        let port = ports.and_then(|ports| ports.first().copied().filter(|_| ports.len() == 1));
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
    fn with(mut self, other: Self) -> Self {
        self.servers.extend(other.servers);
        self.of_applications.extend(other.of_applications);
        self.of_proxies.extend(other.of_proxies);
        self.of_applications.sort_unstable();
        self.of_proxies.sort_unstable();
        self
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
