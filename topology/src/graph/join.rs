//! Finds for each client's flow the servers' flows that are its other end.
//!
//! Flows with equal addresses match directly. If the client called a Service, its other ends are flows of the Service's
//! backends with the client's address. A single backend is certain; otherwise the servers' counts divide the flow. If
//! the client's address was rewritten, only counts are left.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, ops::Range, rc::Rc, sync::Arc, time::SystemTime};

use super::{
    Graph, Known, KnownConnections, Options, WithBackends,
    address::{Called, Scope},
    candidates::{Candidates, Redirection},
    edges::{edge_key, edges},
    endpoints::Endpoints,
    external_peers::Choice,
    interceptors::Interceptors,
    key::{Key, ServiceKey},
    made_edges::MadeEdges,
    matching::Found,
    names::{EndpointId, Names},
    nodes::Nodes,
    observed::{ClientFlow, Fresh, INEXACT, Measured, ServerFlow, Span, Tuple, client_flow, is_counted, server_flow},
    path::{Call, Path},
    placed_legs::{FlowId, PlacedLeg, PlacedLegs},
    placement::Placed,
    shares::share_out,
    sums::{self, Sum, Sums},
};
use crate::{
    count,
    directory::{Directory, Owner},
    edge::EdgeCounters,
    entity::Pod,
    flow::{FlowTotals, Role},
    hash::{HashMap, HashSet},
    history::Part,
    ledger::{FlowView, Ledger},
};

/// A join: what all flows share, and those that are being joined.
pub(super) struct Join<'a> {
    pub(super) directory: &'a Directory,
    pub(super) ledger: &'a Ledger,
    pub(super) options: Options,
    pub(super) ends: Endpoints<'a>,
    pub(super) forgotten: KnownConnections,
    pub(super) placed: Placed<'a>,
    pub(super) with_backends: &'a WithBackends,
    pub(super) awaits_agents: bool,
    pub(super) interceptors: Arc<Interceptors>,
    placed_legs: &'a PlacedLegs,
    /// Known records of flows, if no more is to be decided.
    kept_legs: Option<HashMap<(&'a str, FlowId), PlacedLeg>>,
    /// Records of flows of proxied pods, by node, as they are now.
    legs: Vec<(&'a str, FlowId, PlacedLeg)>,
    client_flows: Vec<ClientFlow<'a>>,
    /// By tuple, so that those of one tuple and those of one client are neighbours.
    pub(super) server_flows: Vec<ServerFlow<'a>>,
    pub(super) by_tuple: HashMap<Tuple<'a>, Range<usize>>,
    pub(super) by_client: HashMap<IpAddr, Range<usize>>,
    /// Redirections in pods' networks, by address.
    pub(super) redirected: HashMap<IpAddr, Redirection>,
    /// Addresses and ports of servers' flows.
    pub(super) servers: HashSet<Called<'a>>,
    pub(super) candidates: HashMap<(Called<'a>, ServiceKey), Rc<Candidates<'a>>>,
    /// Number of a node's calls of an address and port, without a Service, that no server flow explains.
    pub(super) unexplained_calls: HashMap<(&'a str, Called<'a>), u64>,
    pub(super) sums: Sums,
    /// Connections that servers' agents no longer report, by the edge without a Service and the server's pod.
    pub(super) forgotten_by_servers: HashMap<(Key, Box<str>), u64>,
    pub(super) unsettled: u64,
    settles_at: Option<SystemTime>,
    pub(super) names_change_at: Option<SystemTime>,
}

/// Result of joining some flows.
#[derive(Clone, Debug, Default)]
pub(super) struct Joined {
    pub(super) sums: HashMap<Key, Sum>,
    pub(super) forgotten_by_servers: HashMap<(Key, Box<str>), u64>,
    pub(super) unsettled: u64,
    /// Records of flows of proxied pods, by node.
    pub(super) legs: Vec<(Box<str>, FlowId, PlacedLeg)>,
    /// Time at which the first waiting time ends.
    pub(super) settles_at: Option<SystemTime>,
    /// Time at which the owner of a backend's address may change without an event.
    pub(super) names_change_at: Option<SystemTime>,
}

impl<'a> Join<'a> {
    pub(super) fn new(
        ledger: &'a Ledger,
        directory: &'a Directory,
        options: &Options,
        known: &'a Known,
        names: Names,
    ) -> Self {
        Self {
            directory,
            ledger,
            options: *options,
            ends: Endpoints::new(directory, Nodes::new(ledger, directory), names),
            forgotten: known.forgotten.clone(),
            placed: Placed::new(&known.placed),
            with_backends: &known.with_backends,
            awaits_agents: known.awaits_agents,
            interceptors: Arc::default(),
            placed_legs: &known.legs,
            kept_legs: known.keeps_legs.then(HashMap::default),
            legs: Vec::new(),
            client_flows: Vec::new(),
            server_flows: Vec::new(),
            by_tuple: HashMap::default(),
            by_client: HashMap::default(),
            redirected: HashMap::default(),
            servers: HashSet::default(),
            candidates: HashMap::default(),
            unexplained_calls: HashMap::default(),
            sums: Sums::default(),
            forgotten_by_servers: HashMap::default(),
            unsettled: 0,
            settles_at: None,
            names_change_at: None,
        }
    }

    /// Joins flows: all of them, or all of some groups.
    pub(super) fn join(&mut self, flows: impl Iterator<Item = FlowView<'a>>) -> Joined {
        self.load(flows);
        self.run_passes();
        Joined {
            sums: std::mem::take(&mut self.sums.by_key),
            forgotten_by_servers: std::mem::take(&mut self.forgotten_by_servers),
            unsettled: std::mem::take(&mut self.unsettled),
            legs: self.legs.drain(..).map(|(node, id, leg)| (node.into(), id, leg)).collect(),
            settles_at: self.settles_at.take(),
            names_change_at: self.names_change_at.take(),
        }
    }

    fn load(&mut self, flows: impl Iterator<Item = FlowView<'a>>) {
        let (mut client_flows, mut server_flows) = (Vec::new(), Vec::new());
        let options = self.options;
        for flow in flows.filter(|flow| is_counted(flow, &options)) {
            let end = self.ends.by_cgroup(flow.node, flow.owner);
            let scope = self.ends.nodes.scope(flow.node, flow.key);
            let leg = self.leg_of(&flow);
            match flow.key.role {
                Role::Client => {
                    let mut client_flow = client_flow(&flow, end, scope, &self.options);
                    client_flow.leg = leg.within(&client_flow.counters);
                    self.keep_leg(client_flow.node, client_flow.id, client_flow.leg);
                    client_flows.push(client_flow);
                }
                Role::Server => {
                    let mut server_flow = server_flow(&flow, end, scope, &self.options);
                    server_flow.leg = leg.within(&server_flow.counters);
                    self.keep_leg(server_flow.node, server_flow.id, server_flow.leg);
                    if !flow.key.local.is_loopback() {
                        let scope = if scope.is_loopback() { Scope::Cluster } else { scope };
                        let seen = Span { from: flow.listening_since, until: flow.changed };
                        self.ends.note_listener(Called { scope, ..server_flow.tuple.called() }, end, seen);
                    }
                    server_flows.push(server_flow);
                }
            }
        }
        self.drop_intercepted(&client_flows, &mut server_flows);
        self.candidates.clear();
        self.redirected.clear();
        self.follow_incoming_proxies(&mut client_flows, &mut server_flows);
        for flow in &server_flows {
            self.remember(flow.node, flow.id, flow.leg);
        }
        // Stable: within a tuple the ledger's order, which does not depend on the reports' order.
        server_flows.sort_by_cached_key(|server_flow| (server_flow.tuple.client, server_flow.tuple));
        self.by_tuple = ranges(&server_flows, |server_flow| server_flow.tuple);
        self.by_client = ranges(&server_flows, |server_flow| server_flow.tuple.client);
        self.servers = server_flows.iter().map(|server_flow| server_flow.tuple.called()).collect();
        self.unexplained_calls.clear();
        (self.client_flows, self.server_flows) = (client_flows, server_flows);
    }

    /// Returns the record of a flow's connections through proxies, as far as it has them.
    fn leg_of(&self, flow: &FlowView<'a>) -> PlacedLeg {
        if self.placed_legs.is_empty() {
            return PlacedLeg::default();
        }
        let FlowTotals { opened, failed, bytes_sent, bytes_received, .. } = flow.forgotten;
        let (bytes_sent, bytes_received) =
            if flow.key.role == Role::Client { (bytes_sent, bytes_received) } else { (bytes_received, bytes_sent) };
        let forgotten = EdgeCounters { opened, failed, bytes_sent, bytes_received, ..EdgeCounters::default() };
        self.placed_legs.of(flow).without_first(&forgotten)
    }

    /// Notes the known record of a flow, if no more is to be decided.
    fn keep_leg(&mut self, node: &'a str, id: FlowId, leg: PlacedLeg) {
        if let Some(kept) = &mut self.kept_legs {
            kept.insert((node, id), leg);
        }
    }

    /// Records where a flow's connections through proxies are.
    pub(super) fn remember(&mut self, node: &'a str, id: FlowId, leg: PlacedLeg) {
        let kept = self.kept_legs.as_ref().map(|kept| kept.get(&(node, id)).copied().unwrap_or_default());
        // Whether counts alone decide the same follows from what was decided just now.
        let is_same = |kept: &PlacedLeg| PlacedLeg { is_evident: leg.is_evident, ..*kept } == leg;
        let leg = match kept.filter(|kept| !is_same(kept)) {
            Some(kept) => PlacedLeg { is_evident: false, ..kept },
            None => leg,
        };
        if leg != PlacedLeg::default() {
            self.legs.push((node, id, leg));
        }
    }

    /// Runs the passes, most certain first, so that less is left to inference.
    fn run_passes(&mut self) {
        let client_flows = std::mem::take(&mut self.client_flows);
        let client_flows = self.follow_outgoing_proxies(client_flows);
        let lacks_bytes = |counters: &EdgeCounters| counters.without_bytes > 0;
        // For other flows it makes no difference.
        if client_flows.iter().any(|flow| lacks_bytes(&flow.counters))
            || self.server_flows.iter().any(|flow| lacks_bytes(&flow.counters))
        {
            self.count_ways(&client_flows);
        }
        let calls = self.calls(&client_flows);
        let with_backends = self.with_backends(&calls);
        let matched = self.match_calls(&calls, &with_backends);
        let mut address_reuse: BTreeMap<Tuple<'a>, Vec<(&ClientFlow<'a>, Vec<Found>)>> = BTreeMap::new();
        let (mut unmatched, mut undivided, mut divided_before) = (Vec::new(), Vec::new(), Vec::new());
        for ((Call { client_flow, path, .. }, found), with_backends) in
            calls.into_iter().zip(matched).zip(with_backends)
        {
            match path {
                Path::AddressReuse => address_reuse.entry(client_flow.tuple).or_default().push((client_flow, found)),
                Path::Direct => self.join_direct(client_flow, &found),
                Path::ToOne(candidates) => {
                    let left = self.join_single_backend(client_flow, &candidates, &found);
                    unmatched.push((client_flow, candidates, left));
                }
                Path::ToMany(candidates) => {
                    let left = self.divide(client_flow, &candidates, &found);
                    let with_backends = left.share(with_backends);
                    divided_before.push(with_backends);
                    undivided.push((client_flow, candidates, left.without(&with_backends)));
                }
            }
        }
        for (tuple, client_flows) in address_reuse {
            let server_flows: Vec<usize> = self.by_tuple(&tuple).into_iter().flatten().collect();
            self.join_reused_address(&client_flows, &server_flows);
        }
        self.join_translated(&mut unmatched, &mut undivided);
        for (client_flow, candidates, left) in &unmatched {
            self.note_unexplained(client_flow, candidates, *left);
            self.name_nat_peers(client_flow, candidates, *left);
        }
        for ((client_flow, candidates, mut left), with_backends) in undivided.into_iter().zip(divided_before) {
            self.note_unexplained(client_flow, &candidates, left.opened);
            if candidates.service.is_some() {
                self.divide_by_nat_peers(client_flow, candidates.service, &mut left);
            }
            left.add(&with_backends);
            self.leave_at_service(client_flow, &candidates, left);
        }
        self.join_unmatched_servers();
    }

    /// The servers' flows between the same addresses at the same port.
    pub(super) fn by_tuple(&self, tuple: &Tuple<'a>) -> Option<Range<usize>> {
        self.by_tuple.get(tuple).cloned()
    }

    /// Between which addresses there are clients' flows to one that has had several owners meanwhile, where servers'
    /// flows are the other end.
    pub(super) fn address_reuse(&self, client_flows: &[ClientFlow<'a>]) -> HashSet<Tuple<'a>> {
        let is_address_reused = |client_flow: &&ClientFlow<'a>| {
            let server_flows = self.by_tuple(&client_flow.tuple);
            server_flows
                .is_some_and(|server_flows| self.is_address_reused(client_flow, &server_flows.collect::<Vec<_>>()))
        };
        client_flows.iter().filter(is_address_reused).map(|client_flow| client_flow.tuple).collect()
    }

    /// Counts the ways that lead to each server flow; bytes of a server are certain only if there is one.
    fn count_ways(&mut self, client_flows: &[ClientFlow<'a>]) {
        for client_flow in client_flows {
            let server_flows = match self.by_tuple.get(&client_flow.tuple).cloned() {
                Some(range) => range.collect(),
                None => self
                    .candidates_of(client_flow)
                    .map_or_else(Vec::new, |candidates| self.server_flows_of(client_flow, &candidates)),
            };
            for index in server_flows {
                self.server_flows[index].ways += 1;
            }
        }
    }

    /// Makes the graph of all flows, which were joined in one or several parts. `made` are the edges of before. The caller
    /// adds the time at which the parts settle.
    pub(super) fn finish<'j>(
        &mut self,
        parts: impl Iterator<Item = &'j Joined>,
        choice: Choice<'_>,
        made: &mut MadeEdges,
    ) -> Graph {
        let mut graph = Graph { settles_at: self.ledger.next_silence(self.options.now), ..Graph::default() };
        let (mut merged, mut legs) = (HashMap::default(), PlacedLegs::default());
        for joined in parts {
            for (key, sum) in &joined.sums {
                sums::add(&mut merged, *key, Cow::Borrowed(sum));
            }
            for ((key, pod), opened) in &joined.forgotten_by_servers {
                let sum = graph.forgotten_by_servers.entry((edge_key(key, &self.ends), pod.to_string())).or_default();
                *sum = count::add(*sum, *opened);
            }
            graph.unsettled = count::add(graph.unsettled, joined.unsettled);
            for (node, id, leg) in &joined.legs {
                legs.insert(node, *id, *leg);
            }
        }
        graph.legs = Arc::new(legs);
        (graph.edges, graph.outside) = edges(merged, &mut self.ends, choice, made);
        graph
    }

    /// Both ends see the same addresses.
    fn join_direct(&mut self, client_flow: &ClientFlow<'a>, found: &[Found]) {
        let client = self.ends.peer_of(client_flow.end);
        let Tuple { port, protocol, .. } = client_flow.tuple;
        let counters = client_flow.counters.without(&self.join_earlier_failures(client_flow, found));
        let counters = counters.without(&self.wait_for_successor(client_flow));
        let mut rest = counters;
        let ends = || found.iter().map(|found| self.server_flows[found.server_flow].end);
        let several = ends().zip(ends().skip(1)).any(|(one, next)| self.ends.peer_of(one) != self.ends.peer_of(next));
        let sole_end = ends().zip(ends().skip(1)).all(|(one, next)| one == next);
        for (number, Found { server_flow: index, opened, .. }) in (1..).zip(found.iter().copied()) {
            let is_last = number == found.len();
            let server = self.ends.peer_of(self.server_flows[index].end);
            let key = Key { client, server, service: None, port: Some(port), protocol };
            let server_flow = &mut self.server_flows[index];
            let took = server_flow.take_of(opened, client_flow);
            let taken = took.counters;
            server_flow.explain(client_flow, key, taken.opened);
            // With several workloads behind one address (one after the other), the servers' counts divide.
            let share = if is_last {
                rest
            } else if several {
                rest.share(taken.opened)
            } else {
                EdgeCounters::default()
            };
            rest = rest.without(&share);
            let share = took.complete(&share);
            let failed = if sole_end && is_last { counters.failed } else { 0 };
            let sum = self.sums.at(key);
            sum.counters.add(&share);
            sum.counters.add_retransmits_of(&taken);
            sum.add_methods(client_flow.methods.union(server_flow.methods));
            if several {
                sum.add_measured_by_client_of_many(&client_flow.measured);
            } else if is_last {
                sum.add_measured_by_client(&client_flow.measured);
            }
            sum.add_measured_by_server(&server_flow.measured);
            sum.live |= client_flow.live;
            sum.add_via(client_flow.via, server_flow.via);
            sum.both_seen = true;
            sum.server_certain = true;
            sum.add_server(server_flow.end, taken.opened, failed);
            if share != EdgeCounters::default() {
                sum.add_client(client_flow.end, share.opened, share.failed);
            }
        }
    }

    /// Adds attempts at an address of no pod that failed before any of these servers was there. Returns them.
    fn join_earlier_failures(&mut self, client_flow: &ClientFlow<'a>, found: &[Found]) -> EdgeCounters {
        let begun = found.iter().map(|found| self.server_flows[found.server_flow].span.from).min();
        let may_be_others =
            !client_flow.tuple.scope.is_loopback() && !self.directory.is_pods_address(client_flow.tuple.server);
        let Some(begun) = begun.filter(|_| may_be_others) else {
            return EdgeCounters::default();
        };
        let is_earlier = |part: &&Part| part.counted.opened == 0 && part.until + INEXACT < begun;
        let Some(earlier) = client_flow.parts.iter().filter(is_earlier).copied().reduce(|one, next| one.with(&next))
        else {
            return EdgeCounters::default();
        };
        let failed = earlier.counted.failed.min(client_flow.counters.failed);
        let share = EdgeCounters { failed, ..EdgeCounters::default() };
        let span = Span { from: earlier.since, until: earlier.until };
        self.add_by_owner(client_flow, &Owner::NoPod, &share, span);
        share
    }

    /// The server was not seen: it is who has the address. `left` is what no server's flow explains.
    pub(super) fn join_by_address(&mut self, client_flow: &ClientFlow<'a>, mut left: EdgeCounters) {
        if !client_flow.tuple.scope.is_loopback() {
            self.divide_by_nat_peers(client_flow, None, &mut left);
            if left == EdgeCounters::default() {
                return;
            }
            let groups = self.groups_of(client_flow);
            let counted: Vec<_> = groups.iter().map(|group| group.counted).collect();
            for (group, share) in groups.iter().zip(share_out(&left, &counted)) {
                self.add_by_owner(client_flow, &group.owner, &share, group.span);
            }
            return;
        }
        self.note_unexplained_loopback(client_flow, left.opened);
        let server_end = self.own_loopback(client_flow.node, client_flow.end);
        let key = Key {
            client: self.ends.peer_of(client_flow.end),
            server: self.ends.peer_of(server_end),
            service: None,
            port: Some(client_flow.tuple.port),
            protocol: client_flow.tuple.protocol,
        };
        self.add_from_client(client_flow, key, &left);
        let sum = self.sums.at(key);
        sum.server_certain = true;
        sum.add_server(server_end, left.opened, left.failed);
    }

    /// Returns the endpoint that answers at a loopback address of the network namespace of `end`.
    pub(super) fn own_loopback(&mut self, node: &'a str, end: EndpointId) -> EndpointId {
        match self.own_pod(end) {
            Some(pod) => self.ends.pod_netns(pod),
            None => self.ends.node_netns(node),
        }
    }

    /// Returns the pod of an end, if it has a network of its own.
    pub(super) fn own_pod(&self, end: EndpointId) -> Option<&'a Pod> {
        let uid = self.ends.end(end).pod_uid()?;
        self.directory.pod(uid).filter(|pod| !pod.host_network)
    }

    pub(super) fn add_from_client(&mut self, client_flow: &ClientFlow<'a>, key: Key, counters: &EdgeCounters) {
        self.add_part_from_client(client_flow, key, counters, &client_flow.measured, client_flow.live);
    }

    pub(super) fn add_part_from_client(
        &mut self,
        client_flow: &ClientFlow<'a>,
        key: Key,
        counters: &EdgeCounters,
        measured: &Measured,
        live: bool,
    ) {
        let sum = self.sums.at(key);
        sum.counters.add(counters);
        sum.live |= live;
        sum.client_seen = true;
        sum.add_via(client_flow.via, None);
        sum.add_methods(client_flow.methods);
        sum.add_measured_by_client(measured);
        sum.add_client(client_flow.end, counters.opened, counters.failed);
    }

    /// Returns whether an item first reported at that time has to wait; records until when.
    pub(super) fn waits(&mut self, first_seen: SystemTime) -> bool {
        let until = first_seen + self.options.settle;
        if until <= self.options.now {
            return false;
        }
        self.settles_at = Some(self.settles_at.map_or(until, |earlier| earlier.min(until)));
        true
    }

    /// Returns how many of these connections must wait: the fresh ones, since the newest are those that are missing.
    pub(super) fn wait(&mut self, opened: u64, fresh: &Fresh) -> u64 {
        let waiting = opened.min(fresh.opened);
        if waiting > 0 && !fresh.since.is_some_and(|since| self.waits(since)) {
            // The wait ends with an agent's report, which may come at any time.
            self.waits(self.options.now);
        }
        self.unsettled = count::add(self.unsettled, waiting);
        waiting
    }

    /// Of servers' flows, those that a client's can be the other end of by their times, best first: addresses are used
    /// again. Reports can be late, so one that does not fit is dropped only for another with the same addresses that
    /// does.
    pub(super) fn in_time(&self, client_flow: &ClientFlow<'a>, mut server_flows: Vec<usize>) -> Vec<usize> {
        if server_flows.len() < 2 {
            return server_flows;
        }
        let gap = |index: usize| client_flow.span.gap(&self.server_flows[index].span);
        let fits = |index: usize| gap(index) <= self.options.settle;
        let fitting: HashSet<Tuple<'a>> =
            server_flows.iter().filter(|index| fits(**index)).map(|index| self.server_flows[*index].tuple).collect();
        server_flows.retain(|index| fits(*index) || !fitting.contains(&self.server_flows[*index].tuple));
        server_flows.sort_by_key(|index| (gap(*index), *index));
        server_flows
    }
}

/// Returns the ranges of neighbors with equal keys.
fn ranges<T, K: Copy + Eq + std::hash::Hash>(items: &[T], key: impl Fn(&T) -> K) -> HashMap<K, Range<usize>> {
    let mut ranges = HashMap::default();
    let mut start = 0;
    for group in items.chunk_by(|a, b| key(a) == key(b)) {
        ranges.insert(key(&group[0]), start..start + group.len());
        start += group.len();
    }
    ranges
}
