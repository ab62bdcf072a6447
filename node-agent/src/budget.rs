//! Sizes the flow table by the memory that the agent may use. Pure.
//!
//! The kernel's tables count, too: since 5.11 they are charged to the cgroup of the process that makes them.

use std::path::Path;

use crate::memory_limit;

/// Memory of everything but flows: the program, the cgroups and their names, the names of peers, one reading, one message.
const BASE: u64 = 32 << 20;

/// Bytes per flow of `--max-flows`.
///
/// In the kernel: an entry of the index, its counters and a free slot (252). In the agent: the slot's last counters (216),
/// an account (105) and the counters that the operator acknowledged (210). The last two count twice, because the agent
/// keeps flows that are over.
const FLOW: u64 = 1100;

/// Bytes of a conversation of datagrams, or of a socket that a tracepoint follows, in the kernel's tables.
const CONVERSATION: u64 = 160;

/// Maximum number of conversations in the kernel's table.
const MOST_CONVERSATIONS: u32 = 65_536;

/// Minimum of `--max-flows`.
const LEAST: u32 = 64;

/// The sizes of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Maximum number of flows.
    pub flows: u32,
    /// Maximum number of UDP conversations.
    pub conversations: u32,
    /// Shortage, if not everything fits.
    pub shortage: Option<Shortage>,
}

/// Shortage of memory: fewer flows fit than requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "flow table reduced from {wanted} to {flows} flows to fit the memory limit of {} MiB; connections of more flows are \
     counted as lost. Raise spec.agent.resources.limits.memory to {} MiB, or lower spec.capture.maxFlows",
    limit >> 20, needed.div_ceil(1 << 20)
)]
pub struct Shortage {
    wanted: u32,
    flows: u32,
    limit: u64,
    needed: u64,
}

impl Budget {
    /// Returns the sizes for the wanted number of flows, or for those that fit into the memory limit of this process's
    /// cgroup.
    #[must_use]
    pub fn of_this_process(wanted: u32) -> Self {
        Self::new(wanted, memory_limit::read(Path::new("/proc/self")))
    }

    fn new(wanted: u32, limit: Option<u64>) -> Self {
        let unlimited = Self { flows: wanted, conversations: MOST_CONVERSATIONS, shortage: None };
        let Some(limit) = limit else { return unlimited };
        let needed = BASE + CONVERSATION * u64::from(MOST_CONVERSATIONS) + FLOW * u64::from(wanted);
        if needed <= limit {
            return unlimited;
        }
        let room = limit.saturating_sub(BASE);
        // The table of conversations shrinks together with that of flows, as long as it is smaller.
        let together = at_most(room / (FLOW + CONVERSATION));
        let flows = if together >= MOST_CONVERSATIONS {
            at_most((room - CONVERSATION * u64::from(MOST_CONVERSATIONS)) / FLOW)
        } else {
            together
        };
        let (flows, conversations) = (flows.clamp(LEAST, wanted.max(LEAST)), together.clamp(LEAST, MOST_CONVERSATIONS));
        let shortage = Shortage { wanted, flows, limit, needed };
        Self { flows, conversations, shortage: (flows < wanted).then_some(shortage) }
    }
}

fn at_most(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn defaults_of_the_daemon_set_fit_each_other() {
        let budget = Budget::new(65_536, Some(128 << 20));
        assert_eq!((budget.flows, budget.conversations, budget.shortage), (65_536, 65_536, None));
    }

    #[test]
    fn without_a_limit_everything_fits() {
        assert_eq!(Budget::new(1_048_576, None).flows, 1_048_576);
    }

    #[test]
    fn too_small_a_limit_is_said_with_what_is_needed() {
        let budget = Budget::new(65_536, Some(64 << 20));
        let message = budget.shortage.expect("a shortage").to_string();
        assert!(
            message.starts_with("flow table reduced from 65536 to 26630 flows to fit the memory limit of 64 MiB"),
            "{message}"
        );
        assert!(message.contains("limits.memory to 111 MiB"), "{message}");
        assert_eq!(budget.conversations, budget.flows);
        assert_eq!(Budget::new(65_536, Some(1 << 20)).flows, LEAST, "something is always tried");
    }

    proptest! {
        #[test]
        fn what_is_taken_fits(wanted in LEAST..=1_048_576, limit in BASE..(4 << 30)) {
            let budget = Budget::new(wanted, Some(limit));
            let taken = BASE + FLOW * u64::from(budget.flows) + CONVERSATION * u64::from(budget.conversations);
            prop_assert!(taken <= limit || budget.flows == LEAST || budget.conversations == LEAST);
            prop_assert!(budget.flows <= wanted && (budget.flows < wanted) == budget.shortage.is_some());
            let needed = budget.shortage.map_or(limit, |shortage| shortage.needed);
            prop_assert_eq!(Budget::new(wanted, Some(needed)).flows, wanted);
        }
    }
}
