//! Joins only what may have changed since the last time.
//!
//! Flows are divided into groups that do not depend on each other ([`super::partition`]). What each group came to is
//! kept. A group is joined again if one of its flows, or what the directory says of its ends, has changed, or if a waiting
//! time has ended. All else that the join depends on (settings, nodes that fall silent) has everything joined again.
//!
//! A group of which nothing but counts has changed may wait for its turn ([`Pace`]). The graph then has the counts of its
//! flows as they were when it was joined last: [`IncrementalJoin::ledger`].

use std::{
    collections::{BTreeSet, HashMap as StdHashMap},
    sync::Arc,
    time::SystemTime,
};

use super::{
    Graph, Known, KnownConnections, Options, WithBackends,
    anchor::AnchorId,
    endpoints::Endpoints,
    interceptors::Interceptors,
    join::{Join, Joined},
    made_edges::MadeEdges,
    names::Names,
    observed::deadline,
    pace::{Pace, Waiting},
    partition::{Changed, Partition},
    placed_legs::PlacedLegs,
};
use crate::{
    directory::{Directory, Revision},
    edge::{EdgeCounters, EdgeKey},
    flow::FlowKey,
    hash::{HashMap, HashSet},
    ledger::{FlowRecord, FlowView, Ledger, NodeRecords, NodeState},
};

/// Growth of the tables, as a factor, after which everything is joined.
const MAX_GROWTH: usize = 4;
/// Size of the tables up to which they may grow in any case.
const MIN_SIZE: usize = 4096;

/// Perspective from which flows are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Perspective {
    /// This operator's.
    Ledger,
    /// That of an operator that begins now: it knows what agents report.
    Agents,
}

/// A join that keeps its results.
#[derive(Clone, Debug)]
pub(crate) struct IncrementalJoin {
    perspective: Perspective,
    pace: Pace,
    before: Option<Inputs>,
    names: Names,
    partition: Partition,
    /// The places of each node's flows, in the ledger's order.
    places: HashMap<String, Vec<Place>>,
    interceptors: Arc<Interceptors>,
    groups: HashMap<AnchorId, Group>,
    made: MadeEdges,
    /// Number of names and anchors after everything was joined.
    size: usize,
    /// Number of flows that the last graph had joined.
    joined_flows: usize,
}

/// Inputs of the last graph.
#[derive(Clone, Debug)]
struct Inputs {
    ledger: Ledger,
    revision: Revision,
    options: Options,
    forgotten: KnownConnections,
    placed: StdHashMap<EdgeKey, EdgeCounters>,
    with_backends: Arc<WithBackends>,
    awaits_agents: bool,
    /// Records of connections through proxies.
    legs: Arc<PlacedLegs>,
    /// The same after the graph: they make the same graph.
    legs_after: Arc<PlacedLegs>,
}

/// Result of joining a group.
#[derive(Clone, Debug)]
struct Group {
    joined: Joined,
    /// Number of its flows.
    flows: usize,
    joined_at: SystemTime,
    /// Time of the last change of something else than counts.
    changed_at: SystemTime,
    /// Time at which it comes to something else without any change; that of the join if it may be at any time.
    until: Option<SystemTime>,
}

impl Group {
    /// Returns whether the time has come at which it is something else without any change.
    fn is_over(&self, now: SystemTime) -> bool {
        self.until.is_some_and(|until| until <= now && until > self.joined_at)
    }

    /// Returns whether connections wait for a report of their other end, or might have to.
    fn is_unsettled(&self) -> bool {
        let joined = &self.joined;
        joined.unsettled > 0 || joined.settles_at.is_some() || self.until.is_some_and(|until| until <= self.joined_at)
    }

    /// Returns whether what may wait are connections that came after the last change of something else than counts.
    fn is_at_rest(&self, options: &Options) -> bool {
        self.joined_at.duration_since(self.changed_at).unwrap_or_default() >= 2 * options.settle
    }
}

/// Place of a flow in the groups.
#[derive(Clone, Copy, Debug)]
struct Place {
    anchor: AnchorId,
    /// Nothing but its counts has changed since the last graph.
    has_only_counted: bool,
}

/// Groups that wait for their turn.
#[derive(Default)]
struct Waits {
    groups: HashSet<AnchorId>,
    /// Time at which it is the first one's turn.
    until: Option<SystemTime>,
}

impl IncrementalJoin {
    pub(crate) fn new(perspective: Perspective) -> Self {
        Self {
            perspective,
            pace: Pace::default(),
            before: None,
            names: Names::default(),
            partition: Partition::default(),
            places: HashMap::default(),
            interceptors: Arc::default(),
            groups: HashMap::default(),
            made: MadeEdges::default(),
            size: 0,
            joined_flows: 0,
        }
    }

    /// Sets the pace of counts.
    pub(crate) fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// Returns the state of the ledger that the last graph has: the last one, with earlier counts of the groups that wait.
    pub(crate) fn ledger(&self) -> Option<&Ledger> {
        self.before.as_ref().map(|before| &before.ledger)
    }

    /// Makes the graph of all flows. `origin` is the directory, or the one that it was derived from.
    ///
    /// Invariant: it is the graph that a join of all flows of [`Self::ledger`] makes, connections apart that wait for a
    /// report of their other end while their group waits for its turn.
    pub(crate) fn build(
        &mut self,
        ledger: &Ledger,
        directory: &Directory,
        origin: &Directory,
        options: &Options,
        known: &Known,
    ) -> Graph {
        let changed = self.before.as_ref().and_then(|before| before.changed(ledger, origin, options, known));
        if changed.is_none() || self.is_worn() {
            *self = Self { pace: self.pace, ..Self::new(self.perspective) };
        }
        let mut join = Join::new(ledger, directory, options, known, std::mem::take(&mut self.names));
        let mut counted = self.follow(ledger, (directory, known), &changed.unwrap_or_default(), &mut join.ends);
        join.interceptors = Arc::clone(&self.interceptors);
        let changed = self.partition.take_stale();
        self.follow_placed(known, &mut join.ends);
        self.follow_time(options, &mut counted);
        let mut stale = self.partition.take_stale();
        stale.extend(&changed);
        let (due, waits) = self.take_turns(&counted, &stale, options.now);
        stale.extend(&due);
        self.join_stale(&mut join, ledger, options, (&stale, &changed));
        let mut graph =
            join.finish(self.groups.values().map(|group| &group.joined), known.choice(options), &mut self.made);
        let settling = self.groups.iter().filter(|(id, _)| !waits.groups.contains(id));
        let settles_at = settling.filter_map(|(_, group)| group.joined.settles_at);
        graph.settles_at = settles_at.chain(graph.settles_at).chain(waits.until).min();
        self.names = join.ends.into_names();
        if self.before.is_none() {
            self.size = self.names.len() + self.partition.len();
        }
        let ledger = self.with_waiting(ledger, &waits);
        debug_assert!(
            self.is_graph_of_all(&graph, &ledger, directory, (options, known), &waits),
            "groups are not apart"
        );
        self.before = Some(Inputs {
            ledger,
            revision: origin.revision().clone(),
            options: *options,
            forgotten: known.forgotten.clone(),
            placed: known.placed.clone(),
            with_backends: Arc::clone(&known.with_backends),
            awaits_agents: known.awaits_agents,
            legs: Arc::clone(&known.legs),
            legs_after: Arc::clone(&graph.legs),
        });
        graph
    }

    /// Returns the number of flows that the last graph had joined: those of all groups that might have changed.
    pub(crate) fn joined_flows(&self) -> usize {
        self.joined_flows
    }

    /// Returns whether most names and anchors are of former flows: groups never fall apart, and names stay.
    fn is_worn(&self) -> bool {
        self.names.len() + self.partition.len() > MAX_GROWTH * self.size + MIN_SIZE
    }

    /// Compares a graph with the one that a join of all flows makes, as far as these are the same.
    fn is_graph_of_all(
        &self,
        graph: &Graph,
        ledger: &Ledger,
        directory: &Directory,
        (options, known): (&Options, &Known),
        waits: &Waits,
    ) -> bool {
        if waits.groups.iter().any(|id| self.groups.get(id).is_some_and(Group::is_unsettled)) {
            return true;
        }
        let mut of_all = match self.perspective {
            Perspective::Ledger => super::build_with(ledger, directory, options, known),
            Perspective::Agents => super::build_from_agents(ledger, directory, options, known),
        };
        of_all.settles_at = [of_all.settles_at, waits.until].into_iter().flatten().min();
        *graph == of_all
    }

    /// Adds new flows to the groups, and marks those of flows that have changed. Returns the anchors of flows that have
    /// only counted, if they can wait.
    fn follow<'a>(
        &mut self,
        ledger: &'a Ledger,
        (directory, known): (&'a Directory, &Known),
        changed: &Changed,
        ends: &mut Endpoints<'a>,
    ) -> HashSet<AnchorId> {
        let legs = self.before.as_ref().map(|before| before.changed_legs(&known.legs)).unwrap_or_default();
        self.partition.follow(changed, ends, directory);
        let mut counted = (!self.pace.is_at_once()).then(HashSet::default);
        let before = self.before.as_ref().map(|before| &before.ledger);
        let mut places = HashMap::default();
        let interceptors = Arc::make_mut(&mut self.interceptors);
        interceptors.retain(ledger);
        for node in ledger.records() {
            let before = before.and_then(|before| before.records_of(node.name()));
            let known = self.places.remove(node.name()).unwrap_or_default();
            let legs = legs.get(node.name());
            let is_same = before.is_some_and(|before| node.has_same_flows(&before));
            let mut intercepted = if is_same { BTreeSet::new() } else { interceptors.follow(&node) };
            if !changed.is_empty() {
                intercepted.extend(interceptors.of_owners(node.name(), |owner| changed.concerns_owner(owner)));
            }
            let counted = counted.as_mut();
            let mut followers =
                Followers { partition: &mut self.partition, ends, directory, counted, intercepted, legs };
            places.insert(node.name().to_owned(), followers.follow_node(node, before, &known, changed));
        }
        let gone = std::mem::replace(&mut self.places, places);
        gone.into_values().flatten().for_each(|place| self.partition.mark(place.anchor));
        counted.unwrap_or_default()
    }

    /// Marks the groups that time alone changes; those that can wait are among the `counted` ones.
    fn follow_time(&mut self, options: &Options, counted: &mut HashSet<AnchorId>) {
        for (id, group) in &self.groups {
            if group.is_over(options.now) {
                self.partition.mark(*id);
            } else if group.is_unsettled() {
                if self.pace.is_at_once() || !group.is_at_rest(options) {
                    self.partition.mark(*id);
                } else {
                    counted.insert(*id);
                }
            }
        }
    }

    /// Returns the groups of those that have only counted whose turn it is, and the others.
    fn take_turns(
        &self,
        counted: &HashSet<AnchorId>,
        stale: &HashSet<AnchorId>,
        now: SystemTime,
    ) -> (HashSet<AnchorId>, Waits) {
        let counted: HashSet<AnchorId> = counted.iter().map(|id| self.partition.group_of(*id)).collect();
        let known =
            counted.into_iter().filter(|id| !stale.contains(id)).filter_map(|id| self.groups.get_key_value(&id));
        let mut waiting: Vec<Waiting> =
            known.map(|(id, group)| Waiting { group: *id, joined_at: group.joined_at, flows: group.flows }).collect();
        let before = self.before.as_ref().map_or(now, |before| before.options.now);
        let elapsed = now.duration_since(before).unwrap_or_default();
        let flows = self.places.values().map(Vec::len).sum();
        let due = self.pace.take_due(&mut waiting, now, elapsed, flows).into_iter().collect();
        let until = waiting.iter().map(|group| self.pace.due(group)).min().map(|due| due.max(now + self.pace.pause));
        (due, Waits { groups: waiting.into_iter().map(|group| group.group).collect(), until })
    }

    /// Returns a state of the ledger with the counts of waiting groups as they were when these were joined.
    fn with_waiting(&self, ledger: &Ledger, waits: &Waits) -> Ledger {
        let Some(before) = self.before.as_ref().filter(|_| !waits.groups.is_empty()) else { return ledger.clone() };
        ledger.with_earlier_counts(&before.ledger, |node| {
            let places = self.places.get(node);
            move |number: usize| {
                let place = places.and_then(|places| places.get(number)).filter(|place| place.has_only_counted);
                place.is_some_and(|place| waits.groups.contains(&self.partition.group_of(place.anchor)))
            }
        })
    }

    /// Marks the groups of edges on which other connections were shown that only servers had counted.
    fn follow_placed(&mut self, known: &Known, ends: &mut Endpoints<'_>) {
        let Some(before) = &self.before else { return };
        let (placed, before) = (&known.placed, &before.placed);
        let changed = placed.iter().filter(|(key, part)| before.get(key) != Some(part)).map(|(key, _)| key);
        let gone = before.keys().filter(|key| !placed.contains_key(key));
        for key in changed.chain(gone) {
            let Some(port) = key.port else { continue };
            self.partition.mark_server(ends.peer_id(&key.server), port, key.protocol);
        }
    }

    /// Joins the `stale` groups. Of those that are not `changed`, nothing but counts and the time has changed.
    fn join_stale<'a>(
        &mut self,
        join: &mut Join<'a>,
        ledger: &'a Ledger,
        options: &Options,
        (stale, changed): (&HashSet<AnchorId>, &HashSet<AnchorId>),
    ) {
        let unchanged = stale.iter().filter(|id| !changed.contains(id));
        let changed_at: HashMap<AnchorId, SystemTime> =
            unchanged.filter_map(|id| Some((*id, self.groups.get(id)?.changed_at))).collect();
        self.groups.retain(|id, group| {
            let stays = !stale.contains(id) && self.partition.group_of(*id) == *id;
            if !stays {
                self.made.mark(group.joined.sums.keys().copied());
            }
            stays
        });
        let mut flows: Vec<(AnchorId, FlowRecord<'a>)> = Vec::new();
        let stale_group = |anchor: &AnchorId| Some(self.partition.group_of(*anchor)).filter(|id| stale.contains(id));
        for node in ledger.records().filter(|_| !stale.is_empty()) {
            let places = self.places.get(node.name()).map(Vec::as_slice).unwrap_or_default();
            let of_node = node.flows().zip(places);
            flows.extend(of_node.filter_map(|(flow, place)| Some((stale_group(&place.anchor)?, flow))));
        }
        self.joined_flows = flows.len();
        // Stable: within a group the ledger's order.
        flows.sort_by_key(|(group, _)| *group);
        for flows in flows.chunk_by(|one, next| one.0 == next.0) {
            let views: Vec<FlowView<'a>> = flows.iter().map(|(_, flow)| self.view(flow)).collect();
            let until = views.iter().filter_map(|flow| deadline(flow, options, join.directory)).min();
            let joined = join.join(views.into_iter());
            let until = [until, joined.names_change_at].into_iter().flatten().min();
            let (id, now) = (flows[0].0, options.now);
            let changed_at = changed_at.get(&id).copied().unwrap_or(now);
            self.made.mark(joined.sums.keys().copied());
            self.groups.insert(id, Group { joined, flows: flows.len(), joined_at: now, changed_at, until });
        }
    }

    fn view<'a>(&self, flow: &FlowRecord<'a>) -> FlowView<'a> {
        match self.perspective {
            Perspective::Ledger => flow.view(),
            Perspective::Agents => flow.view().from_agents(),
        }
    }
}

impl Inputs {
    /// Returns what has changed in the directory; `None` if anything that all groups depend on has changed.
    fn changed(&self, ledger: &Ledger, origin: &Directory, options: &Options, known: &Known) -> Option<Changed> {
        let before = &self.options;
        let is_same = (options.settle, options.retention) == (before.settle, before.retention)
            && options.now >= before.now
            && known.forgotten == self.forgotten
            && known.with_backends == self.with_backends
            && known.awaits_agents == self.awaits_agents
            && node_states(ledger, options.now).eq(node_states(&self.ledger, before.now));
        if !is_same {
            return None;
        }
        origin.changes_since(&self.revision).and_then(Changed::collect)
    }

    /// Returns the flows, by node, with other records of connections through proxies.
    fn changed_legs(&self, legs: &Arc<PlacedLegs>) -> HashMap<String, HashSet<FlowKey>> {
        if Arc::ptr_eq(legs, &self.legs_after) { HashMap::default() } else { legs.changed_since(&self.legs) }
    }
}

fn node_states(ledger: &Ledger, now: SystemTime) -> impl Iterator<Item = (&str, NodeState<'_>)> {
    ledger.records().map(move |node| (node.name(), node.state(now)))
}

/// State that gives flows their places in groups.
struct Followers<'p, 'a> {
    partition: &'p mut Partition,
    ends: &'p mut Endpoints<'a>,
    directory: &'a Directory,
    /// Anchors of flows that have only counted; `None` if no group can wait.
    counted: Option<&'p mut HashSet<AnchorId>>,
    /// Network namespaces of the node that have other interceptors than before.
    intercepted: BTreeSet<u32>,
    /// Flows of the node with other records of connections through proxies than before, if any.
    legs: Option<&'p HashSet<FlowKey>>,
}

impl<'a> Followers<'_, 'a> {
    /// Returns the places of a node's flows. Marks the groups of those that are new, gone, or not as they were `before`,
    /// when they had the places `known`.
    fn follow_node(
        &mut self,
        node: NodeRecords<'a>,
        before: Option<NodeRecords<'_>>,
        known: &[Place],
        changed: &Changed,
    ) -> Vec<Place> {
        if changed.is_empty() && self.legs.is_none() && before.is_some_and(|before| node.has_same_flows(&before)) {
            return known.to_vec();
        }
        let other_owner = before.map(|before| node.cgroups_with_another_owner(&before)).unwrap_or_default();
        let mut before = before.into_iter().flat_map(NodeRecords::flows).zip(known.iter().copied()).peekable();
        let mut places = Vec::with_capacity(known.len());
        for flow in node.flows() {
            // Both are in the order of their keys, the flows of former cgroups apart, which have no order.
            let order = (flow.is_orphaned(), flow.key());
            let is_earlier = |other: &FlowRecord<'_>| !other.is_orphaned() && (false, other.key()) < order;
            while let Some((_, gone)) = before.next_if(|(other, _)| is_earlier(other)) {
                self.partition.mark(gone.anchor);
            }
            let same = before.next_if(|(other, _)| (other.is_orphaned(), other.key()) == order);
            let has_same_names = !changed.concerns(&flow)
                && !self.intercepted.contains(&flow.key().netns)
                && (flow.is_orphaned() || !other_owner.contains(&flow.key().cgroup_id));
            let kept =
                same.filter(|_| has_same_names).and_then(|(other, known)| self.kept(&flow, &other, known.anchor));
            places.push(kept.unwrap_or_else(|| {
                if let Some((_, known)) = same {
                    self.partition.mark(known.anchor);
                }
                Place { anchor: self.partition.add(&flow, self.ends, self.directory), has_only_counted: false }
            }));
        }
        before.for_each(|(_, gone)| self.partition.mark(gone.anchor));
        places
    }

    /// Returns the place of a flow whose group need not be joined at once: nothing has changed, or only counts that can wait.
    fn kept(&mut self, flow: &FlowRecord<'_>, before: &FlowRecord<'_>, anchor: AnchorId) -> Option<Place> {
        if self.legs.is_some_and(|legs| legs.contains(flow.key())) {
            self.partition.mark(anchor);
        }
        if flow.is_unchanged_since(before) {
            return Some(Place { anchor, has_only_counted: false });
        }
        let counted = self.counted.as_mut()?;
        let has_only_counted = flow.has_only_counted_since(before);
        if has_only_counted {
            counted.insert(anchor);
        }
        has_only_counted.then_some(Place { anchor, has_only_counted })
    }
}
