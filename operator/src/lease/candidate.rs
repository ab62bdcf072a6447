//! Decides from what is read of a Lease whether it may be taken. Pure. Compares no times of different machines: a lease is
//! over when it has not changed for its duration by the candidate's own clock.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use tokio::time::Instant;

/// An operator that wants the lease, or has it.
pub(super) struct Candidate {
    identity: String,
    duration: Duration,
    /// The version that was read last, and since when it is there.
    observed: Option<(Option<String>, Instant)>,
}

/// Something to do about a lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// Writes this lease, which no operator holds.
    Take(Lease),
    /// Writes this lease, which this operator holds.
    Renew(Lease),
    /// Writes nothing, because another operator holds the lease.
    Wait {
        /// The other's name.
        holder: String,
        /// Time at which the lease is over, unless it changes.
        over_at: Instant,
    },
}

impl Candidate {
    pub(super) fn new(identity: &str, duration: Duration) -> Self {
        Self { identity: identity.to_owned(), duration, observed: None }
    }

    pub(super) fn decide(&mut self, there: Option<&Lease>, now: Instant, time: Timestamp) -> Decision {
        let Some(lease) = there else { return Decision::Take(self.taken(Lease::default(), time)) };
        let since = self.observe(lease, now);
        match holder(lease) {
            Some(holder) if holder == self.identity => Decision::Renew(self.renewed(lease.clone(), time)),
            Some(holder) if now < since + self.duration_of(lease) => {
                Decision::Wait { holder: holder.to_owned(), over_at: since + self.duration_of(lease) }
            }
            _ => Decision::Take(self.taken(lease.clone(), time)),
        }
    }

    /// The lease without a holder, if that is this operator.
    pub(super) fn freed(&self, mut lease: Lease) -> Option<Lease> {
        if holder(&lease) != Some(&self.identity) {
            return None;
        }
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions);
        lease.spec = Some(LeaseSpec { lease_transitions: transitions, ..LeaseSpec::default() });
        Some(lease)
    }

    /// Since when the lease is as it is.
    fn observe(&mut self, lease: &Lease, now: Instant) -> Instant {
        let version = &lease.metadata.resource_version;
        match &self.observed {
            Some((observed, since)) if observed == version => *since,
            _ => {
                self.observed = Some((version.clone(), now));
                now
            }
        }
    }

    fn duration_of(&self, lease: &Lease) -> Duration {
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(self.duration, Duration::from_secs)
    }

    fn taken(&self, lease: Lease, time: Timestamp) -> Lease {
        let transitions = lease.spec.as_ref().map_or(0, |spec| spec.lease_transitions.unwrap_or(0).saturating_add(1));
        let mut lease = self.renewed(lease, time);
        if let Some(spec) = &mut lease.spec {
            spec.acquire_time = Some(MicroTime(time));
            spec.lease_transitions = Some(transitions);
        }
        lease
    }

    fn renewed(&self, mut lease: Lease, time: Timestamp) -> Lease {
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)),
            renew_time: Some(MicroTime(time)),
            ..lease.spec.unwrap_or_default()
        });
        lease
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// As an API server keeps it.
    fn stored(decision: Decision, version: &str) -> Lease {
        let (Decision::Take(mut lease) | Decision::Renew(mut lease)) = decision else { panic!("{decision:?}") };
        lease.metadata.resource_version = Some(version.to_owned());
        lease
    }

    fn spec(lease: &Lease) -> (Option<&str>, Option<i32>, Option<i32>) {
        let spec = lease.spec.as_ref().unwrap();
        (spec.holder_identity.as_deref(), spec.lease_duration_seconds, spec.lease_transitions)
    }

    #[test]
    fn lease_is_taken_when_free_and_renewed_by_its_holder() {
        let now = Instant::now();
        let mut a = Candidate::new("a", DURATION);
        let taken = stored(a.decide(None, now, time(1)), "1");
        assert_eq!(spec(&taken), (Some("a"), Some(15), Some(0)));
        let renewed = stored(a.decide(Some(&taken), now, time(5)), "2");
        assert_eq!(spec(&renewed), spec(&taken));
        let of = renewed.spec.clone().unwrap();
        assert_eq!((of.acquire_time, of.renew_time), (Some(MicroTime(time(1))), Some(MicroTime(time(5)))));
        assert_eq!(renewed.metadata, Lease { metadata: renewed.metadata.clone(), spec: None }.metadata);

        let free = a.freed(renewed.clone()).unwrap();
        assert_eq!(spec(&free), (None, None, Some(0)));
        let mut b = Candidate::new("b", DURATION);
        assert!(matches!(b.decide(Some(&renewed), now, time(6)), Decision::Wait { holder, .. } if holder == "a"));
        assert_eq!(b.freed(renewed), None, "it is not b's to give away");
        let again = stored(b.decide(Some(&free), now, time(6)), "3");
        assert_eq!(spec(&again), (Some("b"), Some(15), Some(1)));
    }

    #[test]
    fn lease_expires_after_its_duration_without_change_despite_clock_skew() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut a = Candidate::new("a", DURATION);
        let mut b = Candidate::new("b", DURATION);
        // Its holder's clock is years behind.
        let first = stored(a.decide(None, start, time(0)), "1");
        assert!(matches!(b.decide(Some(&first), at(0), time(2_000_000_000)), Decision::Wait { .. }));
        assert!(matches!(b.decide(Some(&first), at(14), time(2_000_000_014)), Decision::Wait { .. }));
        let renewed = stored(a.decide(Some(&first), at(14), time(0)), "2");
        assert!(matches!(b.decide(Some(&renewed), at(15), time(2_000_000_015)), Decision::Wait { .. }));
        assert!(matches!(b.decide(Some(&renewed), at(29), time(2_000_000_029)), Decision::Wait { .. }));
        let taken = stored(b.decide(Some(&renewed), at(30), time(2_000_000_030)), "3");
        assert_eq!(spec(&taken), (Some("b"), Some(15), Some(1)));
        assert!(matches!(a.decide(Some(&taken), at(30), time(16)), Decision::Wait { holder, .. } if holder == "b"));
    }

    #[test]
    fn write_is_conditional_on_the_version_that_was_read() {
        let mut candidate = Candidate::new("a", DURATION);
        let lease = stored(candidate.decide(None, Instant::now(), time(1)), "7");
        let Decision::Renew(renewed) = candidate.decide(Some(&lease), Instant::now(), time(2)) else { panic!() };
        assert_eq!(renewed.metadata.resource_version.as_deref(), Some("7"));
    }

    /// An operator of the simulation.
    struct Operator {
        candidate: Candidate,
        /// Its wall clock's error, in seconds.
        skew: i64,
        /// The lease as it read it, and what it will write.
        pending: Option<(Option<String>, Decision, Instant)>,
        holds_until: Option<Instant>,
    }

    proptest! {
        /// Operators read and write at arbitrary times, with arbitrary wall clocks, and arbitrarily long after they have read.
        #[test]
        fn at_most_one_operator_holds_the_lease(
            skews in proptest::collection::vec(-2_000_000_000_i64..2_000_000_000, 3),
            steps in proptest::collection::vec((0..3_usize, any::<bool>(), 0..8_000_u64), 1..200),
        ) {
            let start = Instant::now();
            let mut operators: Vec<_> = skews.iter().zip(["a", "b", "c"]).map(|(skew, name)| Operator {
                candidate: Candidate::new(name, DURATION), skew: *skew, pending: None, holds_until: None,
            }).collect();
            let (mut lease, mut version, mut now) = (None::<Lease>, 0, start);
            for (index, writes, pause) in steps {
                now += Duration::from_millis(pause);
                let operator = &mut operators[index];
                if writes {
                    let Some((read, decision, since)) = operator.pending.take() else { continue };
                    let is_current = read == lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
                    if is_current && !matches!(decision, Decision::Wait { .. }) {
                        version += 1;
                        lease = Some(stored(decision, &version.to_string()));
                        operator.holds_until = Some(since + DURATION * 2 / 3);
                    }
                } else {
                    let wall = time(2_000_000_000 + operator.skew + now.duration_since(start).as_secs().cast_signed());
                    let decision = operator.candidate.decide(lease.as_ref(), now, wall);
                    let read = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
                    operator.pending = Some((read, decision, now));
                }
                let holding = operators.iter().filter(|it| it.holds_until.is_some_and(|until| now < until)).count();
                prop_assert!(holding <= 1, "{holding} operators hold the lease");
            }
        }
    }
}
