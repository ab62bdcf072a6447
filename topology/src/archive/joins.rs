//! Joins of the two graphs that an archive needs. Both keep their results between graphs.

use crate::{
    directory::{Directory, Revision},
    graph::{Graph, IncrementalJoin, Known, Options, Pace, Perspective},
    ledger::Ledger,
};

/// The joins.
#[derive(Clone, Debug)]
pub(super) struct Joins {
    of_ledger: IncrementalJoin,
    of_agents: IncrementalJoin,
    /// The directory as checkpoints record it, and the revision of the whole one.
    recorded: Option<(Revision, Directory)>,
}

impl Default for Joins {
    fn default() -> Self {
        Self {
            of_ledger: IncrementalJoin::new(Perspective::Ledger),
            of_agents: IncrementalJoin::new(Perspective::Agents),
            recorded: None,
        }
    }
}

impl Joins {
    /// Sets the pace of counts.
    pub(super) fn set_pace(&mut self, pace: Pace) {
        // The other graph is of the state that this one has.
        self.of_ledger.set_pace(pace);
    }

    /// Makes the graph of the ledger's flows.
    pub(super) fn of_ledger(
        &mut self,
        ledger: &Ledger,
        directory: &Directory,
        options: &Options,
        known: &Known,
    ) -> Graph {
        self.of_ledger.build(ledger, directory, directory, options, known)
    }

    /// Makes the graph that an operator would learn from the agents and the checkpoints if it began now, of the state that
    /// the last graph of the ledger's flows has.
    pub(super) fn of_agents(&mut self, directory: &Directory, options: &Options, known: &Known) -> Graph {
        let Some(ledger) = self.of_ledger.ledger() else { return Graph::default() };
        let recorded = recorded(&mut self.recorded, directory);
        self.of_agents.build(ledger, recorded, directory, options, known)
    }

    /// Returns whether that state has flows with a part that agents no longer report.
    pub(super) fn have_history(&self) -> bool {
        self.of_ledger.ledger().is_some_and(Ledger::has_history)
    }

    /// Returns the number of flows that were joined for the last graph of the ledger's flows.
    pub(super) fn joined_flows(&self) -> usize {
        self.of_ledger.joined_flows()
    }
}

/// Returns a directory as the next operator would have it: checkpoints record pods that are gone, and no other removed
/// entries. Keeps it until the directory changes.
fn recorded<'a>(kept: &'a mut Option<(Revision, Directory)>, directory: &'a Directory) -> &'a Directory {
    if !directory.has_unrecorded() {
        *kept = None;
        return directory;
    }
    let is_kept = kept.as_ref().is_some_and(|(revision, _)| revision == directory.revision());
    if !is_kept {
        let mut recorded = directory.clone();
        recorded.forget_unrecorded();
        *kept = Some((directory.revision().clone(), recorded));
    }
    kept.as_ref().map_or(directory, |(_, recorded)| recorded)
}
