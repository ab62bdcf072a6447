//! Computes a ScopeProbe's status: the sum of its NodeProbes, its rollout and the topology. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crds::{Mode, NodeCounts, NodeProbeStatus, ScopeProbe, ScopeProbeStatus, TopologyTotals};
use jiff::Timestamp;
use topology::plural::counted;

use super::{
    conditions::{CAPTURE_COMPLETE, Statement, Truth, conditions, is_true, of_type, same_statements},
    coverage::{explain, percent},
    readiness::{Nodes, PATIENCE, ReadinessInputs, degraded, kstatus, on, unready, without_capture},
};
use crate::{
    coverage::share::{Share, Shares},
    observation::TopologyOverview,
    rollout::outcome::Outcome,
    text::some_of,
};

/// State of one node of a ScopeProbe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeState {
    /// The status of its NodeProbe.
    pub status: NodeProbeStatus,
    /// Counted share of what happened.
    pub shares: Shares,
    /// True if its agent may still be on its way.
    pub is_new: bool,
}

/// Inputs of a ScopeProbe's status.
pub struct ScopeProbeInputs<'a> {
    /// The ScopeProbe.
    pub probe: &'a ScopeProbe,
    /// Result of its last rollout.
    pub outcome: Option<&'a Outcome>,
    /// Its nodes, by name.
    pub nodes: &'a BTreeMap<String, NodeState>,
    /// Its nodes whose agent captures nothing and that are being moved to another mode.
    pub moving: &'a BTreeSet<String>,
    /// Selected nodes that belong to another ScopeProbe, with its name.
    pub taken: Option<&'a BTreeMap<String, String>>,
    /// The size of the topology.
    pub overview: &'a TopologyOverview,
    /// Requests that the API server refuses, in words.
    pub problems: &'a [String],
}

/// Returns the status of one ScopeProbe.
#[must_use]
pub fn desired(inputs: &ScopeProbeInputs<'_>, now: Timestamp) -> ScopeProbeStatus {
    let previous = inputs.probe.status.as_ref();
    let nodes = count(inputs.nodes);
    let sums = Sums::of(inputs.nodes);
    let [last_hour, last_day, total] = sums.percentages();
    let known = previous.and_then(|previous| previous.observed_generation);
    let generation = inputs.outcome.map(|outcome| outcome.generation).or(known);
    let by_state = by_state(inputs.nodes, inputs.moving, now);
    let readiness = ReadinessInputs {
        generation: inputs.probe.metadata.generation.unwrap_or_default(),
        outcome: inputs.outcome,
        nodes: &by_state,
        max_unavailable_percent: inputs.probe.spec.readiness.max_unavailable_percent,
        was_ready: was_ready(inputs.probe),
    };
    let [ready, reconciling, stalled] = kstatus(&readiness, now);
    ScopeProbeStatus {
        observed_generation: generation,
        conditions: conditions(
            vec![
                ready,
                reconciling,
                stalled,
                degraded(&by_state, inputs.outcome),
                capture_complete(inputs.nodes, &sums.shares.last_hour),
                nodes_taken(inputs.taken),
                published(inputs.problems),
            ],
            previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default(),
            generation,
            now,
        ),
        coverage: last_hour,
        coverage_last_day: last_day,
        coverage_total: total,
        nodes,
        topology: inputs.overview.totals.clone(),
        namespaces: inputs.overview.namespaces.clone(),
        omitted_namespaces: inputs.overview.omitted_namespaces,
    }
}

/// Returns whether a node's agent reports.
pub(super) fn reports(node: &NodeState) -> bool {
    is_true(&node.status.conditions, "Reporting")
}

fn count(nodes: &BTreeMap<String, NodeState>) -> NodeCounts {
    let mut counts = NodeCounts { total: nodes.len() as u64, ..NodeCounts::default() };
    for node in nodes.values() {
        match node.status.mode.filter(|_| reports(node)) {
            Some(Mode::Ebpf) => counts.ebpf += 1,
            Some(Mode::Fallback) => counts.fallback += 1,
            Some(Mode::Unsupported) => counts.unsupported += 1,
            None => counts.not_reporting += 1,
        }
    }
    counts
}

/// Sums over all nodes.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) shares: Shares,
    /// True if some node has no agent that observes now.
    is_silent: bool,
    /// True if some node has ever been observed.
    pub(super) is_known: bool,
}

impl Sums {
    pub(super) fn of(nodes: &BTreeMap<String, NodeState>) -> Self {
        let mut sums = Self::default();
        for node in nodes.values() {
            sums.shares.add(&node.shares);
            let observes = matches!(node.status.mode, Some(Mode::Ebpf | Mode::Fallback));
            sums.is_silent |= !observes || !reports(node);
            sums.is_known |= observes || node.status.coverage_record.is_some();
        }
        sums
    }

    /// Returns the coverage of the last hour, of the last day and in total.
    fn percentages(&self) -> [String; 3] {
        let all = [&self.shares.last_hour, &self.shares.last_day, &self.shares.total];
        all.map(|share| if self.is_known { percent(share, self.is_silent) } else { "-".to_owned() })
    }
}

fn capture_complete(nodes: &BTreeMap<String, NodeState>, last_hour: &Share) -> Statement {
    const TYPE: &str = CAPTURE_COMPLETE;
    if nodes.is_empty() {
        return Statement::new(TYPE, Truth::Unknown, "NoNodes", "no node belongs to this ScopeProbe");
    }
    let those = |pick: &dyn Fn(&NodeState) -> bool| -> BTreeSet<String> {
        nodes.iter().filter(|(_, node)| pick(node)).map(|(name, _)| name.clone()).collect()
    };
    let has_losses = |share: &Share| share.lost() > 0 || share.losses().closed > 0;
    let lossy = those(&|it| has_losses(&it.shares.last_hour) || it.shares.last_hour.has_gaps());
    let unsupported = those(&|it| it.status.mode == Some(Mode::Unsupported));
    let silent = those(&|it| it.status.mode != Some(Mode::Unsupported) && !reports(it));
    let sampled = those(&|it| it.shares.last_hour.shortfall.sampled);
    let mut parts = Vec::new();
    if !lossy.is_empty() {
        parts.push(format!("in the last hour, {} ({})", explain(last_hour), on(&lossy)));
    }
    parts.extend(without_capture(&unsupported, &silent));
    let truth = if parts.is_empty() { Truth::Unknown } else { Truth::False };
    if !sampled.is_empty() {
        parts.push(format!(
            "in the fallback or by a tracepoint, short connections may have been missed in the last hour, more than can be \
             counted, {}",
            on(&sampled)
        ));
    }
    if parts.is_empty() {
        return Statement::new(TYPE, true, "NothingMissed", "in the last hour, nothing is known to have been missed");
    }
    let reason = if has_losses(last_hour) {
        "Lost"
    } else if !unsupported.is_empty() {
        "Unsupported"
    } else if !silent.is_empty() {
        "NotReporting"
    } else if !lossy.is_empty() {
        "Unobserved"
    } else {
        "Sampled"
    };
    Statement::new(TYPE, truth, reason, parts.join("; "))
}

/// Returns whether the agent of a node has not reported for as long as `PATIENCE`.
fn is_long_silent(node: &NodeState, now: Timestamp) -> bool {
    let reporting = of_type(&node.status.conditions, "Reporting");
    reporting.is_some_and(|it| it.status != "True" && now.duration_since(it.last_transition_time.0) >= PATIENCE)
}

/// Returns the nodes by the state of their agents.
fn by_state(nodes: &BTreeMap<String, NodeState>, moving: &BTreeSet<String>, now: Timestamp) -> Nodes {
    let mut by_state = Nodes { total: nodes.len() as u64, moving: moving.clone(), ..Nodes::default() };
    for (name, node) in nodes {
        let those = match node.status.mode {
            _ if !reports(node) && node.is_new => &mut by_state.new,
            Some(Mode::Unsupported) => &mut by_state.unsupported,
            _ if !reports(node) => {
                if is_long_silent(node, now) {
                    by_state.long_silent.insert(name.clone());
                }
                &mut by_state.silent
            }
            _ => continue,
        };
        those.insert(name.clone());
    }
    by_state
}

/// Returns whether the published status says that this generation is ready.
fn was_ready(probe: &ScopeProbe) -> bool {
    let Some(status) = &probe.status else { return false };
    is_true(&status.conditions, "Ready") && status.observed_generation == probe.metadata.generation
}

/// Returns the status of a ScopeProbe whose `spec` does not decode. It contains only this error.
#[must_use]
pub fn malformed(
    error: &str,
    previous: Option<&ScopeProbeStatus>,
    generation: Option<i64>,
    now: Timestamp,
) -> ScopeProbeStatus {
    let message = format!(
        "spec does not decode: {error}; correct it, or install an operator of the version that it was written for; until \
         then the agents of this ScopeProbe stay as they are, and their NodeProbes are not updated"
    );
    let [ready, reconciling, stalled] = unready(true, "Malformed", message.clone());
    let complete = Statement::new(CAPTURE_COMPLETE, Truth::Unknown, "Malformed", message);
    let known = previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default();
    ScopeProbeStatus {
        observed_generation: generation,
        conditions: conditions(vec![ready, reconciling, stalled, complete], known, generation, now),
        coverage: "-".to_owned(),
        ..ScopeProbeStatus::default()
    }
}

fn published(problems: &[String]) -> Statement {
    const TYPE: &str = "Published";
    if problems.is_empty() {
        return Statement::new(TYPE, true, "NothingRefused", "the API server refuses no request for what is published");
    }
    let message = format!("{}; counting goes on", problems.join("; "));
    Statement::new(TYPE, false, "RequestsRefused", message)
}

fn nodes_taken(taken: Option<&BTreeMap<String, String>>) -> Statement {
    const TYPE: &str = "NodesTaken";
    let Some(taken) = taken.filter(|taken| !taken.is_empty()) else {
        return Statement::new(TYPE, false, "NoneTaken", "no older ScopeProbe selects the same nodes");
    };
    let list: Vec<_> = taken.iter().map(|(node, owner)| format!("{node} ({owner})")).collect();
    let message =
        format!("an older ScopeProbe has {} that this one selects: {}", counted(list.len(), "node"), some_of(&list));
    Statement::new(TYPE, true, "BelongToOlder", message)
}

/// Returns whether the difference between two statuses requires a write at once: everything except growing numbers.
#[must_use]
pub fn differs_in_structure(one: &ScopeProbeStatus, other: &ScopeProbeStatus) -> bool {
    let structure = |status: &ScopeProbeStatus| ScopeProbeStatus {
        conditions: Vec::new(),
        coverage: if status.coverage == "-" { "-".to_owned() } else { String::new() },
        coverage_last_day: String::new(),
        coverage_total: String::new(),
        topology: TopologyTotals { omitted_edges: 0, max_counter_age_seconds: 0, ..status.topology.clone() },
        ..status.clone()
    };
    structure(one) != structure(other) || !same_statements(&one.conditions, &other.conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        observation::NodeObservation,
        rollout::{
            assignment::Assignment,
            mode::{AgentMode, ModeCause},
            outcome::{Problem, Progress},
        },
        status::{
            coverage::{CoverageFacts, assess},
            node_probe,
        },
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const NOW: u64 = 1_000_000;

    /// A node whose agent has observed from the beginning, with 100 connections.
    fn node(connected: bool, mode: Option<Mode>, change: impl FnOnce(&mut NodeObservation)) -> NodeState {
        let mut observation =
            NodeObservation { connected, mode, seen: 100, last_report_unix_ms: NOW, ..NodeObservation::default() };
        change(&mut observation);
        if observation.has_capture() {
            observation.note_capture(0, observation.last_report_unix_ms);
        }
        let assignment = Assignment {
            probe: "p".to_owned(),
            requested: crds::RequestedMode::Auto,
            mode: AgentMode::Ebpf,
            cause: ModeCause::Supported,
        };
        let facts = CoverageFacts { observation: Some(&observation), created: Some(0), settled: NOW, now: NOW };
        let coverage = assess(&facts);
        let inputs = node_probe::NodeProbeInputs {
            assignment: &assignment,
            node_kernel: "",
            fallback: None,
            observation: Some(&observation),
            coverage: &coverage,
            previous: None,
        };
        NodeState { status: node_probe::desired(&inputs, at(1)), shares: coverage.shares, is_new: false }
    }

    fn good() -> NodeState {
        node(true, Some(Mode::Ebpf), |_| ())
    }

    fn status_of(nodes: &[(&str, NodeState)], outcome: Option<&Outcome>) -> ScopeProbeStatus {
        status_while_moving(nodes, &[], outcome)
    }

    fn status_while_moving(
        nodes: &[(&str, NodeState)],
        moving: &[&str],
        outcome: Option<&Outcome>,
    ) -> ScopeProbeStatus {
        let probe: ScopeProbe =
            serde_json::from_value(json!({"metadata": {"name": "p", "generation": 2}, "spec": {}})).unwrap();
        let nodes = nodes.iter().map(|(name, node)| ((*name).to_owned(), node.clone())).collect();
        let overview = TopologyOverview::default();
        let moving = moving.iter().map(|name| (*name).to_owned()).collect();
        let inputs = ScopeProbeInputs {
            probe: &probe,
            outcome,
            nodes: &nodes,
            moving: &moving,
            taken: None,
            overview: &overview,
            problems: &[],
        };
        desired(&inputs, at(1))
    }

    fn done() -> Outcome {
        let progress = Progress { desired: 2, available: 2, observed: true };
        Outcome { generation: 2, progress, ..Outcome::default() }
    }

    fn condition<'a>(status: &'a ScopeProbeStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
        let it = status.conditions.iter().find(|it| it.type_ == type_).unwrap();
        (&it.status, &it.reason, &it.message)
    }

    #[test]
    fn all_nodes_report() {
        let status = status_of(&[("a", good()), ("b", good())], Some(&done()));
        assert_eq!(condition(&status, "Ready").0, "True");
        assert_eq!(condition(&status, "Reconciling").0, "False");
        assert_eq!(condition(&status, "Stalled").0, "False");
        assert_eq!(condition(&status, "CaptureComplete").0, "True");
        assert_eq!((status.coverage.as_str(), status.observed_generation), ("100%", Some(2)));
        assert_eq!(status.nodes, NodeCounts { total: 2, ebpf: 2, ..NodeCounts::default() });
    }

    #[test]
    fn a_silent_node_is_not_taken_for_a_quiet_one() {
        let silent = node(false, Some(Mode::Ebpf), |_| ());
        let status = status_of(&[("a", good()), ("b", silent)], Some(&done()));
        assert_eq!(condition(&status, "Ready").2, "agents report from 1 of 2 nodes");
        assert_eq!(condition(&status, "Degraded"), ("True", "NodesNotReporting", "no agent reports on 1 node: b"));
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason), ("False", "NotReporting"));
        assert!(message.contains(": b"), "{message}");
        assert_eq!(status.coverage, "~99.9%");
        assert_eq!(status.nodes.not_reporting, 1);
    }

    #[test]
    fn status_is_stalled_when_most_agents_do_not_come_back() {
        let silent = || node(false, Some(Mode::Ebpf), |_| ());
        let nodes = [("a", silent()), ("b", silent())];
        let status = |second| {
            let probe: ScopeProbe =
                serde_json::from_value(json!({"metadata": {"name": "p", "generation": 2}, "spec": {}})).unwrap();
            let nodes = nodes.iter().map(|(name, node)| ((*name).to_owned(), node.clone())).collect();
            let inputs = ScopeProbeInputs {
                probe: &probe,
                outcome: Some(&done()),
                nodes: &nodes,
                moving: &BTreeSet::new(),
                taken: None,
                overview: &TopologyOverview::default(),
                problems: &[],
            };
            desired(&inputs, at(second))
        };
        // Their NodeProbes say so since second 1.
        assert_eq!(condition(&status(300), "Stalled").0, "False");
        let stalled = status(301);
        let (truth, reason, message) = condition(&stalled, "Stalled");
        assert_eq!((truth, reason), ("True", "WaitingForReports"));
        assert_eq!(message, "no agent reports from 2 of 2 nodes; see the logs of the agents on 2 nodes: a, b");
    }

    #[test]
    fn coverage_is_weighted_by_the_time_of_nodes() {
        let dead = node(false, Some(Mode::Ebpf), |it| it.last_report_unix_ms = 0);
        let status = status_of(&[("a", good()), ("b", dead)], Some(&done()));
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason), ("False", "NotReporting"));
        assert!(message.contains("at most 960 s (1 interval)"), "{message}");
        // b was due after its first minute: 960 s of 960 s + 900 s were observed.
        let unseen = NodeState { shares: assess_without_agent(), ..NodeState::default() };
        let status = status_of(&[("a", good()), ("b", unseen)], Some(&done()));
        assert_eq!((status.coverage.as_str(), condition(&status, "CaptureComplete").0), ("~51.6%", "False"));
    }

    fn assess_without_agent() -> Shares {
        assess(&CoverageFacts { observation: None, created: Some(0), settled: NOW, now: NOW }).shares
    }

    #[test]
    fn losses_name_nodes_and_numbers() {
        let lossy = node(true, Some(Mode::Ebpf), |it| it.losses.opened = 100);
        let status = status_of(&[("a", good()), ("b", lossy)], Some(&done()));
        assert_eq!(condition(&status, "Ready").0, "True", "it works, and says what it misses");
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason), ("False", "Lost"));
        assert!(message.contains("100 connections") && message.contains(": b"), "{message}");
        assert_eq!(status.coverage, "66.6%");
    }

    #[test]
    fn numbers_that_no_real_agent_reports_are_added_up() {
        let huge = || {
            node(true, Some(Mode::Ebpf), |it| {
                it.seen = i64::MAX as u64;
                it.losses.opened = i64::MAX as u64;
            })
        };
        let status = status_of(&[("a", huge()), ("b", huge()), ("c", huge())], Some(&done()));
        assert_eq!((condition(&status, "CaptureComplete").1, status.coverage.as_str()), ("Lost", "50%"));
    }

    #[test]
    fn an_unsupported_node_stalls() {
        let status = status_of(&[("a", node(true, Some(Mode::Unsupported), |_| ()))], Some(&done()));
        assert_eq!((condition(&status, "Ready").0, condition(&status, "Stalled").1), ("False", "NodesUnsupported"));
        assert_eq!(status.coverage, "-");
        assert_eq!(condition(&status, "CaptureComplete").1, "Unsupported");
    }

    #[test]
    fn status_is_ready_in_fallback_mode_and_reports_sampling() {
        let fallback = || node(true, Some(Mode::Fallback), |_| ());
        let status = status_of(&[("a", good()), ("b", fallback())], Some(&done()));
        assert_eq!((condition(&status, "Ready").0, condition(&status, "Stalled").0), ("True", "False"));
        assert_eq!((status.nodes.ebpf, status.nodes.fallback), (1, 1));
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason), ("Unknown", "Sampled"));
        assert!(message.contains("short connections") && message.ends_with("on 1 node: b"), "{message}");
        assert_eq!(status.coverage, "≤100%");
        let lossy = node(true, Some(Mode::Ebpf), |it| it.losses.opened = 100);
        let status = status_of(&[("a", lossy), ("b", fallback())], Some(&done()));
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason, status.coverage.as_str()), ("False", "Lost", "≤66.6%"));
        assert!(message.contains(": a)") && message.contains(": b"), "{message}");
    }

    #[test]
    fn status_is_not_stalled_while_a_node_moves() {
        let unsupported = || node(true, Some(Mode::Unsupported), |_| ());
        let status = status_while_moving(&[("a", unsupported())], &["a"], Some(&done()));
        assert_eq!((condition(&status, "Reconciling").0, condition(&status, "Stalled").0), ("True", "False"));
        assert_eq!(condition(&status, "Ready").1, "MovingToFallback");
    }

    #[test]
    fn an_old_outcome_does_not_speak_for_a_new_spec() {
        let old = Outcome { generation: 1, ..done() };
        let status = status_of(&[("a", good())], Some(&old));
        assert_eq!((condition(&status, "Ready").0, condition(&status, "Reconciling").0), ("False", "True"));
        assert_eq!(status.observed_generation, Some(1));
    }

    #[test]
    fn refused_requests_are_named_beside_readiness() {
        let name = published(&["cannot write Topology a/b: refused".to_owned()]);
        assert_eq!(
            (name.truth, name.message.as_str()),
            (Truth::False, "cannot write Topology a/b: refused; counting goes on",)
        );
        let status = status_of(&[("a", good())], Some(&done()));
        assert_eq!((condition(&status, "Published").0, condition(&status, "Ready").0), ("True", "True"));
    }

    #[test]
    fn problems_that_a_person_has_to_solve_stall() {
        let problem = |permanent| Outcome {
            problem: Some(Problem { reason: "Because", message: "do this".to_owned(), permanent }),
            ..done()
        };
        let status = status_of(&[], Some(&problem(true)));
        assert_eq!(condition(&status, "Stalled"), ("True", "Because", "do this"));
        let status = status_of(&[], Some(&problem(false)));
        assert_eq!(condition(&status, "Reconciling"), ("True", "Because", "do this"));
        assert_eq!(condition(&status, "CaptureComplete").0, "Unknown");
    }
}
