//! Compares a published object with the desired one: which parts are structure, and which are kept.

use std::collections::HashMap;

use crds::{TopologyEdge, TopologyStatus};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::object::{MAX_BYTES, MAX_EDGES};

/// Returns whether both have the same structure: peers, how they are known, and whether attempts are pending. Pods and times count as counters, and so do
/// edges that were chosen by counters because not all fit.
pub(super) fn has_same_structure(one: &TopologyStatus, other: &TopologyStatus) -> bool {
    let TopologyStatus { workload, summary, totals: _, egress, ingress, omitted, conditions, checkpoint: _ } = one;
    *workload == other.workload
        && *summary == other.summary
        && have_same_statements(conditions, &other.conditions)
        && is_same_list(one, other, (egress, omitted.egress), (&other.egress, other.omitted.egress))
        && is_same_list(one, other, (ingress, omitted.ingress), (&other.ingress, other.omitted.ingress))
}

fn have_same_statements(some: &[Condition], others: &[Condition]) -> bool {
    let statement = |condition: &Condition| -> Condition {
        let Condition { type_, status, reason, observed_generation, .. } = condition.clone();
        let (message, last_transition_time) = (String::new(), Time(Timestamp::UNIX_EPOCH));
        Condition { type_, status, reason, observed_generation, message, last_transition_time }
    };
    some.len() == others.len() && some.iter().zip(others).all(|(one, other)| statement(one) == statement(other))
}

/// Edges, and the number of those that are omitted.
type List<'a> = (&'a [TopologyEdge], u64);

fn is_same_list(
    one: &TopologyStatus,
    other: &TopologyStatus,
    (edges, omitted): List<'_>,
    (other_edges, other_omitted): List<'_>,
) -> bool {
    let are_chosen = |status: &TopologyStatus, omitted: u64| {
        let is_choice = |condition: &Condition| [MAX_EDGES, MAX_BYTES].contains(&&*condition.reason);
        omitted > 0 && status.conditions.iter().any(is_choice)
    };
    match (are_chosen(one, omitted), are_chosen(other, other_omitted)) {
        (true, true) => true,
        (false, false) => {
            omitted == other_omitted
                && edges.len() == other_edges.len()
                && edges.iter().zip(other_edges).all(|(one, other)| is_same_edge(one, other))
        }
        _ => false,
    }
}

fn is_same_edge(one: &TopologyEdge, other: &TopologyEdge) -> bool {
    let TopologyEdge {
        id,
        peer,
        service,
        port,
        protocol,
        containers,
        seen,
        identity,
        methods,
        direction,
        dns_names,
        via,
        transport_security,
        pods: _,
        omitted_pods: _,
        opened: _,
        active: _,
        failed: _,
        pending,
        last_failed: _,
        bytes_sent: _,
        bytes_received: _,
        without_bytes: _,
        retransmits: _,
        rtt_microseconds: _,
        first_seen: _,
        last_seen: _,
        addresses: _,
    } = one;
    *id == other.id
        && *peer == other.peer
        && *service == other.service
        && *port == other.port
        && *protocol == other.protocol
        && *containers == other.containers
        && *seen == other.seen
        && *identity == other.identity
        && *methods == other.methods
        && *direction == other.direction
        && *dns_names == other.dns_names
        && *via == other.via
        && *transport_security == other.transport_security
        && (*pending > 0) == (other.pending > 0)
}

/// Takes over from the object the times of unchanged conditions, and the time at which each edge was first observed.
pub(super) fn keep(desired: &mut TopologyStatus, known: Option<&TopologyStatus>, now: Timestamp) {
    for condition in &mut desired.conditions {
        let same = known
            .into_iter()
            .flat_map(|status| &status.conditions)
            .find(|other| other.type_ == condition.type_ && other.status == condition.status);
        // The API keeps whole seconds.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        condition.last_transition_time = same.map_or(Time(now), |same| same.last_transition_time.clone());
    }
    for_each_known(desired, known, |edge, known| {
        if known.first_seen.is_some() {
            edge.first_seen.clone_from(&known.first_seen);
        }
    });
}

/// Takes over from the object the times that are written only together with other changes.
pub(super) fn ignore_last_seen(desired: &mut TopologyStatus, known: &TopologyStatus) {
    for_each_known(desired, Some(known), |edge, known| edge.last_seen.clone_from(&known.last_seen));
}

fn for_each_known(
    desired: &mut TopologyStatus,
    known: Option<&TopologyStatus>,
    change: impl Fn(&mut TopologyEdge, &TopologyEdge),
) {
    let Some(known) = known else { return };
    for (desired, known) in [(&mut desired.egress, &known.egress), (&mut desired.ingress, &known.ingress)] {
        let known: HashMap<&str, &TopologyEdge> = known.iter().map(|edge| (edge.id.as_str(), edge)).collect();
        for edge in desired {
            if let Some(known) = known.get(edge.id.as_str()) {
                change(edge, known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crds::EdgePod;
    use serde_json::json;

    use super::*;

    fn status(edges: &serde_json::Value) -> TopologyStatus {
        serde_json::from_value(json!({ "egress": edges })).expect("it is a status")
    }

    fn edge(id: &str, extra: &serde_json::Value) -> serde_json::Value {
        let mut edge = json!({
            "id": id, "peer": {"type": "APIServer"}, "opened": 1, "active": 0, "failed": 0, "seen": "Client",
            "identity": "IP", "methods": [], "direction": "Observed",
        });
        if let Some((edge, extra)) = edge.as_object_mut().zip(extra.as_object()) {
            edge.extend(extra.clone());
        }
        edge
    }

    #[test]
    fn pods_and_times_are_no_structure() {
        let known = status(&json!([edge("a", &json!({}))]));
        let mut other = known.clone();
        other.checkpoint = Some("1:".to_owned());
        let first = &mut other.egress[0];
        first.pods.push(EdgePod { pod: "web-2".to_owned(), ..EdgePod::default() });
        (first.omitted_pods, first.failed) = (3, 9);
        (first.last_failed, first.last_seen) = (Some(Time(Timestamp::UNIX_EPOCH)), Some(Time(Timestamp::UNIX_EPOCH)));
        assert!(has_same_structure(&known, &other));
        other.egress[0].containers.push("sidecar".to_owned());
        assert!(!has_same_structure(&known, &other));
    }

    #[test]
    fn first_and_last_pending_attempt_are_structure() {
        let with = |pending: u64| status(&json!([edge("a", &json!({ "pending": pending }))]));
        assert!(!has_same_structure(&with(0), &with(1)) && !has_same_structure(&with(1), &with(0)));
        assert!(has_same_structure(&with(1), &with(2)));
    }

    #[test]
    fn choice_of_listed_edges_is_no_structure_but_that_some_are_missing() {
        let chosen = |mut status: TopologyStatus| {
            let condition = json!([{
                "type": "Truncated", "status": "True", "reason": MAX_EDGES, "message": "",
                "lastTransitionTime": "2026-01-01T10:00:00Z",
            }]);
            status.conditions = serde_json::from_value(condition).expect("it is a condition");
            status
        };
        let mut known = chosen(status(&json!([edge("a", &json!({}))])));
        let mut other = chosen(status(&json!([edge("b", &json!({}))])));
        assert!(!has_same_structure(&known, &other));
        (known.omitted.egress, other.omitted.egress) = (5, 7);
        assert!(has_same_structure(&known, &other));
        other.omitted.egress = 0;
        assert!(!has_same_structure(&known, &other));
        // Edges whose counters are too large are left out, not chosen.
        let unchosen = |id: &str| {
            let mut status = status(&json!([edge(id, &json!({}))]));
            status.omitted.egress = 1;
            status
        };
        assert!(!has_same_structure(&unchosen("a"), &unchosen("b")));
    }

    #[test]
    fn first_seen_never_changes_and_last_seen_with_other_changes_only() {
        let (early, late) = ("2026-01-01T10:00:00Z", "2026-01-02T10:00:00Z");
        let times = |time: &str| json!({"firstSeen": time, "lastSeen": time});
        let known = status(&json!([edge("a", &times(early)), edge("b", &json!({}))]));
        let desired = || status(&json!([edge("c", &times(late)), edge("b", &times(late)), edge("a", &times(late))]));
        let shown = |status: &TopologyStatus| -> Vec<[Option<String>; 2]> {
            let text = |time: &Option<Time>| time.as_ref().map(|time| time.0.to_string());
            status.egress.iter().map(|edge| [text(&edge.first_seen), text(&edge.last_seen)]).collect()
        };
        let some = |time: &str| Some(time.to_owned());
        let mut wanted = desired();
        keep(&mut wanted, Some(&known), Timestamp::UNIX_EPOCH);
        assert_eq!(shown(&wanted), [[some(late), some(late)], [some(late), some(late)], [some(early), some(late)]]);
        ignore_last_seen(&mut wanted, &known);
        assert_eq!(shown(&wanted), [[some(late), some(late)], [some(late), None], [some(early), some(early)]]);
        let mut first = desired();
        keep(&mut first, None, Timestamp::UNIX_EPOCH);
        assert_eq!(shown(&first), shown(&desired()));
    }
}
