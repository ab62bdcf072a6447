//! Account of one flow: the counts of earlier epochs and the report of the current one.

mod displaced;
pub(super) mod open_share;
pub(super) mod recent_bytes;

use std::time::{Duration, SystemTime};

use self::{displaced::Displaced, recent_bytes::RecentBytes};
use super::{Epoch, QUIET};
use crate::{
    count,
    flow::{FlowCounters, FlowTotals, Methods},
    history::{Counted, History},
    nat_peer::NatPeers,
    packed::PackedCounters,
    rtt::RttHistogram,
    sighting::Sighting,
};

/// Account of one flow. `base` has the counts of earlier epochs, if there are any, `current` those of this one.
#[derive(Clone, Debug)]
pub(super) struct Account {
    base: Option<Box<Base>>,
    current: PackedCounters,
    shape: Shape,
    /// True if this epoch has reported the flow.
    pub(super) reported: bool,
    /// True if the agent no longer has the flow.
    pub(super) over: bool,
    pub(super) first_seen: SystemTime,
    pub(super) changed: SystemTime,
    pub(super) remote_names: Vec<String>,
    pub(super) nat_peers: NatPeers,
    pub(super) reported_at: SystemTime,
    /// Upper bound of the time of the last failed attempt; `None` if none was reported.
    pub(super) last_failed: Option<SystemTime>,
    /// Time up to which changes were reported.
    pub(super) told: SystemTime,
    pub(super) history: History,
    pub(super) recent_bytes: RecentBytes,
    /// Number of attempts in this epoch's counters that were pending and are not any more.
    pub(super) pending_ended: u32,
    /// Counts of epochs of other origins, whose counters may resume.
    displaced: Option<Box<Displaced>>,
}

/// Properties of this epoch's counters, apart from how much they have counted. Reading the counters takes longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    run: u64,
    methods: Methods,
    has_opened: bool,
    has_failed: bool,
    has_pending: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Base {
    totals: FlowTotals,
    open_bytes_sent: u64,
    open_bytes_received: u64,
    open_retransmits: u64,
    /// Connections that were open at the end of the last epoch and whose bytes were unknown.
    open_without_bytes: u64,
}

impl Account {
    pub(super) fn new(sighting: &Sighting) -> Self {
        Self {
            base: None,
            current: PackedCounters::default(),
            shape: Shape::default(),
            reported: false,
            over: false,
            remote_names: Vec::new(),
            nat_peers: NatPeers::default(),
            first_seen: sighting.first(),
            changed: sighting.changed(),
            reported_at: sighting.received(),
            last_failed: None,
            told: SystemTime::UNIX_EPOCH,
            history: History::default(),
            recent_bytes: RecentBytes::default(),
            pending_ended: 0,
            displaced: None,
        }
    }

    pub(super) fn totals(&self) -> FlowTotals {
        self.totals_after(&self.base())
    }

    /// Returns this epoch's counters.
    fn current(&self) -> FlowCounters {
        (&self.current).into()
    }

    fn base(&self) -> Base {
        self.base.as_deref().copied().unwrap_or_default()
    }

    /// Returns the totals: this epoch's counts on top of the counts before it.
    pub(super) fn totals_after(&self, base: &Base) -> FlowTotals {
        let current = self.current();
        let active = self.active_after(&current, base);
        FlowTotals {
            opened: count::add(
                count::add(base.totals.opened, current.opened),
                current.preexisting.saturating_sub(base.totals.active),
            ),
            active,
            failed: count::add(base.totals.failed, current.failed),
            pending: self.pending_of(&current),
            bytes_sent: continued(
                base.totals.bytes_sent,
                base.open_bytes_sent,
                current.bytes_sent,
                current.preexisting_bytes_sent,
            ),
            bytes_received: continued(
                base.totals.bytes_received,
                base.open_bytes_received,
                current.bytes_received,
                current.preexisting_bytes_received,
            ),
            methods: base.totals.methods.union(current.methods),
            inferred: count::add(base.totals.inferred, current.inferred),
            without_bytes: {
                // Bytes count from a connection's start: an epoch with all of them also has those unknown before.
                let unknown = count::add(current.without_bytes, current.open_without_bytes);
                let seen_whole = current.preexisting.saturating_sub(unknown);
                let left = base.totals.without_bytes.saturating_sub(seen_whole.min(base.open_without_bytes));
                count::add(left, unknown)
            },
            retransmits: base.totals.retransmits.or(current.retransmits).map(|_| {
                continued(
                    base.totals.retransmits.unwrap_or_default(),
                    base.open_retransmits,
                    current.retransmits.unwrap_or_default(),
                    current.preexisting_retransmits,
                )
            }),
            rtt: if current.rtt == RttHistogram::default() { base.totals.rtt } else { current.rtt },
        }
        .bounded()
    }

    /// Returns the number of open connections, those that an earlier epoch has counted in another row included.
    fn active_after(&self, current: &FlowCounters, base: &Base) -> u64 {
        match (self.over, self.reported) {
            (true, _) => 0,
            (false, true) => current.active(),
            (false, false) => base.totals.active,
        }
    }

    /// Returns the number of pending attempts: those of an earlier epoch have ended with it.
    fn pending_of(&self, current: &FlowCounters) -> u64 {
        if self.over || !self.reported { 0 } else { current.pending() }
    }

    /// Returns whether the flow has pending attempts.
    pub(super) fn has_pending(&self) -> bool {
        self.shape.has_pending && self.reported && !self.over
    }

    /// Returns whether nothing but the counts of one run has grown since an earlier state, which had connections. A flow that
    /// was quiet for long, one whose attempts begin to fail, and one whose first attempt becomes pending or last one ends are
    /// more than that.
    pub(super) fn has_only_counted_since(&self, earlier: &Self) -> bool {
        let goes_on = self.reported && earlier.reported && !self.over && !earlier.over;
        goes_on
            && earlier.shape.has_opened
            && self.shape == earlier.shape
            && self.base == earlier.base
            && self.displaced.is_none()
            && earlier.displaced.is_none()
            && self.remote_names == earlier.remote_names
            && self.nat_peers.have_same_ends(&earlier.nat_peers)
            && self.changed.duration_since(earlier.changed).unwrap_or_default() < QUIET
    }

    /// Returns whether the agent reports all of it: [`Self::anew`] is [`Self::totals`] then.
    pub(super) fn is_all_reported(&self) -> bool {
        self.base.is_none() && self.reported && !self.over
    }

    /// Returns what the agent would report to an operator without any state. Unreported counts of this epoch are at
    /// least what was open when the last one ended.
    pub(super) fn anew(&self) -> FlowTotals {
        let base = self.base();
        match (self.over, self.reported) {
            (true, _) => FlowTotals::default(),
            (false, true) => self.totals_after(&Base::default()),
            (false, false) => FlowTotals {
                opened: base.totals.active,
                active: base.totals.active,
                failed: 0,
                bytes_sent: base.open_bytes_sent,
                bytes_received: base.open_bytes_received,
                retransmits: base.totals.retransmits.map(|_| base.open_retransmits),
                ..FlowTotals { failed: 0, ..base.totals }
            }
            .bounded(),
        }
    }

    /// Makes the totals the base of counters that start from zero.
    pub(super) fn roll_over(&mut self) {
        let (base, counters) = (self.base(), self.current());
        let totals = FlowTotals { active: self.active_after(&counters, &base), pending: 0, ..self.totals() };
        let open = |base: u64, current: u64| match (self.over, self.reported) {
            (true, _) => 0,
            // If this epoch did not have the bytes of all open connections, the greater number stays: totals may then
            // fall short of the truth, but never exceed it.
            (false, true) if counters.without_bytes.max(counters.open_without_bytes) > 0 => current.max(base),
            (false, true) => current,
            (false, false) => base,
        };
        self.base = Some(Box::new(Base {
            totals,
            open_bytes_sent: open(base.open_bytes_sent, counters.open_bytes_sent),
            open_bytes_received: open(base.open_bytes_received, counters.open_bytes_received),
            open_retransmits: open(base.open_retransmits, counters.open_retransmits),
            open_without_bytes: totals.without_bytes.min(totals.active),
        }));
        self.current = PackedCounters::default();
        self.reported = false;
        self.nat_peers.begin_anew();
    }

    /// Returns whether the ledger may drop the account.
    pub(super) fn is_retirable(&self, now: SystemTime, retention: Duration) -> bool {
        self.over && self.displaced.is_none() && now.duration_since(self.changed).unwrap_or_default() >= retention
    }

    /// Applies reported counters. `resumed` is the origin of an epoch that continues earlier ones. Returns whether the
    /// totals changed.
    pub(super) fn apply(&mut self, counters: &FlowCounters, sighting: &Sighting, resumed: Option<Epoch>) -> bool {
        if self.reported && counters.run < self.current().run {
            return false;
        }
        let before = self.totals();
        let resumed = resumed.filter(|_| !self.reported);
        if let Some(origin) = resumed {
            self.restore(origin);
        }
        if self.reported && counters.run > self.current().run {
            // The agent had evicted the flow without open connections; its new counters started from zero.
            self.over = true;
            self.roll_over();
        }
        self.over = false;
        let mut current = self.current();
        current.merge(&counters.bounded());
        self.current = (&current).into();
        self.reported = true;
        if resumed.is_some() {
            self.raise(&before);
        }
        let after = self.totals();
        self.shape = Shape {
            run: current.run,
            methods: current.methods,
            has_opened: after.opened > 0,
            has_failed: after.failed > 0,
            has_pending: after.pending > 0,
        };
        self.pending_ended = u32::try_from(current.pending_ended).unwrap_or(u32::MAX);
        let changed = after != before;
        if changed {
            self.recent_bytes.note(self.changed, [before.bytes_sent, before.bytes_received]);
            self.changed = self.changed.max(sighting.changed());
            let since = sighting.news().max(self.told);
            self.history.add(since, sighting.changed(), &Counted::between(&before, &after));
        }
        if after.failed > before.failed {
            self.last_failed = self.last_failed.max(Some(sighting.changed()));
        }
        self.first_seen = self.first_seen.min(sighting.first());
        self.told = self.told.max(sighting.changed());
        changed
    }

    pub(super) fn end(&mut self, now: SystemTime) -> bool {
        let totals = self.totals();
        let goes_on = totals.active > 0 || totals.pending > 0;
        self.over = true;
        if goes_on {
            self.changed = self.changed.max(now);
        }
        goes_on
    }
}

/// Returns `base` (of which `open` belonged to connections open at its end) continued by an epoch's count.
fn continued(base: u64, open: u64, current: u64, preexisting: u64) -> u64 {
    count::add(count::add(base, current.saturating_sub(preexisting)), preexisting.saturating_sub(open))
}
