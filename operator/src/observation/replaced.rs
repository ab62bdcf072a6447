//! Agents that another epoch has replaced although they still run: their counters go on under a new epoch.

use crds::Losses;
use topology::ledger::RESUMABLE;

use super::{EarlierObservation, NodeObservation};

/// Number of replaced epochs that are remembered for each node.
const REMEMBERED: usize = 4;

/// A node's observation as an epoch has left it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplacedObservation {
    origin: Vec<u8>,
    earlier: EarlierObservation,
    /// When it last reported, in milliseconds since 1970-01-01 UTC by the operator's clock.
    last_report_unix_ms: u64,
}

/// The beginning of an epoch whose counters go on from those of an earlier one.
#[derive(Clone, Copy, Debug)]
pub struct ResumedEpoch<'a> {
    /// 16 bytes.
    pub epoch: &'a [u8],
    /// The epoch in which the counters began.
    pub origin: &'a [u8],
    /// When the capture was attached, in milliseconds since 1970-01-01 UTC by the node's clock.
    pub attached_unix_ms: u64,
    /// What the counters are now.
    pub seen: u64,
    /// As `seen`.
    pub losses: Losses,
    /// The present time, in milliseconds since 1970-01-01 UTC by the operator's clock.
    pub now_unix_ms: u64,
}

impl NodeObservation {
    /// The first report of an epoch whose counters go on from those of `origin`: nobody has stopped looking. Nothing happens
    /// if the epoch is the one that is known.
    pub fn resume_epoch(&mut self, resumed: &ResumedEpoch<'_>) {
        if self.epoch == resumed.epoch || self.epoch.is_empty() || self.origin == resumed.origin {
            self.epoch = resumed.epoch.to_vec();
            self.origin = resumed.origin.to_vec();
            return;
        }
        let at = self.replaced.iter().position(|replaced| replaced.origin == resumed.origin);
        let replaced = at.map(|at| self.replaced.remove(at));
        let (shown_seen, shown_losses) = (self.total_seen(), self.total_losses());
        self.replace();
        self.earlier = replaced
            .as_ref()
            .map_or(EarlierObservation { seen: 0, losses: Losses::default(), ..self.earlier }, |replaced| {
                replaced.earlier
            });
        self.epoch = resumed.epoch.to_vec();
        self.origin = resumed.origin.to_vec();
        self.attached_unix_ms = resumed.attached_unix_ms;
        (self.seen, self.losses) = (resumed.seen, resumed.losses);
        // Whatever others have reported in between, no total becomes less.
        self.earlier.seen = self.earlier.seen.saturating_add(shown_seen.saturating_sub(self.total_seen()));
        let missing = each(&shown_losses, &self.total_losses(), u64::saturating_sub);
        self.earlier.losses = each(&self.earlier.losses, &missing, u64::saturating_add);
        let silent = replaced.map_or(0, |replaced| resumed.now_unix_ms.saturating_sub(replaced.last_report_unix_ms));
        if u128::from(silent) >= RESUMABLE.as_millis() {
            // The ledger has dropped what it needs to tell what the flows have counted meanwhile.
            self.earlier.gaps += 1;
            self.earlier.gap_ms = self.earlier.gap_ms.saturating_add(silent);
        }
    }

    /// Another epoch begins: keeps what this one has left.
    pub(super) fn replace(&mut self) {
        if (self.seen, self.losses) == (0, Losses::default()) {
            // Nothing of it could count twice.
            return;
        }
        self.replaced.retain(|replaced| replaced.origin != self.origin);
        if self.replaced.len() == REMEMBERED {
            self.replaced.remove(0);
        }
        self.replaced.push(ReplacedObservation {
            origin: self.origin.clone(),
            earlier: self.earlier,
            last_report_unix_ms: self.last_report_unix_ms,
        });
    }
}

fn each(one: &Losses, other: &Losses, of: impl Fn(u64, u64) -> u64) -> Losses {
    Losses {
        opened: of(one.opened, other.opened),
        closed: of(one.closed, other.closed),
        failed: of(one.failed, other.failed),
        first_sights: of(one.first_sights, other.first_sights),
        closes_unseen: of(one.closes_unseen, other.closes_unseen),
        event_overflows: of(one.event_overflows, other.event_overflows),
        missed_runs: of(one.missed_runs, other.missed_runs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &mut NodeObservation, epoch: u8, origin: u8, seen: u64, lost: u64, now_unix_ms: u64) {
        let losses = Losses { opened: lost, ..Losses::default() };
        let (epoch, origin) = ([epoch; 16], [origin; 16]);
        if epoch == origin {
            node.begin_epoch(&epoch, 0);
        } else {
            let resumed =
                ResumedEpoch { epoch: &epoch, origin: &origin, attached_unix_ms: 0, seen, losses, now_unix_ms };
            node.resume_epoch(&resumed);
        }
        (node.seen, node.losses, node.last_report_unix_ms) = (seen, losses, now_unix_ms);
    }

    fn totals(node: &NodeObservation) -> (u64, u64, u64) {
        (node.total_seen(), node.total_losses().opened, node.earlier.gaps)
    }

    #[test]
    fn resumed_epoch_counts_nothing_twice_and_leaves_no_gap() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 1, 1_000);
        report(&mut node, 2, 2, 10, 2, 2_000);
        assert_eq!(totals(&node), (15, 3, 1));
        report(&mut node, 9, 9, 0, 0, 3_000);
        assert_eq!(totals(&node), (15, 3, 2), "another agent began");
        report(&mut node, 3, 2, 12, 2, 4_000);
        assert_eq!(totals(&node), (17, 3, 1), "it was none, and the one before has gone on");
        report(&mut node, 4, 2, 13, 2, 5_000);
        assert_eq!(totals(&node), (18, 3, 1), "under another name");
    }

    #[test]
    fn totals_never_become_less() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 1, 1_000);
        report(&mut node, 9, 9, 100, 50, 2_000);
        report(&mut node, 2, 1, 6, 1, 3_000);
        assert_eq!(totals(&node), (105, 51, 0));
        report(&mut node, 2, 1, 8, 2, 3_000);
        assert_eq!(totals(&node), (107, 52, 0));
    }

    #[test]
    fn many_epochs_without_counts_do_not_make_an_agent_count_twice() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 1, 1_000);
        for stranger in 100..200 {
            report(&mut node, stranger, stranger, 0, 0, 2_000);
        }
        report(&mut node, 2, 1, 6, 1, 3_000);
        assert_eq!(totals(&node), (6, 1, 0));
    }

    #[test]
    fn an_agent_that_was_replaced_for_long_leaves_a_gap() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 0, 1_000);
        report(&mut node, 9, 9, 0, 0, 2_000);
        report(&mut node, 2, 1, 9, 0, 601_000);
        assert_eq!((totals(&node), node.earlier.gap_ms), ((9, 0, 1), 600_000));
    }
}
