//! What a ScopeProbe's status should be: the sum of its NodeProbes, its rollout and the topology. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crds::{Losses, Mode, NodeCounts, NodeProbeStatus, ScopeProbe, ScopeProbeStatus, TopologyTotals, Unobserved};
use jiff::Timestamp;
use topology::count;

use super::{
    conditions::{CAPTURE_COMPLETE, Statement, Truth, conditions, same_statements, some_of},
    coverage::coverage,
    node_probe::said,
};
use crate::{observation::TopologyOverview, rollout::outcome::Outcome};

/// What a ScopeProbe's status is made of.
pub struct Inputs<'a> {
    /// The ScopeProbe.
    pub probe: &'a ScopeProbe,
    /// What came of its last rollout.
    pub outcome: Option<&'a Outcome>,
    /// The statuses of its nodes, by node.
    pub nodes: &'a BTreeMap<String, NodeProbeStatus>,
    /// Those of its nodes whose agent can't see anything and that are being moved to another.
    pub moving: &'a BTreeSet<String>,
    /// The nodes that it selects and that belong to another ScopeProbe, with that.
    pub taken: Option<&'a BTreeMap<String, String>>,
    /// The size of the topology.
    pub overview: &'a TopologyOverview,
}

/// What one ScopeProbe should say.
#[must_use]
pub fn desired(inputs: &Inputs<'_>, now: Timestamp) -> ScopeProbeStatus {
    let previous = inputs.probe.status.as_ref();
    let nodes = count(inputs.nodes);
    let sums = Sums::of(inputs.nodes);
    let generation = inputs.outcome.map(|outcome| outcome.generation);
    let [ready, reconciling, stalled] = kstatus(inputs, &nodes);
    ScopeProbeStatus {
        observed_generation: generation,
        conditions: conditions(
            vec![ready, reconciling, stalled, capture_complete(inputs.nodes, &sums), nodes_taken(inputs.taken)],
            previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default(),
            generation,
            now,
        ),
        coverage: sums.coverage(),
        nodes,
        topology: inputs.overview.totals.clone(),
        namespaces: inputs.overview.namespaces.clone(),
        omitted_namespaces: inputs.overview.omitted_namespaces,
    }
}

fn is_true(status: &NodeProbeStatus, type_: &str) -> bool {
    status.conditions.iter().any(|it| it.type_ == type_ && it.status == "True")
}

fn count(nodes: &BTreeMap<String, NodeProbeStatus>) -> NodeCounts {
    let mut counts = NodeCounts { total: nodes.len() as u64, ..NodeCounts::default() };
    for status in nodes.values() {
        match status.mode.filter(|_| is_true(status, "Reporting")) {
            Some(Mode::Ebpf) => counts.ebpf += 1,
            Some(Mode::Fallback) => counts.fallback += 1,
            Some(Mode::Unsupported) => counts.unsupported += 1,
            None => counts.not_reporting += 1,
        }
    }
    counts
}

#[derive(Default)]
struct Sums {
    seen: u64,
    losses: Losses,
    unobserved: Unobserved,
    lost: u64,
    /// Whether some node has been seen by the fallback.
    sampled: bool,
    /// Whether some node has never reported, or sees nothing: then the share that was seen is not known.
    blind: bool,
    known: bool,
}

impl Sums {
    fn of(nodes: &BTreeMap<String, NodeProbeStatus>) -> Self {
        let mut sums = Self::default();
        for status in nodes.values() {
            for (sum, part) in [
                (&mut sums.seen, status.seen),
                (&mut sums.losses.opened, status.losses.opened),
                (&mut sums.losses.closed, status.losses.closed),
                (&mut sums.losses.failed, status.losses.failed),
                (&mut sums.losses.missed_runs, status.losses.missed_runs),
                (&mut sums.losses.event_overflows, status.losses.event_overflows),
                (&mut sums.lost, status.lost),
                (&mut sums.unobserved.intervals, status.unobserved.intervals),
                (&mut sums.unobserved.seconds, status.unobserved.seconds),
            ] {
                *sum = count::add(*sum, part);
            }
            sums.sampled |= status.sampled;
            let sees = matches!(status.mode, Some(Mode::Ebpf | Mode::Fallback));
            sums.known |= sees;
            sums.blind |= !sees || !is_true(status, "Reporting");
        }
        sums
    }

    fn coverage(&self) -> String {
        if !self.known {
            return "-".to_owned();
        }
        coverage(self.seen, self.lost, self.unobserved.intervals == 0 && !self.blind, self.sampled)
    }
}

fn capture_complete(nodes: &BTreeMap<String, NodeProbeStatus>, sums: &Sums) -> Statement {
    const TYPE: &str = CAPTURE_COMPLETE;
    if nodes.is_empty() {
        return Statement::new(TYPE, Truth::Unknown, "NoNodes", "no node belongs to this ScopeProbe");
    }
    let those = |pick: &dyn Fn(&NodeProbeStatus) -> bool| -> Vec<String> {
        nodes.iter().filter(|(_, status)| pick(status)).map(|(name, _)| name.clone()).collect()
    };
    let lossy = those(&|it| it.lost > 0 || it.losses.closed > 0 || it.unobserved.intervals > 0);
    let unsupported = those(&|it| it.mode == Some(Mode::Unsupported));
    let silent = those(&|it| it.mode != Some(Mode::Unsupported) && !is_true(it, "Reporting"));
    let sampled = those(&|it| it.sampled);
    let mut parts = Vec::new();
    if !lossy.is_empty() {
        parts.push(format!("{} ({})", said(&sums.losses, sums.unobserved, sums.sampled), on(&lossy)));
    }
    if !unsupported.is_empty() {
        parts.push(format!("nothing is captured {}", on(&unsupported)));
    }
    if !silent.is_empty() {
        parts.push(format!("no agent reports {}", on(&silent)));
    }
    let truth = if parts.is_empty() { Truth::Unknown } else { Truth::False };
    if !sampled.is_empty() {
        parts.push(format!(
            "short connections may have been missed in the fallback or by a tracepoint, more than can be counted, {}",
            on(&sampled)
        ));
    }
    let reason = match (sums.lost > 0 || sums.losses.closed > 0, lossy.is_empty(), unsupported.is_empty()) {
        (true, _, _) => "Lost",
        (false, false, _) => "Unobserved",
        (false, true, false) => "Unsupported",
        (false, true, true) if !silent.is_empty() => "NotReporting",
        (false, true, true) => "Sampled",
    };
    if parts.is_empty() {
        return Statement::new(TYPE, true, "NothingMissed", "nothing is known to have been missed");
    }
    Statement::new(TYPE, truth, reason, parts.join("; "))
}

fn on(nodes: &[String]) -> String {
    format!("on {} nodes: {}", nodes.len(), some_of(nodes))
}

/// `Ready`, `Reconciling` and `Stalled`, so that at most one of them is true.
fn kstatus(inputs: &Inputs<'_>, nodes: &NodeCounts) -> [Statement; 3] {
    let generation = inputs.probe.metadata.generation.unwrap_or_default();
    let Some(outcome) = inputs.outcome.filter(|outcome| outcome.generation == generation) else {
        return in_progress("Observing", "the newest spec has not been rolled out yet".to_owned());
    };
    if let Some(problem) = &outcome.problem {
        if problem.permanent {
            return stuck(problem.reason, problem.message.clone());
        }
        return in_progress(problem.reason, problem.message.clone());
    }
    if !outcome.progress.complete() {
        let progress = outcome.progress;
        let message = format!("{} of {} agents are up to date and available", progress.available, progress.desired);
        return in_progress("RollingOut", message);
    }
    if nodes.not_reporting > 0 {
        let message = format!("{} of {} nodes have no agent that reports", nodes.not_reporting, nodes.total);
        return in_progress("WaitingForReports", message);
    }
    if !inputs.moving.is_empty() {
        let moving: Vec<_> = inputs.moving.iter().cloned().collect();
        let message = format!("agents cannot use eBPF and are being replaced by the fallback's {}", on(&moving));
        return in_progress("MovingToFallback", message);
    }
    if nodes.unsupported > 0 {
        let message = format!(
            "nothing is captured on {} of {} nodes: see `kubectl get nodeprobes`",
            nodes.unsupported, nodes.total
        );
        return stuck("NodesUnsupported", message);
    }
    let message = format!("agents report from all {} nodes", nodes.total);
    [
        Statement::new("Ready", true, "Reporting", message),
        Statement::new("Reconciling", false, "Done", "nothing is left to be rolled out"),
        Statement::new("Stalled", false, "Done", "nothing waits for a person"),
    ]
}

fn in_progress(reason: &str, message: String) -> [Statement; 3] {
    [
        Statement::new("Ready", false, reason, message.clone()),
        Statement::new("Reconciling", true, reason, message),
        Statement::new("Stalled", false, "Reconciling", "it goes on by itself"),
    ]
}

fn stuck(reason: &str, message: String) -> [Statement; 3] {
    [
        Statement::new("Ready", false, reason, message.clone()),
        Statement::new("Reconciling", false, "Stalled", "nothing happens until a person changes something"),
        Statement::new("Stalled", true, reason, message),
    ]
}

/// Status of a ScopeProbe whose `spec` does not decode: nothing is known of it but that.
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
    let [ready, reconciling, stalled] = stuck("Malformed", message.clone());
    let complete = Statement::new(CAPTURE_COMPLETE, Truth::Unknown, "Malformed", message);
    let known = previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default();
    ScopeProbeStatus {
        observed_generation: generation,
        conditions: conditions(vec![ready, reconciling, stalled, complete], known, generation, now),
        coverage: "-".to_owned(),
        ..ScopeProbeStatus::default()
    }
}

fn nodes_taken(taken: Option<&BTreeMap<String, String>>) -> Statement {
    const TYPE: &str = "NodesTaken";
    let Some(taken) = taken.filter(|taken| !taken.is_empty()) else {
        return Statement::new(TYPE, false, "NoneTaken", "no older ScopeProbe selects the same nodes");
    };
    let list: Vec<_> = taken.iter().map(|(node, owner)| format!("{node} ({owner})")).collect();
    let message = format!("{} selected nodes belong to an older ScopeProbe: {}", list.len(), some_of(&list));
    Statement::new(TYPE, true, "BelongToOlder", message)
}

/// Whether the difference between two statuses is worth a write at once: everything but growing numbers.
#[must_use]
pub fn differs_in_structure(one: &ScopeProbeStatus, other: &ScopeProbeStatus) -> bool {
    let structure = |status: &ScopeProbeStatus| ScopeProbeStatus {
        conditions: Vec::new(),
        coverage: String::new(),
        topology: TopologyTotals { omitted_edges: 0, ..status.topology.clone() },
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
            choice::{AgentMode, ModeCause},
            outcome::{Problem, Progress},
        },
        status::node_probe,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn node(connected: bool, mode: Option<Mode>, change: impl FnOnce(&mut NodeObservation)) -> NodeProbeStatus {
        let mut observation = NodeObservation { connected, mode, seen: 100, ..NodeObservation::default() };
        change(&mut observation);
        let assignment = Assignment {
            probe: "p".to_owned(),
            requested: crds::RequestedMode::Auto,
            mode: AgentMode::Ebpf,
            cause: ModeCause::Supported,
        };
        let inputs = node_probe::Inputs {
            assignment: &assignment,
            node_kernel: "",
            demotion: None,
            observation: Some(&observation),
            previous: None,
        };
        node_probe::desired(&inputs, at(1))
    }

    fn good() -> NodeProbeStatus {
        node(true, Some(Mode::Ebpf), |_| ())
    }

    fn status_of(nodes: &[(&str, NodeProbeStatus)], outcome: Option<&Outcome>) -> ScopeProbeStatus {
        status_while_moving(nodes, &[], outcome)
    }

    fn status_while_moving(
        nodes: &[(&str, NodeProbeStatus)],
        moving: &[&str],
        outcome: Option<&Outcome>,
    ) -> ScopeProbeStatus {
        let probe: ScopeProbe =
            serde_json::from_value(json!({"metadata": {"name": "p", "generation": 2}, "spec": {}})).unwrap();
        let nodes = nodes.iter().map(|(name, status)| ((*name).to_owned(), status.clone())).collect();
        let overview = TopologyOverview::default();
        let moving = moving.iter().map(|name| (*name).to_owned()).collect();
        let inputs =
            Inputs { probe: &probe, outcome, nodes: &nodes, moving: &moving, taken: None, overview: &overview };
        desired(&inputs, at(1))
    }

    fn done() -> Outcome {
        Outcome { generation: 2, problem: None, progress: Progress { desired: 2, available: 2, observed: true } }
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
        assert_eq!(condition(&status, "Ready").0, "False");
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason), ("False", "NotReporting"));
        assert!(message.contains(": b"), "{message}");
        assert_eq!(status.coverage, "99.9%");
        assert_eq!(status.nodes.not_reporting, 1);
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
                it.earlier.gap_ms = u64::MAX;
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
    fn the_fallback_is_a_good_state_that_may_miss_what_nobody_can_count() {
        let fallback = || node(true, Some(Mode::Fallback), |_| ());
        let status = status_of(&[("a", good()), ("b", fallback())], Some(&done()));
        assert_eq!((condition(&status, "Ready").0, condition(&status, "Stalled").0), ("True", "False"));
        assert_eq!((status.nodes.ebpf, status.nodes.fallback), (1, 1));
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason), ("Unknown", "Sampled"));
        assert!(message.contains("short connections") && message.contains("on 1 nodes: b"), "{message}");
        assert_eq!(status.coverage, "≤100%");
        let lossy = node(true, Some(Mode::Ebpf), |it| it.losses.opened = 100);
        let status = status_of(&[("a", lossy), ("b", fallback())], Some(&done()));
        let (truth, reason, message) = condition(&status, "CaptureComplete");
        assert_eq!((truth, reason, status.coverage.as_str()), ("False", "Lost", "≤66.6%"));
        assert!(message.contains(": a)") && message.contains(": b"), "{message}");
    }

    #[test]
    fn a_node_that_is_being_moved_waits_for_nobody() {
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
