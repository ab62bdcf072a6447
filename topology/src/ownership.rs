//! Ownership of pod addresses, as ranges in time.
//!
//! No source reports exactly when a pod gets or loses an address. A pod's object has the times of its start and of its
//! containers, in whole seconds. The watch reports later when the pod was first seen with the address, and when it was
//! gone. Each of these is a bound: a range has an earliest and a latest start, and an earliest and a latest end. Of two
//! pods with the same address, the end of one and the start of the other bound each other.
//!
//! An event between two moments belongs to a pod if no other pod can have held the address then. Otherwise it belongs
//! to no pod: the nearest pod is never guessed.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crate::{
    clock::NodeClock,
    entity::{Pod, PodLifetime},
    hash::HashMap,
};

/// Resolution of times in objects, which are truncated to whole seconds.
const CUT: Duration = Duration::from_secs(1);

/// Tolerance between times of different clocks or with different delays.
const INEXACT: Duration = Duration::from_millis(250);

/// Maximum time for which a pod runs on after its object is deleted at once (`--grace-period=0`).
const LINGER: Duration = Duration::from_secs(10);

/// Maximum time by which an event's range may exceed the range of a pod to which it is assigned, if no other pod can
/// have held the address. Agents read their counters every few seconds.
pub const MARGIN: Duration = Duration::from_secs(10);

/// Maximum number of pods that are kept for one address; beyond it, the oldest one is dropped.
const MAX_CLAIMS: usize = 64;

/// Pods that held each address.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    claims: HashMap<IpAddr, Vec<Claim>>,
    /// Addresses that a pod has or had, by its UID.
    addresses: HashMap<String, Vec<IpAddr>>,
    /// Time at which the first pod became known; earlier owners are unknown.
    since: Option<SystemTime>,
}

/// Bounds of one pod's ownership of one address.
#[derive(Clone, Debug)]
struct Claim {
    pod: String,
    node: String,
    life: PodLifetime,
    /// Time at which the pod was first observed with the address.
    known: SystemTime,
    /// Time at which its end was first observed.
    ended: Option<SystemTime>,
    /// Time at which it was first missing, or had other addresses.
    gone: Option<SystemTime>,
}

/// Times at which an operator observed a pod with its addresses, by the operator's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedTimes {
    /// Time at which the pod was first observed with an address.
    pub known: SystemTime,
    /// Time at which its end was first observed.
    pub ended: Option<SystemTime>,
    /// Time at which it was first missing.
    pub gone: Option<SystemTime>,
}

/// Owner of an address, by UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned<'a> {
    /// This pod, if any: no other known pod can have held the address, and this one held it at or near that time.
    By(&'a str),
    /// One of several pods.
    Contested,
    /// No known pod.
    ByNobody,
}

/// Time range in which a pod held an address. Invariant: `begins.0 <= begins.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range<'a> {
    pod: &'a str,
    /// Earliest and latest beginning.
    begins: (SystemTime, SystemTime),
    /// Earliest end, if known, and latest end; `None` if it may continue.
    ends: (Option<SystemTime>, Option<SystemTime>),
}

impl Ownership {
    /// Records that a pod has its addresses at `now`, and no others.
    ///
    /// A pod in its node's network has no addresses of its own. A pod whose object lists none keeps its earlier ones.
    /// Events may be late or repeated: `now` is an upper bound of their time.
    ///
    /// Returns whether it is the earliest event, so that the answers for all addresses may change.
    ///
    /// Invariants: a repeated event changes nothing; at most 64 pods are kept for one address.
    pub fn observe(&mut self, pod: &Pod, now: SystemTime) -> bool {
        let is_earliest = self.since.is_none_or(|since| now < since);
        if is_earliest {
            self.since = Some(now);
        }
        if pod.host_network || pod.ips.is_empty() {
            return is_earliest;
        }
        let addresses = self.addresses.entry(pod.uid.clone()).or_default();
        let former: Vec<IpAddr> = addresses.iter().filter(|ip| !pod.ips.contains(ip)).copied().collect();
        addresses.extend(pod.ips.iter().filter(|ip| !addresses.contains(ip)).copied().collect::<Vec<_>>());
        for ip in &pod.ips {
            let claims = self.claims.entry(*ip).or_default();
            let claim = if let Some(at) = claims.iter().position(|claim| claim.pod == pod.uid) {
                &mut claims[at]
            } else {
                if claims.len() == MAX_CLAIMS
                    && let Some((oldest, _)) = claims.iter().enumerate().min_by_key(|(_, claim)| claim.known)
                {
                    claims.remove(oldest);
                }
                claims.push(Claim::new(pod, now));
                let last = claims.len() - 1;
                &mut claims[last]
            };
            claim.observe(pod, now);
        }
        self.release(&pod.uid, &former, now);
        is_earliest
    }

    /// Records that a pod, by UID, was gone at `now` at the latest.
    ///
    /// Invariant: the earliest such event counts.
    pub fn remove(&mut self, pod: &str, now: SystemTime) {
        let addresses = self.addresses.get(pod).cloned().unwrap_or_default();
        self.release(pod, &addresses, now);
    }

    /// Returns the times at which a pod, by UID, was observed; `None` if it never had an address.
    #[must_use]
    pub fn observed(&self, pod: &str) -> Option<ObservedTimes> {
        let addresses = self.addresses.get(pod)?.iter();
        let claims = addresses.filter_map(|ip| self.claims.get(ip)?.iter().find(|claim| claim.pod == pod));
        let times = claims.map(|claim| ObservedTimes { known: claim.known, ended: claim.ended, gone: claim.gone });
        times.reduce(|one, other| ObservedTimes {
            known: one.known.min(other.known),
            ended: [one.ended, other.ended].into_iter().flatten().min(),
            gone: one.gone.max(other.gone),
        })
    }

    /// Adds the ranges of a pod that is gone at `now` at the latest, as they were recorded.
    ///
    /// Invariant: ranges of other pods do not change, except by the bound of [`MAX_CLAIMS`].
    pub fn restore(&mut self, pod: &Pod, observed: ObservedTimes, now: SystemTime) {
        let since = self.since;
        self.observe(pod, observed.known);
        for ip in &pod.ips {
            let claims = self.claims.get_mut(ip).into_iter().flatten();
            for claim in claims.filter(|claim| claim.pod == pod.uid) {
                (claim.ended, claim.gone) = (observed.ended, Some(observed.gone.map_or(now, |gone| gone.min(now))));
            }
        }
        // Other pods of that time remain unknown.
        self.since = since;
    }

    fn release(&mut self, pod: &str, addresses: &[IpAddr], now: SystemTime) {
        for ip in addresses {
            let claims = self.claims.get_mut(ip).into_iter().flatten();
            for claim in claims.filter(|claim| claim.pod == pod) {
                claim.gone = Some(claim.gone.map_or(now, |gone| gone.min(now)));
            }
        }
    }

    /// Removes a pod, by UID, with all of its history.
    ///
    /// Invariant: it is afterwards the owner of no address.
    pub fn forget(&mut self, pod: &str) {
        for ip in self.addresses.remove(pod).unwrap_or_default() {
            if let Some(claims) = self.claims.get_mut(&ip) {
                claims.retain(|claim| claim.pod != pod);
                if claims.is_empty() {
                    self.claims.remove(&ip);
                }
            }
        }
    }

    /// Returns the addresses that a pod has or had, by its UID.
    pub(crate) fn addresses_of(&self, pod: &str) -> &[IpAddr] {
        self.addresses.get(pod).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the addresses of all pods that are or were on these nodes.
    pub(crate) fn addresses_on(&self, is_node: impl Fn(&str) -> bool) -> impl Iterator<Item = IpAddr> {
        let claims = self.claims.iter();
        claims.filter(move |(_, claims)| claims.iter().any(|claim| is_node(&claim.node))).map(|(ip, _)| *ip)
    }

    /// Returns the UIDs of all pods that are known to have held an address.
    pub(crate) fn holders(&self, ip: IpAddr) -> impl Iterator<Item = &str> {
        self.claims.get(&ip).into_iter().flatten().map(|claim| claim.pod.as_str())
    }

    /// Returns the first moment after `now` at which [`Self::owner`] may change for the present, or for a time that ends
    /// with it, without a further event. A pod does not own an address that is used for too long after its end.
    pub(crate) fn next_change(
        &self,
        ip: IpAddr,
        now: SystemTime,
        clock: impl Fn(&str) -> NodeClock,
    ) -> Option<SystemTime> {
        let ends = self.ranges(ip, clock).into_iter().filter_map(|range| range.ends.1);
        let changes = ends.flat_map(|end| [INEXACT, MARGIN].map(|late| end + late + Duration::from_nanos(1)));
        changes.filter(|change| *change > now).min()
    }

    /// Returns whether any pod is known to have held the address, at any time.
    ///
    /// Invariant: if not, [`Self::owner`] is [`Owned::ByNobody`].
    #[must_use]
    pub fn knows(&self, ip: IpAddr) -> bool {
        self.claims.contains_key(&ip)
    }

    /// Returns the owner of the address between `since` and `until`, both included. `clock` returns a node's clock
    /// estimate. The result names a pod only if no other known pod can have held the address then.
    #[must_use]
    pub fn owner(
        &self,
        ip: IpAddr,
        since: SystemTime,
        until: SystemTime,
        clock: impl Fn(&str) -> NodeClock,
    ) -> Owned<'_> {
        let ranges = self.ranges(ip, clock);
        let mut possible = ranges.iter().filter(|range| range.can_overlap(since, until));
        let Some(range) = possible.next() else { return Owned::ByNobody };
        if possible.next().is_some() {
            Owned::Contested
        } else if self.is_near(range, since, until) {
            Owned::By(range.pod)
        } else {
            Owned::ByNobody
        }
    }

    /// Returns the pods that can have held the address at any time between `since` and `until`, in the order of their
    /// times.
    ///
    /// Invariant: the result of [`Self::owner`] is among them; with several, it is [`Owned::Contested`].
    #[must_use]
    pub fn possible(
        &self,
        ip: IpAddr,
        since: SystemTime,
        until: SystemTime,
        clock: impl Fn(&str) -> NodeClock,
    ) -> Vec<&str> {
        let ranges = self.ranges(ip, clock);
        ranges.iter().filter(|range| range.can_overlap(since, until)).map(|range| range.pod).collect()
    }

    /// Returns the time range in which a pod, by UID, can have held the address; the end is `None` while it is open.
    ///
    /// Invariant: the beginning is not after the end.
    #[must_use]
    pub fn time_of(
        &self,
        pod: &str,
        ip: IpAddr,
        clock: impl Fn(&str) -> NodeClock,
    ) -> Option<(SystemTime, Option<SystemTime>)> {
        let range = self.ranges(ip, clock).into_iter().find(|range| range.pod == pod)?;
        Some((range.begins.0, range.ends.1))
    }

    fn is_near(&self, range: &Range<'_>, since: SystemTime, until: SystemTime) -> bool {
        let before = range.begins.0.duration_since(since).unwrap_or_default();
        let after = range.ends.1.map_or(Duration::ZERO, |end| until.duration_since(end).unwrap_or_default());
        // A pod may have held it before the first pod became known.
        let margin_before = if self.since.is_some_and(|known| since < known) { INEXACT } else { MARGIN };
        before <= margin_before && after <= MARGIN
    }

    /// Returns the ranges of all pods by their beginnings. Each ends at the latest with the beginning of a later pod.
    fn ranges(&self, ip: IpAddr, clock: impl Fn(&str) -> NodeClock) -> Vec<Range<'_>> {
        let claims = self.claims.get(&ip).into_iter().flatten();
        let mut ranges: Vec<Range<'_>> = claims.map(|claim| claim.range(&clock(&claim.node))).collect();
        ranges.sort_unstable_by(|a, b| (a.begins.1, a.begins.0, a.pod).cmp(&(b.begins.1, b.begins.0, b.pod)));
        for at in 1..ranges.len() {
            let (before, after) = ranges.split_at_mut(at);
            for range in before {
                range.may_be_followed_by(&mut after[0]);
            }
        }
        ranges
    }
}

impl Claim {
    fn new(pod: &Pod, now: SystemTime) -> Self {
        Self { pod: pod.uid.clone(), node: pod.node.clone(), life: pod.life, known: now, ended: None, gone: None }
    }

    fn observe(&mut self, pod: &Pod, now: SystemTime) {
        self.known = self.known.min(now);
        self.node.clone_from(&pod.node);
        self.life = PodLifetime {
            created: pod.life.created.or(self.life.created),
            started: pod.life.started.or(self.life.started),
            // A later version of the object may lack the container that ran first.
            ran: [pod.life.ran, self.life.ran].into_iter().flatten().min(),
            deleted: pod.life.deleted.or(self.life.deleted),
            finished: pod.life.finished,
        };
        if pod.ended {
            self.ended = Some(self.ended.map_or(now, |ended| ended.min(now)));
        }
        self.gone = None;
    }

    fn range(&self, clock: &NodeClock) -> Range<'_> {
        let PodLifetime { created, started, ran, deleted, finished } = self.life;
        let of_node = |time: SystemTime| clock.to_operator(time);
        let latest = ran.map_or(self.known, |ran| self.known.min(of_node(ran) + CUT));
        let earliest = started.map(of_node).or(created).unwrap_or(self.known).min(latest);
        // Finished containers are restarted unless the pod is over.
        let over = [self.ended, self.gone].into_iter().flatten().min();
        let ends = match (over, finished, self.ended, self.gone) {
            (Some(_), Some(finished), ..) => (Some(of_node(finished)), Some(of_node(finished) + CUT)),
            (_, _, Some(ended), _) => (None, Some(ended)),
            (_, _, None, Some(gone)) => (deleted, Some(gone + LINGER)),
            _ => (deleted, None),
        };
        // The end is not before the beginning.
        let latest = ends.1.map_or(latest, |end| latest.min(end));
        Range { pod: &self.pod, begins: (earliest.min(latest), latest), ends }
    }
}

impl Range<'_> {
    /// Bounds both ranges by each other if this pod certainly came first: its end is not after the other's beginning.
    fn may_be_followed_by(&mut self, next: &mut Self) {
        if self.begins.1 > next.begins.0 {
            return;
        }
        let end = self.ends.1.map_or(next.begins.1, |end| end.min(next.begins.1));
        self.ends = (self.ends.0.map(|earliest| earliest.min(end)), Some(end));
        if let Some(end) = self.ends.0 {
            next.begins.0 = next.begins.0.max(end).min(next.begins.1);
        }
    }

    /// Returns whether this pod can have held it at some time between the two.
    fn can_overlap(&self, since: SystemTime, until: SystemTime) -> bool {
        let ends_before = self.ends.1.is_some_and(|end| end + INEXACT < since);
        !ends_before && self.begins.0 <= until + INEXACT
    }
}
