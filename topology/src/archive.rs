//! Published history that the ledger does not have: evicted flows, and the objects of an earlier operator. Both are
//! added to the edges that they belong to.
//!
//! A new operator has two sources: the agents' current counters, and the objects that its predecessor published. Each
//! object stores the part of its counters that agents no longer report ([`Graph::earlier`]). An edge's counters are the
//! sum of that part and the agents' counters. They are never less than what was published. They are less than the truth
//! only if agents restarted while no operator ran.

mod changed_edges;
mod earlier;
mod expired_pods;
mod joins;
mod merged_externals;
mod placements;
mod settlement;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::{
    changed_edges::ChangedEdges,
    expired_pods::ExpiredPods,
    joins::Joins,
    merged_externals::{Parts, is_named_yet, is_shared},
    placements::{PATIENCE, Placements},
    settlement::FromServers,
};
use crate::{
    activity, count,
    counts::{Counts, Earlier},
    directory::Directory,
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Peer, Seen, Times},
    graph::{self, Graph, Known, KnownConnections, Options, Outside, Pace, PlacedLegs, WithBackends},
    ledger::{Ledger, Retirement},
};

/// Time until the next look at what agents have reported, while what was published is not settled.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Maximum time after a restart in which agents report for the first time. An agent's connection breaks with the operator,
/// and its attempts to connect are seconds apart.
const FIRST_REPORTS: Duration = Duration::from_mins(1);

/// An edge as an operator has published it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The edge.
    pub edge: Edge,
    /// Part of it that agents no longer reported.
    pub earlier: Earlier,
}

/// History to add to the graph of the ledger's flows.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    /// History of flows that the ledger has evicted.
    retired: BTreeMap<EdgeKey, EvictedCounts>,
    with_retired: ChangedEdges<EvictedCounts>,
    /// Connections that servers count with a node's address, of clients whose flows the ledger has evicted.
    left_by_clients: HashMap<EdgeKey, EdgeCounters>,
    before: Option<PublishedHistory>,
    /// External addresses with edges of their own.
    outside: Outside,
    placements: Placements,
    /// Connections through transparent proxies as they were shown last.
    legs: Arc<PlacedLegs>,
    joins: Joins,
    pace: Pace,
}

/// Counts and times of an edge from flows that the ledger has dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct EvictedCounts {
    counters: EdgeCounters,
    times: Option<Times>,
    /// Connections that clients' agents counted. If servers' agents still report them, they are not new.
    by_clients: u64,
}

/// An earlier operator's account.
#[derive(Clone, Debug)]
struct PublishedHistory {
    restored_at: SystemTime,
    /// Time since which all agents have reported.
    reported_at: Option<SystemTime>,
    /// Connections that no client's agent reported when they were published, though servers' agents may count them. `None`
    /// until all agents have reported since: `earlier` of each edge is then the part that none of them reports.
    settled: Option<KnownConnections>,
    edges: HashMap<EdgeKey, Published>,
    from_servers: FromServers,
    /// Counters on edges with an unnamed end that were published under a name.
    under_a_name: HashMap<EdgeKey, EdgeCounters>,
    /// Those of them on edges to Services.
    with_backends: Arc<WithBackends>,
    /// Edges with what was published of them, and what they lack of it.
    with_published: ChangedEdges<Phase, Option<Counts>>,
}

/// Conditions that select the part of a published edge to add to the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Phase {
    /// All agents have reported since.
    is_settled: bool,
    /// It was published within the retention.
    is_recent: bool,
}

impl Archive {
    /// Returns an empty archive.
    ///
    /// Invariant: while nothing is restored or retired, [`Self::build`] returns the same graph as [`graph::build`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the pace at which counts are joined. While what was published is not settled, all of them are joined at once.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Restores the edges that an earlier operator published; later calls do nothing. If the objects of both ends have
    /// an edge, the newer account is used, with the endpoints of both. Returns whether this is the first call.
    pub fn restore(&mut self, published: impl IntoIterator<Item = Published>, now: SystemTime) -> bool {
        if self.before.is_some() {
            return false;
        }
        let mut edges: HashMap<EdgeKey, Published> = HashMap::new();
        for mut one in published {
            one.edge.times = one.edge.times.map(|times| times.as_of(now));
            // A server's agent may have forgotten what only it had counted.
            let reported = one.edge.counters.without(&one.earlier.counts.counters);
            one.edge.from_servers = one.edge.from_servers.at_most(&reported);
            self.outside.note(&one.edge.key);
            match edges.entry(one.edge.key.clone()) {
                Entry::Vacant(vacant) => _ = vacant.insert(one),
                Entry::Occupied(mut known) => known.get_mut().join(one),
            }
        }
        self.placements.restore(edges.values().map(|published| &published.edge));
        self.before = Some(PublishedHistory {
            restored_at: now,
            reported_at: None,
            from_servers: FromServers::default(),
            settled: None,
            edges,
            under_a_name: HashMap::new(),
            with_backends: Arc::default(),
            with_published: ChangedEdges::default(),
        });
        true
    }

    /// Restores the records of connections through transparent proxies that an earlier operator published
    /// ([`Graph::recorded_legs`]). Those of flows with a later record do not count.
    pub fn restore_legs(&mut self, recorded: &PlacedLegs) {
        Arc::make_mut(&mut self.legs).complete(recorded);
    }

    /// Settles, as [`Self::settle`], once all agents have reported for [`Options::settle`]: what has to wait until then is on
    /// no edge yet, so that its published counters have to stay. Waits up to ten seconds for connections that only servers had
    /// counted when they were published. To be called again and again when all agents have reported everything; the graphs
    /// in between name the time ([`Graph::settles_at`]).
    pub fn settle_in_time(&mut self, ledger: &Ledger, directory: &Directory, options: &Options) {
        let Some(before) = self.before.as_mut().filter(|before| !before.is_settled()) else { return };
        let reported_at = *before.reported_at.get_or_insert(options.now);
        let waited = options.now.duration_since(reported_at).unwrap_or_default();
        if waited < options.settle && self.placements.is_empty() {
            return;
        }
        let reported = self.reported(ledger, directory, options.now);
        self.note_servers(&reported);
        // Servers' agents may report after clients' agents at each look. What then seems forgotten would count twice.
        let patience = self.before.as_ref().map(PublishedHistory::patience).unwrap_or_default();
        if waited >= options.settle.max(patience) {
            self.settle_by(&reported, directory);
        }
    }

    /// Computes the part of each published edge that agents no longer report: the published counters minus theirs. To
    /// be called when all agents have reported everything.
    ///
    /// Invariant: later calls change nothing, nor does any if nothing was restored.
    pub fn settle(&mut self, ledger: &Ledger, directory: &Directory, now: SystemTime) {
        if self.is_settled() {
            return;
        }
        let reported = self.reported(ledger, directory, now);
        self.note_servers(&reported);
        self.settle_by(&reported, directory);
    }

    /// Settles by the graph of what agents report.
    fn settle_by(&mut self, reported: &Graph, directory: &Directory) {
        if let Some(before) = &mut self.before {
            before.settled = Some(before.earlier_connections());
            settlement::settle(&mut before.edges, &reported.edges, &before.from_servers);
            self.placements.restore(before.edges.values().map(|published| &published.edge));
            before.under_a_name = before.find_under_a_name(reported, directory);
            before.with_backends = Arc::new(expired_pods::with_backends(reported, &before.under_a_name));
        }
    }

    /// Returns the graph of what agents report, apart from what they did not report when it was published.
    fn reported(&self, ledger: &Ledger, directory: &Directory, now: SystemTime) -> Graph {
        let earlier = self.before.as_ref().map(PublishedHistory::earlier_connections);
        let known = Known {
            forgotten: self.forgotten(earlier.unwrap_or_default()),
            placed: self.placements.parts(),
            legs: Arc::clone(&self.legs),
            outside: self.outside.clone(),
            is_fixed: true,
            ..Known::default()
        };
        graph::build_with(ledger, directory, &everything(now), &known)
    }

    fn note_servers(&mut self, reported: &Graph) {
        if let Some(before) = &mut self.before {
            before.from_servers.note(&reported.edges);
        }
    }

    /// Makes the graph of all flows, those included that the ledger does not have. Counts may be as old as the pace allows;
    /// [`Graph::settles_at`] has the time at which the next ones follow.
    ///
    /// Invariants: each edge once; without a pace, the same input makes the same graph.
    #[must_use]
    pub fn build(&mut self, ledger: &Ledger, directory: &Directory, options: &Options) -> Graph {
        let known = self.known_before(options.now);
        self.joins.set_pace(if self.is_settled() { self.pace } else { Pace::default() });
        let mut graph = self.joins.of_ledger(ledger, directory, options, &known);
        expired_pods::leave(&mut graph, &self.left_by_clients);
        if !self.retired.is_empty() {
            let mut parts = Parts::of(&mut graph.edges);
            self.with_retired.begin();
            for (key, retired) in &self.retired {
                if let Some(edge) = parts.edge(key, &graph.outside, directory) {
                    self.with_retired.change(edge, *retired, |edge| {
                        edge.counters.add(&retired.counters);
                        edge.times = Times::of_both(edge.times, retired.times);
                    });
                }
            }
        }
        let mut lacking = Vec::new();
        if let Some(before) = &mut self.before {
            lacking = before.add_to(&mut graph, directory, options);
            let reported_at = before.reported_at.filter(|_| !before.is_settled());
            let settles_at = reported_at.map(|reported| (reported + options.settle).max(options.now + LOOK_AGAIN));
            graph.settles_at = [graph.settles_at, settles_at].into_iter().flatten().min();
        }
        graph.settles_at = graph.settles_at.into_iter().chain(self.awaits_agents_until(options.now)).min();
        self.outside.clone_from(&graph.outside);
        let inherits = self.before.as_ref().is_some_and(PublishedHistory::is_needed);
        if inherits || directory.has_removed() || !self.retired.is_empty() || self.joins.have_history() {
            let anew = self.reported_anew(&graph, directory, options.now);
            graph.recorded_legs = anew.legs.needed();
            graph.earlier = earlier::earlier(&graph, &anew, self.before.as_ref().map(|before| &before.edges));
            if let Some(before) = self.before.as_ref().filter(|before| !before.is_settled()) {
                graph.earlier.extend(before.still_earlier());
                graph.earlier.retain(|_, earlier| *earlier != Earlier::default());
            }
        } else {
            graph.recorded_legs = graph.legs.needed();
        }
        raise(&mut graph.edges, lacking);
        graph
    }

    /// Returns the number of flows that were joined for the last graph.
    ///
    /// Invariant: no flow of a group that has not changed is among them.
    #[must_use]
    pub fn joined_flows(&self) -> usize {
        self.joins.joined_flows()
    }

    /// Has the next graph joined from all flows, not only from those that have changed.
    ///
    /// Invariant: no graph changes by it.
    pub fn forget_joins(&mut self) {
        self.joins = Joins::default();
    }

    /// Makes the graph that an operator would learn from the agents if it began now.
    fn reported_anew(&mut self, graph: &Graph, directory: &Directory, now: SystemTime) -> Graph {
        let placed = placements::parts(graph.edges.iter().map(Arc::as_ref));
        let legs = Arc::clone(&graph.legs);
        // Without waiting times, a connection whose other leg is on its way would seem to have none.
        let known = Known {
            outside: graph.outside.clone(),
            placed,
            legs,
            keeps_legs: true,
            is_fixed: true,
            ..Known::default()
        };
        self.joins.of_agents(directory, &everything(now), &known)
    }

    /// Makes the graph as [`Archive::build`], to be shown: what only servers have counted stays on its edges.
    #[must_use]
    pub fn build_shown(&mut self, ledger: &Ledger, directory: &Directory, options: &Options) -> Graph {
        let mut graph = self.build(ledger, directory, options);
        if !self.is_settled() {
            // Flows that are not reported yet.
            Arc::make_mut(&mut graph.legs).complete(&self.legs);
            graph.recorded_legs.complete(&graph.legs.needed());
        }
        self.legs = Arc::clone(&graph.legs);
        if self.is_settled() {
            let until = self.placements.keep(&mut graph.edges, options.now);
            graph.settles_at = [graph.settles_at, until].into_iter().flatten().min();
        } else {
            self.placements.write_to(&mut graph.edges);
        }
        graph
    }

    /// Returns whether nothing was restored, or all agents have reported since.
    ///
    /// Invariant: once true, it stays so.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.before.as_ref().is_none_or(PublishedHistory::is_settled)
    }

    /// Returns until when agents are awaited that have not reported since the restart.
    fn awaits_agents_until(&self, now: SystemTime) -> Option<SystemTime> {
        let before = self.before.as_ref().filter(|before| !before.is_settled())?;
        Some(before.restored_at + FIRST_REPORTS).filter(|until| *until > now)
    }

    fn known_before(&self, now: SystemTime) -> Known {
        let is_settled = self.is_settled();
        Known {
            forgotten: self.forgotten(self.before.as_ref().map(PublishedHistory::forgotten).unwrap_or_default()),
            placed: match &self.before {
                Some(before) if !is_settled => before.counted_by_servers(),
                _ => self.placements.parts(),
            },
            with_backends: self.with_backends(),
            legs: Arc::clone(&self.legs),
            keeps_legs: false,
            outside: self.outside.clone(),
            // Until it is known what agents no longer know of each edge, what an edge stands for must not change.
            is_fixed: !is_settled,
            awaits_agents: self.awaits_agents_until(now).is_some(),
        }
    }

    fn with_backends(&self) -> Arc<WithBackends> {
        self.before.as_ref().map(|before| Arc::clone(&before.with_backends)).unwrap_or_default()
    }

    /// Adds the connections that clients' agents counted in flows that the ledger has evicted.
    fn forgotten(&self, mut forgotten: KnownConnections) -> KnownConnections {
        for (key, retired) in &self.retired {
            forgotten.add(key, &retired.counters.share(retired.by_clients), &[], retired.by_clients);
        }
        forgotten
    }

    /// Retires the flows that have been over for `retention`, so that the counters of edges that live do not shrink,
    /// and forgets the edges that are gone. Returns how many flows went.
    ///
    /// Invariant: no counter of an edge that lives becomes less by it.
    pub fn retire(
        &mut self,
        ledger: &mut Ledger,
        directory: &Directory,
        now: SystemTime,
        retention: Duration,
    ) -> usize {
        let Some(retirement) = ledger.take_retirable(now, retention) else { return 0 };
        self.keep_retired(&retirement, directory, now, retention);
        retirement.flows
    }

    /// Adds retired flows to the history, as [`Self::retire`].
    pub fn keep_retired(
        &mut self,
        retirement: &Retirement,
        directory: &Directory,
        now: SystemTime,
        retention: Duration,
    ) {
        // The difference is what went.
        let options = everything(now);
        let forgotten = self.forgotten(KnownConnections::default());
        let legs = Arc::clone(&self.legs);
        let with_backends = self.with_backends();
        let known = Known { forgotten, placed: self.placements.parts(), with_backends, legs, ..Known::default() };
        let before = graph::build_with(&retirement.before, directory, &options, &known);
        let after: HashMap<EdgeKey, Arc<Edge>> = graph::build_with(&retirement.after, directory, &options, &known)
            .edges
            .into_iter()
            .map(|edge| (edge.key.clone(), edge))
            .collect();
        self.retired.retain(|key, _| after.contains_key(key));
        self.keep_left_by_clients(&before, &after);
        if let Some(known) = &mut self.before {
            if !known.is_recent(now, retention) {
                known.edges.retain(|key, _| after.contains_key(key));
            }
            known.leave_forgotten(&before, &after);
        }
        for edge in before.edges {
            let Some(stays) = after.get(&edge.key) else { continue };
            let gone = edge.counters.without(&stays.counters);
            if gone != EdgeCounters::default() {
                let by_servers = edge.from_servers.opened.saturating_sub(stays.from_servers.opened);
                let retired = self.retired.entry(edge.key.clone()).or_default();
                retired.counters.add(&gone);
                retired.times = Times::of_both(retired.times, edge.times.map(|times| times.as_of(now)));
                retired.by_clients = count::add(retired.by_clients, gone.opened.saturating_sub(by_servers));
            }
        }
    }
}

impl Archive {
    /// Keeps how many connections servers count with a node's address that were a client's before its flow was evicted: they
    /// are on its edge already, or were as long as that lived.
    fn keep_left_by_clients(&mut self, before: &Graph, after: &HashMap<EdgeKey, Arc<Edge>>) {
        let before: HashMap<&EdgeKey, &EdgeCounters> =
            before.edges.iter().map(|edge| (&edge.key, &edge.counters)).collect();
        self.left_by_clients.retain(|key, _| after.contains_key(key));
        for (key, edge) in after {
            if !matches!(key.client, Peer::BehindNode { .. } | Peer::Node { .. }) {
                continue;
            }
            let known = before.get(key).copied().copied().unwrap_or_default();
            let left = edge.counters.without(&known);
            if left.opened > 0 {
                self.left_by_clients.entry(key.clone()).or_default().add(&left);
            }
        }
    }
}

impl Published {
    /// Adds what agents no longer report to the edge. Returns what this lacks of its published counters.
    fn add_to(&self, edge: &mut Edge, phase: Phase) -> Option<Counts> {
        let now = Counts::of(edge);
        let (mut earlier, mut least) = (self.earlier.counts.clone(), Counts::of(&self.edge));
        if phase.is_settled && (is_shared(&edge.key) || self.edge.seen == Seen::Server) {
            // It is more or less by what other addresses now are behind it. What only servers counted is the client's, on
            // its edges, once that is observed.
            least = Counts::default();
        }
        if phase.is_settled {
            // What was not known of open connections comes with their end.
            least.counters.without_bytes = 0;
        }
        if !phase.is_recent {
            // Pods that are long gone.
            (earlier, least) = (earlier.of_endpoints_in(&now), least.of_endpoints_in(&now));
        }
        let known = now.plus(&earlier);
        let lack = known.at_least(&least).without(&known);
        known.write_to(edge);
        edge.times = Times::of_both(edge.times, self.edge.times);
        edge.knows_retransmits |= self.edge.knows_retransmits;
        edge.rtt = edge.rtt.or(self.edge.rtt);
        if edge.seen != self.edge.seen {
            edge.seen = Seen::Both;
        }
        edge.client_identity = edge.client_identity.min(self.edge.client_identity);
        edge.server_identity = edge.server_identity.min(self.edge.server_identity);
        (lack != Counts::default()).then_some(lack)
    }

    /// Takes in the same edge as its other end has published it. The newer account counts; each has endpoints of its own,
    /// and either may know more of what agents no longer know.
    fn join(&mut self, other: Self) {
        let progress = |published: &Self| {
            let counters = &published.edge.counters;
            (counters.opened.saturating_add(counters.failed), counters.bytes_sent, counters.bytes_received)
        };
        let (mut newer, older) =
            if progress(self) < progress(&other) { (other, self.clone()) } else { (self.clone(), other) };
        Counts::of(&newer.edge).with_endpoints_of(&Counts::of(&older.edge)).write_to(&mut newer.edge);
        newer.earlier = newer.earlier.at_least(&older.earlier);
        newer.edge.times = Times::of_both(newer.edge.times, older.edge.times);
        *self = newer;
    }
}

impl PublishedHistory {
    /// Returns whether an edge that no agent reports any more is still within `retention`.
    fn is_recent(&self, now: SystemTime, retention: Duration) -> bool {
        now.duration_since(self.restored_at).unwrap_or_default() < retention
    }

    /// Returns whether history exists that agents do not report, as far as known.
    fn is_needed(&self) -> bool {
        let nothing = Counts::default();
        self.edges.values().any(|published| !self.is_settled() || published.earlier.counts != nothing)
    }

    /// Returns the part of each edge that agents no longer reported when it was published. Until all of them have reported,
    /// nothing is known of what they have forgotten since.
    fn still_earlier(&self) -> impl Iterator<Item = (EdgeKey, Earlier)> {
        self.edges.iter().map(|(key, published)| (key.clone(), published.earlier.clone()))
    }

    /// Returns whether all agents have reported since.
    fn is_settled(&self) -> bool {
        self.settled.is_some()
    }

    /// Returns how long to wait for servers' agents: no time, or longer if the edges between two peers were published with more
    /// connections that only servers had counted than any look has shown since.
    fn patience(&self) -> Duration {
        let mut published: HashMap<EdgeKey, u64> = HashMap::new();
        let with_them = self.edges.iter().filter(|(_, published)| published.edge.from_servers.opened > 0);
        for (key, Published { edge, .. }) in with_them {
            settlement::add_opened(&mut published, key.direct(), edge.from_servers.opened);
        }
        let lacking = published.into_iter().filter(|(direct, opened)| !self.from_servers.reach(direct, *opened));
        let patience = |(direct, _): (EdgeKey, u64)| match direct.client {
            // The node's agent has to report, too, which it does every ten seconds at least.
            Peer::BehindNode { .. } => 2 * PATIENCE,
            _ => PATIENCE,
        };
        lacking.map(patience).max().unwrap_or_default()
    }

    /// Returns connections that servers' agents may still count although the clients' agents do not.
    fn forgotten(&self) -> KnownConnections {
        if let Some(settled) = &self.settled {
            return settled.clone();
        }
        self.connections(|Published { edge, .. }| (edge.counters, edge.servers.as_slice(), edge.counters.opened))
    }

    /// Returns the parts of edges that were published without an observed client. They stay there until all agents have
    /// reported, also if the client's has: the published counters of all other edges contain what only servers counted.
    fn counted_by_servers(&self) -> HashMap<EdgeKey, EdgeCounters> {
        let of_servers = self.edges.values().filter(|published| published.edge.seen == Seen::Server);
        placements::parts_of(of_servers.map(|published| &published.edge))
    }

    /// Returns the connections that no client's agent reported any more when they were published.
    fn earlier_connections(&self) -> KnownConnections {
        self.connections(|Published { earlier: Earlier { counts, known_to_servers }, .. }| {
            (counts.counters, counts.servers.as_slice(), *known_to_servers)
        })
    }

    fn connections<'a>(
        &'a self,
        part: impl Fn(&'a Published) -> (EdgeCounters, &'a [Endpoint], u64),
    ) -> KnownConnections {
        let mut connections = KnownConnections::default();
        for published in self.edges.values().filter(|published| published.edge.seen != Seen::Server) {
            let (counters, servers, known_to_servers) = part(published);
            connections.add(&published.edge.key, &counters, servers, known_to_servers);
        }
        connections
    }

    /// Returns the part of an edge that agents do not report; until all of them reported, the part that they may not
    /// report.
    fn unknown_to_agents<'a>(&self, published: &'a Published) -> &'a EdgeCounters {
        if self.is_settled() { &published.earlier.counts.counters } else { &published.edge.counters }
    }

    /// Leaves out the counters of forgotten flows, by the graphs before and after. Of edges that stay, [`Archive::retired`] has
    /// these.
    fn leave_forgotten(&mut self, before: &Graph, after: &HashMap<EdgeKey, Arc<Edge>>) {
        self.under_a_name.retain(|key, _| after.contains_key(key));
        if !self.with_backends.is_empty() {
            self.with_backends = Arc::new(expired_pods::without_forgotten(&self.with_backends, before, after));
        }
    }

    fn find_under_a_name(&self, graph: &Graph, directory: &Directory) -> HashMap<EdgeKey, EdgeCounters> {
        let mut expired = ExpiredPods::new(self.edges.values().map(|it| (&it.edge.key, self.unknown_to_agents(it))));
        let found = graph.edges.iter().map(|edge| {
            let published = self.edges.get(&edge.key);
            let published =
                published.map(|it| it.edge.counters.without(&it.earlier.counts.counters)).unwrap_or_default();
            (edge.key.clone(), expired.under_a_name(edge, &published, directory))
        });
        found.filter(|(_, counters)| *counters != EdgeCounters::default()).collect()
    }

    /// Adds what agents no longer report to the edges, and edges of which they report nothing. Returns what edges lack of
    /// their published counters.
    fn add_to(&mut self, graph: &mut Graph, directory: &Directory, options: &Options) -> Vec<(EdgeKey, Counts)> {
        if self.is_settled() {
            expired_pods::leave(graph, &self.under_a_name);
        } else {
            expired_pods::leave(graph, &self.find_under_a_name(graph, directory));
        }
        let recent = self.is_recent(options.now, options.retention);
        let phase = Phase { is_settled: self.is_settled(), is_recent: recent };
        let mut with_published = std::mem::take(&mut self.with_published);
        with_published.begin();
        let mut missing: HashMap<&EdgeKey, &Published> = self.edges.iter().collect();
        let mut lacking = Vec::new();
        for edge in &mut graph.edges {
            let Some(published) = missing.remove(&edge.key) else { continue };
            if let Some(lack) = with_published.change(edge, phase, |edge| published.add_to(edge, phase)) {
                lacking.push((edge.key.clone(), lack));
            }
        }
        if recent && !missing.is_empty() {
            let mut missing: Vec<&Published> = missing.into_values().collect();
            missing.sort_unstable_by_key(|published| {
                let counters = &published.edge.counters;
                (Reverse(activity::class(counters.opened.saturating_add(counters.failed))), &published.edge.key)
            });
            self.add_missing(graph, directory, options.max_external, &missing);
        }
        self.with_published = with_published;
        lacking
    }

    /// Edges of which no agent knows anything more. Of those that are (a part of) others now, only what agents do not know
    /// is missing there.
    fn add_missing(&self, graph: &mut Graph, directory: &Directory, max_external: usize, missing: &[&Published]) {
        let mut gone: BTreeMap<EdgeKey, Edge> = BTreeMap::new();
        let mut parts = Parts::of(&mut graph.edges);
        for published in missing.iter().filter(|published| is_named_yet(&published.edge.key, directory)) {
            if let Some(whole) = parts.edge(&published.edge.key, &graph.outside, directory) {
                let whole = Arc::make_mut(whole);
                whole.counters.add(&published.earlier.counts.counters);
                whole.times = Times::of_both(whole.times, published.edge.times);
                continue;
            }
            let mut edge = published.edge.clone();
            (edge.counters.active, edge.counters.pending) = (0, 0);
            if self.is_settled() {
                // What agents still know is on other edges now: of addresses that were shared, and of servers whose clients
                // have become known.
                published.earlier.counts.clone().write_to(&mut edge);
                edge.from_servers = EdgeCounters::default();
                (edge.clients_from_servers, edge.servers_from_servers) = (Vec::new(), Vec::new());
            }
            if edge.counters == EdgeCounters::default() {
                continue;
            }
            if let Some(shared) = graph.outside.admit(&edge.key, max_external) {
                (edge.key, edge.addresses) = (shared, 1);
            }
            match parts.exactly(&edge.key).map(Arc::make_mut).or_else(|| gone.get_mut(&edge.key)) {
                Some(whole) => {
                    Counts::of(whole).plus(&Counts::of(&edge)).write_to(whole);
                    whole.addresses = count::add(whole.addresses, edge.addresses);
                    whole.times = Times::of_both(whole.times, edge.times);
                }
                None => _ = gone.insert(edge.key.clone(), edge),
            }
        }
        graph.edges.extend(gone.into_values().map(Arc::new));
        graph.edges.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    }
}

/// Adds to edges what they lack of their published counters: an agent may report later than another one, so that their sum
/// is less for a moment. That is no history, and must not become part of it.
fn raise(edges: &mut [Arc<Edge>], lacking: Vec<(EdgeKey, Counts)>) {
    if lacking.is_empty() {
        return;
    }
    let lacking: HashMap<EdgeKey, Counts> = lacking.into_iter().collect();
    for edge in edges {
        if let Some(lack) = lacking.get(&edge.key) {
            Counts::of(edge).plus(lack).write_to(Arc::make_mut(edge));
        }
    }
}

/// Everything is on an edge, and every edge lives.
fn everything(now: SystemTime) -> Options {
    Options { now, settle: Duration::ZERO, retention: Duration::MAX, max_external: usize::MAX }
}
