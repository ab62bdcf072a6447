//! Times of which a node's agent has reported all connections that clients of the node opened. A connection from the node's
//! address at such a time is a client's of the node, or the node has forwarded it.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::Epoch;
use crate::{
    flow::{FlowKey, Protocol, Role},
    hash::HashMap,
    history::Part,
};

/// Time by which two agents' times of one event may differ. It is also the resolution of a flow's history, so that parts
/// which are merged have been judged alike.
const MARGIN: Duration = Duration::from_secs(1);

/// Maximum age of what an agent has reported completely. An agent that is further behind does not count as observing.
const MAX_LAG: Duration = Duration::from_mins(1);

/// Maximum number of ranges: the agent of a long-lived flow's client may restart that often.
const MAX_RANGES: usize = 64;

/// Part of an agent's message about its node's clients. All times are the operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientReport {
    /// Time at which the capture began.
    pub attached: SystemTime,
    /// Time up to which this message and those before it contain all connections; `None` if the agent has not reported it.
    pub complete_until: Option<SystemTime>,
    /// Time at which the message was made.
    pub made: SystemTime,
    /// Connections of this epoch that are missing in the reports.
    pub lost: u64,
    /// True if the capture observes each connection, or reports it as lost.
    pub is_exact: bool,
    /// True if the capture observes UDP.
    pub observes_udp: bool,
}

/// Completeness of a node's reports about the connections that its clients opened at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It may have missed some.
    Partly,
    /// It has reported all.
    Wholly,
    /// Its report may still come.
    NotYet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ObservedRange {
    since: SystemTime,
    until: SystemTime,
    includes_udp: bool,
}

/// The times, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObservedTimes {
    ranges: VecDeque<ObservedRange>,
    /// Origin of the epoch that reported last, with its losses; `None` if the last range does not go on.
    current: Option<(Epoch, u64)>,
    /// Number of ranges that began at a time of which connections may have been judged before.
    begun: u64,
}

impl ObservedTimes {
    /// Takes in a message of an agent whose counters began in the epoch `origin`.
    ///
    /// Invariant: a time that is [`Observed::Wholly`] stays so, unless there are more than 64 ranges.
    pub(super) fn record(&mut self, origin: Epoch, report: &ClientReport) {
        let until = report.complete_until.filter(|_| report.is_exact).map(|until| until.min(report.made));
        let known = self.current.map(|(origin, _)| origin) == Some(origin);
        let last = self.ranges.back().map(|range| range.until).filter(|_| known);
        let is_behind = |until: SystemTime| report.made.duration_since(until).unwrap_or_default() > MAX_LAG;
        if !report.is_exact || until.or(last).is_some_and(is_behind) {
            self.current = None;
            return;
        }
        let Some(until) = until else { return };
        match (self.current, self.ranges.back_mut()) {
            (Some(current), Some(range)) if current == (origin, report.lost) && range.has_udp(report) => {
                range.until = range.until.max(until);
                return;
            }
            (Some((current, _)), Some(range)) if current == origin => {
                // Connections were lost since the last message. What that one was about has been judged.
                let since = until.max(range.until);
                if range.since == range.until {
                    self.ranges.pop_back();
                }
                self.begin(since, since, report);
            }
            _ => {
                self.begun += 1;
                let since = if report.lost == 0 { report.attached.min(until) } else { until };
                self.begin(since, until, report);
            }
        }
        self.current = Some((origin, report.lost));
    }

    fn begin(&mut self, since: SystemTime, until: SystemTime, report: &ClientReport) {
        if self.ranges.len() == MAX_RANGES {
            self.ranges.pop_front();
            self.begun += 1;
        }
        self.ranges.push_back(ObservedRange { since, until, includes_udp: report.observes_udp });
    }

    /// Returns whether all connections between two times are reported. `reports` is false if nothing more is expected of the
    /// agent.
    #[must_use]
    pub(crate) fn between(&self, since: SystemTime, until: SystemTime, protocol: Protocol, reports: bool) -> Observed {
        let has_begun =
            |range: &&ObservedRange| range.since + MARGIN <= since && (range.includes_udp || protocol == Protocol::Tcp);
        let mut begun = self.ranges.iter().rev().filter(has_begun);
        if begun.clone().any(|range| until + MARGIN <= range.until) {
            return Observed::Wholly;
        }
        let last = begun.next().filter(|range| self.ranges.back() == Some(*range));
        if reports && self.current.is_some() && last.is_some() { Observed::NotYet } else { Observed::Partly }
    }

    /// Returns whether two parts, and both together, are judged alike.
    fn are_one(&self, one: &Part, next: &Part, protocol: Protocol) -> bool {
        let judge = |part: &Part| self.between(part.since, part.until, protocol, true);
        judge(one) == judge(next) && judge(one) == judge(&one.with(next))
    }

    /// Returns a number that changes when times may be judged otherwise than before, apart from those that are
    /// [`Observed::NotYet`].
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }
}

/// Observed times of nodes, by their names and by the addresses that their agents reported.
#[derive(Clone, Debug, Default)]
pub struct TimesByNode {
    pub(super) by_name: HashMap<String, Arc<ObservedTimes>>,
    pub(super) by_address: HashMap<IpAddr, Arc<ObservedTimes>>,
}

impl TimesByNode {
    /// Returns whether consecutive parts of a node's flow need not be kept apart, because clients of the node on which the
    /// connections were opened were observed equally well.
    #[must_use]
    pub fn are_one(&self, node: &str, flow: &FlowKey, one: &Part, next: &Part) -> bool {
        let times = match flow.role {
            Role::Client => self.by_name.get(node),
            Role::Server => self.by_address.get(&flow.remote),
        };
        times.is_none_or(|times| times.are_one(one, next, flow.protocol))
    }
}

impl ObservedRange {
    fn has_udp(&self, report: &ClientReport) -> bool {
        self.includes_udp == report.observes_udp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Epoch = Epoch([1; 16]);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(10_000 + seconds)
    }

    fn report(attached: u64, until: u64) -> ClientReport {
        ClientReport {
            attached: at(attached),
            complete_until: Some(at(until)),
            made: at(until),
            lost: 0,
            is_exact: true,
            observes_udp: false,
        }
    }

    fn tcp(times: &ObservedTimes, since: u64, until: u64) -> Observed {
        times.between(at(since), at(until), Protocol::Tcp, true)
    }

    #[test]
    fn observed_times_begin_with_the_capture_and_end_with_its_report() {
        let mut times = ObservedTimes::default();
        assert_eq!(tcp(&times, 20, 25), Observed::Partly);
        times.record(ORIGIN, &report(10, 30));
        assert_eq!(tcp(&times, 10, 25), Observed::Partly, "it may be from before");
        assert_eq!([tcp(&times, 11, 29), tcp(&times, 20, 30)], [Observed::Wholly, Observed::NotYet]);
        assert_eq!(times.between(at(20), at(30), Protocol::Tcp, false), Observed::Partly);
        assert_eq!(times.between(at(20), at(25), Protocol::Udp, true), Observed::Partly);
        times.record(ORIGIN, &report(10, 31));
        assert_eq!(tcp(&times, 20, 30), Observed::Wholly);
        // A message without news of this, as the first one of a stream.
        times.record(ORIGIN, &ClientReport { complete_until: None, ..report(10, 50) });
        assert_eq!(tcp(&times, 40, 41), Observed::NotYet);
    }

    #[test]
    fn times_of_losses_and_between_captures_are_not_observed() {
        let mut times = ObservedTimes::default();
        times.record(ORIGIN, &report(10, 30));
        times.record(ORIGIN, &ClientReport { lost: 1, ..report(10, 40) });
        times.record(ORIGIN, &ClientReport { lost: 1, ..report(10, 50) });
        assert_eq!([tcp(&times, 20, 25), tcp(&times, 42, 45)], [Observed::Wholly; 2]);
        assert_eq!([tcp(&times, 32, 35), tcp(&times, 25, 45)], [Observed::Partly; 2]);
        let begun = times.begun();
        times.record(Epoch([2; 16]), &report(60, 80));
        assert_ne!(times.begun(), begun);
        assert_eq!([tcp(&times, 42, 45), tcp(&times, 62, 75)], [Observed::Wholly; 2]);
        assert_eq!([tcp(&times, 52, 55), tcp(&times, 45, 65)], [Observed::Partly; 2]);
        times.record(Epoch([2; 16]), &ClientReport { is_exact: false, ..report(60, 90) });
        assert_eq!([tcp(&times, 62, 75), tcp(&times, 82, 85)], [Observed::Wholly, Observed::Partly]);
    }

    #[test]
    fn agent_that_is_a_minute_behind_observes_nothing() {
        let mut times = ObservedTimes::default();
        times.record(ORIGIN, &report(10, 30));
        times.record(ORIGIN, &ClientReport { made: at(91), ..report(10, 30) });
        assert_eq!(tcp(&times, 40, 41), Observed::Partly);
        times.record(ORIGIN, &report(10, 92));
        assert_eq!(tcp(&times, 20, 91), Observed::Wholly, "its counters have gone on");
    }

    #[test]
    fn losses_of_each_report_leave_one_range() {
        let mut times = ObservedTimes::default();
        for second in 30..200 {
            times.record(ORIGIN, &ClientReport { lost: second, ..report(10, second) });
        }
        assert_eq!(times.ranges.len(), 1);
    }
}
