//! Events of Topologies: when one stops to list all edges, and when a node of its workload has no agent any more.

use crds::{Topology, TopologyStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, ResourceExt, runtime::events::EventType};

use crate::event_recorder::EventRecorder;

/// Conditions that users should notice, with the reason of the event.
const ALARMING: [(&str, &str, &str); 2] =
    [("Truncated", "True", "TopologyTruncated"), ("Observed", "False", "TopologyUnobserved")];

/// Maximum length of a Topology's name with events: the API allows 253 characters, and an event's name has more.
const LONGEST_NAME: usize = 230;

/// Event that a write leads to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TopologyEvent {
    reason: &'static str,
    /// Reason of the condition.
    action: String,
    note: String,
}

/// Returns the events of a status that replaces another one.
pub(super) fn of_change(before: Option<&TopologyStatus>, after: &TopologyStatus) -> Vec<TopologyEvent> {
    let has = |status: &TopologyStatus, type_: &str, value: &str| {
        status.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == value)
    };
    let event = |&(type_, value, reason): &(&str, &str, &'static str)| {
        let is_news = |condition: &&Condition| condition.type_ == type_ && condition.status == value;
        let condition = after.conditions.iter().find(is_news)?;
        // A new workload, on nodes that no agent is to observe, has lost nothing.
        let is_known = before.map_or(type_ == "Observed", |before| has(before, type_, value));
        let (action, note) = (condition.reason.clone(), condition.message.clone());
        (!is_known).then_some(TopologyEvent { reason, action, note })
    };
    ALARMING.iter().filter_map(event).collect()
}

/// Records the events of a written Topology.
pub(super) async fn record(recorder: &EventRecorder, topology: &Topology, events: &[TopologyEvent]) {
    if topology.name_any().len() > LONGEST_NAME {
        return;
    }
    for TopologyEvent { reason, action, note } in events {
        recorder.record(&topology.object_ref(&()), EventType::Warning, reason, action, note).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(truncated: &str, observed: &str) -> TopologyStatus {
        let condition = |type_, status| {
            json!({
                "type": type_, "status": status, "reason": format!("R{type_}"), "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let conditions = [condition("Truncated", truncated), condition("Observed", observed)];
        serde_json::from_value(json!({ "conditions": conditions })).expect("it decodes")
    }

    fn reasons(before: Option<&TopologyStatus>, after: &TopologyStatus) -> Vec<&'static str> {
        of_change(before, after).iter().map(|event| event.reason).collect()
    }

    #[test]
    fn only_a_condition_that_becomes_alarming_is_an_event() {
        let (good, bad) = (status("False", "True"), status("True", "False"));
        assert_eq!(reasons(None, &good), Vec::<&str>::new());
        assert_eq!(reasons(None, &bad), ["TopologyTruncated"]);
        assert_eq!(reasons(Some(&good), &bad), ["TopologyTruncated", "TopologyUnobserved"]);
        assert_eq!(reasons(Some(&bad), &bad), Vec::<&str>::new());
        assert_eq!(reasons(Some(&bad), &good), Vec::<&str>::new());
        assert_eq!(reasons(Some(&status("True", "True")), &bad), ["TopologyUnobserved"]);
        assert_eq!(of_change(None, &bad)[0].action, "RTruncated");
    }
}
