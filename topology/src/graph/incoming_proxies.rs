//! Transparent proxies in front of servers: a pod's network leads what arrives to a proxy, and the proxy calls the server
//! in the same network.
//!
//! A proxy is transparent if it accepts connections at a port that no client called, or if the server listens at the same
//! port. One that clients call at its own port is a server as any other. A connection within the network from an address
//! that is not the pod's is a transparent proxy's on behalf of that address.

use std::{collections::BTreeSet, net::IpAddr, time::SystemTime};

use super::{
    candidates::Redirection,
    join::Join,
    legs::{Leg, leave_unanswered, only, remove},
    names::EndpointId,
    observed::{ClientFlow, ServerFlow, Tuple},
};
use crate::{
    count,
    edge::Side,
    flow::Protocol,
    hash::{HashMap, HashSet},
};

/// A network namespace of a node, and the end that may be a proxy there.
type Place<'a> = (&'a str, u32, EndpointId);

/// A proxy in front of servers.
#[derive(Debug, Default)]
struct Relay {
    /// The clients' flows by which it calls servers in its network namespace.
    calls: BTreeSet<usize>,
    /// The servers' flows that accept these.
    answers: Vec<usize>,
    /// The servers' flows by which it accepts what arrives.
    arrivals: Vec<usize>,
}

/// Ports that clients called.
#[derive(Debug, Default)]
struct Called {
    ports: HashMap<IpAddr, BTreeSet<u16>>,
    /// Of these, the ones at which a client has opened connections, by client and called address.
    opened_by: HashMap<(IpAddr, IpAddr), BTreeSet<u16>>,
}

impl<'a> Join<'a> {
    /// Gives the connections that proxies accept to the servers behind them where both are the same calls, and notes the
    /// proxies. The connections between proxy and server are then no calls of their own.
    pub(super) fn follow_incoming_proxies(
        &mut self,
        client_flows: &mut Vec<ClientFlow<'a>>,
        server_flows: &mut [ServerFlow<'a>],
    ) {
        let relays = self.relays(client_flows, server_flows);
        if relays.is_empty() {
            return;
        }
        let called = self.called_ports(client_flows);
        let mut listened: HashMap<IpAddr, BTreeSet<u16>> = HashMap::default();
        for Tuple { server, port, .. } in
            server_flows.iter().filter(|flow| is_from_elsewhere(flow)).map(|flow| flow.tuple)
        {
            listened.entry(server).or_default().insert(port);
        }
        let mut gone = HashSet::default();
        for ((_, _, proxy), mut relay) in relays {
            let ports = relay.servers_ports(server_flows);
            let redirected = redirected_ports(&relay, server_flows, &called, &listened);
            let may_be_redirected = relay.arrivals.iter().map(|index| &server_flows[*index]).any(|flow| {
                let Tuple { server, port, .. } = flow.tuple;
                !called.has(server, port) && self.is_client_observed(flow)
            });
            relay.arrivals.retain(|index| {
                let Tuple { server, port, .. } = server_flows[*index].tuple;
                ports.contains(&port) || redirected.contains(&(server, port))
            });
            for (server, port) in redirected {
                let listened = || listened.get(&server).cloned().unwrap_or_default();
                let new = || Redirection { listened: listened(), ..Redirection::default() };
                self.redirected.entry(server).or_insert_with(new).ports.insert(port);
            }
            let foreign: BTreeSet<Tuple<'a>> = relay
                .answers
                .iter()
                .map(|index| &server_flows[*index])
                .filter(|flow| self.has_foreign_client(flow))
                .map(|flow| flow.tuple)
                .collect();
            if relay.arrivals.is_empty() && may_be_redirected {
                gone.extend(self.wait_for_clients(&relay, &foreign, client_flows, server_flows));
            }
            let settled = self.options.settled();
            gone.extend(relay.apply(proxy, (&foreign, settled), client_flows, server_flows));
        }
        remove(client_flows, &gone);
    }

    /// Has new calls of what may be a proxy wait: its clients' reports are on their way, and may show that it is transparent.
    /// Returns the numbers of these calls. Those from `foreign` addresses need no other evidence.
    fn wait_for_clients(
        &mut self,
        relay: &Relay,
        foreign: &BTreeSet<Tuple<'a>>,
        client_flows: &[ClientFlow<'a>],
        server_flows: &mut [ServerFlow<'a>],
    ) -> Vec<usize> {
        let mut waiting = Vec::new();
        for index in &relay.calls {
            let call = &client_flows[*index];
            if !foreign.contains(&call.tuple) && self.waits(call.first_seen) {
                self.unsettled = count::add(self.unsettled, call.counters.opened);
                take_answers(call, &relay.answers, server_flows);
                waiting.push(*index);
            }
        }
        waiting
    }

    /// Returns all ends that accept connections from elsewhere in pods' networks and call others there.
    fn relays(&self, client_flows: &[ClientFlow<'a>], server_flows: &[ServerFlow<'a>]) -> Vec<(Place<'a>, Relay)> {
        let mut relays: HashMap<Place<'a>, Relay> = HashMap::default();
        let namespaces: HashSet<(&str, u32)> = server_flows.iter().map(|flow| (flow.node, flow.netns)).collect();
        let mut callers: HashMap<Tuple<'a>, Vec<(Place<'a>, usize)>> = HashMap::default();
        for (index, flow) in client_flows.iter().enumerate() {
            // The dearest question last: most flows are not asked it.
            if flow.tuple.protocol == Protocol::Tcp
                && namespaces.contains(&(flow.node, flow.netns))
                && (flow.tuple.is_inner() || self.directory.is_pods_address_on(flow.node, flow.tuple.server))
            {
                callers.entry(flow.tuple).or_default().push(((flow.node, flow.netns, flow.end), index));
            }
        }
        if callers.is_empty() {
            return Vec::new();
        }
        for (answer, flow) in server_flows.iter().enumerate() {
            for ((node, netns, end), call) in callers.get(&flow.tuple).into_iter().flatten() {
                if (*node, *netns) == (flow.node, flow.netns) && *end != flow.end {
                    let relay = relays.entry((node, *netns, *end)).or_default();
                    relay.answers.push(answer);
                    relay.calls.insert(*call);
                }
            }
        }
        for (index, flow) in server_flows.iter().enumerate() {
            if is_from_elsewhere(flow)
                && self.directory.is_pods_address(flow.tuple.server)
                && let Some(relay) = relays.get_mut(&(flow.node, flow.netns, flow.end))
            {
                relay.arrivals.push(index);
            }
        }
        let mut relays: Vec<_> = relays.into_iter().filter(|(_, relay)| !relay.arrivals.is_empty()).collect();
        // In the order of their flows: that of the numbers of ends depends on what was joined before.
        relays.sort_unstable_by_key(|(_, relay)| relay.calls.first().copied());
        relays
    }

    /// Returns whether a server's connections come from an address that is not its pod's.
    fn has_foreign_client(&self, flow: &ServerFlow<'a>) -> bool {
        let client = flow.tuple.client;
        !client.is_loopback() && self.own_pod(flow.end).is_some_and(|pod| !pod.ips.contains(&client))
    }

    /// Returns the ports that clients called. What interceptors call is on its way to a proxy, or was called by others, too.
    fn called_ports(&self, client_flows: &[ClientFlow<'a>]) -> Called {
        let mut called = Called::default();
        let is_clients = |flow: &&ClientFlow<'a>| !flow.tuple.is_inner() && !self.is_interceptors(flow);
        for flow in client_flows.iter().filter(is_clients) {
            let Tuple { client, server, port, .. } = flow.tuple;
            let service = self.service_called(flow);
            let backends = service.iter().flat_map(|service| &service.backends).map(|at| (at.ip, at.port));
            for (server, port) in backends.chain([(server, port)]) {
                called.ports.entry(server).or_default().insert(port);
                if flow.counters.opened > 0 {
                    called.opened_by.entry((client, server)).or_default().insert(port);
                }
            }
        }
        called
    }
}

impl Called {
    fn has(&self, server: IpAddr, port: u16) -> bool {
        self.ports.get(&server).is_some_and(|ports| ports.contains(&port))
    }
}

impl Relay {
    /// Returns the ports of the servers behind it.
    fn servers_ports(&self, server_flows: &[ServerFlow<'_>]) -> BTreeSet<u16> {
        self.answers.iter().map(|index| server_flows[*index].tuple.port).collect()
    }

    /// Applies a proxy to the flows. Returns the numbers of the clients' flows that are no calls of their own. `foreign` are
    /// the calls from addresses that are not the pod's.
    fn apply(
        &self,
        proxy: EndpointId,
        (foreign, settled): (&BTreeSet<Tuple<'_>>, SystemTime),
        client_flows: &mut [ClientFlow<'_>],
        server_flows: &mut [ServerFlow<'_>],
    ) -> Vec<usize> {
        let ports = self.servers_ports(server_flows);
        let ends: BTreeSet<EndpointId> = self.answers.iter().map(|index| server_flows[*index].end).collect();
        let accepted = Leg::of_servers(self.arrivals.iter().map(|index| &server_flows[*index]), settled);
        let opened = Leg::of_clients(self.calls.iter().map(|index| &client_flows[*index]), settled);
        let are_same = Leg::is_one_for_one(&accepted, &opened);
        for index in &self.arrivals {
            let flow = &mut server_flows[*index];
            flow.via = Some(proxy);
            if let Some(port) = only(&ports) {
                flow.port = port;
            }
            if let Some(end) = only(&ends).filter(|_| are_same) {
                flow.end = end;
            }
        }
        let mut gone = Vec::new();
        for index in &self.calls {
            let call = &mut client_flows[*index];
            let is_for_others = foreign.contains(&call.tuple);
            if self.arrivals.is_empty() && !is_for_others {
                continue;
            }
            call.via = Some((Side::Server, proxy));
            if !are_same && !is_for_others {
                continue;
            }
            if is_for_others && !self.arrivals.iter().any(|arrival| server_flows[*arrival].tuple == call.tuple) {
                // The client's own flow is the other end.
                self.note(proxy, call, server_flows);
            } else {
                take_answers(call, &self.answers, server_flows);
            }
            if !leave_unanswered(call) {
                gone.push(*index);
            }
        }
        gone
    }

    /// Notes the proxy on the servers' flows that accepted a call.
    fn note(&self, proxy: EndpointId, call: &ClientFlow<'_>, server_flows: &mut [ServerFlow<'_>]) {
        for index in &self.answers {
            let flow = &mut server_flows[*index];
            if flow.tuple == call.tuple {
                flow.via = Some(proxy);
            }
        }
    }
}

/// Takes the connections of a proxy's call from the servers' flows that accepted them.
fn take_answers(call: &ClientFlow<'_>, answers: &[usize], server_flows: &mut [ServerFlow<'_>]) {
    let mut left = call.counters.opened;
    for index in answers.iter().filter(|index| server_flows[**index].tuple == call.tuple).copied().collect::<Vec<_>>() {
        let flow = &mut server_flows[index];
        left -= flow.take(left.min(flow.left.opened), Some(call.end)).counters.opened;
    }
}

/// Returns the addresses and ports at which a proxy accepts connections to other ports.
fn redirected_ports(
    relay: &Relay,
    server_flows: &[ServerFlow<'_>],
    called: &Called,
    listened: &HashMap<IpAddr, BTreeSet<u16>>,
) -> BTreeSet<(IpAddr, u16)> {
    let is_redirected = |tuple: &Tuple<'_>| {
        let others = called.opened_by.get(&(tuple.client, tuple.server)).into_iter().flatten();
        let is_listened = |port: &u16| listened.get(&tuple.server).is_some_and(|ports| ports.contains(port));
        !called.has(tuple.server, tuple.port) && others.into_iter().any(|port| !is_listened(port))
    };
    let tuples = relay.arrivals.iter().map(|index| &server_flows[*index].tuple);
    tuples.filter(|tuple| is_redirected(tuple)).map(|tuple| (tuple.server, tuple.port)).collect()
}

fn is_from_elsewhere(flow: &ServerFlow<'_>) -> bool {
    flow.tuple.protocol == Protocol::Tcp && !flow.tuple.is_inner()
}
