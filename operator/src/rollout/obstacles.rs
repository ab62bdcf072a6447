//! Finds out what keeps agents from running: the API server refuses their pods, or a node does not start them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crds::PROBE_LABEL;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodStatus};
use kube::{Api, Client, ResourceExt, api::ListParams};
use topology::plural::counted;

use super::{
    apply::{AppliedDaemonSet, ApplyError},
    build::AGENT_APP,
    outcome::Obstacle,
};
use crate::text::some_of;

/// Time for which a rollout may be incomplete before anything is looked for, and the least time between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Maximum time between two looks that find the same.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// Age beyond which a refusal is no reason any more: the DaemonSet controller tries again within about 17 minutes.
const LATEST: SignedDuration = SignedDuration::from_mins(20);
/// Maximum number of pods and of events that are read: enough to name an obstacle.
const MOST: u32 = 500;

/// Latest results, by ScopeProbe.
#[derive(Debug, Default)]
pub struct Obstacles {
    rollouts: Mutex<HashMap<String, Incomplete>>,
}

/// Rollout that is incomplete.
#[derive(Clone, Debug)]
struct Incomplete {
    /// Time at which it began, or was last looked at.
    last: Instant,
    /// Time until the next look.
    pause: Duration,
    found: Option<Obstacle>,
}

impl Obstacles {
    /// Records that a rollout is complete.
    pub fn clear(&self, probe: &str) {
        self.rollouts.lock().unwrap_or_else(PoisonError::into_inner).remove(probe);
    }

    /// Returns the time until the next look at an incomplete rollout.
    #[must_use]
    pub fn pause(&self, probe: &str) -> Duration {
        let rollouts = self.rollouts.lock().unwrap_or_else(PoisonError::into_inner);
        rollouts.get(probe).map_or(LOOK, |rollout| rollout.pause)
    }

    /// Returns the obstacle of an incomplete rollout, looking for it if that is due. A look that fails is logged, and the
    /// rollout goes on.
    pub async fn find(
        &self,
        client: &Client,
        namespace: &str,
        probe: &str,
        applied: &[AppliedDaemonSet],
    ) -> Option<Obstacle> {
        let now = Instant::now();
        let known = {
            let mut rollouts = self.rollouts.lock().unwrap_or_else(PoisonError::into_inner);
            rollouts.entry(probe.to_owned()).or_insert(Incomplete { last: now, pause: LOOK, found: None }).clone()
        };
        if now.duration_since(known.last) < known.pause {
            return known.found;
        }
        let found = look(client, namespace, probe, applied).await.unwrap_or_else(|error| {
            tracing::warn!(probe, %error, "cannot find out what keeps agents from running");
            None
        });
        // The words of one cause vary with each attempt: the first ones stay.
        let is_same =
            found.as_ref().map(|it| (it.reason, &it.place)) == known.found.as_ref().map(|it| (it.reason, &it.place));
        let found = if is_same { known.found } else { found };
        let pause = if is_same { (known.pause * 2).min(LONGEST_PAUSE) } else { LOOK };
        let mut rollouts = self.rollouts.lock().unwrap_or_else(PoisonError::into_inner);
        rollouts.insert(probe.to_owned(), Incomplete { last: now, pause, found: found.clone() });
        found
    }
}

async fn look(
    client: &Client,
    namespace: &str,
    probe: &str,
    applied: &[AppliedDaemonSet],
) -> Result<Option<Obstacle>, ApplyError> {
    let lacking = lacking_pods(applied);
    if !lacking.is_empty() {
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let refusals = ListParams::default().fields("involvedObject.kind=DaemonSet,reason=FailedCreate").limit(MOST);
        let refusals = events.list(&refusals).await;
        let refusals = refusals.map_err(|source| ApplyError::new("list events of", namespace, source))?.items;
        let refused = refused(&refusals, &lacking, namespace, Timestamp::now());
        if refused.is_some() {
            return Ok(refused);
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = format!("app.kubernetes.io/name={AGENT_APP},{PROBE_LABEL}={probe}");
    let pods = pods.list(&ListParams::default().labels(&selector).limit(MOST)).await;
    Ok(not_started(&pods.map_err(|source| ApplyError::new("list agents of", namespace, source))?.items))
}

/// Returns the UIDs of DaemonSets that lack pods.
fn lacking_pods(applied: &[AppliedDaemonSet]) -> Vec<&str> {
    applied.iter().filter_map(AppliedDaemonSet::uid_if_pods_are_missing).collect()
}

/// Returns the newest refusal of a pod that one of these DaemonSets still lacks.
fn refused(events: &[Event], lacking: &[&str], namespace: &str, now: Timestamp) -> Option<Obstacle> {
    let own = |event: &&Event| event.involved_object.uid.as_deref().is_some_and(|uid| lacking.contains(&uid));
    let is_recent = |event: &&Event| last_time(event).is_some_and(|time| now.duration_since(time) < LATEST);
    let newest = events.iter().filter(own).filter(is_recent).max_by_key(|event| last_time(event))?;
    let words = newest.message.as_deref().unwrap_or_default();
    let cure = cure(words, namespace).map(|cure| format!("; {cure}")).unwrap_or_default();
    let reason = if words.contains("forbidden") { "PodsForbidden" } else { "PodsRefused" };
    let message = format!("pods of agents are refused: {words}{cure}");
    Some(Obstacle { reason, place: String::new(), message })
}

/// Returns the time of the event's latest repetition.
fn last_time(event: &Event) -> Option<Timestamp> {
    let in_series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    in_series.or(event.last_timestamp.as_ref().map(|time| time.0)).or(event.event_time.as_ref().map(|time| time.0))
}

/// Returns what lets the API server admit the pods.
fn cure(words: &str, namespace: &str) -> Option<String> {
    if words.contains("PodSecurity") {
        Some(format!(
            "agents need the level privileged: `kubectl label --overwrite namespace {namespace} \
             pod-security.kubernetes.io/enforce=privileged`"
        ))
    } else if words.contains("exceeded quota") || words.contains("failed quota") {
        Some(format!("raise the ResourceQuota of the namespace {namespace}, or spec.agent.resources"))
    } else if words.contains("security context constraint") {
        Some("give the agents' ServiceAccount a SecurityContextConstraint that allows what they need".to_owned())
    } else {
        None
    }
}

/// Returns the most frequent reason for which pods do not run, with the words of one of them and the nodes.
fn not_started(pods: &[Pod]) -> Option<Obstacle> {
    let mut reasons: BTreeMap<&'static str, (String, Vec<String>)> = BTreeMap::new();
    for pod in pods {
        let Some((reason, words)) = pod.status.as_ref().and_then(why_not_started) else { continue };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| pod.name_any());
        let (_, nodes) = reasons.entry(reason).or_insert((words, Vec::new()));
        nodes.push(node);
    }
    let (reason, (words, mut nodes)) = reasons.into_iter().max_by_key(|(_, (_, nodes))| nodes.len())?;
    nodes.sort_unstable();
    let place = format!("{} ({})", counted(nodes.len(), "node"), some_of(&nodes));
    Some(Obstacle { reason, message: format!("agents do not start on {place}: {words}"), place })
}

fn why_not_started(status: &PodStatus) -> Option<(&'static str, String)> {
    let unscheduled = status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    if let Some(condition) = unscheduled {
        return Some(("PodsUnschedulable", condition.message.clone().unwrap_or_default()));
    }
    status.container_statuses.iter().flatten().find_map(why_not_running)
}

fn why_not_running(container: &ContainerStatus) -> Option<(&'static str, String)> {
    let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let exit = ended.map(|ended| {
        let why = ended.reason.as_deref().unwrap_or("Error");
        format!("the last one ended with exit code {} ({why})", ended.exit_code)
    });
    let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else {
        // Between two crashes.
        return exit.filter(|_| !container.ready).map(|exit| ("AgentsCrash", exit));
    };
    let word = waiting.reason.as_deref()?;
    let reason = match word {
        "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError" => {
            "ImagePullFailed"
        }
        "CrashLoopBackOff" => "AgentsCrash",
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => "ContainersNotCreated",
        _ => return None,
    };
    let said = waiting.message.as_deref().unwrap_or_default();
    let words = format!("{word}: {said}");
    Some((reason, exit.map_or_else(|| words.clone(), |exit| format!("{words}; {exit}"))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(uid: &str, desired: i32, current: i32) -> AppliedDaemonSet {
        let object = json!({
            "metadata": {"name": "scopeprobe-p-ebpf", "uid": uid},
            "status": {
                "desiredNumberScheduled": desired, "currentNumberScheduled": current, "numberMisscheduled": 0,
                "numberReady": 0,
            },
        });
        AppliedDaemonSet::of(serde_json::from_value(object).unwrap())
    }

    fn event(uid: &str, second: u32, message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": format!("e{second}")},
            "involvedObject": {"kind": "DaemonSet", "uid": uid},
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
            "message": message,
        }))
        .unwrap()
    }

    #[test]
    fn newest_refusal_of_a_daemon_set_that_lacks_pods_is_named_with_its_cure() {
        let events = [
            event("u", 1, "exceeded quota: small"),
            event("u", 3, "Error creating: pods \"a\" is forbidden: violates PodSecurity \"baseline:latest\""),
            event("other", 9, "another DaemonSet's"),
        ];
        let now = "2026-01-01T00:00:10Z".parse().unwrap();
        let found = refused(&events, &lacking_pods(&[applied("u", 2, 1)]), "ns", now).unwrap();
        assert_eq!(found.reason, "PodsForbidden");
        assert!(found.message.contains("violates PodSecurity") && found.message.contains("namespace ns"), "{found:?}");
        assert_eq!(
            refused(&events, &lacking_pods(&[applied("u", 2, 2)]), "ns", now),
            None,
            "all pods were created since"
        );
        assert_eq!(refused(&events, &lacking_pods(&[applied("v", 2, 0)]), "ns", now), None);
        let later = "2026-01-01T00:20:03Z".parse().unwrap();
        assert_eq!(
            refused(&events, &lacking_pods(&[applied("u", 2, 1)]), "ns", later),
            None,
            "it was tried again since"
        );
    }

    fn pod(node: &str, status: &serde_json::Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "containers": []}, "status": status}),
        )
        .unwrap()
    }

    fn waiting(reason: &str, message: &str) -> serde_json::Value {
        json!({"containerStatuses": [{
            "name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": reason, "message": message}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        }]})
    }

    #[test]
    fn most_frequent_reason_is_named_with_its_nodes() {
        let pods = [
            pod("b", &waiting("ImagePullBackOff", "no such image")),
            pod("a", &waiting("ErrImagePull", "no such image")),
            pod("c", &waiting("CrashLoopBackOff", "back-off 10s")),
            pod("d", &waiting("ContainerCreating", "")),
        ];
        let found = not_started(&pods).unwrap();
        assert_eq!(found.reason, "ImagePullFailed");
        assert!(found.message.starts_with("agents do not start on 2 nodes (a, b): "), "{found:?}");
        let crash = not_started(&pods[2..]).unwrap();
        assert_eq!(crash.reason, "AgentsCrash");
        assert!(
            crash.message.ends_with("back-off 10s; the last one ended with exit code 137 (OOMKilled)"),
            "{crash:?}"
        );
        assert_eq!(not_started(&pods[3..]), None, "it is being created");
        let mut again = waiting("", "");
        again["containerStatuses"][0]["state"] = json!({"running": {}});
        assert_eq!(not_started(&[pod("a", &again)]).unwrap().reason, "AgentsCrash", "between two crashes");
    }

    #[test]
    fn pods_without_a_place_say_what_the_scheduler_says() {
        let status = json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient memory"},
        ]});
        let found = not_started(&[pod("a", &status)]).unwrap();
        assert_eq!(
            (found.reason, found.message.as_str()),
            ("PodsUnschedulable", "agents do not start on 1 node (a): Insufficient memory",)
        );
    }
}
