//! Joins only what may have changed since the last time.
//!
//! Flows are divided into groups that do not depend on each other ([`super::partition`]). What each group came to is
//! kept. A group is joined again if one of its flows, or what the directory says of its ends, has changed, or if a waiting
//! time has ended. All else that the join depends on (settings, nodes that fall silent) has everything joined again.

use std::{collections::HashMap as StdHashMap, time::SystemTime};

use super::{
    Graph, Known, KnownConnections, Options,
    endpoints::Endpoints,
    join::{Join, Joined},
    names::Names,
    observed::deadline,
    partition::{AnchorId, Changed, Partition},
};
use crate::{
    directory::{Directory, Revision},
    edge::{EdgeCounters, EdgeKey},
    hash::HashMap,
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
    before: Option<Inputs>,
    names: Names,
    partition: Partition,
    /// The anchors of each node's flows, in the ledger's order.
    anchors: HashMap<String, Vec<AnchorId>>,
    groups: HashMap<AnchorId, Group>,
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
}

/// Result of joining a group.
#[derive(Clone, Debug)]
struct Group {
    joined: Joined,
    /// Time of the join.
    at: SystemTime,
    /// Time at which it comes to something else without any change; that of the join if it may be at any time.
    until: Option<SystemTime>,
}

impl Group {
    fn is_over(&self, now: SystemTime) -> bool {
        self.joined.unsettled > 0 || self.joined.settles_at.is_some() || self.until.is_some_and(|until| until <= now)
    }

    /// Moves what goes on to the present.
    fn go_on(&mut self, now: SystemTime) {
        if self.at == now {
            return;
        }
        for times in self.joined.sums.values_mut().filter_map(|sum| sum.times.as_mut()) {
            if times.last_seen == self.at {
                times.last_seen = now;
            }
        }
        self.at = now;
    }
}

impl IncrementalJoin {
    pub(crate) fn new(perspective: Perspective) -> Self {
        Self {
            perspective,
            before: None,
            names: Names::default(),
            partition: Partition::default(),
            anchors: HashMap::default(),
            groups: HashMap::default(),
            size: 0,
            joined_flows: 0,
        }
    }

    /// Makes the graph of all flows. `origin` is the directory, or the one that it was derived from.
    ///
    /// Invariant: it is the graph that a join of all flows makes.
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
            *self = Self::new(self.perspective);
        }
        let mut join = Join::new(ledger, directory, options, known, std::mem::take(&mut self.names));
        self.follow(ledger, directory, &changed.unwrap_or_default(), &mut join.ends);
        self.follow_placed(known, &mut join.ends);
        let over = self.groups.iter().filter(|(_, group)| group.is_over(options.now)).map(|(id, _)| *id);
        over.for_each(|id| self.partition.mark(id));
        self.join_stale(&mut join, ledger, options);
        for group in self.groups.values_mut() {
            group.go_on(options.now);
        }
        let graph = join.finish(self.groups.values().map(|group| &group.joined), known.choice(options));
        self.names = join.ends.into_names();
        if self.before.is_none() {
            self.size = self.names.len() + self.partition.len();
        }
        debug_assert_eq!(graph, self.of_all(ledger, directory, options, known), "groups depend on each other");
        self.before = Some(Inputs {
            ledger: ledger.clone(),
            revision: origin.revision().clone(),
            options: *options,
            forgotten: known.forgotten.clone(),
            placed: known.placed.clone(),
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

    /// Makes the graph by a join of all flows.
    fn of_all(&self, ledger: &Ledger, directory: &Directory, options: &Options, known: &Known) -> Graph {
        match self.perspective {
            Perspective::Ledger => super::build_with(ledger, directory, options, known),
            Perspective::Agents => super::build_from_agents(ledger, directory, options, known),
        }
    }

    /// Adds new flows to the groups, and marks those of flows that have changed.
    fn follow<'a>(
        &mut self,
        ledger: &'a Ledger,
        directory: &'a Directory,
        changed: &Changed,
        ends: &mut Endpoints<'a>,
    ) {
        self.partition.follow(changed, ends, directory);
        let before = self.before.as_ref().map(|before| &before.ledger);
        let mut anchors = HashMap::default();
        for node in ledger.records() {
            let before = before.and_then(|before| before.records_of(node.name()));
            let known = self.anchors.remove(node.name()).unwrap_or_default();
            let of_node = follow_node(&mut self.partition, node, before, &known, changed, ends, directory);
            anchors.insert(node.name().to_owned(), of_node);
        }
        let gone = std::mem::replace(&mut self.anchors, anchors);
        gone.into_values().flatten().for_each(|id| self.partition.mark(id));
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

    fn join_stale<'a>(&mut self, join: &mut Join<'a>, ledger: &'a Ledger, options: &Options) {
        let stale = self.partition.take_stale();
        self.groups.retain(|id, _| !stale.contains(id) && self.partition.group_of(*id) == *id);
        let mut flows: Vec<(AnchorId, FlowView<'a>)> = Vec::new();
        let stale_group = |anchor: &AnchorId| Some(self.partition.group_of(*anchor)).filter(|id| stale.contains(id));
        for node in ledger.records().filter(|_| !stale.is_empty()) {
            let anchors = self.anchors.get(node.name()).map(Vec::as_slice).unwrap_or_default();
            if anchors.iter().any(|anchor| stale_group(anchor).is_some()) {
                let of_node = node.flows().zip(anchors);
                flows.extend(of_node.filter_map(|(flow, anchor)| Some((stale_group(anchor)?, self.view(&flow)))));
            }
        }
        self.joined_flows = flows.len();
        // Stable: within a group the ledger's order.
        flows.sort_by_key(|(group, _)| *group);
        for flows in flows.chunk_by(|one, next| one.0 == next.0) {
            let until = flows.iter().filter_map(|(_, flow)| deadline(flow, options, join.directory)).min();
            let joined = join.join(flows.iter().map(|(_, flow)| *flow));
            let until = [until, joined.names_change_at].into_iter().flatten().min();
            self.groups.insert(flows[0].0, Group { joined, at: options.now, until });
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
            && node_states(ledger, options.now).eq(node_states(&self.ledger, before.now));
        if !is_same {
            return None;
        }
        origin.changes_since(&self.revision).and_then(Changed::collect)
    }
}

fn node_states(ledger: &Ledger, now: SystemTime) -> impl Iterator<Item = (&str, NodeState<'_>)> {
    ledger.records().map(move |node| (node.name(), node.state(now)))
}

/// Returns the anchors of a node's flows. Marks the groups of those that are new, gone, or not as they were `before`, when
/// they had the anchors `known`.
fn follow_node<'a>(
    partition: &mut Partition,
    node: NodeRecords<'a>,
    before: Option<NodeRecords<'_>>,
    known: &[AnchorId],
    changed: &Changed,
    ends: &mut Endpoints<'a>,
    directory: &'a Directory,
) -> Vec<AnchorId> {
    if changed.is_empty() && before.is_some_and(|before| node.has_same_flows(&before)) {
        return known.to_vec();
    }
    let other_owner = before.map(|before| node.cgroups_with_another_owner(&before)).unwrap_or_default();
    let mut before = before.into_iter().flat_map(NodeRecords::flows).zip(known.iter().copied()).peekable();
    let mut anchors = Vec::new();
    for flow in node.flows() {
        // Both are in the order of their keys, the flows of former cgroups apart, which have no order.
        let place = (flow.is_orphaned(), flow.key());
        let is_earlier = |other: &FlowRecord<'_>| !other.is_orphaned() && (false, other.key()) < place;
        while let Some((_, gone)) = before.next_if(|(other, _)| is_earlier(other)) {
            partition.mark(gone);
        }
        let same = before.next_if(|(other, _)| (other.is_orphaned(), other.key()) == place);
        let unchanged = same.filter(|(other, _)| {
            flow.is_unchanged_since(other)
                && !changed.concerns(&flow)
                && (flow.is_orphaned() || !other_owner.contains(&flow.key().cgroup_id))
        });
        if let Some((_, known)) = unchanged {
            anchors.push(known);
        } else {
            if let Some((_, known)) = same {
                partition.mark(known);
            }
            anchors.push(partition.add(&flow, ends, directory));
        }
    }
    before.for_each(|(_, gone)| partition.mark(gone));
    anchors
}
