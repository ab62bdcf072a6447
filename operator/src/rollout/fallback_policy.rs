//! Decides when a node whose agent cannot use eBPF moves to the Fallback mode, and when eBPF is retried. Pure: the time
//! is an argument.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kernel_support::Reason;

use crate::settings::LONGEST_RETRY;

/// Time for which an agent must request the Fallback mode before it is moved. An agent that starts, or loses its
/// capture for a moment, may recover.
pub const STEADY: SignedDuration = SignedDuration::from_secs(20);

/// Failed use of eBPF on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFallback {
    /// Reason of the failure.
    pub reason: Reason,
    /// Human-readable explanation of `reason`.
    pub message: String,
    /// Kernel of the last attempt.
    pub kernel: String,
    /// Boot of the last attempt.
    pub boot_id: String,
    /// Agents' image of the last attempt.
    pub image: String,
    /// Time of the last move to the Fallback mode.
    pub since: Timestamp,
    /// Number of attempts.
    pub attempts: u32,
    /// Time of the next attempt.
    pub retry_at: Timestamp,
    /// True if an attempt is in progress.
    pub retrying: bool,
}

/// Request of an agent for Fallback mode, repeated in all of its reports since a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Reason of the request.
    pub reason: Reason,
    /// Human-readable explanation of `reason`.
    pub message: &'a str,
    /// Time of the first of these reports.
    pub since: Timestamp,
    /// Time of the last of these reports.
    pub last: Timestamp,
}

/// Inputs of a decision about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackFacts<'a> {
    /// Its name.
    pub node: &'a str,
    /// True if the agent decides: no mode was requested, and the kernel is not too old.
    pub up_to_agent: bool,
    /// The node's kernel.
    pub kernel: &'a str,
    /// The node's boot.
    pub boot_id: &'a str,
    /// Present image of the agents.
    pub image: &'a str,
    /// Request of its agent.
    pub request: Option<Request<'a>>,
    /// True if its agent is connected and captures by eBPF.
    pub sees_by_ebpf: bool,
}

/// Returns the new state of a node; `retry` is the time until the second attempt.
#[must_use]
pub fn decide(
    previous: Option<&NodeFallback>,
    facts: &FallbackFacts<'_>,
    retry: SignedDuration,
    now: Timestamp,
) -> Option<NodeFallback> {
    if !facts.up_to_agent {
        return None;
    }
    let previous = previous.filter(|previous| previous.still_speaks_for(facts));
    match previous {
        Some(waiting) if !waiting.retrying => {
            Some(NodeFallback { retrying: now >= waiting.retry_at, ..waiting.clone() })
        }
        Some(_) if facts.sees_by_ebpf => None,
        other => steady(facts.request.as_ref())
            .map(|request| {
                let attempts = other.map_or(0, |other| other.attempts).saturating_add(1);
                moved(facts, request, attempts, retry, now)
            })
            .or_else(|| other.cloned()),
    }
}

fn steady<'a, 'b>(request: Option<&'a Request<'b>>) -> Option<&'a Request<'b>> {
    request.filter(|request| request.last.duration_since(request.since) >= STEADY)
}

fn moved(
    facts: &FallbackFacts<'_>,
    request: &Request<'_>,
    attempts: u32,
    retry: SignedDuration,
    now: Timestamp,
) -> NodeFallback {
    let wait = wait(facts.node, attempts, retry);
    NodeFallback {
        reason: request.reason,
        message: request.message.to_owned(),
        kernel: facts.kernel.to_owned(),
        boot_id: facts.boot_id.to_owned(),
        image: facts.image.to_owned(),
        since: now,
        attempts,
        retry_at: now.checked_add(wait).unwrap_or(Timestamp::MAX),
        retrying: false,
    }
}

/// Returns the time until the next attempt, in whole seconds as in the API. It doubles with each attempt. A jitter of up
/// to a quarter by node spreads the attempts of nodes that were moved together.
fn wait(node: &str, attempts: u32, retry: SignedDuration) -> SignedDuration {
    let doubled = 1_i32.checked_shl(attempts.saturating_sub(1).min(30)).unwrap_or(i32::MAX);
    let wait = retry.checked_mul(doubled).unwrap_or(LONGEST_RETRY).min(LONGEST_RETRY.max(retry));
    // FNV-1a: names that differ only in their last digit have distant hashes.
    let hash = node
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let spread = i64::try_from((hash ^ (hash >> 32)) % 256).unwrap_or_default();
    SignedDuration::from_secs(wait.as_secs() + wait.as_secs() * spread / 1024)
}

impl NodeFallback {
    /// Returns whether nothing changed that could have made eBPF possible.
    fn still_speaks_for(&self, facts: &FallbackFacts<'_>) -> bool {
        (self.kernel.as_str(), self.boot_id.as_str(), self.image.as_str()) == (facts.kernel, facts.boot_id, facts.image)
    }

    /// Returns the state as a NodeProbe contains it.
    #[must_use]
    pub fn to_status(&self) -> crds::NodeFallback {
        crds::NodeFallback {
            reason: self.reason.to_string(),
            message: self.message.clone(),
            kernel: self.kernel.clone(),
            boot_id: self.boot_id.clone(),
            image: self.image.clone(),
            since: Some(Time(self.since)),
            attempts: self.attempts,
            retry_at: Some(Time(self.retry_at)),
        }
    }

    /// Returns the state that an earlier operator wrote; `None` without times.
    #[must_use]
    pub fn restore(written: &crds::NodeFallback, now: Timestamp) -> Option<Self> {
        let (since, retry_at) = (written.since.as_ref()?.0, written.retry_at.as_ref()?.0);
        Some(Self {
            reason: Reason::from_word(&written.reason),
            message: written.message.clone(),
            kernel: written.kernel.clone(),
            boot_id: written.boot_id.clone(),
            image: written.image.clone(),
            since,
            attempts: written.attempts,
            retry_at,
            // The earlier operator may have started the attempt already: a short move back would lose its observations.
            retrying: now >= retry_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn facts() -> FallbackFacts<'static> {
        FallbackFacts {
            node: "node-1",
            up_to_agent: true,
            kernel: "6.1.0",
            boot_id: "boot",
            image: "agent:1",
            request: None,
            sees_by_ebpf: false,
        }
    }

    fn asking(since: i64, last: i64) -> FallbackFacts<'static> {
        let request = Request { reason: Reason::BtfMissing, message: "no BTF", since: at(since), last: at(last) };
        FallbackFacts { request: Some(request), ..facts() }
    }

    fn first() -> NodeFallback {
        decide(None, &asking(0, 20), HOUR, at(20)).unwrap()
    }

    fn retrying() -> NodeFallback {
        decide(Some(&first()), &facts(), HOUR, first().retry_at).unwrap()
    }

    #[test]
    fn who_asks_long_enough_is_moved() {
        assert_eq!(decide(None, &facts(), HOUR, at(100)), None);
        assert_eq!(decide(None, &asking(0, 19), HOUR, at(1000)), None, "what it says is what counts");
        let fallback = first();
        assert_eq!((fallback.reason, fallback.message.as_str()), (Reason::BtfMissing, "no BTF"));
        assert_eq!((fallback.since, fallback.attempts, fallback.retrying), (at(20), 1, false));
        let wait = fallback.retry_at.duration_since(at(20));
        assert!(wait >= HOUR && wait <= SignedDuration::from_mins(75), "{wait}");
    }

    #[test]
    fn a_node_stays_until_its_time_has_come() {
        let fallback = first();
        let before = fallback.retry_at - SignedDuration::from_secs(1);
        // The old agent may go on asking until it is stopped.
        for facts in [facts(), asking(0, 3600)] {
            assert_eq!(decide(Some(&fallback), &facts, HOUR, before), Some(fallback.clone()));
        }
        assert_eq!(retrying(), NodeFallback { retrying: true, ..fallback });
    }

    #[test]
    fn each_attempt_in_vain_doubles_the_wait() {
        let mut fallback = first();
        let mut waits = Vec::new();
        for attempt in 2..40 {
            let begin = fallback.retry_at;
            let tried = decide(Some(&fallback), &facts(), HOUR, begin).unwrap();
            let asks = begin + STEADY;
            let asking = asking(begin.as_second(), asks.as_second());
            fallback = decide(Some(&tried), &asking, HOUR, asks).unwrap();
            assert_eq!((fallback.attempts, fallback.retrying), (attempt, false));
            waits.push(fallback.retry_at.duration_since(asks).as_secs());
        }
        for (at, wait) in waits[..4].iter().enumerate() {
            let doubled = 3600 << (at + 1);
            assert!((doubled..=doubled * 5 / 4).contains(wait), "{waits:?}");
        }
        assert!(waits[4..].iter().all(|wait| (86_400..=108_000).contains(wait)), "{waits:?}");
    }

    #[test]
    fn success_ends_it_and_so_does_anything_new() {
        let seen = FallbackFacts { sees_by_ebpf: true, ..facts() };
        assert_eq!(decide(Some(&retrying()), &seen, HOUR, at(9999)), None);
        for changed in [
            FallbackFacts { kernel: "6.2.0", ..facts() },
            FallbackFacts { boot_id: "another", ..facts() },
            FallbackFacts { image: "agent:2", ..facts() },
            FallbackFacts { up_to_agent: false, ..facts() },
        ] {
            assert_eq!(decide(Some(&first()), &changed, HOUR, at(21)), None, "{changed:?}");
        }
    }

    #[test]
    fn retry_continues_until_its_outcome_is_reported() {
        assert_eq!(decide(Some(&retrying()), &facts(), HOUR, at(99_999)), Some(retrying()));
        assert_eq!(decide(Some(&retrying()), &asking(5000, 5001), HOUR, at(99_999)), Some(retrying()));
    }

    #[test]
    fn nodes_don_t_come_back_together() {
        let waits: std::collections::BTreeSet<_> =
            (0..100).map(|number| wait(&format!("node-{number}"), 1, HOUR).as_secs()).collect();
        assert!(waits.len() > 60, "{} different waits of 100", waits.len());
        assert!(waits.iter().all(|wait| (3600..4500).contains(wait)), "{waits:?}");
    }

    #[test]
    fn what_was_written_comes_back() {
        let fallback = first();
        let written = fallback.to_status();
        assert_eq!(NodeFallback::restore(&written, at(21)), Some(fallback.clone()));
        assert_eq!(NodeFallback::restore(&written, fallback.retry_at), Some(retrying()));
        assert_eq!(NodeFallback::restore(&crds::NodeFallback::default(), at(21)), None);
    }

    /// Generates moments of decisions: how long the agent has asked, whether it captures, whether the node rebooted,
    /// and how many seconds passed.
    fn moments() -> impl Strategy<Value = Vec<(Option<i64>, bool, bool, i64)>> {
        let moment = (proptest::option::of(0..40_i64), any::<bool>(), proptest::bool::weighted(0.1), 1..20_000_i64);
        proptest::collection::vec(moment, 1..60)
    }

    proptest! {
        #[test]
        fn fallback_has_a_reason_and_ends(moments in moments()) {
            let (mut fallback, mut now, mut boots) = (None::<NodeFallback>, at(1_000_000), 0);
            for (asked_for, sees_by_ebpf, booted, seconds) in moments {
                now += SignedDuration::from_secs(seconds);
                boots += u32::from(booted);
                let boot_id = format!("boot-{boots}");
                let request = asked_for.map(|asked_for| Request {
                    reason: Reason::BtfMissing,
                    message: "no BTF",
                    since: now - SignedDuration::from_secs(asked_for),
                    last: now,
                });
                let steady = asked_for.is_some_and(|asked_for| asked_for >= 20);
                let facts = FallbackFacts { boot_id: &boot_id, request, sees_by_ebpf, ..facts() };
                let after = decide(fallback.as_ref(), &facts, HOUR, now);
                let waits = |it: &Option<NodeFallback>| it.as_ref().is_some_and(|it| !it.retrying);
                match &after {
                    Some(after) if !after.retrying => {
                        let moved = after.since == now;
                        prop_assert!(moved || fallback.as_ref() == Some(after), "it waits as it did");
                        prop_assert!(!moved || steady, "no agent requested it");
                        prop_assert!(now < after.retry_at, "its time has come");
                        let wait = after.retry_at.duration_since(after.since);
                        prop_assert!((HOUR..=SignedDuration::from_hours(30)).contains(&wait), "{wait}");
                    }
                    _ => prop_assert!(!waits(&fallback) || booted || fallback.iter().all(|it| now >= it.retry_at)),
                }
                fallback = after;
            }
        }
    }
}
