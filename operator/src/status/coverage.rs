//! Assesses and formats a node's coverage. Pure.

use topology::plural::counted;

use crate::{
    coverage::{
        MINUTE, UnixMs,
        account::{AccountRecord, CoverageAccount},
        period::Period,
        share::{Share, Shares},
    },
    observation::NodeObservation,
};

/// A new node's agent may take so long to be started before the time counts as unobserved.
pub(super) const GRACE: u64 = MINUTE;
/// So long a silent agent is taken for one that still observes.
const PATIENCE: u64 = MINUTE;

/// One node's coverage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCoverage {
    /// The shares of all windows.
    pub shares: Shares,
    /// Record from which the next operator continues; `None` before the first report of a capture.
    pub record: Option<AccountRecord>,
}

/// Inputs of the assessment.
#[derive(Clone, Copy, Debug)]
pub struct CoverageFacts<'a> {
    /// Report of its agent.
    pub observation: Option<&'a NodeObservation>,
    /// Time at which its NodeProbe was made; none if it is not there yet.
    pub created: Option<UnixMs>,
    /// Time up to which all reports are surely in Topology objects.
    pub settled: UnixMs,
    /// Now.
    pub now: UnixMs,
}

/// A node's coverage.
#[must_use]
pub fn assess(facts: &CoverageFacts<'_>) -> NodeCoverage {
    let account = facts.observation.and_then(|it| it.coverage.as_ref());
    let blind_until = blind_until(facts.observation, facts.now);
    let due = facts.created.map(|created| created.saturating_add(GRACE));
    let periods = match account {
        Some(account) => since_due(account, due, blind_until),
        None => due.zip(blind_until).map(|(due, blind)| Period::unobserved(due, blind, 0)).into_iter().collect(),
    };
    NodeCoverage { shares: Shares::of(&periods), record: account.map(|account| account.record(facts.settled)) }
}

/// The account's periods, after the time in which the node was due to be observed and had no agent yet.
fn since_due(account: &CoverageAccount, due: Option<UnixMs>, blind_until: Option<UnixMs>) -> Vec<Period> {
    let before = due.filter(|due| *due < account.since()).map(|due| Period::unobserved(due, account.since(), 0));
    before.into_iter().chain(account.periods(blind_until)).collect()
}

/// The time until which there is no capture, to the minute, so that time alone changes nothing more often; none while
/// one runs or may run.
fn blind_until(observation: Option<&NodeObservation>, now: UnixMs) -> Option<UnixMs> {
    let may_observe = observation.is_some_and(|it| {
        let is_heard = it.connected || now.saturating_sub(it.last_report_unix_ms) <= PATIENCE;
        is_heard && (it.has_capture() || !it.connected)
    });
    (!may_observe).then_some(now / MINUTE * MINUTE)
}

/// A share in percent, with at most one decimal, rounded down. Never `100%` if anything is missing, or while nothing is
/// known of now (`is_silent`). `~`: a part is an estimate, as there was a time without a capture. `≤`: at most so much,
/// as a part was sampled: what the fallback or a tracepoint has missed is in no number.
#[must_use]
pub fn percent(share: &Share, is_silent: bool) -> String {
    let is_complete = share.lost() == 0 && !share.has_gaps() && !is_silent;
    let permille = share.permille().min(if is_complete { 1000 } else { 999 });
    let label = match (share.has_gaps() || is_silent, share.shortfall.sampled) {
        (true, _) => "~",
        (false, true) => "≤",
        (false, false) => "",
    };
    match (permille / 10, permille % 10) {
        (percent, 0) => format!("{label}{percent}%"),
        (percent, tenth) => format!("{label}{percent}.{tenth}%"),
    }
}

/// Explains what is missing, with numbers; empty where nothing is.
#[must_use]
pub fn explain(share: &Share) -> String {
    let (losses, shortfall) = (share.losses(), &share.shortfall);
    let mut parts = Vec::new();
    if losses.opened > 0 || losses.failed > 0 {
        let or = if shortfall.sampled { ", or they were not seen" } else { "" };
        parts.push(format!(
            "{} and {} were not recorded, because the flow table was full: raise spec.capture.maxFlows{or}",
            counted(losses.opened, "connection"),
            counted(losses.failed, "failed attempt"),
        ));
    }
    if losses.missed_runs > 0 {
        parts.push(format!(
            "the kernel skipped {} of the tracepoint's program, each of which may have been a connection",
            counted(losses.missed_runs, "run")
        ));
    }
    if losses.event_overflows > 0 {
        parts.push(explain_overflows(losses.event_overflows));
    }
    if losses.closed > 0 {
        parts.push(format!("the last bytes of {} are missing", counted(losses.closed, "connection")));
    }
    if share.has_gaps() {
        let estimate = match shortfall.missed {
            0 => String::new(),
            missed => format!(", in which about {} may have happened", counted(missed, "connection")),
        };
        parts.push(format!(
            "no agent observed for at most {} s ({}){estimate}",
            shortfall.unobserved_ms.div_ceil(1000),
            counted(shortfall.intervals, "interval"),
        ));
    }
    parts.join("; ")
}

/// Explains overflows of connection tracking's events.
#[must_use]
pub fn explain_overflows(overflows: u64) -> String {
    format!("conntrack's event queue overflowed {}; the agent listed all sockets instead", counted(overflows, "time"))
}

#[cfg(test)]
mod tests {
    use crds::{Losses, Mode};

    use super::*;
    use crate::coverage::period::Shortfall;

    fn share(seen: u64, shortfall: Shortfall) -> Share {
        Share { due_ms: 60 * MINUTE, seen, shortfall }
    }

    fn lost(opened: u64) -> Shortfall {
        Shortfall { losses: Losses { opened, ..Losses::default() }, ..Shortfall::default() }
    }

    #[test]
    fn percent_is_rounded_down() {
        assert_eq!(percent(&share(1000, lost(0)), false), "100%");
        assert_eq!(percent(&share(2, lost(1)), false), "66.6%");
        assert_eq!(percent(&share(99, lost(1)), false), "99%");
        assert_eq!(percent(&share(0, lost(5)), false), "0%");
    }

    #[test]
    fn percent_is_never_100_where_something_is_missing() {
        let gap = Shortfall { unobserved_ms: 1, ..Shortfall::default() };
        assert_eq!(percent(&share(u64::MAX, lost(1)), false), "99.9%");
        assert_eq!(percent(&share(1000, gap), false), "~99.9%");
        assert_eq!(percent(&share(1000, lost(0)), true), "~99.9%");
    }

    #[test]
    fn percent_is_an_upper_bound_where_a_part_was_sampled_and_all_was_observed() {
        let sampled = Shortfall { sampled: true, ..Shortfall::default() };
        assert_eq!(percent(&share(1000, sampled), false), "≤100%");
        assert_eq!(percent(&share(99, Shortfall { sampled: true, ..lost(1) }), false), "≤99%");
        let gap = Shortfall { unobserved_ms: 6 * MINUTE, ..sampled };
        assert_eq!(percent(&share(1000, gap), false), "~90%", "the estimate may be too low");
    }

    #[test]
    fn numbers_agree_with_their_nouns() {
        let shortfall = Shortfall { unobserved_ms: 400, intervals: 1, missed: 1, ..lost(1) };
        let text = explain(&share(10, shortfall));
        assert!(text.starts_with("1 connection and 0 failed attempts were not recorded"), "{text}");
        assert!(text.ends_with("at most 1 s (1 interval), in which about 1 connection may have happened"), "{text}");
    }

    fn reporting() -> NodeObservation {
        let mut node = NodeObservation {
            connected: true,
            epoch: vec![1; 16],
            mode: Some(Mode::Ebpf),
            seen: 100,
            last_report_unix_ms: 600_000,
            ..NodeObservation::default()
        };
        node.note_capture(0, 600_000);
        node
    }

    fn hour(observation: Option<&NodeObservation>, created: u64, now: u64) -> Share {
        let facts = CoverageFacts { observation, created: Some(created), settled: now, now };
        assess(&facts).shares.last_hour
    }

    #[test]
    fn agent_that_goes_on_is_complete() {
        assert_eq!(hour(Some(&reporting()), 0, 605_000).shortfall, Shortfall::default());
    }

    #[test]
    fn silence_counts_as_unobserved_after_a_minute() {
        let silent = NodeObservation { connected: false, ..reporting() };
        assert!(!hour(Some(&silent), 0, 660_000).has_gaps());
        let missing = hour(Some(&silent), 0, 690_000).shortfall;
        assert_eq!((missing.unobserved_ms, missing.intervals, missing.missed), (MINUTE, 1, 10), "to the minute");
        let whole = hour(Some(&silent), 0, 5_000_000);
        assert_eq!((whole.permille(), percent(&whole, true).as_str()), (0, "~0%"));
    }

    #[test]
    fn agent_that_captures_nothing_is_blind_at_once() {
        let blind = NodeObservation { mode: Some(Mode::Unsupported), ..reporting() };
        assert_eq!(hour(Some(&blind), 0, 665_000).shortfall.unobserved_ms, MINUTE);
    }

    #[test]
    fn node_is_due_a_minute_after_its_node_probe_was_made() {
        assert!(!hour(None, 0, 60_000).has_gaps());
        let without_agent = hour(None, 0, 185_000);
        assert_eq!((without_agent.due_ms, without_agent.shortfall.unobserved_ms), (2 * MINUTE, 2 * MINUTE));
        let mut late = NodeObservation { coverage: None, ..reporting() };
        late.note_capture(90_000, 150_000);
        let share = hour(Some(&late), 0, 155_000);
        assert_eq!((share.shortfall.unobserved_ms, share.shortfall.intervals), (30_000, 1));
    }
}
