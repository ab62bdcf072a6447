//! Shown rows, and their completeness.

use serde::Serialize;

use super::rows::{self, Row};
use crate::{
    capture::{Losses, Mode},
    observation::{CaptureState, Observation},
};

/// One picture.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// `Ebpf`, `Fallback` or `Unsupported`.
    pub mode: &'static str,
    /// Why, as a word.
    pub reason: &'static str,
    /// Missing feature and its effect.
    pub message: String,
    /// Attach type.
    pub attach: &'static str,
    /// The kernel's release.
    pub kernel: String,
    /// Connections opened and attempts failed since the start.
    pub seen: u64,
    /// Losses.
    pub losses: LossCounts,
    /// Flows that left the memory early: their counts are missing in the rows.
    pub evicted_flows: u64,
    /// Seen of all that is known to have happened since the start, in percent, rounded down.
    pub coverage: String,
    /// The connections.
    pub rows: Vec<Row>,
}

/// Exact numbers of events that could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LossCounts {
    /// Connections that opened.
    pub opened: u64,
    /// Connections that closed: their bytes are missing.
    pub closed: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Connections from before the start whose end was not seen: their last bytes are missing.
    pub closes_unseen: u64,
}

impl View {
    /// Returns the current view of an observation.
    #[must_use]
    pub fn of(observation: &mut Observation) -> Self {
        let now = std::time::Instant::now();
        observation.flows.acknowledge_all();
        let rows = match &mut observation.attribution {
            Some(attribution) => {
                rows::rows(observation.flows.iter(), |cgroup| attribution.owner(cgroup, now).owner.clone())
            }
            None => Vec::new(),
        };
        let CaptureState { mode, reason, message, attach, kernel, losses, seen, .. } = observation.capture.clone();
        Self {
            mode: match mode {
                Some(Mode::Ebpf) => "Ebpf",
                Some(Mode::Fallback) => "Fallback",
                None => "Unsupported",
            },
            reason: reason.as_str(),
            message,
            attach,
            kernel,
            seen,
            losses: LossCounts {
                opened: losses.opened,
                closed: losses.closed,
                failed: losses.failed,
                closes_unseen: losses.closes_unseen,
            },
            evicted_flows: observation.flows.evicted(),
            coverage: coverage(seen, &losses),
            rows,
        }
    }
}

/// Rounded down to a tenth of a percent, so that 100% means that nothing was lost.
fn coverage(seen: u64, losses: &Losses) -> String {
    let seen = u128::from(seen);
    let all = seen + u128::from(losses.opened) + u128::from(losses.failed);
    match seen * 1000 / all.max(1) {
        _ if all == seen => "100%".into(),
        thousandths => format!("{}.{}%", thousandths / 10, thousandths % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_is_100_only_without_losses() {
        let lost = |opened, failed| Losses {
            opened,
            failed,
            closed: 5,
            new_flow_notifications: 5,
            closes_unseen: 5,
            ..Losses::default()
        };
        assert_eq!(coverage(0, &lost(0, 0)), "100%");
        assert_eq!(coverage(10, &lost(0, 0)), "100%");
        assert_eq!(coverage(1_000_000, &lost(1, 0)), "99.9%");
        assert_eq!(coverage(2, &lost(1, 0)), "66.6%");
        assert_eq!(coverage(0, &lost(0, 3)), "0.0%");
        assert_eq!(coverage(u64::MAX, &lost(u64::MAX, 0)), "50.0%");
    }
}
