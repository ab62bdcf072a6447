//! Kubernetes events about changes that matter to users.

use crds::{Mode, NodeProbe, NodeProbeStatus, ScopeProbe, ScopeProbeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Client, Resource, runtime::events::EventType};

use super::conditions::of_type;
use crate::{event_recorder::EventRecorder, rollout::mode::AgentMode};

/// Reasons of `Ready` that every rollout passes through.
const PASSING: [&str; 4] = ["Observing", "RollingOut", "WaitingForReports", "MovingToFallback"];

/// Recorder of changes of modes and of readiness.
#[derive(Clone)]
pub struct Events {
    recorder: EventRecorder,
}

impl Events {
    /// Returns a recorder for events of this operator.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        Self { recorder: EventRecorder::new(client, identity) }
    }

    /// Records on a NodeProbe that its mode, its reason or its attach type has changed. A failed write is only logged,
    /// because the status has the same information.
    pub async fn mode_changed(&self, node_probe: &NodeProbe, status: &NodeProbeStatus) {
        let Some(mode) = status.mode else { return };
        let type_ = if is_alarming(status) { EventType::Warning } else { EventType::Normal };
        let reason = format!("Capture{}", mode.as_str());
        let about = node_probe.object_ref(&());
        self.recorder.record(&about, type_, &reason, &action(status), &note(status)).await;
    }

    /// Records on a ScopeProbe that `Ready` has another status or reason. A failed write is only logged.
    pub async fn readiness_changed(&self, scope_probe: &ScopeProbe, ready: &Condition) {
        let is_ready = ready.status == "True";
        let is_expected = is_ready || PASSING.contains(&ready.reason.as_str());
        let type_ = if is_expected { EventType::Normal } else { EventType::Warning };
        let reason = if is_ready { "Ready" } else { "NotReady" };
        let note = format!("{}: {}", ready.reason, ready.message);
        self.recorder.record(&scope_probe.object_ref(&()), type_, reason, &ready.reason, &note).await;
    }
}

/// Returns the condition `Ready` if it has another status or reason than before.
#[must_use]
pub fn changed_readiness<'a>(before: Option<&ScopeProbeStatus>, after: &'a ScopeProbeStatus) -> Option<&'a Condition> {
    let state = |ready: &Condition| (ready.status.clone(), ready.reason.clone());
    let known = before.and_then(|before| of_type(&before.conditions, "Ready")).map(state);
    of_type(&after.conditions, "Ready").filter(|after| known != Some(state(after)))
}

/// Returns the action of an event. Events with the same action share the first one's note and a count, so different
/// changes need different actions.
fn action(status: &NodeProbeStatus) -> String {
    let attach = status.attach.replace('+', "And");
    format!("{}{}{attach}", status.reason, if attach.is_empty() { "" } else { "By" })
}

/// Returns whether the event is a warning: Fallback mode is a good state, but not where eBPF should have worked.
fn is_alarming(status: &NodeProbeStatus) -> bool {
    match status.mode {
        None | Some(Mode::Ebpf) => false,
        Some(Mode::Fallback) => status.fallback.is_some() || status.choice.agents != AgentMode::Fallback.as_str(),
        Some(Mode::Unsupported) => true,
    }
}

fn note(status: &NodeProbeStatus) -> String {
    let by = Some(&status.attach).filter(|attach| !attach.is_empty()).map(|attach| format!(" by {attach}"));
    format!("{}{}: {}", status.reason, by.unwrap_or_default(), status.message)
}

/// Returns whether a write changes mode, reason or attach type.
#[must_use]
pub fn is_mode_change(before: Option<&NodeProbeStatus>, after: &NodeProbeStatus) -> bool {
    let state = |status: &NodeProbeStatus| (status.mode, status.reason.clone(), status.attach.clone());
    after.mode.is_some() && before.is_none_or(|before| state(before) != state(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_changes_with_its_reason() {
        let status = |is: &str, reason: &str, message: &str| {
            let ready = serde_json::json!({
                "type": "Ready", "status": is, "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            let conditions = vec![serde_json::from_value(ready).unwrap()];
            ScopeProbeStatus { conditions, ..ScopeProbeStatus::default() }
        };
        let before = status("False", "RollingOut", "1 of 2");
        assert_eq!(changed_readiness(Some(&before), &status("False", "RollingOut", "2 of 2")), None);
        let forbidden = status("False", "PodsForbidden", "quota");
        assert_eq!(changed_readiness(Some(&before), &forbidden), forbidden.conditions.first());
        assert!(changed_readiness(None, &before).is_some());
        assert_eq!(changed_readiness(Some(&before), &ScopeProbeStatus::default()), None);
    }

    fn status(mode: Mode, agents: &str) -> NodeProbeStatus {
        let choice = crds::Choice { agents: agents.to_owned(), ..crds::Choice::default() };
        NodeProbeStatus { mode: Some(mode), choice, ..NodeProbeStatus::default() }
    }

    #[test]
    fn only_what_should_have_been_better_is_a_warning() {
        assert!(!is_alarming(&status(Mode::Ebpf, "ebpf")));
        assert!(!is_alarming(&status(Mode::Fallback, "fallback")), "as the kernel or a person wants it");
        assert!(is_alarming(&status(Mode::Fallback, "ebpf")), "while the capture is started again");
        let in_fallback =
            NodeProbeStatus { fallback: Some(crds::NodeFallback::default()), ..status(Mode::Fallback, "fallback") };
        assert!(is_alarming(&in_fallback));
        assert!(is_alarming(&status(Mode::Unsupported, "fallback")));
    }

    #[test]
    fn what_differs_is_another_action() {
        let action = |reason: &str, attach: &str| {
            let (reason, attach) = (reason.to_owned(), attach.to_owned());
            action(&NodeProbeStatus { reason, attach, ..status(Mode::Fallback, "fallback") })
        };
        assert_eq!(action("LoadFailed", "SockDiag+Conntrack"), "LoadFailedBySockDiagAndConntrack");
        assert_eq!(action("LoadFailed", "Procfs"), "LoadFailedByProcfs");
        assert_eq!(action("BtfMissing", ""), "BtfMissing");
    }

    #[test]
    fn a_change_is_told_once() {
        let before = status(Mode::Ebpf, "ebpf");
        assert!(is_mode_change(None, &before));
        assert!(!is_mode_change(Some(&before), &NodeProbeStatus { seen: 5, ..before.clone() }));
        assert!(is_mode_change(Some(&before), &NodeProbeStatus { attach: "TpBtf".to_owned(), ..before.clone() }));
        assert!(!is_mode_change(None, &NodeProbeStatus::default()), "no agent has reported yet");
    }
}
