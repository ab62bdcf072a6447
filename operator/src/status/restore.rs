//! What an earlier operator has written into NodeProbes, as observations: so that an agent that was started again while
//! no operator ran is noticed, and what was lost does not vanish. Pure.

use crds::{Losses, NodeProbe, NodeProbeStatus};
use kernel_support::Reason;
use kube::ResourceExt;
use topology::count::bounded;

use crate::{
    observation::{EarlierObservation, NodeObservation},
    rollout::FIELD_MANAGER,
};

/// What a NodeProbe says of its node; none if no agent has ever reported.
#[must_use]
pub fn observation(node_probe: &NodeProbe) -> Option<NodeObservation> {
    let status = node_probe.status.as_ref().filter(|status| status.mode.is_some())?;
    let epoch = unhex(&status.epoch)?;
    Some(NodeObservation {
        connected: false,
        origin: epoch.clone(),
        epoch,
        mode: status.mode,
        reason: Reason::from_word(&status.reason),
        message: status.message.clone(),
        attach: status.attach.clone(),
        kernel: status.kernel.clone(),
        attached_unix_ms: 0,
        last_report_unix_ms: written_unix_ms(node_probe),
        last_capture_unix_ms: written_unix_ms(node_probe),
        asks_for_fallback_since_unix_ms: None,
        losses: losses_of_epoch(status),
        seen: status.seen.saturating_sub(status.earlier.seen),
        earlier: EarlierObservation {
            seen: status.earlier.seen,
            losses: status.earlier.losses,
            gaps: status.unobserved.intervals,
            gap_ms: bounded(status.unobserved.seconds.saturating_mul(1000)),
        },
        replaced: Vec::new(),
    })
}

fn losses_of_epoch(status: &NodeProbeStatus) -> Losses {
    let (all, earlier) = (&status.losses, &status.earlier.losses);
    Losses {
        opened: all.opened.saturating_sub(earlier.opened),
        closed: all.closed.saturating_sub(earlier.closed),
        failed: all.failed.saturating_sub(earlier.failed),
        first_sights: all.first_sights.saturating_sub(earlier.first_sights),
        closes_unseen: all.closes_unseen.saturating_sub(earlier.closes_unseen),
        event_overflows: all.event_overflows.saturating_sub(earlier.event_overflows),
        missed_runs: all.missed_runs.saturating_sub(earlier.missed_runs),
    }
}

/// When the status was last written, as the API server has noted: the agent was seen then at the earliest, so that a
/// gap that begins here is at least as long as the true one.
fn written_unix_ms(node_probe: &NodeProbe) -> u64 {
    let ours = node_probe.managed_fields().iter().filter(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.as_deref() == Some("status")
    });
    let written = ours.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max();
    let time = written.or_else(|| node_probe.creation_timestamp().map(|time| time.0));
    time.and_then(|time| u64::try_from(time.as_millisecond()).ok()).unwrap_or_default()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes().chunks(2);
    bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use crds::{Mode, RequestedMode};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, Time};
    use serde_json::json;

    use super::*;
    use crate::{
        rollout::{
            assignment::Assignment,
            choice::{AgentMode, ModeCause},
        },
        status::node_probe,
    };

    fn written() -> NodeProbe {
        let mut node = NodeObservation {
            connected: true,
            epoch: vec![7; 16],
            mode: Some(Mode::Ebpf),
            seen: 40,
            last_report_unix_ms: 1_000_000,
            last_capture_unix_ms: 1_000_000,
            ..NodeObservation::default()
        };
        node.begin_epoch(&[8; 16], 1_005_000);
        node.seen = 2;
        node.losses = Losses { opened: 3, ..Losses::default() };
        let assignment = Assignment {
            probe: "p".to_owned(),
            requested: RequestedMode::Auto,
            mode: AgentMode::Ebpf,
            cause: ModeCause::Supported,
        };
        let now = Timestamp::from_second(2000).unwrap();
        let inputs = node_probe::Inputs {
            assignment: &assignment,
            node_kernel: "",
            demotion: None,
            observation: Some(&node),
            previous: None,
        };
        let status = node_probe::desired(&inputs, now);
        let mut probe: NodeProbe =
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {}, "status": status})).unwrap();
        probe.metadata.managed_fields = Some(vec![ManagedFieldsEntry {
            manager: Some(FIELD_MANAGER.to_owned()),
            subresource: Some("status".to_owned()),
            time: Some(Time(now)),
            ..ManagedFieldsEntry::default()
        }]);
        probe
    }

    #[test]
    fn what_was_written_comes_back() {
        let restored = observation(&written()).unwrap();
        assert_eq!((restored.epoch.as_slice(), restored.seen, restored.losses.opened), (&[8; 16][..], 2, 3));
        assert_eq!((restored.total_seen(), restored.earlier.gaps, restored.earlier.gap_ms), (42, 1, 5000));
        assert!(!restored.connected);
    }

    #[test]
    fn the_same_epoch_goes_on_and_another_leaves_a_gap() {
        let mut same = observation(&written()).unwrap();
        same.begin_epoch(&[8; 16], 0);
        same.seen = 9;
        assert_eq!((same.total_seen(), same.earlier.gaps), (49, 1));

        let mut other = observation(&written()).unwrap();
        other.begin_epoch(&[9; 16], 2_007_000);
        assert_eq!((other.total_seen(), other.total_losses().opened), (42, 3));
        assert_eq!((other.earlier.gaps, other.earlier.gap_ms), (2, 5000 + 7000));
    }

    #[test]
    fn a_node_that_never_reported_has_nothing_to_restore() {
        assert_eq!(observation(&NodeProbe::new("n", crds::NodeProbeSpec::default())), None);
    }
}
