//! Computes a NodeProbe's status. Pure.

use crds::{Choice, EarlierEpochs, Folding, Losses, Mode, ModeChange, NodeProbeStatus, Unobserved};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    conditions::{CAPTURE_COMPLETE, FLOWS_LEFT_OUT, Statement, Truth, conditions, same_statements},
    coverage::{NodeCoverage, explain as explain_missing, explain_overflows, percent},
    explanation::{Explanation, explain},
    history::extended,
    restore,
};
use crate::{
    coverage::share::{Share, Shares},
    observation::{LeftOut, LeftOutReason, NodeObservation},
    rollout::{assignment::Assignment, fallback_policy::NodeFallback},
};

/// Inputs of a NodeProbe's status.
#[derive(Clone, Copy, Debug)]
pub struct NodeProbeInputs<'a> {
    /// Assignment of the node.
    pub assignment: &'a Assignment,
    /// The kernel that the Node names.
    pub node_kernel: &'a str,
    /// Failed use of eBPF.
    pub fallback: Option<&'a NodeFallback>,
    /// Report of its agent.
    pub observation: Option<&'a NodeObservation>,
    /// Counted share of what happened.
    pub coverage: &'a NodeCoverage,
    /// Previous status.
    pub previous: Option<&'a NodeProbeStatus>,
}

/// Returns the status of one node's NodeProbe.
#[must_use]
pub fn desired(inputs: &NodeProbeInputs<'_>, now: Timestamp) -> NodeProbeStatus {
    let NodeProbeInputs { assignment, previous, coverage, .. } = *inputs;
    let empty = NodeObservation::default();
    let observation = inputs.observation.unwrap_or(&empty);
    // A node that never had an agent says so; its time alone is nothing to be written.
    let shares = &observation.coverage.as_ref().map_or_else(Shares::default, |_| coverage.shares);
    let losses = observation.total_losses();
    let sampled = observation.misses_uncounted() || previous.is_some_and(|previous| previous.sampled);
    let Explanation { reason, message } = explain(observation, assignment, previous);
    let reason = reason.as_str();
    let same = previous.filter(|previous| previous.mode == observation.mode && previous.reason == reason);
    let history = previous.map(|previous| previous.history.clone()).unwrap_or_default();
    let [last_hour, last_day, total] = percentages(observation, shares);
    let status = NodeProbeStatus {
        probe: assignment.probe.clone(),
        requested_mode: assignment.requested,
        choice: Choice { agents: assignment.mode.as_str().to_owned(), reason: assignment.cause.reason().to_string() },
        mode: observation.mode,
        message,
        attach: observation.attach.clone(),
        kernel: if observation.mode.is_some() { observation.kernel.clone() } else { inputs.node_kernel.to_owned() },
        since: same.and_then(|previous| previous.since.clone()).or(Some(Time(now))),
        fallback: inputs.fallback.map(NodeFallback::to_status),
        history: match observation.mode {
            None => history,
            Some(mode) => {
                let attach = observation.attach.clone();
                extended(history, ModeChange { time: Time(now), mode, reason: reason.to_owned(), attach })
            }
        },
        epoch: HEXLOWER.encode(&observation.epoch),
        seen: observation.total_seen(),
        losses,
        lost: losses.lost(),
        folding: Some(observation.folding).filter(|folding| *folding != Folding::default()),
        sampled,
        earlier: EarlierEpochs { seen: observation.earlier.seen, losses: observation.earlier.losses },
        unobserved: unobserved(&shares.total),
        coverage: last_hour,
        coverage_last_day: last_day,
        coverage_total: total,
        coverage_record: coverage.record.as_ref().map(restore::to_record),
        conditions: conditions(
            [reporting(observation), capture_complete(observation, &shares.last_hour)]
                .into_iter()
                .chain(external_addresses_folded(&observation.folding))
                .chain(flows_left_out(&observation.left_out))
                .collect(),
            previous.map(|previous| previous.conditions.as_slice()).unwrap_or_default(),
            None,
            now,
        ),
        reason: reason.to_owned(),
    };
    // The record goes on with time: alone it is nothing to be written.
    match previous {
        Some(previous) if without_record(previous) == without_record(&status) => previous.clone(),
        _ => status,
    }
}

fn without_record(status: &NodeProbeStatus) -> NodeProbeStatus {
    NodeProbeStatus { coverage_record: None, ..status.clone() }
}

/// Of the last hour, of the last day and in all.
fn percentages(observation: &NodeObservation, shares: &Shares) -> [String; 3] {
    let is_silent = !observation.connected;
    let all = [&shares.last_hour, &shares.last_day, &shares.total];
    all.map(|share| if observation.coverage.is_some() { percent(share, is_silent) } else { "-".to_owned() })
}

fn unobserved(total: &Share) -> Unobserved {
    let shortfall = &total.shortfall;
    let seconds = shortfall.unobserved_ms.div_ceil(1000);
    Unobserved { intervals: shortfall.intervals, seconds, missed: shortfall.missed }
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

fn capture_complete(observation: &NodeObservation, last_hour: &Share) -> Statement {
    const TYPE: &str = CAPTURE_COMPLETE;
    let in_last_hour = |text: &str| format!("in the last hour, {text}");
    if observation.mode == Some(Mode::Unsupported) {
        return Statement::new(TYPE, false, "Unsupported", "nothing is captured; see the status' message");
    }
    if last_hour.lost() > 0 || last_hour.losses().closed > 0 {
        return Statement::new(TYPE, false, "Lost", in_last_hour(&explain_missing(last_hour)));
    }
    if last_hour.has_gaps() {
        return Statement::new(TYPE, false, "Unobserved", in_last_hour(&explain_missing(last_hour)));
    }
    if !observation.connected || observation.mode.is_none() {
        return Statement::new(
            TYPE,
            Truth::Unknown,
            "NotReporting",
            "what happens now will be known when the agent reports",
        );
    }
    if last_hour.shortfall.sampled {
        let mut message = in_last_hour(SAMPLED);
        let overflows = last_hour.losses().event_overflows;
        if overflows > 0 {
            message = format!("{message}; {}", explain_overflows(overflows));
        }
        return Statement::new(TYPE, Truth::Unknown, "Sampled", message);
    }
    Statement::new(TYPE, true, "NothingMissed", in_last_hour("nothing is known to have been missed"))
}

/// Returns the condition of a capture that folds or has folded.
fn external_addresses_folded(folding: &Folding) -> Option<Statement> {
    const TYPE: &str = "ExternalAddressesFolded";
    let folds = "the flow table is nearly full: further external addresses are counted together, as OtherExternal, and no \
                 connection is lost. To tell them apart, raise spec.capture.maxFlows";
    let has_room = "the flow table has room again; earlier, external addresses were counted together, as OtherExternal";
    match folding {
        Folding { is_active: true, .. } => Some(Statement::new(TYPE, true, "FlowTableNearlyFull", folds)),
        Folding { connections: 1.., .. } => Some(Statement::new(TYPE, false, "RoomInFlowTable", has_room)),
        Folding { is_active: false, connections: 0 } => None,
    }
}

fn flows_left_out(left_out: &LeftOut) -> Option<Statement> {
    let leaves_out = "the operator has no room for more flows of this node: connections of further ones count as lost. Raise \
                      --collector-max-flows-per-node, --collector-max-flows and the operator's memory limit";
    let has_room = "the operator has room again; earlier, it left flows out and counted their connections as lost";
    let others = "the agent reports flows at addresses of other Nodes: they are left out, and their connections count as lost. \
                  The operator's log names the addresses. Check the addresses of the Node objects, and what runs on this node";
    let LeftOut { opened, failed, reason, is_restored, .. } = *left_out;
    match (reason, opened > 0 || failed > 0 || is_restored) {
        (Some(LeftOutReason::ForeignAddress), _) => {
            Some(Statement::new(FLOWS_LEFT_OUT, true, "AddressOfAnotherNode", others))
        }
        (Some(LeftOutReason::NoRoom), _) => Some(Statement::new(FLOWS_LEFT_OUT, true, "OperatorFlowLimit", leaves_out)),
        (None, true) => Some(Statement::new(FLOWS_LEFT_OUT, false, "RoomForFlows", has_room)),
        (None, false) => None,
    }
}

const SAMPLED: &str = "more connections may have been missed than can be counted: the fallback sees those that are shorter \
                       than the time between two scans by conntrack alone, and the kernel skips some runs of a \
                       tracepoint's program without counting them";

/// Returns whether the difference between two statuses is worth a write at once: everything but growing numbers, which
/// the agent's message may hold too. The first number of all is one.
#[must_use]
pub fn differs_in_structure(one: &NodeProbeStatus, other: &NodeProbeStatus) -> bool {
    let structure = |status: &NodeProbeStatus| NodeProbeStatus {
        seen: status.seen.min(1),
        losses: Losses::default(),
        lost: 0,
        folding: status.folding.map(|folding| Folding { connections: folding.connections.min(1), ..folding }),
        unobserved: Unobserved { intervals: status.unobserved.intervals, ..Unobserved::default() },
        coverage: if status.coverage == "-" { "-".to_owned() } else { String::new() },
        coverage_last_day: String::new(),
        coverage_total: String::new(),
        coverage_record: None,
        message: String::new(),
        conditions: Vec::new(),
        ..status.clone()
    };
    structure(one) != structure(other) || !same_statements(&one.conditions, &other.conditions)
}

#[cfg(test)]
mod tests {
    use crds::RequestedMode;
    use topology::count::MAX_COUNT;

    use super::*;
    use crate::{
        rollout::mode::{AgentMode, Asker, ModeCause, choose},
        status::coverage::{CoverageFacts, assess},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn assignment(cause: ModeCause) -> Assignment {
        Assignment { probe: "cluster".to_owned(), requested: RequestedMode::Auto, mode: AgentMode::Ebpf, cause }
    }

    /// A node that has been observed for 1,000 s.
    fn reporting_node() -> NodeObservation {
        node(|_| ())
    }

    fn node(change: impl FnOnce(&mut NodeObservation)) -> NodeObservation {
        let mut node = NodeObservation {
            connected: true,
            epoch: vec![0xab; 16],
            mode: Some(Mode::Ebpf),
            reason: kernel_support::Reason::Supported,
            kernel: "6.12.1".to_owned(),
            seen: 100,
            last_report_unix_ms: 1_000_000,
            ..NodeObservation::default()
        };
        change(&mut node);
        if node.has_capture() {
            node.note_capture(0, 1_000_000);
        }
        node
    }

    /// As of 1,000 s and some.
    fn status(
        observation: Option<&NodeObservation>,
        previous: Option<&NodeProbeStatus>,
        second: i64,
    ) -> NodeProbeStatus {
        status_at(observation, previous, 1_000_000 + 1_000 * u64::try_from(second).unwrap(), second)
    }

    fn status_at(
        observation: Option<&NodeObservation>,
        previous: Option<&NodeProbeStatus>,
        now: u64,
        second: i64,
    ) -> NodeProbeStatus {
        let assignment = assignment(ModeCause::Supported);
        let coverage = assess(&CoverageFacts { observation, created: Some(0), settled: now, now });
        let inputs = NodeProbeInputs {
            assignment: &assignment,
            node_kernel: "6.12.0",
            fallback: None,
            observation,
            coverage: &coverage,
            previous,
        };
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
        assert_eq!(status.unobserved, Unobserved::default(), "its time counts in its ScopeProbe");
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
    fn folding_is_shown_by_condition_and_loses_nothing() {
        let shown = |is_active, connections| {
            let node = node(|it| it.folding = Folding { is_active, connections });
            let status = status(Some(&node), None, 1);
            assert_eq!((status.coverage.as_str(), status.lost), ("100%", 0));
            assert_eq!(truth(&status, "CaptureComplete"), pair("True", "NothingMissed"));
            let has_condition = status.conditions.iter().any(|it| it.type_ == "ExternalAddressesFolded");
            (status.folding, has_condition.then(|| truth(&status, "ExternalAddressesFolded")))
        };
        assert_eq!(shown(false, 0), (None, None));
        for (is_active, status, reason) in [(true, "True", "FlowTableNearlyFull"), (false, "False", "RoomInFlowTable")]
        {
            assert_eq!(shown(is_active, 7), (Some(Folding { is_active, connections: 7 }), Some(pair(status, reason))));
        }
    }

    #[test]
    fn growing_number_of_folded_connections_is_no_structure() {
        let folded = |connections| {
            let node = node(|it| it.folding = Folding { is_active: true, connections });
            status(Some(&node), None, 1)
        };
        assert!(!differs_in_structure(&folded(7), &folded(8)));
        assert!(differs_in_structure(&folded(0), &folded(7)) && differs_in_structure(&folded(7), &reporting_status()));
    }

    fn reporting_status() -> NodeProbeStatus {
        status(Some(&reporting_node()), None, 1)
    }

    #[test]
    fn losses_of_all_epochs_count_and_are_said_with_numbers() {
        let mut node = node(|it| it.losses = Losses { opened: 10, ..Losses::default() });
        node.begin_epoch(&[1; 16]);
        node.losses = Losses { opened: 5, failed: 2, ..Losses::default() };
        node.note_capture(1_000_000, 1_000_500);
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
            node.begin_epoch(&[epoch; 16]);
            node.seen = MAX_COUNT;
            let many = MAX_COUNT;
            node.losses = Losses {
                opened: many,
                closed: many,
                failed: many,
                new_flow_notifications: many,
                closes_unseen: many,
                event_overflows: many,
                missed_runs: many,
            };
            node.note_capture(attached, MAX_COUNT);
            let status = status(Some(&node), None, 1);
            let Losses { opened, closed, failed, new_flow_notifications, closes_unseen, event_overflows, missed_runs } =
                status.losses;
            let sums = [opened, closed, failed, new_flow_notifications, closes_unseen, event_overflows, missed_runs];
            assert_eq!(sums, [MAX_COUNT; 7]);
            assert_eq!((status.lost, status.seen), (MAX_COUNT, MAX_COUNT));
            assert!(status.earlier.seen <= MAX_COUNT && status.unobserved.seconds <= MAX_COUNT);
        }
    }

    #[test]
    fn a_time_without_an_agent_is_declared() {
        let mut node = reporting_node();
        node.begin_epoch(&[1; 16]);
        node.seen = 50;
        node.note_capture(1_002_500, 1_012_500);
        let first = status(Some(&node), None, 13);
        // 5 a second afterwards, and 1 in ten seconds before: 150 of 162.
        assert_eq!(first.unobserved, Unobserved { intervals: 1, seconds: 3, missed: 12 });
        assert_eq!((first.seen, first.earlier.seen), (150, 100));
        assert_eq!((first.coverage.as_str(), first.coverage_total.as_str()), ("~92.5%", "~92.5%"));
        assert_eq!(truth(&first, "CaptureComplete"), pair("False", "Unobserved"));
        assert!(first.conditions[1].message.contains("at most 3 s (1 interval)"), "{}", first.conditions[1].message);

        node.note_capture(1_002_500, 5_000_000);
        let later = status_at(Some(&node), Some(&first), 5_000_000, 4_000);
        assert_eq!(truth(&later, "CaptureComplete"), pair("True", "NothingMissed"), "the last hour is complete");
        assert_eq!(later.coverage, "100%");
        assert!(later.coverage_last_day.starts_with('~') && later.coverage_total.starts_with('~'), "{later:?}");
        assert_eq!(later.unobserved, first.unobserved);
    }

    #[test]
    fn a_gap_of_no_time_is_none() {
        let mut node = reporting_node();
        node.begin_epoch(&[1; 16]);
        node.note_capture(1_000_000, 1_001_000);
        let status = status(Some(&node), None, 1);
        assert_eq!((status.unobserved, status.coverage.as_str()), (Unobserved::default(), "100%"));
        assert_eq!(truth(&status, "CaptureComplete"), pair("True", "NothingMissed"));
    }

    #[test]
    fn time_alone_changes_nothing() {
        let mut node = reporting_node();
        node.begin_epoch(&[1; 16]);
        node.note_capture(1_002_500, 1_012_500);
        let first = status(Some(&node), None, 13);
        let mut writes = 0;
        let mut shown = first;
        for second in 14..7_200 {
            node.note_capture(1_002_500, 1_000_000 + 1_000 * u64::try_from(second).unwrap());
            let now = status(Some(&node), Some(&shown), second);
            writes += usize::from(now != shown);
            shown = now;
        }
        // The hour, as long as the node is that young, and when the gap has left it.
        assert!(writes <= 10, "{writes}");
        assert_eq!(shown.coverage, "100%");
    }

    #[test]
    fn an_agent_that_sees_nothing_does_not_look_complete() {
        let node = node(|it| (it.mode, it.seen) = (Some(Mode::Unsupported), 0));
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
        let fallback = |losses| node(|it| (it.mode, it.losses) = (Some(Mode::Fallback), losses));
        let overflows = Losses { event_overflows: 3, ..Losses::default() };
        let mut observed = fallback(overflows);
        let first = status(Some(&observed), None, 1);
        assert!(first.sampled);
        assert_eq!((first.coverage.as_str(), first.lost), ("≤100%", 0));
        assert_eq!(truth(&first, "CaptureComplete"), pair("Unknown", "Sampled"));
        assert!(first.conditions[1].message.contains("overflowed 3 times"), "{}", first.conditions[1].message);
        observed.mode = Some(Mode::Ebpf);
        observed.begin_epoch(&[1; 16]);
        observed.note_capture(1_000_000, 1_001_000);
        let again = status(Some(&observed), Some(&first), 2);
        assert_eq!((again.coverage.as_str(), again.sampled), ("≤100%", true), "a part of `seen` is from then");
        assert_eq!(truth(&again, "CaptureComplete"), pair("Unknown", "Sampled"));
        observed.note_capture(1_000_000, 5_000_000);
        let later = status_at(Some(&observed), Some(&again), 5_000_000, 4_000);
        assert_eq!((later.coverage.as_str(), later.coverage_total.as_str()), ("100%", "≤100%"));
        assert_eq!(truth(&later, "CaptureComplete"), pair("True", "NothingMissed"));
        let lossy = fallback(Losses { opened: 1, ..Losses::default() });
        let lossy = status(Some(&lossy), None, 1);
        assert_eq!(truth(&lossy, "CaptureComplete"), pair("False", "Lost"));
        assert!(lossy.conditions[1].message.contains("or they were not seen"), "{:?}", lossy.conditions);
    }

    #[test]
    fn skipped_runs_count_as_lost() {
        let node = node(|it| it.losses.missed_runs = 25);
        let status = status(Some(&node), None, 1);
        assert_eq!((status.lost, status.coverage.as_str()), (25, "80%"));
        assert_eq!(truth(&status, "CaptureComplete"), pair("False", "Lost"));
        assert!(status.conditions[1].message.contains("25 runs"), "{}", status.conditions[1].message);
    }

    #[test]
    fn what_was_chosen_is_shown_before_anybody_reports() {
        let (mode, cause) = choose(RequestedMode::Auto, Asker::Probe, "4.19.0", None);
        let assignment = Assignment { mode, ..assignment(cause) };
        let inputs = NodeProbeInputs {
            assignment: &assignment,
            node_kernel: "4.19.0",
            fallback: None,
            observation: None,
            coverage: &NodeCoverage::default(),
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
        let by_tracepoint = node(|it| "TpBtf".clone_into(&mut it.attach));
        let third = status(Some(&by_tracepoint), Some(&second), 3);
        let attaches: Vec<_> = third.history.iter().map(|it| (it.time.0.as_second(), it.attach.as_str())).collect();
        assert_eq!(attaches, [(1, ""), (3, "TpBtf")]);
        assert_eq!((third.sampled, third.coverage.starts_with('≤')), (true, true), "the kernel does not tell of all");
        assert_eq!(third.since, Some(Time(at(1))), "mode and reason are the same");
    }

    #[test]
    fn growing_numbers_are_no_structure_but_the_first_ones_are() {
        let base = status(Some(&reporting_node()), None, 1);
        let more = node(|it| (it.seen, it.message) = (999, "999 of them".to_owned()));
        let more = status(Some(&more), Some(&base), 2);
        assert!(base != more && !differs_in_structure(&base, &more));
        let none = status(Some(&node(|it| it.seen = 0)), None, 1);
        assert!(differs_in_structure(&none, &base), "no number stands beside edges for long");
        let lossy = |opened| node(|it| it.losses.opened = opened);
        let first_loss = status(Some(&lossy(1)), Some(&base), 2);
        assert!(differs_in_structure(&base, &first_loss));
        assert!(!differs_in_structure(&first_loss, &status(Some(&lossy(9)), Some(&first_loss), 3)));
        let gone = NodeObservation { connected: false, ..reporting_node() };
        assert!(differs_in_structure(&base, &status(Some(&gone), Some(&base), 3)));
        let mut again = reporting_node();
        again.begin_epoch(&[1; 16]);
        again.note_capture(1_001_000, 1_002_000);
        assert!(differs_in_structure(&base, &status(Some(&again), Some(&base), 3)));
    }
}
