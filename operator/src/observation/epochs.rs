//! Begin and end of a node's epochs. An agent whose epoch was replaced by another one may still run: its counters then
//! continue under a new epoch.

use crds::{Folding, Losses};
use topology::{count, ledger::RESUMABLE};

use super::{
    left_out::LeftOut,
    node::NodeObservation,
    replaced::{EarlierObservation, ReplacedObservation},
};

/// Number of replaced epochs that are kept for each node.
const REMEMBERED: usize = 4;

/// Beginning of an epoch whose counters continue those of an earlier one.
#[derive(Clone, Copy, Debug)]
pub struct ResumedEpoch<'a> {
    /// The epoch, 16 bytes.
    pub epoch: &'a [u8],
    /// The epoch in which the counters began.
    pub origin: &'a [u8],
    /// Connections and failed attempts since the counters began.
    pub seen: u64,
    /// Losses since the counters began.
    pub losses: Losses,
    /// The present time, in milliseconds since 1970-01-01 UTC by the operator's clock.
    pub now_unix_ms: u64,
}

impl NodeObservation {
    /// Begins an epoch: adds the present counts to `earlier`. Does nothing if it is the current epoch.
    pub fn begin_epoch(&mut self, epoch: &[u8]) {
        if self.epoch == epoch {
            return;
        }
        if !self.epoch.is_empty() {
            self.replace();
        }
        self.earlier = EarlierObservation { seen: self.total_seen(), losses: self.total_losses() };
        self.epoch = epoch.to_vec();
        self.origin = epoch.to_vec();
        self.seen = 0;
        self.losses = Losses::default();
        self.left_out = LeftOut::default();
        self.folding = Folding::default();
    }

    /// Records the first report of an epoch whose counters continue those of `origin`, without a gap in the observation.
    /// Does nothing if the epoch is already recorded.
    pub fn resume_epoch(&mut self, resumed: &ResumedEpoch<'_>) {
        if self.epoch == resumed.epoch || self.epoch.is_empty() || self.origin == resumed.origin {
            self.epoch = resumed.epoch.to_vec();
            self.origin = resumed.origin.to_vec();
            self.continue_coverage();
            return;
        }
        let at = self.replaced.iter().position(|replaced| replaced.origin == resumed.origin);
        let replaced = at.map(|at| self.replaced.remove(at));
        let (shown_seen, shown_losses) = (self.total_seen(), self.total_losses());
        self.replace();
        self.earlier = replaced.as_ref().map(|replaced| replaced.earlier).unwrap_or_default();
        self.epoch = resumed.epoch.to_vec();
        self.origin = resumed.origin.to_vec();
        (self.seen, self.losses) = (resumed.seen, resumed.losses);
        self.left_out = LeftOut::default();
        // Reports of other agents in between must not decrease a total.
        self.earlier.seen = count::add(self.earlier.seen, shown_seen.saturating_sub(self.total_seen()));
        let missing = shown_losses.since(&self.total_losses());
        self.earlier.losses = self.earlier.losses.plus(&missing);
        if let Some(replaced) = replaced {
            let silent = resumed.now_unix_ms.saturating_sub(replaced.last_report_unix_ms);
            self.coverage = replaced.coverage;
            // The ledger has dropped the counts that it needs to continue the flows' accounts.
            if let Some(account) = self.coverage.as_mut().filter(|_| u128::from(silent) >= RESUMABLE.as_millis()) {
                account.interrupt(resumed.now_unix_ms);
            }
        }
        self.continue_coverage();
    }

    /// Continues the account of observed time under the present epoch.
    fn continue_coverage(&mut self) {
        if let Some(account) = &mut self.coverage {
            account.continue_as(&self.epoch);
        }
    }

    /// Stores the present observation when another epoch begins.
    fn replace(&mut self) {
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
            coverage: self.coverage.clone(),
            last_report_unix_ms: self.last_report_unix_ms,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report whose capture was attached at `attached_unix_ms`.
    struct Told {
        epoch: u8,
        origin: u8,
        attached_unix_ms: u64,
        seen: u64,
        lost: u64,
    }

    fn report(node: &mut NodeObservation, epoch: u8, origin: u8, seen: u64, lost: u64, now_unix_ms: u64) {
        let attached_unix_ms = if epoch == origin { now_unix_ms.saturating_sub(100) } else { 0 };
        take_in(node, &Told { epoch, origin, attached_unix_ms, seen, lost }, now_unix_ms);
    }

    fn take_in(node: &mut NodeObservation, told: &Told, now_unix_ms: u64) {
        let Told { seen, lost, .. } = *told;
        let losses = Losses { opened: lost, ..Losses::default() };
        let (epoch, origin) = ([told.epoch; 16], [told.origin; 16]);
        if epoch == origin {
            node.begin_epoch(&epoch);
        } else {
            node.resume_epoch(&ResumedEpoch { epoch: &epoch, origin: &origin, seen, losses, now_unix_ms });
        }
        node.mode = Some(crds::Mode::Ebpf);
        (node.seen, node.losses, node.last_report_unix_ms) = (seen, losses, now_unix_ms);
        node.note_capture(told.attached_unix_ms, now_unix_ms);
    }

    fn totals(node: &NodeObservation) -> (u64, u64) {
        (node.total_seen(), node.total_losses().opened)
    }

    /// Number and duration of the times without observation, and the connections that were seen in the rest.
    fn unobserved(node: &NodeObservation) -> (u64, u64, u64) {
        let periods = node.coverage.as_ref().map(|account| account.periods(None)).unwrap_or_default();
        let seen = periods.iter().map(|period| period.seen).sum();
        let shortfalls: Vec<_> = periods.iter().filter_map(|period| period.shortfall.as_ref()).collect();
        let intervals = shortfalls.iter().map(|it| it.intervals).sum();
        (intervals, shortfalls.iter().map(|it| it.unobserved_ms).sum(), seen)
    }

    #[test]
    fn resumed_epoch_counts_nothing_twice_and_leaves_no_gap() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 1, 1_000);
        report(&mut node, 2, 2, 10, 2, 2_000);
        assert_eq!((totals(&node), unobserved(&node)), ((15, 3), (1, 900, 15)));
        report(&mut node, 9, 9, 0, 0, 3_000);
        assert_eq!((totals(&node), unobserved(&node)), ((15, 3), (2, 1_800, 15)), "another agent began");
        report(&mut node, 3, 2, 12, 2, 4_000);
        assert_eq!((totals(&node), unobserved(&node)), ((17, 3), (1, 900, 17)), "the one before has gone on");
        report(&mut node, 4, 2, 13, 2, 5_000);
        assert_eq!((totals(&node), unobserved(&node)), ((18, 3), (1, 900, 18)), "under another name");
    }

    #[test]
    fn totals_never_become_less() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 1, 1_000);
        report(&mut node, 9, 9, 100, 50, 2_000);
        report(&mut node, 2, 1, 6, 1, 3_000);
        assert_eq!(totals(&node), (105, 51));
        report(&mut node, 2, 1, 8, 2, 3_000);
        assert_eq!(totals(&node), (107, 52));
    }

    #[test]
    fn many_epochs_without_counts_do_not_make_an_agent_count_twice() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 1, 1_000);
        for stranger in 100..200 {
            report(&mut node, stranger, stranger, 0, 0, 2_000);
        }
        report(&mut node, 2, 1, 6, 1, 3_000);
        assert_eq!((totals(&node), unobserved(&node)), ((6, 1), (0, 0, 6)));
    }

    #[test]
    fn agent_that_was_replaced_for_long_leaves_a_gap() {
        let mut node = NodeObservation::default();
        report(&mut node, 1, 1, 5, 0, 1_000);
        report(&mut node, 9, 9, 0, 0, 2_000);
        report(&mut node, 2, 1, 9, 0, 601_000);
        let (intervals, ms, _) = unobserved(&node);
        assert_eq!((totals(&node), intervals, ms), ((9, 0), 1, 600_000));
    }
}
