//! Bounds the number of stored flows, and counts what is left out. Pure.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use topology::{
    count,
    flow::{FlowCounters, FlowKey},
};

use crate::{
    observation::{LeftOut, LeftOutReason},
    settings::Limits,
};

/// Maximum number of flows of one stream that are left out and told apart.
const MAX_TOLD_APART: usize = 4096;

/// Numbers of flows that may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowLimits {
    per_node: usize,
    all: usize,
}

impl From<&Limits> for FlowLimits {
    fn from(limits: &Limits) -> Self {
        let number = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX);
        Self { per_node: number(limits.collector_max_flows_per_node), all: number(limits.max_flows()) }
    }
}

impl FlowLimits {
    /// Returns how many flows a node with `own` flows may add. Half of all places are divided equally among the nodes; each
    /// node may use those of others that they do not have reserved.
    ///
    /// Invariant: nodes that came first leave room for later ones, so that all have at most one and a half times the maximum.
    pub fn allowance(self, own: usize, others: impl Iterator<Item = usize> + Clone) -> usize {
        let nodes = others.clone().count().saturating_add(1);
        let reserved = self.all / 2 / nodes;
        let taken = others.map(|flows| flows.max(reserved)).fold(own, usize::saturating_add);
        let free = self.all.saturating_sub(taken);
        free.max(reserved.saturating_sub(own)).min(self.per_node.saturating_sub(own))
    }
}

/// Flows of one stream that were left out. They stay so until its end, so that each connection is lost or shown.
#[derive(Debug, Default)]
pub(super) struct LeftOutFlows {
    /// Connections and failed attempts of each, by the flow's hash.
    flows: HashMap<u64, (u64, u64)>,
    hasher: RandomState,
    sum: LeftOut,
    /// True if there was no room for some of them. The others are at addresses of other nodes.
    lacks_room: bool,
}

impl LeftOutFlows {
    /// Returns whether an earlier message's flow was left out.
    pub fn contains(&self, key: &FlowKey) -> bool {
        !self.flows.is_empty() && self.flows.contains_key(&self.hasher.hash_one(key))
    }

    /// Counts a flow for which there is no room.
    pub fn add_without_room(&mut self, key: &FlowKey, counters: &FlowCounters, in_snapshot: bool) {
        self.lacks_room = true;
        self.add(key, counters, in_snapshot);
    }

    /// Counts a flow that is left out. Of more flows than can be told apart, only the first report of each snapshot counts.
    pub fn add(&mut self, key: &FlowKey, counters: &FlowCounters, in_snapshot: bool) {
        let hash = self.hasher.hash_one(key);
        let is_known = self.flows.contains_key(&hash);
        if !is_known && self.flows.len() >= MAX_TOLD_APART {
            self.sum.is_lower_bound = true;
            if !in_snapshot {
                return;
            }
            self.sum.opened = count::add(self.sum.opened, counters.opened);
            self.sum.failed = count::add(self.sum.failed, counters.failed);
            return;
        }
        let (opened, failed) = self.flows.entry(hash).or_default();
        // A flow that began anew counts from zero.
        let growth = |known: &mut u64, counted: u64| {
            let growth = if counted < *known { counted } else { counted - *known };
            *known = counted;
            growth
        };
        self.sum.opened = count::add(self.sum.opened, growth(opened, counters.opened));
        self.sum.failed = count::add(self.sum.failed, growth(failed, counters.failed));
    }

    /// Returns what was left out so far.
    pub fn sum(&self) -> LeftOut {
        // For lack of room, users have to act.
        let reason = if self.lacks_room { LeftOutReason::NoRoom } else { LeftOutReason::ForeignAddress };
        LeftOut { reason: (!self.flows.is_empty()).then_some(reason), ..self.sum.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use topology::flow::{Protocol, Role};

    use super::*;

    const LIMITS: FlowLimits = FlowLimits { per_node: 80, all: 120 };

    fn allowance(own: usize, others: &[usize]) -> usize {
        LIMITS.allowance(own, others.iter().copied())
    }

    #[test]
    fn node_alone_is_bounded_by_its_own_limit() {
        assert_eq!((allowance(0, &[]), allowance(79, &[]), allowance(80, &[]), allowance(99, &[])), (80, 1, 0, 0));
    }

    #[test]
    fn greedy_node_leaves_the_others_their_part() {
        // Half of 120 among three nodes: 20 each.
        assert_eq!(allowance(0, &[0, 0]), 80);
        assert_eq!(allowance(79, &[0, 0]), 1);
        assert_eq!(allowance(10, &[80, 0]), 10, "its reserved places");
        assert_eq!(allowance(20, &[80, 0]), 0, "the third node's are not for it");
        assert_eq!(allowance(0, &[80, 20]), 20);
    }

    proptest! {
        #[test]
        fn all_flows_are_bounded_in_any_order_of_nodes(requests in prop::collection::vec((0_usize..6, 1_usize..200), 1..60)) {
            let mut nodes: Vec<Option<usize>> = vec![None; 6];
            for (node, wanted) in requests {
                let own = nodes[node].unwrap_or(0);
                let others: Vec<usize> =
                    nodes.iter().enumerate().filter(|(other, _)| *other != node).filter_map(|(_, flows)| *flows).collect();
                nodes[node] = Some(own + wanted.min(allowance(own, &others)));
                let present: Vec<usize> = nodes.iter().copied().flatten().collect();
                prop_assert!(present.iter().all(|flows| *flows <= LIMITS.per_node));
                prop_assert!(present.iter().sum::<usize>() <= LIMITS.all / 2 * 3);
            }
            for node in 0..6 {
                let own = nodes[node].unwrap_or(0);
                let others: Vec<usize> = (0..6).filter(|other| *other != node).map(|other| nodes[other].unwrap_or(0)).collect();
                prop_assert!(own + allowance(own, &others) >= LIMITS.all / 2 / 6, "no node has less than its part");
            }
        }
    }

    fn key(port: u16) -> FlowKey {
        let ip = [10, 0, 0, 1].into();
        FlowKey { cgroup_id: 1, netns: 1, role: Role::Client, local: ip, remote: ip, port, protocol: Protocol::Tcp }
    }

    fn counters(opened: u64, failed: u64) -> FlowCounters {
        FlowCounters { opened, failed, ..FlowCounters::default() }
    }

    #[test]
    fn left_out_connections_are_counted_once() {
        let mut left_out = LeftOutFlows::default();
        assert_eq!((left_out.contains(&key(1)), left_out.sum()), (false, LeftOut::default()));
        for (port, opened, failed) in [(1, 5, 1), (1, 7, 1), (2, 10, 0), (1, 7, 2), (2, 3, 0)] {
            left_out.add_without_room(&key(port), &counters(opened, failed), false);
        }
        let sum = left_out.sum();
        assert_eq!((sum.opened, sum.failed, sum.is_lower_bound), (7 + 10 + 3, 2, false));
        assert_eq!(sum.reason, Some(LeftOutReason::NoRoom));
        assert!(left_out.contains(&key(1)) && !left_out.contains(&key(3)));
    }

    #[test]
    fn beyond_its_memory_the_count_is_a_lower_bound() {
        let mut left_out = LeftOutFlows::default();
        let ports = 1..=u16::try_from(MAX_TOLD_APART).unwrap() + 10;
        for port in ports.clone() {
            left_out.add_without_room(&key(port), &counters(1, 0), true);
        }
        for port in ports {
            left_out.add_without_room(&key(port), &counters(1, 0), false);
        }
        let sum = left_out.sum();
        assert_eq!((sum.opened, sum.is_lower_bound), (MAX_TOLD_APART as u64 + 10, true));
        assert_eq!(left_out.flows.len(), MAX_TOLD_APART);
    }
}
