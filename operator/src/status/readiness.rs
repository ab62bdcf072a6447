//! Conditions `Ready`, `Reconciling`, `Stalled` and `Degraded` of a ScopeProbe. Pure.

use std::collections::BTreeSet;

use crds::{MODE_LABEL, PROBE_LABEL};
use jiff::{SignedDuration, Timestamp};
use topology::plural::counted;

use super::conditions::{Statement, Truth};
use crate::{
    rollout::outcome::{Obstacle, Outcome, Problem, Progress},
    text::some_of,
};

/// Time after which what should pass by itself needs a person.
pub const PATIENCE: SignedDuration = SignedDuration::from_mins(5);
/// Time without progress after which the first rollout of a `spec` tolerates nodes without an agent, and for which a failed
/// request does not matter.
const FIRST_ROLLOUT: SignedDuration = SignedDuration::from_mins(1);

/// Nodes of a ScopeProbe, by the state of their agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Number of all nodes.
    pub total: u64,
    /// Nodes whose agent captures nothing.
    pub unsupported: BTreeSet<String>,
    /// Nodes whose agent does not report, or that have none, and that are not new.
    pub silent: BTreeSet<String>,
    /// Those of the silent ones that have been so for longer than an agent needs to come back by itself.
    pub long_silent: BTreeSet<String>,
    /// Nodes whose agent does not report and may still be on its way.
    pub new: BTreeSet<String>,
    /// Those of the unsupported ones that are being moved to another mode.
    pub moving: BTreeSet<String>,
}

impl Nodes {
    fn unavailable(&self) -> u64 {
        (self.unsupported.len() + self.silent.len()) as u64
    }
}

/// Inputs of the conditions.
pub struct ReadinessInputs<'a> {
    /// Generation of the ScopeProbe's `spec`.
    pub generation: i64,
    /// Result of its last rollout.
    pub outcome: Option<&'a Outcome>,
    /// Its nodes.
    pub nodes: &'a Nodes,
    /// Share of the nodes that may lack a working agent.
    pub max_unavailable_percent: u32,
    /// True if `Ready` was true for this generation.
    pub was_ready: bool,
}

/// Returns the number of nodes that may lack a working agent, of so many.
fn tolerated(total: u64, percent: u32) -> u64 {
    let share = u128::from(total) * u128::from(percent) / 100;
    let at_least = u64::from(percent > 0);
    u64::try_from(share).unwrap_or(u64::MAX).max(at_least).min(total.saturating_sub(1))
}

/// Returns `Ready`, `Reconciling` and `Stalled`. At most one of them is true.
#[must_use]
pub fn kstatus(inputs: &ReadinessInputs<'_>, now: Timestamp) -> [Statement; 3] {
    let Some(outcome) = inputs.outcome.filter(|outcome| outcome.generation == inputs.generation) else {
        if inputs.was_ready {
            // An operator that has just started.
            return nodes_ready(inputs);
        }
        return in_progress("Observing", "the newest spec has not been rolled out yet".to_owned());
    };
    let has_lasted = |duration| outcome.since.is_some_and(|since| now.duration_since(since) >= duration);
    // One request that fails is no reason to be unready.
    let counts = |problem: &&Problem| problem.permanent || !inputs.was_ready || has_lasted(FIRST_ROLLOUT);
    if let Some(problem) = outcome.problem.as_ref().filter(counts) {
        let is_stuck = problem.permanent || has_lasted(PATIENCE);
        return unready(is_stuck, problem.reason, problem.message.clone());
    }
    let progress = outcome.progress;
    let missing = progress.desired.saturating_sub(progress.available);
    let is_settled = inputs.was_ready || has_lasted(FIRST_ROLLOUT);
    let may_lack = |total| if is_settled { tolerated(total, inputs.max_unavailable_percent) } else { 0 };
    // The DaemonSet of one node's new mode has no status at first.
    let is_unobserved = !progress.observed && !inputs.was_ready;
    if is_unobserved || missing > may_lack(progress.desired) {
        return match &outcome.obstacle {
            Some(Obstacle { reason, message, .. }) => {
                unready(has_lasted(PATIENCE), reason, format!("{}; {message}", available(progress)))
            }
            None => in_progress("RollingOut", available(progress)),
        };
    }
    let taken = &outcome.taken_labels;
    if taken.len() as u64 > may_lack(inputs.nodes.total) {
        return unready(true, "NodeLabelsTaken", labels_taken(taken));
    }
    nodes_ready(inputs)
}

fn labels_taken(nodes: &[String]) -> String {
    format!(
        "another field manager has set labels that choose the agents of {}: {}; remove the labels, for example with \
         `kubectl label node NAME {MODE_LABEL}- {PROBE_LABEL}-`, and choose the mode by spec.mode or spec.modeOverrides",
        counted(nodes.len(), "node"),
        some_of(nodes)
    )
}

fn available(progress: Progress) -> String {
    format!("{} of {} up to date and available", progress.available, counted(progress.desired, "agent"))
}

fn nodes_ready(inputs: &ReadinessInputs<'_>) -> [Statement; 3] {
    let nodes = inputs.nodes;
    let may_lack = tolerated(nodes.total, inputs.max_unavailable_percent);
    let silent = nodes.silent.len() as u64;
    if silent > may_lack || !inputs.was_ready && !nodes.new.is_empty() {
        let waiting = silent + nodes.new.len() as u64;
        let mut message = format!("no agent reports from {waiting} of {}", counted(nodes.total, "node"));
        let is_stuck = nodes.long_silent.len() as u64 > may_lack;
        if is_stuck {
            message = format!("{message}; see the logs of the agents {}", on(&nodes.long_silent));
        }
        return unready(is_stuck, "WaitingForReports", message);
    }
    let is_too_many = nodes.unavailable() > may_lack;
    if !nodes.moving.is_empty() && (is_too_many || !inputs.was_ready) {
        let message = format!("agents cannot use eBPF and are being replaced by the fallback's {}", on(&nodes.moving));
        return in_progress("MovingToFallback", message);
    }
    if is_too_many {
        let message = format!(
            "nothing is captured on {} of {}: see `kubectl get nodeprobes`",
            nodes.unavailable(),
            counted(nodes.total, "node")
        );
        return unready(true, "NodesUnsupported", message);
    }
    let reporting = nodes.total.saturating_sub(nodes.unavailable() + nodes.new.len() as u64);
    let message = format!("agents report from {reporting} of {}", counted(nodes.total, "node"));
    [
        Statement::new("Ready", true, "Reporting", message),
        Statement::new("Reconciling", false, "Done", "nothing is left to be rolled out"),
        Statement::new("Stalled", false, "Done", "nothing waits for a person"),
    ]
}

/// Returns `Degraded`, which names the nodes without a working agent, and those with an agent that another field manager
/// chose. New nodes are none of them.
#[must_use]
pub fn degraded(nodes: &Nodes, outcome: Option<&Outcome>) -> Statement {
    const TYPE: &str = "Degraded";
    let mut parts = without_capture(&nodes.unsupported, &nodes.silent);
    let taken = outcome.map(|outcome| outcome.taken_labels.as_slice()).unwrap_or_default();
    let reason = match (nodes.silent.is_empty(), nodes.unsupported.is_empty(), taken.is_empty()) {
        (false, ..) => "NodesNotReporting",
        (true, false, _) => "NodesUnsupported",
        (true, true, false) => "NodeLabelsTaken",
        (true, true, true) => {
            return Statement::new(TYPE, false, "AllNodesCaptured", "no node lacks a working agent");
        }
    };
    if !parts.is_empty() {
        parts.extend(outcome.and_then(|outcome| outcome.obstacle.as_ref()).map(|obstacle| obstacle.message.clone()));
    }
    if !taken.is_empty() {
        parts.push(labels_taken(taken));
    }
    Statement::new(TYPE, true, reason, parts.join("; "))
}

/// Names the nodes whose agent captures nothing, and those without an agent that reports; nothing where there are none.
#[must_use]
pub fn without_capture(unsupported: &BTreeSet<String>, silent: &BTreeSet<String>) -> Vec<String> {
    let phrases = [("nothing is captured", unsupported), ("no agent reports", silent)];
    phrases
        .into_iter()
        .filter(|(_, nodes)| !nodes.is_empty())
        .map(|(what, nodes)| format!("{what} {}", on(nodes)))
        .collect()
}

/// Names nodes in a message.
#[must_use]
pub fn on(nodes: &BTreeSet<String>) -> String {
    let names: Vec<_> = nodes.iter().cloned().collect();
    format!("on {}: {}", counted(names.len(), "node"), some_of(&names))
}

/// Returns the three for a ScopeProbe that is not ready: `is_stuck` until a person changes something.
#[must_use]
pub fn unready(is_stuck: bool, reason: &str, message: String) -> [Statement; 3] {
    let ready = Statement::new("Ready", false, reason, message.clone());
    let (reconciling, stalled) = ("Reconciling", "Stalled");
    if is_stuck {
        let waits = "nothing happens until a person changes something";
        [ready, Statement::new(reconciling, false, stalled, waits), Statement::new(stalled, true, reason, message)]
    } else {
        let goes_on = "it goes on by itself";
        [
            ready,
            Statement::new(reconciling, true, reason, message),
            Statement::new(stalled, Truth::False, reconciling, goes_on),
        ]
    }
}

fn in_progress(reason: &str, message: String) -> [Statement; 3] {
    unready(false, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
        names.into_iter().map(str::to_owned).collect()
    }

    fn rollout(available: u64, desired: u64, since: Option<i64>) -> Outcome {
        let progress = Progress { desired, available, observed: true };
        Outcome { generation: 1, progress, since: since.map(at), ..Outcome::default() }
    }

    /// The reason of `Ready` if it is true, else of the one that is.
    fn reason(outcome: &Outcome, nodes: &Nodes, was_ready: bool, now: i64) -> (&'static str, String) {
        let inputs =
            ReadinessInputs { generation: 1, outcome: Some(outcome), nodes, max_unavailable_percent: 10, was_ready };
        let all = kstatus(&inputs, at(now));
        let mut holding = all.into_iter().filter(|it| it.truth == Truth::True);
        let only = holding.next().expect("one of them is true");
        assert_eq!(holding.next(), None);
        (only.type_, only.reason)
    }

    fn is(type_: &'static str, word: &str) -> (&'static str, String) {
        (type_, word.to_owned())
    }

    #[test]
    fn share_of_nodes_is_tolerated_but_never_all_of_them() {
        let of = |total| tolerated(total, 10);
        assert_eq!([of(0), of(1), of(2), of(19), of(20), of(1000)], [0, 0, 1, 1, 2, 100]);
        assert_eq!([tolerated(5, 0), tolerated(5, 100)], [0, 4]);
    }

    #[test]
    fn one_bad_node_of_many_is_named_and_does_not_make_all_unready() {
        let nodes = Nodes { total: 1000, silent: names(["a"]), unsupported: names(["b"]), ..Nodes::default() };
        let outcome = rollout(999, 1000, Some(0));
        assert_eq!(reason(&outcome, &nodes, true, 10), is("Ready", "Reporting"));
        let degraded = degraded(&nodes, Some(&outcome));
        assert_eq!((degraded.truth, degraded.reason.as_str()), (Truth::True, "NodesNotReporting"));
        assert_eq!(degraded.message, "nothing is captured on 1 node: b; no agent reports on 1 node: a");
    }

    #[test]
    fn first_rollout_waits_for_all_nodes_for_a_minute() {
        let nodes = Nodes { total: 20, new: names(["a"]), ..Nodes::default() };
        assert_eq!(reason(&rollout(19, 20, Some(0)), &nodes, false, 59), is("Reconciling", "RollingOut"));
        assert_eq!(reason(&rollout(19, 20, Some(0)), &nodes, false, 60), is("Reconciling", "WaitingForReports"));
        let settled = Nodes { total: 20, silent: names(["a"]), ..Nodes::default() };
        assert_eq!(reason(&rollout(19, 20, Some(0)), &settled, false, 60), is("Ready", "Reporting"));
        assert_eq!(reason(&rollout(20, 20, None), &nodes, true, 60), is("Ready", "Reporting"), "a node has joined");
    }

    #[test]
    fn ready_probe_bears_a_failed_request_a_new_daemon_set_and_a_new_operator() {
        let nodes = Nodes { total: 2, ..Nodes::default() };
        let problem = Some(Problem { reason: "ApplyFailed", message: String::new(), permanent: false });
        let failed = Outcome { problem, ..rollout(2, 2, Some(0)) };
        assert_eq!(reason(&failed, &nodes, true, 59), is("Ready", "Reporting"));
        assert_eq!(reason(&failed, &nodes, true, 60), is("Reconciling", "ApplyFailed"));
        let progress = Progress { desired: 2, available: 2, observed: false };
        let unobserved = Outcome { progress, ..rollout(2, 2, Some(0)) };
        assert_eq!(reason(&unobserved, &nodes, true, 1), is("Ready", "Reporting"));
        assert_eq!(reason(&unobserved, &nodes, false, 1), is("Reconciling", "RollingOut"));
        let of_older_spec = Outcome { generation: 0, ..rollout(2, 2, None) };
        assert_eq!(reason(&of_older_spec, &nodes, true, 1), is("Ready", "Reporting"), "published for this spec");
        assert_eq!(reason(&of_older_spec, &nodes, false, 1), is("Reconciling", "Observing"));
    }

    #[test]
    fn too_many_bad_nodes_are_not_tolerated() {
        let unsupported = Nodes { total: 2, unsupported: names(["a", "b"]), ..Nodes::default() };
        assert_eq!(reason(&rollout(2, 2, None), &unsupported, true, 1), is("Stalled", "NodesUnsupported"));
        let silent = Nodes { total: 2, silent: names(["a", "b"]), ..Nodes::default() };
        assert_eq!(reason(&rollout(2, 2, None), &silent, true, 1), is("Reconciling", "WaitingForReports"));
        let long_silent = Nodes { long_silent: names(["a", "b"]), ..silent.clone() };
        assert_eq!(reason(&rollout(2, 2, None), &long_silent, true, 1), is("Stalled", "WaitingForReports"));
        let tolerated = Nodes { total: 30, ..long_silent };
        assert_eq!(reason(&rollout(30, 30, None), &tolerated, true, 1), is("Ready", "Reporting"));
        let moving = Nodes { moving: names(["a"]), ..unsupported };
        assert_eq!(reason(&rollout(2, 2, None), &moving, true, 1), is("Reconciling", "MovingToFallback"));
    }

    #[test]
    fn taken_labels_of_few_nodes_hide_no_progress() {
        let nodes = Nodes { total: 20, ..Nodes::default() };
        let taken = |nodes: u64, outcome: Outcome| Outcome {
            taken_labels: (0..nodes).map(|node| format!("node-{node}: kubectl")).collect(),
            ..outcome
        };
        let few = taken(2, rollout(20, 20, None));
        assert_eq!(reason(&few, &nodes, true, 1), is("Ready", "Reporting"));
        let named = degraded(&nodes, Some(&few));
        assert_eq!((named.truth, named.reason.as_str()), (Truth::True, "NodeLabelsTaken"));
        assert!(named.message.contains("2 nodes: node-0: kubectl"), "{}", named.message);
        assert_eq!(reason(&taken(2, rollout(3, 20, Some(0))), &nodes, false, 1), is("Reconciling", "RollingOut"));
        assert_eq!(reason(&taken(3, rollout(20, 20, None)), &nodes, true, 1), is("Stalled", "NodeLabelsTaken"));
        let silent = Nodes { silent: names(["a"]), ..nodes };
        let both = degraded(&silent, Some(&few));
        assert_eq!(both.reason, "NodesNotReporting");
        assert!(both.message.starts_with("no agent reports on 1 node: a; another field manager"), "{}", both.message);
    }

    #[test]
    fn obstacle_is_named_at_once_and_needs_a_person_after_a_while() {
        let obstacle =
            Obstacle { reason: "PodsForbidden", place: String::new(), message: "violates PodSecurity".to_owned() };
        let outcome = Outcome { obstacle: Some(obstacle), ..rollout(0, 2, Some(0)) };
        let nodes = Nodes { total: 2, silent: names(["a", "b"]), ..Nodes::default() };
        assert_eq!(reason(&outcome, &nodes, false, 15), is("Reconciling", "PodsForbidden"));
        assert_eq!(reason(&outcome, &nodes, false, 300), is("Stalled", "PodsForbidden"));
        assert!(degraded(&nodes, Some(&outcome)).message.ends_with("; violates PodSecurity"));
    }

    #[test]
    fn problem_that_should_pass_needs_a_person_after_a_while() {
        let problem = |permanent| Problem { reason: "ApplyFailed", message: "refused".to_owned(), permanent };
        let outcome = |permanent| Outcome { problem: Some(problem(permanent)), ..rollout(0, 0, Some(0)) };
        assert_eq!(reason(&outcome(false), &Nodes::default(), false, 299), is("Reconciling", "ApplyFailed"));
        assert_eq!(reason(&outcome(false), &Nodes::default(), false, 300), is("Stalled", "ApplyFailed"));
        assert_eq!(reason(&outcome(true), &Nodes::default(), false, 1), is("Stalled", "ApplyFailed"));
    }
}
