//! Describes the state of a node's agent in words: its mode, the reason, what is missing, and what to do.

use crds::{Mode, NodeProbe, NodeProbeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kernel_support::Reason;

use crate::map::printable;

/// Returns whether the agent of a node is connected and has reported.
#[must_use]
pub fn is_reporting(status: &NodeProbeStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == "Reporting" && condition.status == "True")
}

/// Returns some lines about a node.
#[must_use]
pub fn describe(node: &NodeProbe) -> String {
    let status = node.status.clone().unwrap_or_default();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let mut lines = vec![headline(name, &status)];
    lines.extend(cause(&status));
    lines.extend(fallback(&status));
    lines.extend(coverage(&status));
    lines.extend(losses(&status));
    lines.extend(unobserved(&status));
    lines.extend(left_out(&status));
    lines.extend(conditions(&status));
    lines.extend(history(&status));
    let mut text = lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n  ");
    text.push('\n');
    text
}

/// Returns a line for each node whose agents did not record everything, or a line that there is none.
#[must_use]
pub fn gaps(nodes: &[NodeProbe]) -> String {
    let gaps: Vec<String> = nodes.iter().filter_map(gap).map(|line| format!("{line}\n")).collect();
    match (gaps.is_empty(), nodes.len()) {
        (false, _) => gaps.concat(),
        (true, 1) => "1 node: its agents recorded 100% of all connections\n".to_owned(),
        (true, number) => format!("{number} nodes: their agents recorded 100% of all connections\n"),
    }
}

/// Returns a sentence about a node whose agents did not record everything, `None` if they did.
pub(crate) fn gap(node: &NodeProbe) -> Option<String> {
    let name = printable(node.metadata.name.as_deref().unwrap_or_default());
    let status = node.status.clone().unwrap_or_default();
    let is_complete = |share: &str| share == "100%";
    let shares = [&status.coverage, &status.coverage_last_day, &status.coverage_total].map(|share| printable(share));
    if !is_reporting(&status) {
        return Some(format!(
            "node {name}: no agent reports, so that edges may be missing; see `kubectl scopeprobe why {name}`"
        ));
    }
    if status.mode == Some(Mode::Unsupported) {
        return Some(format!("node {name}: nothing is captured; see `kubectl scopeprobe why {name}`"));
    }
    let [hour, day, total] = &shares;
    if shares.iter().all(|share| is_complete(share)) {
        // Lost ends of connections, and captures that sample, have no share.
        let gap = status.conditions.iter().find(|it| it.type_ == "CaptureComplete" && it.status != "True")?;
        let (reason, message) = (printable(&gap.reason), printable(gap.message.trim_end_matches('.')));
        return Some(format!("node {name}: {reason}: {message}; see `kubectl scopeprobe why {name}`"));
    }
    Some(format!(
        "node {name}: agents recorded {hour} of the last hour's connections, {day} of the last day's, {total} of all; see \
         `kubectl scopeprobe why {name}`"
    ))
}

fn headline(name: &str, status: &NodeProbeStatus) -> String {
    let mode = match status.mode {
        Some(Mode::Ebpf) => "eBPF: programs in the kernel record each connection",
        Some(Mode::Fallback) => "Fallback: the agent scans sockets at intervals",
        Some(Mode::Unsupported) => "Unsupported: nothing is captured",
        None => "no mode: the agent has not reported yet",
    };
    let since = since(status.since.as_ref()).map(|since| format!(", {since}")).unwrap_or_default();
    format!("node {name}: {mode}{since}")
}

fn since(time: Option<&Time>) -> Option<String> {
    time.map(|time| format!("since {}", time.0))
}

fn cause(status: &NodeProbeStatus) -> Vec<String> {
    let reason = if status.reason.is_empty() { Reason::NoReportYet.as_str() } else { &status.reason };
    let mut lines = vec![format!("reason {reason}: {}", Reason::from_word(reason).sentence())];
    if !status.message.is_empty() {
        lines.push(format!("message: {}", status.message));
    }
    let kernel = Some(&status.kernel).filter(|kernel| !kernel.is_empty()).map(|kernel| format!("kernel {kernel}"));
    let attach = Some(&status.attach).filter(|attach| !attach.is_empty()).map(|attach| format!("captures by {attach}"));
    let how: Vec<String> = [attach, kernel].into_iter().flatten().collect();
    if !how.is_empty() {
        lines.push(how.join(" on "));
    }
    if !status.choice.agents.is_empty() {
        let (agents, reason) = (&status.choice.agents, &status.choice.reason);
        lines.push(format!("assigned to the agents {agents} of ScopeProbe {}: {reason}", status.probe));
    }
    lines
}

fn fallback(status: &NodeProbeStatus) -> Option<String> {
    let fallback = status.fallback.as_ref()?;
    let attempts = match fallback.attempts {
        1 => "1 failed attempt".to_owned(),
        attempts => format!("{attempts} failed attempts"),
    };
    let retry =
        fallback.retry_at.as_ref().map(|time| format!("; the next attempt is at {}", time.0)).unwrap_or_default();
    let since = since(fallback.since.as_ref()).map(|since| format!(" {since}")).unwrap_or_default();
    let message = Some(&fallback.message).filter(|message| !message.is_empty() && **message != status.message);
    let message = message.map(|message| format!(" ({message})")).unwrap_or_default();
    Some(format!("left eBPF{since} for {}{message}, after {attempts}{retry}", fallback.reason))
}

fn coverage(status: &NodeProbeStatus) -> Vec<String> {
    if status.coverage.is_empty() || status.coverage == "-" {
        return vec!["coverage: not known before the agent's first report".to_owned()];
    }
    let (hour, day, total) = (&status.coverage, &status.coverage_last_day, &status.coverage_total);
    let mut lines = vec![format!("coverage: {hour} of the last hour, {day} of the last day, {total} in total")];
    if [hour, day, total].iter().any(|share| share.contains('~')) {
        lines.push("~ marks an estimate: a part of the time was not observed".to_owned());
    }
    if status.sampled || [hour, day, total].iter().any(|share| share.contains('≤')) {
        lines.push(
            "≤ marks an upper bound: a capture without complete counts may have missed more than it reports".to_owned(),
        );
    }
    lines.push(format!("recorded {} connections and failed attempts; lost {}", status.seen, status.lost));
    lines
}

/// Returns a line for each kind of loss, with what to do about it.
fn losses(status: &NodeProbeStatus) -> Vec<String> {
    let losses = &status.losses;
    // Losses are those of all captures of the node since its agent began.
    let missing = match status.mode {
        Some(Mode::Fallback) => "other counters reveal at least as many; eBPF records each",
        _ if status.attach == "SockOps" && !status.sampled => "the flow table was full; raise spec.capture.maxFlows",
        _ => "the flow table was full, which a higher spec.capture.maxFlows avoids, or other counters reveal them",
    };
    let parts = [
        (losses.opened, "opened connections were not recorded", missing),
        (losses.failed, "failed attempts were not recorded", missing),
        (
            losses.closed,
            "connections closed without their bytes",
            "the flow table was full; raise spec.capture.maxFlows",
        ),
        (losses.missed_runs, "events were skipped by the kernel", "a tracepoint counts here, as sock_ops was refused"),
        (losses.closes_unseen, "ends of preexisting connections were not observed", "their last bytes are missing"),
        (losses.event_overflows, "overflows of the queue of conntrack events", "short connections may be missing"),
        (
            losses.new_flow_notifications,
            "notifications of new flows were dropped",
            "a scan found them, nothing is missing",
        ),
    ];
    let lines = parts.into_iter().filter(|(number, ..)| *number > 0);
    lines.map(|(number, what, then)| format!("incomplete: {what}: {number} ({then})")).collect()
}

fn unobserved(status: &NodeProbeStatus) -> Option<String> {
    let unobserved = &status.unobserved;
    let times = if unobserved.intervals == 1 { "1 time".to_owned() } else { format!("{} times", unobserved.intervals) };
    (unobserved.intervals > 0).then(|| {
        format!(
            "incomplete: no agent observed the node {times}, for at most {} s in sum (about {} connections by estimate)",
            unobserved.seconds, unobserved.missed
        )
    })
}

fn left_out(status: &NodeProbeStatus) -> Option<String> {
    let folding = status.folding?;
    let now = if folding.is_active { "and still are" } else { "and no longer are" };
    Some(format!(
        "{} connections were counted without their external address, {now}; to tell the addresses apart, raise \
         spec.capture.maxFlows",
        folding.connections
    ))
}

/// Returns the conditions that are not as they should be.
fn conditions(status: &NodeProbeStatus) -> Vec<String> {
    let is_wrong = |type_: &str, truth: &str| match type_ {
        "Reporting" | "CaptureComplete" => truth != "True",
        _ => truth == "True",
    };
    let wrong = status.conditions.iter().filter(|condition| is_wrong(&condition.type_, &condition.status));
    let line = wrong.map(|of| format!("condition {} is {}, {}: {}", of.type_, of.status, of.reason, of.message));
    line.collect()
}

fn history(status: &NodeProbeStatus) -> Vec<String> {
    // The last change is what the headline has.
    let changes = status.history.iter().rev().skip(1);
    let line = changes.map(|of| {
        let attach = if of.attach.is_empty() { String::new() } else { format!(" by {}", of.attach) };
        format!("earlier: {}{attach} from {}, reason {}", of.mode.as_str(), of.time.0, of.reason)
    });
    line.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn node_with_all_connections_but_lost_ends_has_a_gap() {
        let node = |reporting: &str, complete: [&str; 2], mode: &str| -> NodeProbe {
            let condition = |kind: &str, status: &str, reason: &str| {
                let time = "2026-05-01T09:00:00Z";
                json!({"type": kind, "status": status, "reason": reason, "message": "3 ends.", "lastTransitionTime": time})
            };
            let conditions =
                [condition("Reporting", reporting, "R"), condition("CaptureComplete", complete[0], complete[1])];
            let shares = json!({"coverage": "100%", "coverageLastDay": "100%", "coverageTotal": "100%"});
            let mut status = json!({"mode": mode, "conditions": conditions});
            status.as_object_mut().unwrap().extend(shares.as_object().unwrap().clone());
            serde_json::from_value(json!({
                "apiVersion": "scopeprobe.io/v1alpha1", "kind": "NodeProbe", "metadata": {"name": "a"}, "spec": {}, "status": status,
            }))
            .unwrap()
        };
        let complete = node("True", ["True", "NothingMissed"], "EBPF");
        assert_eq!(gaps(std::slice::from_ref(&complete)), "1 node: its agents recorded 100% of all connections\n");
        let lossy = node("True", ["False", "Lost"], "EBPF");
        assert_eq!(gaps(&[complete, lossy]), "node a: Lost: 3 ends; see `kubectl scopeprobe why a`\n");
        let unsupported = node("True", ["False", "Unsupported"], "Unsupported");
        assert_eq!(gaps(&[unsupported]), "node a: nothing is captured; see `kubectl scopeprobe why a`\n");
    }
}
