//! Joins both ends of each conversation into one edge: client → (Service) → server.
//!
//! The result depends on what was observed and not on the order of the reports. Counters come from the client's end
//! where it was seen, else from the server's; no connection is counted on two edges.

mod calls;
mod divided;
mod edges;
mod ends;
mod far_ends;
mod forgotten;
mod handed_on;
mod join;
mod matching;
mod nodes;
mod observed;
mod only_backend;
mod outside;
mod servers_alone;
mod translated;

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use self::outside::Choice;
pub use self::{
    forgotten::Forgotten,
    outside::{Outside, Way},
};
use crate::{
    counts::Counts,
    directory::Directory,
    edge::{Edge, EdgeKey},
    ledger::{FlowView, Ledger},
};

/// What a graph depends on besides the flows and the names.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The present.
    pub now: SystemTime,
    /// How long a conversation of which only one end has been reported waits for the other, if that is to be expected.
    pub settle: Duration,
    /// How long an edge without an open connection and without a new one stays.
    pub retention: Duration,
    /// How many addresses outside of the cluster have edges of their own, for each peer and direction.
    pub max_external: usize,
}

impl Options {
    /// What was known by then has waited long enough.
    fn settled(&self) -> SystemTime {
        self.now.checked_sub(self.settle).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The graph at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// All edges, by key, each key once.
    pub edges: Vec<Edge>,
    /// Connections that are on no edge yet, because the report of their other end is still to come. None stays among them
    /// for longer than [`Options::settle`] and, where a Service's backends may have taken it, until their agents are heard.
    pub unsettled: u64,
    /// When the graph changes by the mere passing of time, because something has waited long enough.
    pub settles_at: Option<SystemTime>,
    /// The part of each edge that its agents no longer know, where there is any: an operator that begins anew learns it
    /// from nobody but its predecessor. Filled by [`crate::archive::Archive::build`].
    pub earlier: HashMap<EdgeKey, Counts>,
    /// Which addresses outside of the cluster have edges of their own; all others share some
    /// ([`Peer::OtherExternal`](crate::edge::Peer)).
    pub outside: Outside,
}

/// Makes the graph of all flows.
///
/// Invariants: the order in which flows were reported makes no difference; no connection is on two edges; each key has
/// one edge.
#[must_use]
pub fn build(ledger: &Ledger, directory: &Directory, options: &Options) -> Graph {
    build_knowing(ledger, directory, options, &Known::default())
}

/// What is known from before.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What clients' agents have forgotten: servers that still count it tell nothing new.
    pub forgotten: Forgotten,
    /// Which addresses of the outside had edges of their own: rather those than others have them again.
    pub outside: Outside,
    /// Exactly those, where others had none.
    pub is_outside_fixed: bool,
}

impl Known {
    fn choice(&self, options: &Options) -> Choice<'_> {
        Choice { limit: options.max_external, before: &self.outside, fixed: self.is_outside_fixed }
    }
}

/// The same with what is known from before.
#[must_use]
pub fn build_knowing(ledger: &Ledger, directory: &Directory, options: &Options, known: &Known) -> Graph {
    join(ledger.flows(), ledger, directory, options, known)
}

/// Makes the graph of what agents would tell somebody who has never heard of them.
///
/// Invariants: those of [`build`].
#[must_use]
pub fn build_anew(ledger: &Ledger, directory: &Directory, options: &Options, known: &Known) -> Graph {
    let flows = ledger.flows().map(|flow| FlowView { totals: flow.anew, ..flow });
    join(flows, ledger, directory, options, known)
}

fn join<'a>(
    flows: impl Iterator<Item = FlowView<'a>>,
    ledger: &'a Ledger,
    directory: &'a Directory,
    options: &Options,
    known: &Known,
) -> Graph {
    let mut join = join::Join::new(flows, ledger, directory, options, known.forgotten.clone());
    join.join();
    join.finish(known.choice(options))
}
