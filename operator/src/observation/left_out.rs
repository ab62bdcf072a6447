//! Flows that the operator left out, for lack of room or because they are at addresses of other nodes.

use crds::Losses;
use topology::count;

/// Flows of one epoch that the operator left out, at least for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Their connections.
    pub opened: u64,
    /// Their failed attempts.
    pub failed: u64,
    /// Why flows are left out now; `None` if none are.
    pub reason: Option<LeftOutReason>,
    /// True if there were more than the operator tells apart, so that the numbers are lower bounds.
    pub is_lower_bound: bool,
    /// True if an earlier operator left flows out: the recorded losses then contain them, and the numbers here do not.
    pub is_restored: bool,
}

/// Why flows are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOutReason {
    /// The operator has no room for more.
    NoRoom,
    /// All of them are at addresses of other nodes.
    ForeignAddress,
}

impl LeftOut {
    /// Returns the same with what an earlier operator left out: it declared `recorded`, and the agent reports `reported`.
    #[must_use]
    pub fn with_restored(&self, recorded: &Losses, reported: &Losses) -> Self {
        if !self.is_restored {
            return self.clone();
        }
        let left_out = recorded.since(reported);
        let (opened, failed) = (self.opened.max(left_out.opened), self.failed.max(left_out.failed));
        Self { opened, failed, is_restored: false, ..self.clone() }
    }

    /// Returns the same with what a later stream of the epoch left out.
    #[must_use]
    pub fn and_later(&self, later: &Self) -> Self {
        Self {
            opened: self.opened.max(later.opened),
            failed: self.failed.max(later.failed),
            reason: later.reason,
            is_lower_bound: self.is_lower_bound || later.is_lower_bound,
            is_restored: false,
        }
    }

    /// Moves what was left out from the seen connections to the losses.
    #[must_use]
    pub fn declared(&self, seen: u64, losses: Losses) -> (u64, Losses) {
        let seen = seen.saturating_sub(count::add(self.opened, self.failed));
        let left_out = Losses { opened: self.opened, failed: self.failed, ..Losses::default() };
        (seen, losses.plus(&left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_out_connections_are_losses_and_not_seen() {
        let left_out = LeftOut { opened: 3, failed: 1, ..LeftOut::default() };
        let (seen, losses) = left_out.declared(10, Losses { opened: 2, ..Losses::default() });
        assert_eq!((seen, losses.opened, losses.failed), (6, 5, 1));
    }

    #[test]
    fn losses_of_an_epoch_never_shrink() {
        let earlier = LeftOut {
            opened: 3,
            failed: 1,
            reason: Some(LeftOutReason::NoRoom),
            is_lower_bound: true,
            is_restored: false,
        };
        let all = earlier.and_later(&LeftOut { opened: 1, failed: 2, ..LeftOut::default() });
        let expected = LeftOut { opened: 3, failed: 2, is_lower_bound: true, ..LeftOut::default() };
        assert_eq!(all, expected);
    }

    #[test]
    fn what_an_earlier_operator_left_out_stays_lost() {
        let losses = |opened| Losses { opened, ..Losses::default() };
        let restored = LeftOut { is_restored: true, ..LeftOut::default() };
        let known = restored.with_restored(&losses(9), &losses(2));
        assert_eq!((known.opened, known.is_restored), (7, false));
        assert_eq!(LeftOut::default().with_restored(&losses(9), &losses(2)), LeftOut::default());
    }
}
