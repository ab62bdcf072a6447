//! A proxy in front of servers: the flows of both of its legs, and where their connections are placed.

use std::{collections::BTreeSet, net::IpAddr, rc::Rc};

use super::{
    legs::{Leg, Matched, deal, only, take_attempts},
    names::EndpointId,
    observed::{ClientFlow, Fresh, ServerFlow, Tuple},
};
use crate::{
    count,
    edge::{EdgeCounters, Side},
    rtt::RttHistogram,
};

/// A proxy in front of servers.
#[derive(Debug, Default)]
pub(super) struct Relay {
    /// The clients' flows by which it calls servers in its network namespace.
    pub(super) calls: BTreeSet<usize>,
    /// The servers' flows that accept these.
    pub(super) answers: Vec<usize>,
    /// The servers' flows by which it accepts what arrives.
    pub(super) arrivals: Vec<usize>,
    /// The clients' flows of its pod to the pod itself, which it leads to the server as well.
    pub(super) inward: Vec<usize>,
}

/// Servers behind a proxy.
#[derive(Debug)]
pub(super) struct Behind {
    /// Port, if there is only one.
    pub(super) port: Option<u16>,
    /// Ports, if there are several.
    ports: Option<Rc<[u16]>>,
    /// End, if there is only one.
    pub(super) end: Option<EndpointId>,
}

impl Relay {
    /// Returns the ports of the servers behind it.
    pub(super) fn servers_ports(&self, server_flows: &[ServerFlow<'_>]) -> BTreeSet<u16> {
        self.answers.iter().map(|index| server_flows[*index].tuple.port).collect()
    }

    /// Returns the servers behind it.
    pub(super) fn behind(&self, server_flows: &[ServerFlow<'_>]) -> Behind {
        let ends: BTreeSet<EndpointId> = self.answers.iter().map(|index| server_flows[*index].end).collect();
        let ports = self.servers_ports(server_flows);
        let port = only(&ports);
        let ports = port.is_none().then(|| ports.into_iter().collect());
        Behind { port, ports, end: only(&ends) }
    }

    /// Adds to `redirected` all addresses at the same ports, and at ports that were known before.
    pub(super) fn add_known_redirected(
        &self,
        redirected: &mut BTreeSet<(IpAddr, u16)>,
        client_flows: &[ClientFlow<'_>],
        server_flows: &[ServerFlow<'_>],
    ) {
        let of_calls = self.calls.iter().map(|index| client_flows[*index].leg.port);
        let arrivals = || self.arrivals.iter().map(|index| &server_flows[*index]);
        let of_arrivals = arrivals().filter(|flow| flow.leg.is_redirected).map(|flow| flow.tuple.port);
        let known: BTreeSet<u16> =
            redirected.iter().map(|(_, port)| *port).chain(of_calls).chain(of_arrivals).collect();
        let at_known = arrivals().filter(|flow| known.contains(&flow.tuple.port));
        redirected.extend(at_known.map(|flow| (flow.tuple.server, flow.tuple.port)));
    }

    /// Records to which ports connections are redirected.
    pub(super) fn note_redirected(
        &self,
        redirected: &BTreeSet<(IpAddr, u16)>,
        client_flows: &mut [ClientFlow<'_>],
        server_flows: &mut [ServerFlow<'_>],
    ) {
        for index in &self.arrivals {
            let flow = &mut server_flows[*index];
            flow.leg.is_redirected = redirected.contains(&(flow.tuple.server, flow.tuple.port));
        }
        let Some((_, port)) = redirected.first() else { return };
        for index in &self.calls {
            let leg = &mut client_flows[*index].leg;
            leg.port = if leg.port == 0 { *port } else { leg.port };
        }
    }

    /// Takes the arrivals at ports of which nothing shows that clients called others.
    pub(super) fn take_opaque<'a>(
        &mut self,
        is_transparent: impl Fn(&ServerFlow<'a>) -> bool,
        server_flows: &[ServerFlow<'a>],
    ) -> Vec<usize> {
        let (transparent, opaque) =
            std::mem::take(&mut self.arrivals).into_iter().partition(|index| is_transparent(&server_flows[*index]));
        self.arrivals = transparent;
        opaque
    }

    /// Matches the connections of both legs as far as both have them. Returns of each call how many wait.
    pub(super) fn match_legs(
        &self,
        accepted: &Leg,
        opened: &Leg,
        client_flows: &mut [ClientFlow<'_>],
        server_flows: &mut [ServerFlow<'_>],
    ) -> Vec<(usize, u64)> {
        let Matched { both, certainly, .. } = Leg::matched(accepted, opened);
        let mut decided = both + take_attempts(self.calls.iter(), client_flows, certainly);
        let port = self.behind(server_flows).port;
        // The newest ones wait, whichever flow they are of.
        for are_fresh in [false, true] {
            let mut take = |undecided: u64, fresh: u64| {
                let taken = undecided.saturating_sub(if are_fresh { 0 } else { fresh }).min(decided);
                decided -= taken;
                taken
            };
            for index in &self.arrivals {
                let flow = &mut server_flows[*index];
                let more = take(flow.counters.opened.saturating_sub(flow.leg.matched), flow.fresh.opened);
                flow.leg.matched += more;
                if let Some(port) = port {
                    flow.leg.port = port;
                    flow.leg.place(&flow.counters, flow.leg.placed.opened + more);
                }
            }
            for index in &self.inward {
                let flow = &mut client_flows[*index];
                flow.leg.inward += take(flow.counters.opened.saturating_sub(flow.leg.inward), flow.fresh.opened);
            }
        }
        let calls: Vec<usize> = self.calls.iter().copied().collect();
        deal(opened.opened - both, &calls, client_flows, |flow| flow.leg.undecided_of_proxy(&flow.counters))
    }

    /// Leaves the calls of what is no transparent proxy, as far as it is known, and what it accepts.
    pub(super) fn leave_apart(
        &self,
        (opaque, waiting): (&[usize], &[usize]),
        foreign: &BTreeSet<Tuple<'_>>,
        client_flows: &mut [ClientFlow<'_>],
        server_flows: &mut [ServerFlow<'_>],
    ) {
        let mut is_evident = true;
        for index in &self.calls {
            let call = &mut client_flows[*index];
            if waiting.contains(index) || foreign.contains(&call.tuple) {
                continue;
            }
            call.leg.apart = count::add(call.leg.apart, call.leg.undecided_of_proxy(&call.counters));
            call.leg.is_evident = call.leg.placed.opened == 0 && call.leg.port == 0;
            is_evident &= call.leg.is_evident;
            if call.leg.placed.opened > 0 {
                leave_own(call, &self.answers, server_flows);
            }
        }
        for index in opaque.iter().filter(|_| waiting.is_empty()) {
            let flow = &mut server_flows[*index];
            flow.leg.matched = flow.counters.opened;
            flow.leg.is_evident = is_evident;
        }
    }

    /// Removes the calls in the name of others: these are the callers.
    pub(super) fn apply_foreign(
        &self,
        proxy: EndpointId,
        foreign: &BTreeSet<Tuple<'_>>,
        client_flows: &mut [ClientFlow<'_>],
        server_flows: &mut [ServerFlow<'_>],
    ) {
        for index in &self.calls {
            let call = &mut client_flows[*index];
            if !foreign.contains(&call.tuple) {
                continue;
            }
            call.via = Some((Side::Server, proxy));
            if self.arrivals.iter().any(|arrival| server_flows[*arrival].tuple == call.tuple) {
                take_answers(call, call.counters.opened, &self.answers, server_flows);
            } else {
                // The client's own flow is the other end.
                self.note(proxy, call, server_flows);
            }
            let EdgeCounters { opened, failed, pending, .. } = call.counters;
            call.leg.place(&call.counters, opened);
            call.counters = EdgeCounters { failed, pending, ..EdgeCounters::default() };
            call.fresh = Fresh::default();
        }
    }

    /// Notes on the flows whether their counts alone show what was decided.
    pub(super) fn note_evident(
        &self,
        is_one_for_one: bool,
        client_flows: &mut [ClientFlow<'_>],
        server_flows: &mut [ServerFlow<'_>],
    ) {
        let accepted = self.arrivals.iter().map(|index| server_flows[*index].leg.matched).fold(0, count::add);
        let calls = || self.calls.iter().map(|index| client_flows[*index].leg);
        let opened = calls().map(|leg| leg.placed.opened).fold(0, count::add);
        let is_plain = self.inward.is_empty() && calls().all(|leg| (leg.attempts, leg.apart) == (0, 0));
        let is_evident = is_one_for_one && is_plain && accepted == opened;
        let has_one_port = only(&self.servers_ports(server_flows)).is_some();
        for index in &self.arrivals {
            let leg = &mut server_flows[*index].leg;
            leg.is_evident = is_evident && (has_one_port || accepted == 0);
        }
        for index in &self.calls {
            let leg = &mut client_flows[*index].leg;
            leg.is_evident = is_evident && (has_one_port || accepted == 0);
        }
    }

    /// Notes the proxy on the servers' flows that accepted a call.
    pub(super) fn note(&self, proxy: EndpointId, call: &ClientFlow<'_>, server_flows: &mut [ServerFlow<'_>]) {
        for index in &self.answers {
            let flow = &mut server_flows[*index];
            if flow.tuple == call.tuple {
                flow.via = Some(proxy);
            }
        }
    }
}

/// Gives the placed connections that a proxy accepted to the server behind it, and the others, too, where each is one of the
/// proxy's calls. Returns a part that is the server's alone.
pub(super) fn place_arrival<'a>(
    flow: &mut ServerFlow<'a>,
    proxy: EndpointId,
    behind: &Behind,
    is_one_for_one: bool,
) -> Option<ServerFlow<'a>> {
    flow.via = Some(proxy);
    let counters = flow.counters;
    let end = flow.end;
    flow.port = behind.port.unwrap_or(flow.port);
    flow.ports_behind.clone_from(&behind.ports);
    flow.end = behind.end.filter(|_| is_one_for_one).unwrap_or(end);
    if flow.leg.placed.opened == 0 {
        return None;
    }
    let placed = ServerEnd { port: flow.leg.port, end: behind.end.unwrap_or(end) };
    if flow.leg.placed.opened >= counters.opened {
        (flow.port, flow.end) = (placed.port, placed.end);
        return None;
    }
    if (flow.port, flow.end) == (placed.port, placed.end) {
        return None;
    }
    let mut leg = flow.leg;
    let part = leg.place(&counters, 0);
    let forgotten = flow.forgotten.min(part.opened);
    let mut first = ServerFlow {
        port: placed.port,
        end: placed.end,
        counters: part,
        left: part,
        forgotten,
        fresh: Fresh::default(),
        fresh_bytes: [0; 2],
        ..flow.clone()
    };
    first.measured.rtt = RttHistogram::default();
    flow.counters = counters.without(&part);
    flow.left = flow.counters;
    flow.forgotten -= forgotten;
    flow.fresh.opened = flow.fresh.opened.min(flow.counters.opened);
    Some(first)
}

/// End and port of a server.
struct ServerEnd {
    port: u16,
    end: EndpointId,
}

/// Leaves a proxy's call the connections that are its own, and the attempts without a connection. The others are taken from
/// the servers' flows that accepted them.
pub(super) fn leave_own(call: &mut ClientFlow<'_>, answers: &[usize], server_flows: &mut [ServerFlow<'_>]) {
    let EdgeCounters { opened, failed, pending, .. } = call.counters;
    take_answers(call, opened.saturating_sub(call.leg.apart), answers, server_flows);
    let own = call.counters.without(&call.leg.placed);
    let own = if call.leg.apart == 0 { EdgeCounters::default() } else { own.share(call.leg.apart) };
    call.counters = EdgeCounters { failed, pending, ..own };
    call.fresh.opened = call.fresh.opened.min(own.opened);
}

/// Takes so many connections of a proxy's call from the servers' flows that accepted them.
pub(super) fn take_answers(call: &ClientFlow<'_>, opened: u64, answers: &[usize], server_flows: &mut [ServerFlow<'_>]) {
    let mut left = opened;
    for index in answers.iter().filter(|index| server_flows[**index].tuple == call.tuple).copied().collect::<Vec<_>>() {
        let flow = &mut server_flows[index];
        left -= flow.take(left.min(flow.left.opened), Some(call.end)).counters.opened;
    }
}
