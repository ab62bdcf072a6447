//! Pace at which counts are joined: a group of which nothing but counts has changed can wait, and then waits for its turn.

use std::time::{Duration, SystemTime};

use super::anchor::AnchorId;

/// Number of flows that are joined in any case, if they are due.
const MIN_FLOWS: usize = 4096;
/// Share of its turn by which a graph may join more, so that what was late catches up.
const CATCH_UP: f64 = 2.0;

/// Pace of counts. By default, all are joined at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Time between two joins of a group for nothing but counts.
    pub interval: Duration,
    /// Time between two graphs for nothing but counts: groups that are due shortly after each other are due together.
    pub pause: Duration,
}

/// A group that could wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) group: AnchorId,
    /// Time of its last join.
    pub(super) joined_at: SystemTime,
    /// Number of its flows.
    pub(super) flows: usize,
}

impl Pace {
    /// Returns whether no group waits.
    pub(super) fn is_at_once(&self) -> bool {
        self.interval.is_zero()
    }

    /// Takes the groups whose turn it is `elapsed` after the last graph of `all_flows` flows. These are the ones that have
    /// waited for longest, and no more than keep up with the pace: no graph has to join everything.
    pub(super) fn take_due(
        &self,
        waiting: &mut Vec<Waiting>,
        now: SystemTime,
        elapsed: Duration,
        all_flows: usize,
    ) -> Vec<AnchorId> {
        waiting.sort_unstable_by_key(|group| (group.joined_at, group.group));
        let most = self.most_flows(elapsed, all_flows);
        let mut flows = 0;
        let due = waiting
            .iter()
            .take_while(|group| {
                let is_due = self.due(group) <= now && flows < most;
                flows += group.flows;
                is_due
            })
            .count();
        waiting.drain(..due).map(|group| group.group).collect()
    }

    /// Returns the time at which a group is due.
    pub(super) fn due(&self, group: &Waiting) -> SystemTime {
        group.joined_at + self.interval
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an estimate; a product beyond all numbers becomes the greatest"
    )]
    fn most_flows(&self, elapsed: Duration, all_flows: usize) -> usize {
        let turn = elapsed.as_secs_f64() / self.interval.as_secs_f64();
        MIN_FLOWS.saturating_add((CATCH_UP * turn * all_flows as f64) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::anchor::AnchorId;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn group(number: u32, joined_at: u64, flows: usize) -> Waiting {
        Waiting { group: AnchorId(number), joined_at: at(joined_at), flows }
    }

    fn due(groups: &[Waiting], now: u64, elapsed: u64) -> (Vec<AnchorId>, usize) {
        let pace = Pace { interval: Duration::from_secs(100), ..Pace::default() };
        let mut waiting = groups.to_vec();
        let all = groups.iter().map(|group| group.flows).sum();
        let due = pace.take_due(&mut waiting, at(now), Duration::from_secs(elapsed), all);
        (due, waiting.len())
    }

    #[test]
    fn groups_are_due_after_the_interval_the_oldest_first() {
        let groups = [group(1, 50, 10), group(2, 10, 10), group(3, 30, 10)];
        assert_eq!(due(&groups, 109, 1), (vec![], 3));
        assert_eq!(due(&groups, 130, 1), (vec![AnchorId(2), AnchorId(3)], 1));
    }

    #[test]
    fn a_graph_joins_its_turn_of_the_flows_and_one_group_at_least() {
        let groups: Vec<Waiting> = (0..100).map(|number| group(number, 0, 10_000)).collect();
        assert_eq!(due(&groups, 200, 0).0.len(), 1);
        // A hundredth of the interval, twice.
        assert_eq!(due(&groups, 200, 1).0.len(), 3);
        assert_eq!(due(&groups, 200, 100).1, 0);
    }
}
