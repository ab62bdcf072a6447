//! The latest changes of a directory, so that what was derived from an earlier state of it can follow.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use crate::flow::Protocol;

/// Maximum number of changes that are kept. One event of the cluster makes a few of them.
const MAX_CHANGES: usize = 4096;

/// Something of which the directory says something else than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The pod with this UID, or the pod of the container with this ID.
    Pod(String),
    /// The owners of an address, or the Service behind it.
    Address(IpAddr),
    /// The Service behind this port of all nodes.
    NodePort(u16, Protocol),
    /// Anything.
    Everything,
}

/// A state of a directory. Two directories that were changed in different ways never have the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Revision(Arc<()>);

impl PartialEq for Revision {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The changes, oldest first, each with the revision that it led to.
#[derive(Clone, Debug)]
pub(super) struct Changes {
    /// Revision before the oldest change.
    base: Revision,
    latest: VecDeque<(Revision, Change)>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { base: Revision(Arc::new(())), latest: VecDeque::new() }
    }
}

impl Changes {
    /// Adds a change.
    pub(super) fn note(&mut self, change: Change) {
        // Many of them come when an operator begins.
        if change == Change::Everything && self.latest.back().is_some_and(|(_, last)| *last == change) {
            self.latest.pop_back();
        }
        self.latest.push_back((Revision(Arc::new(())), change));
        while self.latest.len() > MAX_CHANGES {
            if let Some((revision, _)) = self.latest.pop_front() {
                self.base = revision;
            }
        }
    }

    /// Returns the present revision.
    pub(super) fn revision(&self) -> &Revision {
        self.latest.back().map_or(&self.base, |(revision, _)| revision)
    }

    /// Returns all changes since a revision; `None` if it is too old, or another directory's.
    pub(super) fn since(&self, revision: &Revision) -> Option<impl Iterator<Item = &Change>> {
        let known = if *revision == self.base {
            0
        } else {
            1 + self.latest.iter().rposition(|(known, _)| known == revision)?
        };
        Some(self.latest.range(known..).map(|(_, change)| change))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: usize) -> Change {
        Change::Pod(number.to_string())
    }

    fn since(changes: &Changes, revision: &Revision) -> Option<Vec<Change>> {
        changes.since(revision).map(|changes| changes.cloned().collect())
    }

    #[test]
    fn changes_since_revision_are_listed() {
        let mut changes = Changes::default();
        let empty = changes.revision().clone();
        changes.note(pod(1));
        let one = changes.revision().clone();
        changes.note(pod(2));
        assert_eq!(since(&changes, &empty), Some(vec![pod(1), pod(2)]));
        assert_eq!(since(&changes, &one), Some(vec![pod(2)]));
        assert_eq!(since(&changes, changes.revision()), Some(Vec::new()));
        assert_eq!(since(&Changes::default(), &one), None, "another directory's");
    }

    #[test]
    fn copy_that_goes_its_own_way_is_another_directory() {
        let mut changes = Changes::default();
        let mut copy = changes.clone();
        changes.note(pod(1));
        copy.note(pod(2));
        assert_eq!(since(&copy, changes.revision()), None);
    }

    #[test]
    fn too_many_changes_are_none() {
        let mut changes = Changes::default();
        let empty = changes.revision().clone();
        changes.note(pod(0));
        let one = changes.revision().clone();
        (0..MAX_CHANGES).for_each(|number| changes.note(pod(number)));
        assert_eq!(since(&changes, &empty), None);
        assert_eq!(since(&changes, &one).map(|changes| changes.len()), Some(MAX_CHANGES));
        (0..MAX_CHANGES).for_each(|_| changes.note(Change::Everything));
        let last = changes.revision().clone();
        changes.note(Change::Everything);
        assert_eq!(since(&changes, &last), None, "merged");
    }
}
