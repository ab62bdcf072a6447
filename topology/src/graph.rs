//! Joins both ends of each conversation into one edge: client → (Service) → server.
//!
//! The result depends on what was observed and not on the order of the reports. Counters come from the client's end
//! where it was seen, else from the server's; no connection is counted on two edges.

mod address;
mod address_reuse;
mod anchor;
mod calls;
mod candidate_search;
mod candidates;
mod edges;
mod endpoints;
mod external_peers;
mod forwarded;
mod incoming_proxies;
mod incremental;
mod interceptors;
mod join;
mod key;
mod known_connections;
mod legs;
mod made_edges;
mod matching;
mod multiple_backends;
mod names;
mod namespaces;
mod nat_peers;
mod nodes;
mod observed;
mod outgoing_proxies;
mod pace;
mod partition;
mod path;
mod placed_legs;
mod placement;
mod relay;
mod rewritten_source;
mod shares;
mod single_backend;
mod sums;
mod unmatched_servers;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::external_peers::Choice;
pub(crate) use self::incremental::{IncrementalJoin, Perspective};
pub use self::{
    external_peers::{Direction, Outside},
    known_connections::KnownConnections,
    pace::Pace,
    placed_legs::{PlacedLeg, PlacedLegs, PodHash, RecordedLeg},
};
use crate::{
    counts::Earlier,
    directory::Directory,
    edge::{Edge, EdgeCounters, EdgeKey},
    ledger::{FlowView, Ledger},
};

/// Inputs of a graph besides flows and names.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The present.
    pub now: SystemTime,
    /// Time for which a conversation with one reported end waits for the other end, if one is expected.
    pub settle: Duration,
    /// Time for which an edge without open and new connections stays.
    pub retention: Duration,
    /// Maximum number of external addresses with edges of their own, per peer and direction.
    pub max_external: usize,
}

impl Options {
    /// Returns the time up to which observations have waited long enough.
    fn settled(&self) -> SystemTime {
        self.now.checked_sub(self.settle).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The graph at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// All edges, by key, each key once. One that has not changed is the same object as in the graph before.
    pub edges: Vec<Arc<Edge>>,
    /// Connections that are on no edge yet, because the report of their other end is still to come. None stays among them
    /// for longer than [`Options::settle`] and, where a Service's backends may have taken it, until their agents are heard.
    pub unsettled: u64,
    /// Time at which the graph changes without new input, because a waiting time ends.
    pub settles_at: Option<SystemTime>,
    /// Part of each edge that its agents no longer report, if any; only the published objects can tell a restarted
    /// operator. Filled by [`crate::archive::Archive::build`].
    pub earlier: HashMap<EdgeKey, Earlier>,
    /// Connections that servers' agents no longer report, by the edge without a Service and the server's pod.
    pub forgotten_by_servers: HashMap<(EdgeKey, String), u64>,
    /// Connections through transparent proxies, by flow: which edge they are on stays.
    pub legs: Arc<PlacedLegs>,
    /// Those of [`Self::legs`] that an operator without any state needs. Filled by [`crate::archive::Archive::build`].
    pub recorded_legs: PlacedLegs,
    /// External addresses with edges of their own; all others share edges ([`Peer::OtherExternal`](crate::edge::Peer)).
    pub outside: Outside,
}

/// Makes the graph of all flows.
///
/// Invariants: the order in which flows were reported makes no difference; no connection is on two edges; each key has
/// one edge.
#[must_use]
pub fn build(ledger: &Ledger, directory: &Directory, options: &Options) -> Graph {
    build_with(ledger, directory, options, &Known::default())
}

/// Number of connections of each client's pod and container, by the edge to the Service that it called.
pub type WithBackends = HashMap<(EdgeKey, String, String), u64>;

/// State from before.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Flows that clients' agents evicted: counts of servers for them are not new.
    pub forgotten: KnownConnections,
    /// Part of each edge that only servers had counted when it was shown last. Such connections, with their bytes, stay on
    /// their edge: through which Service they came is a guess.
    pub placed: HashMap<EdgeKey, EdgeCounters>,
    /// Connections to Services that are on edges to backends that no agent reports any more: no other backend has them.
    pub with_backends: Arc<WithBackends>,
    /// Connections through transparent proxies as they were shown, by flow.
    pub legs: Arc<PlacedLegs>,
    /// True if the graph's records of these connections are the known ones, as far as agents report them: what is undecided
    /// stays so.
    pub keeps_legs: bool,
    /// External addresses that had edges of their own; they are preferred over others.
    pub outside: Outside,
    /// True if no other external addresses have edges of their own.
    pub is_fixed: bool,
    /// True if agents may still have to report for the first time: a client that is not reported may exist.
    pub awaits_agents: bool,
}

impl Known {
    fn choice(&self, options: &Options) -> Choice<'_> {
        Choice { limit: options.max_external, before: &self.outside, fixed: self.is_fixed }
    }
}

/// The same with what is known from before.
#[must_use]
pub fn build_with(ledger: &Ledger, directory: &Directory, options: &Options, known: &Known) -> Graph {
    join(ledger.flows(), ledger, directory, options, known)
}

/// Builds the graph from what agents would report to an operator without any state.
///
/// Invariants: those of [`build`].
#[must_use]
pub fn build_from_agents(ledger: &Ledger, directory: &Directory, options: &Options, known: &Known) -> Graph {
    let flows = ledger.flows().map(FlowView::from_agents);
    join(flows, ledger, directory, options, known)
}

fn join<'a>(
    flows: impl Iterator<Item = FlowView<'a>>,
    ledger: &'a Ledger,
    directory: &'a Directory,
    options: &Options,
    known: &'a Known,
) -> Graph {
    let mut join = join::Join::new(ledger, directory, options, known, names::Names::default());
    let interceptors = interceptors::Interceptors::of(ledger);
    join.interceptors = Arc::new(interceptors);
    let joined = join.join(flows);
    let mut graph = join.finish(std::iter::once(&joined), known.choice(options), &mut made_edges::MadeEdges::default());
    graph.settles_at = [graph.settles_at, joined.settles_at].into_iter().flatten().min();
    graph
}
