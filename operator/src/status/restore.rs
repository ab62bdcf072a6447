//! Restores observations from NodeProbes of an earlier operator. An agent that restarted while no operator ran is
//! noticed, and losses do not vanish. Pure.

use std::collections::BTreeMap;

use crds::{CoveragePeriod, CoverageRecord, CoverageShortfall, EarlierEpochs, NodeProbe, NodeProbeStatus, Unobserved};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kernel_support::Reason;
use kube::ResourceExt;

use super::conditions::FLOWS_LEFT_OUT;
use crate::{
    coverage::{
        UnixMs,
        account::{AccountRecord, CoverageAccount},
        gap::Rate,
        period::{Counts, Period, Shortfall},
    },
    observation::{EarlierObservation, LeftOut, NodeObservation, Observations},
};

/// Restores what an earlier operator knew of the nodes. Their agents are silent from `now` on, when this operator
/// begins.
#[must_use]
pub fn observations(node_probes: &BTreeMap<String, NodeProbe>, now: UnixMs) -> Observations {
    let observations = Observations::default();
    for (name, node_probe) in node_probes {
        if let Some(restored) = observation(node_probe, now) {
            observations.update(name, |observation| *observation = restored);
        }
    }
    observations
}

/// Returns the observation in a NodeProbe; `None` if no agent has ever reported.
#[must_use]
pub fn observation(node_probe: &NodeProbe, now: UnixMs) -> Option<NodeObservation> {
    let status = node_probe.status.as_ref().filter(|status| status.mode.is_some())?;
    let epoch = unhex(&status.epoch)?;
    Some(NodeObservation {
        connected: false,
        origin: epoch.clone(),
        mode: status.mode,
        reason: Reason::from_word(&status.reason),
        message: status.message.clone(),
        attach: status.attach.clone(),
        kernel: status.kernel.clone(),
        last_report_unix_ms: now,
        asks_for_fallback_since_unix_ms: None,
        losses: status.losses.since(&status.earlier.losses),
        seen: status.seen.saturating_sub(status.earlier.seen),
        folding: status.folding.unwrap_or_default(),
        left_out: LeftOut {
            is_restored: status.conditions.iter().any(|condition| condition.type_ == FLOWS_LEFT_OUT),
            ..LeftOut::default()
        },
        replaced: Vec::new(),
        earlier: EarlierObservation { seen: status.earlier.seen, losses: status.earlier.losses },
        coverage: record(node_probe, status, now).map(|record| CoverageAccount::restore(record, &epoch)),
        epoch,
    })
}

fn record(node_probe: &NodeProbe, status: &NodeProbeStatus, now: UnixMs) -> Option<AccountRecord> {
    let Some(record) = &status.coverage_record else { return without_record(node_probe, status, now) };
    let EarlierEpochs { seen, losses } = record.counted;
    Some(AccountRecord {
        since: millis(&record.since),
        until: millis(&record.until),
        attached: millis(&record.attached),
        total: Counts { seen, losses },
        unsettled: Rate { happened: record.unsettled, observed_ms: record.unsettled_milliseconds },
        periods: record.periods.iter().map(period).collect(),
    })
}

/// Restores the counts of an operator that kept no periods, as one period.
fn without_record(node_probe: &NodeProbe, status: &NodeProbeStatus, now: UnixMs) -> Option<AccountRecord> {
    let since = u64::try_from(node_probe.creation_timestamp()?.0.as_millisecond()).ok()?;
    let Unobserved { intervals, seconds, missed } = status.unobserved;
    let unobserved_ms = seconds.saturating_mul(1000);
    let shortfall = Shortfall { unobserved_ms, intervals, missed, losses: status.losses, sampled: status.sampled };
    Some(AccountRecord {
        since,
        until: now,
        attached: since,
        total: Counts { seen: status.seen, losses: status.losses },
        unsettled: Rate::default(),
        periods: vec![Period::new(since, now, status.seen, shortfall)],
    })
}

fn period(written: &CoveragePeriod) -> Period {
    let shortfall = written.shortfall.unwrap_or_default();
    let CoverageShortfall { unobserved_milliseconds, intervals, missed, losses, sampled } = shortfall;
    let shortfall = Shortfall { unobserved_ms: unobserved_milliseconds, intervals, missed, losses, sampled };
    Period::new(millis(&written.from), millis(&written.to), written.seen, shortfall)
}

/// An account's record as a NodeProbe holds it.
#[must_use]
pub fn to_record(record: &AccountRecord) -> CoverageRecord {
    CoverageRecord {
        since: time(record.since),
        until: time(record.until),
        attached: time(record.attached),
        counted: EarlierEpochs { seen: record.total.seen, losses: record.total.losses },
        unsettled: record.unsettled.happened,
        unsettled_milliseconds: record.unsettled.observed_ms,
        periods: record.periods.iter().map(to_period).collect(),
    }
}

fn to_period(period: &Period) -> CoveragePeriod {
    let shortfall = period.shortfall.as_deref().map(|it| CoverageShortfall {
        unobserved_milliseconds: it.unobserved_ms,
        intervals: it.intervals,
        missed: it.missed,
        losses: it.losses,
        sampled: it.sampled,
    });
    CoveragePeriod { from: time(period.from), to: time(period.to), seen: period.seen, shortfall }
}

fn time(ms: UnixMs) -> MicroTime {
    MicroTime(i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default())
}

fn millis(time: &MicroTime) -> UnixMs {
    u64::try_from(time.0.as_millisecond()).unwrap_or_default()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes().chunks(2);
    bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use crds::{Losses, Mode, RequestedMode};
    use serde_json::json;

    use super::*;
    use crate::{
        coverage::share::Shares,
        rollout::{
            assignment::Assignment,
            mode::{AgentMode, ModeCause},
        },
        status::{
            coverage::{CoverageFacts, assess},
            node_probe,
        },
    };

    const NOW: UnixMs = 2_000_000;

    /// An agent for 1,000 s, five seconds without one, and another one since.
    fn observed() -> NodeObservation {
        let mut node = NodeObservation {
            connected: true,
            epoch: vec![7; 16],
            mode: Some(Mode::Ebpf),
            seen: 40,
            ..NodeObservation::default()
        };
        node.note_capture(0, 1_000_000);
        node.begin_epoch(&[8; 16]);
        node.seen = 2;
        node.losses = Losses { opened: 3, ..Losses::default() };
        node.note_capture(1_005_000, 1_500_000);
        node
    }

    fn written(settled: UnixMs) -> NodeProbe {
        let node = observed();
        let assignment = Assignment {
            probe: "p".to_owned(),
            requested: RequestedMode::Auto,
            mode: AgentMode::Ebpf,
            cause: ModeCause::Supported,
        };
        let coverage = assess(&CoverageFacts { observation: Some(&node), created: Some(0), settled, now: NOW });
        let inputs = node_probe::NodeProbeInputs {
            assignment: &assignment,
            node_kernel: "",
            fallback: None,
            observation: Some(&node),
            coverage: &coverage,
            previous: None,
        };
        let status = node_probe::desired(&inputs, Timestamp::from_second(2000).unwrap());
        let metadata = json!({"name": "n", "creationTimestamp": "1970-01-01T00:00:00Z"});
        serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap()
    }

    fn shares(node: &NodeObservation) -> Shares {
        assess(&CoverageFacts { observation: Some(node), created: Some(0), settled: NOW, now: NOW }).shares
    }

    #[test]
    fn what_was_written_comes_back() {
        let restored = observation(&written(NOW), NOW).unwrap();
        assert_eq!((restored.epoch.as_slice(), restored.seen, restored.losses.opened), (&[8; 16][..], 2, 3));
        assert_eq!((restored.total_seen(), restored.connected), (42, false));
        assert_eq!(shares(&restored), shares(&observed()));
        assert_eq!(shares(&restored).total.shortfall.unobserved_ms, 5_000);
    }

    #[test]
    fn same_epoch_goes_on_and_another_leaves_a_gap() {
        let mut same = observation(&written(NOW), NOW).unwrap();
        same.begin_epoch(&[8; 16]);
        same.seen = 9;
        same.note_capture(1_005_000, 2_007_000);
        assert_eq!((same.total_seen(), shares(&same).total.shortfall.unobserved_ms), (49, 5_000));

        let mut other = observation(&written(NOW), NOW).unwrap();
        other.begin_epoch(&[9; 16]);
        other.note_capture(2_007_000, 2_008_000);
        assert_eq!((other.total_seen(), other.total_losses().opened), (42, 3));
        let shortfall = shares(&other).total.shortfall;
        assert_eq!((shortfall.intervals, shortfall.unobserved_ms), (2, 5_000 + 507_000));
    }

    #[test]
    fn what_may_not_have_been_written_is_a_gap_unless_its_epoch_goes_on() {
        let mut other = observation(&written(1_400_000), NOW).unwrap();
        other.begin_epoch(&[9; 16]);
        other.note_capture(2_007_000, 2_008_000);
        assert_eq!(shares(&other).total.shortfall.unobserved_ms, 1_007_000, "since the first epoch's last report");
        assert_eq!(shares(&other).total.seen, 40);
    }

    #[test]
    fn status_without_a_record_is_taken_at_its_word() {
        let mut before = written(NOW);
        before.status.as_mut().unwrap().coverage_record = None;
        let restored = observation(&before, NOW).unwrap();
        let total = shares(&restored).total;
        assert_eq!((total.seen, total.lost(), total.shortfall.unobserved_ms), (42, 3, 5_000));
    }

    #[test]
    fn a_node_that_never_reported_has_nothing_to_restore() {
        assert_eq!(observation(&NodeProbe::new("n", crds::NodeProbeSpec::default()), NOW), None);
    }
}
