//! Joins both ends of each conversation into one edge: client → (Service) → server.
//!
//! The result depends on what was observed and not on the order of the reports. Counters come from the client's end
//! where it was seen, else from the server's; no connection is counted on two edges.

mod edges;
mod ends;
mod join;
mod nodes;
mod observed;
mod translated;

use std::time::{Duration, SystemTime};

use crate::{directory::Directory, edge::Edge, ledger::Ledger};

/// What a graph depends on besides the flows and the names.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The present.
    pub now: SystemTime,
    /// How long a conversation of which only one end has been reported waits for the other, if that is to be expected.
    pub settle: Duration,
    /// How long an edge without an open connection and without a new one stays.
    pub retention: Duration,
}

/// The graph at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// All edges, by key, each key once.
    pub edges: Vec<Edge>,
    /// Connections that are on no edge yet, because the report of their other end is still to come.
    pub unsettled: u64,
    /// When the graph changes by the mere passing of time, because something has waited long enough.
    pub settles_at: Option<SystemTime>,
}

/// Makes the graph of all flows.
#[must_use]
pub fn build(ledger: &Ledger, directory: &Directory, options: &Options) -> Graph {
    let mut join = join::Join::new(ledger, directory, options);
    join.join();
    join.finish()
}
