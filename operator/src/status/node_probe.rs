//! What a NodeProbe's status should be. Pure.

use std::fmt::Write;

use crds::{Choice, EarlierEpochs, Losses, Mode, ModeChange, NodeProbeStatus, Unobserved};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use topology::count;

use super::{
    conditions::{CAPTURE_COMPLETE, Statement, Truth, conditions, same_statements},
    coverage::coverage,
    explanation::{Explanation, explain},
    history::extended,
};
use crate::{
    observation::NodeObservation,
    rollout::{assignment::Assignment, demotion::Demotion},
};

/// What a NodeProbe's status is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What the node was given.
    pub assignment: &'a Assignment,
    /// The kernel that the Node names.
    pub node_kernel: &'a str,
    /// That eBPF was tried in vain.
    pub demotion: Option<&'a Demotion>,
    /// What its agent reports.
    pub observation: Option<&'a NodeObservation>,
    /// What was said before.
    pub previous: Option<&'a NodeProbeStatus>,
}

/// What one node's NodeProbe should say.
#[must_use]
pub fn desired(inputs: &Inputs<'_>, now: Timestamp) -> NodeProbeStatus {
    let Inputs { assignment, previous, .. } = *inputs;
    let empty = NodeObservation::default();
    let observation = inputs.observation.unwrap_or(&empty);
    let losses = observation.total_losses();
    let lost = lost(&losses);
    let seen = observation.total_seen();
    let unobserved =
        Unobserved { intervals: observation.earlier.gaps, seconds: observation.earlier.gap_ms.div_ceil(1000) };
    let sampled = misses_uncounted(observation) || previous.is_some_and(|previous| previous.sampled);
    let Explanation { reason, message } = explain(observation, assignment, previous);
    let reason = reason.as_str();
    let same = previous.filter(|previous| previous.mode == observation.mode && previous.reason == reason);
    let history = previous.map(|previous| previous.history.clone()).unwrap_or_default();
    NodeProbeStatus {
        probe: assignment.probe.clone(),
        requested_mode: assignment.requested,
        choice: Choice { agents: assignment.mode.as_str().to_owned(), reason: assignment.cause.reason().to_string() },
        mode: observation.mode,
        message,
        attach: observation.attach.clone(),
        kernel: if observation.mode.is_some() { observation.kernel.clone() } else { inputs.node_kernel.to_owned() },
        since: same.and_then(|previous| previous.since.clone()).or(Some(Time(now))),
        demotion: inputs.demotion.map(Demotion::to_status),
        history: match observation.mode {
            None => history,
            Some(mode) => {
                let attach = observation.attach.clone();
                extended(history, ModeChange { time: Time(now), mode, reason: reason.to_owned(), attach })
            }
        },
        epoch: hex(&observation.epoch),
        seen,
        losses,
        lost,
        sampled,
        earlier: EarlierEpochs { seen: observation.earlier.seen, losses: observation.earlier.losses },
        unobserved,
        coverage: match observation.mode {
            None | Some(Mode::Unsupported) => "-".to_owned(),
            Some(_) => coverage(seen, lost, unobserved.intervals == 0, sampled),
        },
        conditions: conditions(
            vec![reporting(observation), capture_complete(observation, lost, unobserved, sampled)],
            previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default(),
            None,
            now,
        ),
        reason: reason.to_owned(),
    }
}

/// Connections and failed attempts that were not recorded.
fn lost(losses: &Losses) -> u64 {
    count::add(count::add(losses.opened, losses.failed), losses.missed_runs)
}

fn reporting(observation: &NodeObservation) -> Statement {
    const TYPE: &str = "Reporting";
    match (observation.connected, observation.mode.is_some()) {
        (true, true) => Statement::new(TYPE, true, "Connected", "the agent reports"),
        (true, false) => Statement::new(TYPE, false, "NoReportYet", "the agent is connected and has not reported yet"),
        (false, true) => {
            Statement::new(TYPE, false, "ConnectionLost", "the agent has reported, but is not connected now")
        }
        (false, false) => {
            Statement::new(TYPE, false, "NoReportYet", "no agent of this node has connected yet; see the agents' pods")
        }
    }
}

/// Whether more may be missed than what is counted as lost: by the fallback, and by a tracepoint's program where several
/// processors handle packets (not all that Linux skips of it is in `recursion_misses`, seen on 6.18).
fn misses_uncounted(observation: &NodeObservation) -> bool {
    match observation.mode {
        Some(Mode::Fallback) => true,
        Some(Mode::Ebpf) => TRACEPOINTS.contains(&observation.attach.as_str()),
        _ => false,
    }
}

fn capture_complete(observation: &NodeObservation, lost: u64, unobserved: Unobserved, sampled: bool) -> Statement {
    const TYPE: &str = CAPTURE_COMPLETE;
    if observation.mode == Some(Mode::Unsupported) {
        return Statement::new(TYPE, false, "Unsupported", "nothing is captured; see the status' message");
    }
    if lost > 0 || observation.total_losses().closed > 0 {
        return Statement::new(TYPE, false, "Lost", said(&observation.total_losses(), unobserved, sampled));
    }
    if unobserved.intervals > 0 {
        return Statement::new(TYPE, false, "Unobserved", said(&observation.total_losses(), unobserved, sampled));
    }
    if !observation.connected || observation.mode.is_none() {
        return Statement::new(
            TYPE,
            Truth::Unknown,
            "NotReporting",
            "what happens now will be known when the agent reports",
        );
    }
    if sampled {
        let mut message = SAMPLED.to_owned();
        let events = observation.total_losses().event_overflows;
        if events > 0 {
            message = format!("{message}; {}", said_of_events(events));
        }
        return Statement::new(TYPE, Truth::Unknown, "Sampled", message);
    }
    Statement::new(TYPE, true, "NothingMissed", "nothing is known to have been missed")
}

/// The agent's words for being attached to a tracepoint.
const TRACEPOINTS: [&str; 2] = ["TpBtf", "Tracepoint"];

const SAMPLED: &str = "in the fallback, connections that are shorter than the time between two looks are known from \
                       conntrack alone, where it tells of them; by a tracepoint, the kernel skips some changes without \
                       saying so: more may have been missed than can be counted";

fn said_of_events(times: u64) -> String {
    format!("conntrack had more to tell than could be taken in {times} times, and all sockets were looked at instead")
}

/// Losses for people, with numbers; `sampled`: a part may be the fallback's.
#[must_use]
pub fn said(losses: &Losses, unobserved: Unobserved, sampled: bool) -> String {
    let mut parts = Vec::new();
    if losses.opened > 0 || losses.failed > 0 {
        let or = if sampled { ", or they were not seen" } else { "" };
        parts.push(format!(
            "{} connections and {} failed attempts were not recorded, because the flow table was full: raise \
             spec.capture.maxFlows{or}",
            losses.opened, losses.failed
        ));
    }
    if losses.missed_runs > 0 {
        parts.push(format!(
            "the kernel skipped {} runs of the tracepoint's program, each of which may have been a connection",
            losses.missed_runs
        ));
    }
    if losses.event_overflows > 0 {
        parts.push(said_of_events(losses.event_overflows));
    }
    if losses.closed > 0 {
        parts.push(format!("the last bytes of {} connections are missing", losses.closed));
    }
    if unobserved.intervals > 0 {
        parts.push(format!(
            "nobody was looking for at most {} s in {} intervals, while the agent was down",
            unobserved.seconds, unobserved.intervals
        ));
    }
    parts.join("; ")
}

/// Whether the difference between two statuses is worth a write at once: everything but growing numbers, which the
/// agent's message may hold too.
#[must_use]
pub fn differs_in_structure(one: &NodeProbeStatus, other: &NodeProbeStatus) -> bool {
    let structure = |status: &NodeProbeStatus| NodeProbeStatus {
        seen: 0,
        losses: Losses::default(),
        lost: 0,
        coverage: String::new(),
        message: String::new(),
        conditions: Vec::new(),
        ..status.clone()
    };
    structure(one) != structure(other) || !same_statements(&one.conditions, &other.conditions)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use crds::RequestedMode;
    use topology::count::MAX_COUNT;

    use super::*;
    use crate::{
        observation::EarlierObservation,
        rollout::choice::{AgentMode, Asker, ModeCause, choose},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn assignment(cause: ModeCause) -> Assignment {
        Assignment { probe: "cluster".to_owned(), requested: RequestedMode::Auto, mode: AgentMode::Ebpf, cause }
    }

    fn reporting_node() -> NodeObservation {
        NodeObservation {
            connected: true,
            epoch: vec![0xab; 16],
            mode: Some(Mode::Ebpf),
            reason: kernel_support::Reason::Supported,
            kernel: "6.12.1".to_owned(),
            seen: 100,
            ..NodeObservation::default()
        }
    }

    fn status(
        observation: Option<&NodeObservation>,
        previous: Option<&NodeProbeStatus>,
        second: i64,
    ) -> NodeProbeStatus {
        let assignment = assignment(ModeCause::Supported);
        let inputs = Inputs { assignment: &assignment, node_kernel: "6.12.0", demotion: None, observation, previous };
        desired(&inputs, at(second))
    }

    fn truth(status: &NodeProbeStatus, type_: &str) -> (String, String) {
        let condition = status.conditions.iter().find(|it| it.type_ == type_).unwrap();
        (condition.status.clone(), condition.reason.clone())
    }

    fn pair(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn before_the_first_report_nothing_is_claimed() {
        let status = status(None, None, 1);
        assert_eq!((status.mode, status.coverage.as_str()), (None, "-"));
        assert_eq!(status.kernel, "6.12.0", "as the Node says");
        assert_eq!(truth(&status, "Reporting"), pair("False", "NoReportYet"));
        assert_eq!(truth(&status, "CaptureComplete"), pair("Unknown", "NotReporting"));
    }

    #[test]
    fn a_node_that_reports_and_misses_nothing() {
        let status = status(Some(&reporting_node()), None, 1);
        assert_eq!((status.coverage.as_str(), status.seen, status.lost), ("100%", 100, 0));
        assert_eq!(status.epoch, "ab".repeat(16));
        assert_eq!(truth(&status, "Reporting"), pair("True", "Connected"));
        assert_eq!(truth(&status, "CaptureComplete"), pair("True", "NothingMissed"));
    }

    #[test]
    fn losses_of_all_epochs_count_and_are_said_with_numbers() {
        let mut node = reporting_node();
        node.losses = Losses { opened: 5, failed: 2, ..Losses::default() };
        node.earlier.losses = Losses { opened: 10, ..Losses::default() };
        let status = status(Some(&node), None, 1);
        assert_eq!((status.lost, status.losses.opened), (17, 15));
        assert_eq!(status.coverage, "85.4%");
        assert_eq!(truth(&status, "CaptureComplete"), pair("False", "Lost"));
        let message = &status.conditions[1].message;
        assert!(message.contains("15 connections and 2 failed attempts"), "{message}");
    }

    /// The API's integers have 63 bits: a sum that has more would make the whole status one that cannot be written.
    #[test]
    fn numbers_that_no_real_agent_reports_can_be_written() {
        let mut node = reporting_node();
        for (epoch, attached) in (0..4_u8).map(|epoch| (epoch, if epoch % 2 == 0 { 0 } else { MAX_COUNT })) {
            node.begin_epoch(&[epoch; 16], attached);
            node.seen = MAX_COUNT;
            let many = MAX_COUNT;
            node.losses = Losses {
                opened: many,
                closed: many,
                failed: many,
                first_sights: many,
                closes_unseen: many,
                event_overflows: many,
                missed_runs: many,
            };
            let status = status(Some(&node), None, 1);
            let Losses { opened, closed, failed, first_sights, closes_unseen, event_overflows, missed_runs } =
                status.losses;
            let sums = [opened, closed, failed, first_sights, closes_unseen, event_overflows, missed_runs];
            assert_eq!(sums, [MAX_COUNT; 7]);
            assert_eq!((status.lost, status.seen), (MAX_COUNT, MAX_COUNT));
            assert!(status.earlier.seen <= MAX_COUNT && status.unobserved.seconds <= MAX_COUNT);
        }
    }

    #[test]
    fn a_time_without_an_agent_is_declared() {
        let mut node = reporting_node();
        node.last_capture_unix_ms = 10_000;
        node.begin_epoch(&[1; 16], 12_500);
        node.seen = 50;
        let status = status(Some(&node), None, 1);
        assert_eq!(status.unobserved, Unobserved { intervals: 1, seconds: 3 });
        assert_eq!((status.seen, status.earlier.seen), (150, 100));
        assert_eq!(status.coverage, "99.9%");
        assert_eq!(truth(&status, "CaptureComplete"), pair("False", "Unobserved"));
    }

    #[test]
    fn an_agent_that_sees_nothing_does_not_look_complete() {
        let node = NodeObservation { mode: Some(Mode::Unsupported), seen: 0, ..reporting_node() };
        let status = status(Some(&node), None, 1);
        assert_eq!(status.coverage, "-");
        assert_eq!(truth(&status, "CaptureComplete"), pair("False", "Unsupported"));
    }

    #[test]
    fn since_changes_with_mode_and_reason_only() {
        let first = status(Some(&reporting_node()), None, 1);
        let more = NodeObservation { seen: 200, message: "other".to_owned(), ..reporting_node() };
        let second = status(Some(&more), Some(&first), 2);
        assert_eq!(second.since, Some(Time(at(1))));
        let other = NodeObservation { mode: Some(Mode::Fallback), ..reporting_node() };
        assert_eq!(status(Some(&other), Some(&second), 3).since, Some(Time(at(3))));
    }

    #[test]
    fn what_the_fallback_may_have_missed_is_not_known_and_stays_so() {
        let fallback = NodeObservation {
            mode: Some(Mode::Fallback),
            losses: Losses { event_overflows: 3, ..Losses::default() },
            ..reporting_node()
        };
        let first = status(Some(&fallback), None, 1);
        assert!(first.sampled);
        assert_eq!((first.coverage.as_str(), first.lost), ("≤100%", 0));
        assert_eq!(truth(&first, "CaptureComplete"), pair("Unknown", "Sampled"));
        assert!(first.conditions[1].message.contains("in 3 times"), "{}", first.conditions[1].message);
        let again = status(Some(&reporting_node()), Some(&first), 2);
        assert_eq!((again.coverage.as_str(), again.sampled), ("≤100%", true), "a part of `seen` is from then");
        assert_eq!(truth(&again, "CaptureComplete"), pair("Unknown", "Sampled"));
        let lossy = NodeObservation { losses: Losses { opened: 1, ..Losses::default() }, ..fallback };
        let lossy = status(Some(&lossy), None, 1);
        assert_eq!(truth(&lossy, "CaptureComplete"), pair("False", "Lost"));
        assert!(lossy.conditions[1].message.contains("or they were not seen"), "{:?}", lossy.conditions);
    }

    #[test]
    fn skipped_runs_count_as_lost() {
        let node = NodeObservation { losses: Losses { missed_runs: 25, ..Losses::default() }, ..reporting_node() };
        let status = status(Some(&node), None, 1);
        assert_eq!((status.lost, status.coverage.as_str()), (25, "80%"));
        assert_eq!(truth(&status, "CaptureComplete"), pair("False", "Lost"));
        assert!(status.conditions[1].message.contains("25 runs"), "{}", status.conditions[1].message);
    }

    #[test]
    fn what_was_chosen_is_shown_before_anybody_reports() {
        let (mode, cause) = choose(RequestedMode::Auto, Asker::Probe, "4.19.0", None);
        let assignment = Assignment { mode, ..assignment(cause) };
        let inputs = Inputs {
            assignment: &assignment,
            node_kernel: "4.19.0",
            demotion: None,
            observation: None,
            previous: None,
        };
        let status = desired(&inputs, at(1));
        assert_eq!((status.choice.agents.as_str(), status.choice.reason.as_str()), ("fallback", "KernelTooOld"));
        assert!(status.history.is_empty() && status.mode.is_none());
    }

    #[test]
    fn changes_are_remembered() {
        let first = status(Some(&reporting_node()), None, 1);
        let second = status(Some(&NodeObservation { connected: false, ..reporting_node() }), Some(&first), 2);
        assert_eq!(second.history.len(), 1, "the connection is no change of mode");
        let by_tracepoint = NodeObservation { attach: "TpBtf".to_owned(), ..reporting_node() };
        let third = status(Some(&by_tracepoint), Some(&second), 3);
        let attaches: Vec<_> = third.history.iter().map(|it| (it.time.0.as_second(), it.attach.as_str())).collect();
        assert_eq!(attaches, [(1, ""), (3, "TpBtf")]);
        assert_eq!((third.sampled, third.coverage.starts_with('≤')), (true, true), "the kernel does not tell of all");
        assert_eq!(third.since, Some(Time(at(1))), "mode and reason are the same");
    }

    #[test]
    fn growing_numbers_are_no_structure_but_the_first_loss_is() {
        let base = status(Some(&reporting_node()), None, 1);
        let more = NodeObservation { seen: 999, message: "999 of them".to_owned(), ..reporting_node() };
        let more = status(Some(&more), Some(&base), 2);
        assert!(base != more && !differs_in_structure(&base, &more));
        let lossy = NodeObservation { losses: Losses { opened: 1, ..Losses::default() }, ..reporting_node() };
        let first_loss = status(Some(&lossy), Some(&base), 2);
        assert!(differs_in_structure(&base, &first_loss));
        let lossier = NodeObservation { losses: Losses { opened: 9, ..Losses::default() }, ..reporting_node() };
        assert!(!differs_in_structure(&first_loss, &status(Some(&lossier), Some(&first_loss), 3)));
        let gone = NodeObservation { connected: false, ..reporting_node() };
        assert!(differs_in_structure(&base, &status(Some(&gone), Some(&base), 3)));
        let earlier = EarlierObservation { gaps: 1, ..EarlierObservation::default() };
        assert!(differs_in_structure(
            &base,
            &status(Some(&NodeObservation { earlier, ..reporting_node() }), Some(&base), 3)
        ));
    }
}
