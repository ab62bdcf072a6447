//! Tests the coverage in NodeProbes and the ScopeProbe, and when it is written.

use crds::{Mode, NodeProbeStatus, Unobserved};
use operator::{
    coverage::{HOUR, MINUTE},
    observation::NodeObservation,
};
use scopeprobe_tests::{Result, eventually};
use serde_json::json;

use crate::{
    fleet,
    lab::{IMAGE, Lab, now_ms, works},
};

const KERNEL: &str = "6.1.0-37-amd64";
const OTHER: &str = "6.12.40-talos";

/// A lab whose operator writes numbers that often, with two nodes only that are probed.
async fn lab_of_two(counter_interval: &str) -> Result<Lab> {
    let mut lab = Lab::new().await?;
    lab.start_operator(IMAGE).await?;
    for kernel in [KERNEL, OTHER] {
        lab.kubectl(&["label", "node", &fleet::with_kernel(kernel), "pool=probed"]).await?;
    }
    lab.probe(&json!({"nodeSelector": {"pool": "probed"}, "topology": {"counterInterval": counter_interval}})).await?;
    Ok(lab)
}

/// Waits until all writes that were due are done, by the structural change of another node.
async fn written(lab: &Lab, turn: usize) -> Result<()> {
    let other = fleet::with_kernel(OTHER);
    lab.report(&other, |observation| {
        works("ebpf", OTHER)(observation);
        observation.attach = format!("Turn{turn}");
    });
    lab.node_probe(&other, |status| status.attach == format!("Turn{turn}")).await.map(|_| ())
}

async fn version(lab: &Lab, node: &str) -> Result<String> {
    let path = ["get", "nodeprobe", node, "-o", "jsonpath={.metadata.resourceVersion}"];
    lab.kubectl(&path).await
}

#[tokio::test]
async fn first_numbers_do_not_wait_for_their_turn() -> Result<()> {
    let lab = lab_of_two("1h").await?;
    let node = fleet::with_kernel(KERNEL);
    let seen = |seen| {
        move |observation: &mut NodeObservation| {
            works("ebpf", KERNEL)(observation);
            observation.seen = seen;
        }
    };
    lab.report(&node, seen(0));
    lab.node_probe(&node, |status| status.mode == Some(Mode::Ebpf)).await?;
    for number in [3, 40, 90] {
        lab.report(&node, seen(number));
        lab.node_probe(&node, |status| status.seen == number).await?;
    }
    let version_before = version(&lab, &node).await?;
    lab.report(&node, seen(100));
    written(&lab, 1).await?;
    written(&lab, 2).await?;
    assert_eq!(version(&lab, &node).await?, version_before, "what has grown by little waits for its turn");
    Ok(())
}

/// One agent until two hours ago, another one since ten minutes after that, with a connection in each second.
fn with_a_gap(observation: &mut NodeObservation) {
    works("ebpf", KERNEL)(observation);
    let gap = now_ms() - 2 * HOUR;
    observation.begin_epoch(&[1; 16]);
    observation.note_capture(gap - 50 * MINUTE, gap - 50 * MINUTE);
    for minute in 1..=50 {
        observation.seen = 60 * minute;
        observation.note_capture(0, gap - (50 - minute) * MINUTE);
    }
    observation.begin_epoch(&[2; 16]);
    let again = gap + 10 * MINUTE;
    for minute in 0..=110 {
        observation.seen = 60 * minute;
        observation.note_capture(again, again + minute * MINUTE);
    }
    observation.last_report_unix_ms = now_ms();
}

fn said(status: &NodeProbeStatus) -> (String, String) {
    let complete = status.conditions.iter().find(|condition| condition.type_ == "CaptureComplete");
    let complete = complete.cloned().unwrap_or_else(|| panic!("{status:?}"));
    (complete.status, complete.reason)
}

fn percent(text: &str) -> f64 {
    text.trim_start_matches('~').trim_end_matches('%').parse().unwrap_or_else(|_| panic!("{text} is no percentage"))
}

#[tokio::test]
async fn time_without_an_agent_lowers_coverage_until_its_window_is_over() -> Result<()> {
    let mut lab = lab_of_two("1h").await?;
    let node = fleet::with_kernel(KERNEL);
    lab.observe(&node, with_a_gap);
    let before = lab.node_probe(&node, |status| status.mode == Some(Mode::Ebpf)).await?;
    assert_eq!((before.coverage.as_str(), said(&before)), ("100%", ("True".to_owned(), "NothingMissed".to_owned())));
    assert_eq!(before.unobserved, Unobserved { intervals: 1, seconds: 600, missed: 600 });
    for share in [&before.coverage_last_day, &before.coverage_total] {
        assert!(share.starts_with('~') && (93.0..94.5).contains(&percent(share)), "160 of 170 minutes: {share}");
    }

    // The next operator goes on from there: the agent has lived through the change.
    lab.stop_operator().await;
    lab.start_operator(IMAGE).await?;
    let epoch = before.epoch.clone();
    lab.observe(&node, |observation| {
        observation.seen += 60;
        observation.last_report_unix_ms = now_ms();
        observation.note_capture(0, now_ms());
    });
    written(&lab, 1).await?;
    let after = lab.node_probe(&node, |status| status.epoch == epoch).await?;
    assert_eq!((after.coverage.as_str(), after.unobserved), ("100%", before.unobserved));

    // Another agent, a minute later.
    lab.observe(&node, |observation| {
        let now = now_ms();
        observation.begin_epoch(&[3; 16]);
        observation.last_report_unix_ms = now + MINUTE + 1_000;
        observation.note_capture(now + MINUTE, now + MINUTE + 1_000);
    });
    let gap = lab.node_probe(&node, |status| status.unobserved.intervals == 2).await?;
    assert_eq!(said(&gap), ("False".to_owned(), "Unobserved".to_owned()));
    assert!(gap.coverage.starts_with('~') && percent(&gap.coverage) < 99.0, "{}", gap.coverage);
    let wanted = ["(1 interval)", &format!("on 1 node: {node}")];
    eventually("the ScopeProbe to say so", async || {
        let complete = lab.condition("CaptureComplete").await?;
        let says = complete.status == "False" && wanted.iter().all(|words| complete.message.contains(words));
        if says { Ok(()) } else { Err(format!("{complete:?}")) }
    })
    .await
}

#[tokio::test]
async fn nodes_without_an_agent_count_in_the_probes_coverage() -> Result<()> {
    let lab = lab_of_two("1s").await?;
    let node = fleet::with_kernel(KERNEL);
    lab.observe(&node, |observation| {
        works("ebpf", KERNEL)(observation);
        observation.begin_epoch(&[1; 16]);
        let dead = now_ms() - 2 * HOUR;
        observation.last_report_unix_ms = dead;
        observation.note_capture(dead - HOUR, dead);
        observation.disconnect();
    });
    written(&lab, 1).await?;
    let status = lab.node_probe(&node, |status| status.mode == Some(Mode::Ebpf)).await?;
    assert_eq!((status.coverage.as_str(), said(&status).1.as_str()), ("~0%", "Unobserved"));
    eventually("the ScopeProbe's coverage", async || {
        let probe = lab.probes().get(crate::PROBE).await.map_err(|error| error.to_string())?;
        let status = probe.status.unwrap_or_default();
        // The other node has been observed for an hour, this one for none of it.
        let is_known = status.coverage.ends_with('%');
        if is_known && (45.0..=50.0).contains(&percent(&status.coverage)) {
            Ok(())
        } else {
            Err(format!("{} {}", status.coverage, status.coverage_total))
        }
    })
    .await
}
