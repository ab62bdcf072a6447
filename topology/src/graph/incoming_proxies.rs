//! Transparent proxies in front of servers: a pod's network leads what arrives to a proxy, and the proxy calls the server
//! in the same network.
//!
//! A proxy is transparent if it accepts connections at a port that no client called, or if the server listens at the same
//! port. One that clients call at its own port is a server as any other. A connection within the network from an address
//! that is not the pod's is a transparent proxy's on behalf of that address.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    candidates::Redirection,
    join::Join,
    legs::{Leg, remove},
    names::EndpointId,
    observed::{ClientFlow, ServerFlow, Tuple},
    relay::{Relay, leave_own, place_arrival, take_answers},
};
use crate::{
    count,
    edge::{EdgeCounters, Side},
    flow::Protocol,
    hash::{HashMap, HashSet},
};

/// A network namespace of a node, and the end that may be a proxy there.
type Place<'a> = (&'a str, u32, EndpointId);

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
        server_flows: &mut Vec<ServerFlow<'a>>,
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
            relay.calls.iter().for_each(|index| client_flows[*index].is_relayed = true);
            let ports = relay.servers_ports(server_flows);
            let mut redirected = redirected_ports(&relay, server_flows, &called, &listened);
            relay.add_known_redirected(&mut redirected, client_flows, server_flows);
            let may_be_redirected = relay.arrivals.iter().map(|index| &server_flows[*index]).any(|flow| {
                let Tuple { server, port, .. } = flow.tuple;
                !called.has(server, port) && (self.is_client_awaited(flow) || self.is_client_observed(flow))
            });
            relay.note_redirected(&redirected, client_flows, server_flows);
            let opaque = relay.take_opaque(
                |flow| {
                    let Tuple { server, port, .. } = flow.tuple;
                    ports.contains(&port) || redirected.contains(&(server, port))
                },
                server_flows,
            );
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
            let is_transparent = !relay.arrivals.is_empty() || opaque.is_empty();
            if is_transparent {
                self.place_relayed(&relay, proxy, &foreign, client_flows, server_flows);
            } else {
                let waiting = if may_be_redirected {
                    let waiting = self.wait_for_clients(&relay, &foreign, client_flows, server_flows);
                    if !waiting.is_empty() {
                        self.hold_arrivals(&opaque, &called, server_flows);
                    }
                    waiting
                } else {
                    Vec::new()
                };
                relay.leave_apart((&opaque, &waiting), &foreign, client_flows, server_flows);
                relay.apply_foreign(proxy, &foreign, client_flows, server_flows);
                gone.extend(waiting);
            }
            let is_nothing = |index: &&usize| client_flows[**index].counters == EdgeCounters::default();
            gone.extend(relay.calls.iter().filter(is_nothing));
        }
        for index in &gone {
            let flow = &client_flows[*index];
            self.remember(flow.node, flow.id, flow.leg);
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
            if !foreign.contains(&call.tuple) && (self.awaits_agents || self.waits(call.first_seen)) {
                self.unsettled = count::add(self.unsettled, call.counters.opened);
                take_answers(call, call.counters.opened, &relay.answers, server_flows);
                waiting.push(*index);
            }
        }
        waiting
    }

    /// Returns whether a server's client may be one whose agent has not reported yet: a pod's or a node's.
    fn is_client_awaited(&self, flow: &ServerFlow<'a>) -> bool {
        let client = flow.tuple.client;
        self.awaits_agents && (self.directory.is_pods_address(client) || self.ends.nodes.of(client).is_some())
    }

    /// Has connections wait that arrived at what may be a proxy, at ports that no client called so far.
    fn hold_arrivals(&mut self, arrivals: &[usize], called: &Called, server_flows: &mut [ServerFlow<'a>]) {
        for index in arrivals {
            let flow = &server_flows[*index];
            if called.has(flow.tuple.server, flow.tuple.port) || !self.is_client_awaited(flow) {
                continue;
            }
            let left = &mut server_flows[*index].left;
            self.unsettled = count::add(self.unsettled, left.opened);
            *left = EdgeCounters { failed: left.failed, pending: left.pending, ..EdgeCounters::default() };
        }
    }

    /// Returns all ends that accept connections from elsewhere in pods' networks and call others there.
    fn relays(&self, client_flows: &[ClientFlow<'a>], server_flows: &[ServerFlow<'a>]) -> Vec<(Place<'a>, Relay)> {
        let mut relays: HashMap<Place<'a>, Relay> = HashMap::default();
        let namespaces: HashSet<(&str, u32)> = server_flows.iter().map(|flow| (flow.node, flow.netns)).collect();
        let mut callers: HashMap<Tuple<'a>, Vec<(Place<'a>, usize)>> = HashMap::default();
        for (index, flow) in client_flows.iter().enumerate() {
            // The dearest question last: most flows are not asked it.
            if flow.tuple.protocol == Protocol::Tcp
                && (flow.leg.port > 0 || namespaces.contains(&(flow.node, flow.netns)))
                && (flow.tuple.is_inner() || self.directory.is_pods_address_on(flow.node, flow.tuple.server))
            {
                callers.entry(flow.tuple).or_default().push(((flow.node, flow.netns, flow.end), index));
            }
        }
        if callers.is_empty() {
            return Vec::new();
        }
        for (place, call) in callers.values().flatten() {
            if client_flows[*call].leg.placed.opened > 0 && client_flows[*call].leg.port > 0 {
                // The server's flow may be gone.
                relays.entry(*place).or_default().calls.insert(*call);
            }
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
        for ((node, netns, end), relay) in &mut relays {
            if self.interceptors.has(node, *netns) {
                relay.inward = self.inward_calls((node, *netns, *end), &relay.calls, client_flows);
            }
        }
        let is_relay = |relay: &Relay| {
            let has_led = |index: &usize| client_flows[*index].leg.port > 0;
            !relay.arrivals.is_empty() || !relay.inward.is_empty() || relay.calls.iter().any(has_led)
        };
        let mut relays: Vec<_> = relays.into_iter().filter(|(_, relay)| is_relay(relay)).collect();
        // In the order of their flows: that of the numbers of ends depends on what was joined before.
        relays.sort_unstable_by_key(|(_, relay)| relay.calls.first().copied());
        relays
    }

    /// Returns the calls of a pod to itself that its proxy leads to the server, but for the proxy's `calls` of the server: the
    /// proxy's own, or else the applications'.
    fn inward_calls(
        &self,
        (node, netns, proxy): Place<'a>,
        calls: &BTreeSet<usize>,
        client_flows: &[ClientFlow<'a>],
    ) -> Vec<usize> {
        let is_to_itself = |flow: &ClientFlow<'a>| {
            let Tuple { scope, client, server, .. } = flow.tuple;
            let leads_back = || {
                let service = self.service_called(flow);
                service.is_some_and(|service| matches!(&service.backends[..], [only] if only.ip == client))
            };
            !scope.is_loopback() && (client == server || leads_back())
        };
        let inward = client_flows.iter().enumerate().filter(|(index, flow)| {
            flow.tuple.protocol == Protocol::Tcp
                && (flow.node, flow.netns) == (node, netns)
                && !calls.contains(index)
                && is_to_itself(flow)
        });
        let (of_proxy, of_others): (Vec<usize>, Vec<usize>) =
            inward.map(|(index, _)| index).partition(|index| client_flows[*index].end == proxy);
        if of_proxy.is_empty() { of_others } else { of_proxy }
    }

    /// Places what a transparent proxy accepts and opens.
    fn place_relayed(
        &mut self,
        relay: &Relay,
        proxy: EndpointId,
        foreign: &BTreeSet<Tuple<'a>>,
        client_flows: &mut [ClientFlow<'a>],
        server_flows: &mut Vec<ServerFlow<'a>>,
    ) {
        let settled = self.options.settled();
        let accepted = Leg::of_arrivals(relay.arrivals.iter().map(|index| &server_flows[*index]), settled);
        let inward = Leg::of_inward_calls(relay.inward.iter().map(|index| &client_flows[*index]), settled);
        let accepted = accepted.and(&inward);
        let opened = Leg::of_proxies(relay.calls.iter().map(|index| &client_flows[*index]), settled);
        let is_pooled = relay.arrivals.iter().any(|index| server_flows[*index].leg.is_pooled)
            || relay.calls.iter().any(|index| client_flows[*index].leg.is_pooled);
        let is_alone = relay.arrivals.is_empty() && relay.inward.is_empty();
        let is_one_for_one = !is_pooled && !is_alone && Leg::is_one_for_one(&accepted, &opened);
        let waiting = if is_one_for_one {
            relay.match_legs(&accepted, &opened, client_flows, server_flows)
        } else if is_alone {
            let fresh = |index: &usize| client_flows[*index].fresh.opened;
            relay.calls.iter().map(|index| (*index, fresh(index))).collect()
        } else {
            relay.calls.iter().map(|index| (*index, 0)).collect()
        };
        let is_pooled = is_pooled || !is_one_for_one && !relay.arrivals.is_empty();
        for (index, waiting) in waiting {
            let call = &mut client_flows[index];
            call.leg.is_pooled |= is_pooled;
            if foreign.contains(&call.tuple) {
                continue;
            }
            let decided = call.leg.undecided_of_proxy(&call.counters).saturating_sub(waiting);
            if is_one_for_one {
                call.leg.place_more(&call.counters, decided);
            } else {
                call.leg.apart = count::add(call.leg.apart, decided);
            }
            if !is_alone || call.leg.placed.opened > 0 {
                call.via = Some((Side::Server, proxy));
            }
            if waiting > 0 {
                self.hold(waiting, &client_flows[index].fresh);
            }
            leave_own(&mut client_flows[index], &relay.answers, server_flows);
        }
        let behind = relay.behind(server_flows);
        let has_led = relay.calls.iter().any(|index| client_flows[*index].leg.placed.opened > 0);
        for index in &relay.inward {
            let call = &mut client_flows[*index];
            if !is_one_for_one {
                call.leg.inward = call.counters.opened;
            }
            if call.end != proxy && has_led {
                call.via = Some((Side::Client, proxy));
            }
        }
        relay.apply_foreign(proxy, foreign, client_flows, server_flows);
        relay.arrivals.iter().for_each(|index| server_flows[*index].leg.is_pooled |= is_pooled);
        relay.note_evident(is_one_for_one, client_flows, server_flows);
        // Parts have the records of their flows.
        for index in &relay.arrivals {
            let part = place_arrival(&mut server_flows[*index], proxy, &behind, is_one_for_one);
            server_flows.extend(part);
        }
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
