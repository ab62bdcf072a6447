//! Accounts of an ended epoch. Its agent may still run, and continue to count under a new epoch.

use super::{Account, Base, FlowTotals};
use crate::{ledger::Epoch, nat_peer::NatPeers, packed::PackedCounters};

/// Counts of a flow by the last epoch of an origin, at the time at which an epoch of another origin began.
#[derive(Clone, Debug)]
pub(super) struct Displaced {
    origin: Epoch,
    base: Option<Box<Base>>,
    current: PackedCounters,
    over: bool,
    nat_peers: NatPeers,
    /// The same of one other origin.
    earlier: Option<Box<Self>>,
}

impl Displaced {
    /// Returns the latest counts of another origin, without those before it.
    fn of_other_origin(mut self: Box<Self>, origin: Epoch) -> Option<Box<Self>> {
        let earlier = self.earlier.take();
        if self.origin == origin { earlier } else { Some(self) }
    }
}

impl Account {
    /// Stores the counts of this origin's epoch, since an epoch of another origin begins.
    pub(in crate::ledger) fn displace(&mut self, origin: Epoch) {
        if self.reported {
            let earlier = self.displaced.take().and_then(|displaced| displaced.of_other_origin(origin));
            self.displaced = Some(Box::new(Displaced {
                origin,
                base: self.base.clone(),
                current: self.current.clone(),
                over: self.over,
                nat_peers: self.nat_peers.clone(),
                earlier,
            }));
        }
        self.roll_over();
    }

    pub(in crate::ledger) fn forget_displaced(&mut self) {
        self.displaced = None;
    }

    /// Restores the counts of this origin's epochs, since their counters continue. If they are not stored, the account
    /// starts from zero: the agent reports all of them again.
    pub(super) fn restore(&mut self, origin: Epoch) {
        let mut kept = self.displaced.take();
        if kept.as_ref().is_some_and(|kept| kept.origin != origin) {
            let earlier = kept.as_mut().and_then(|kept| kept.earlier.take());
            self.displaced = kept;
            kept = earlier.filter(|earlier| earlier.origin == origin);
        }
        let Some(mut kept) = kept else {
            (self.base, self.current) = (None, PackedCounters::default());
            self.nat_peers.resume(&NatPeers::default());
            return;
        };
        if let Some(earlier) = kept.earlier.take() {
            self.displaced = Some(earlier);
        }
        (self.base, self.current, self.over) = (kept.base, kept.current, kept.over);
        self.reported = true;
        self.nat_peers.resume(&kept.nat_peers);
    }

    /// Raises the counts of earlier epochs, so that no total is less than in `shown`.
    pub(super) fn raise(&mut self, shown: &FlowTotals) {
        let now = self.totals();
        let base = &mut self.base.get_or_insert_default().totals;
        for (count, now, shown) in [
            (&mut base.opened, now.opened, shown.opened),
            (&mut base.failed, now.failed, shown.failed),
            (&mut base.bytes_sent, now.bytes_sent, shown.bytes_sent),
            (&mut base.bytes_received, now.bytes_received, shown.bytes_received),
            (&mut base.inferred, now.inferred, shown.inferred),
            (&mut base.without_bytes, now.without_bytes, shown.without_bytes),
        ] {
            *count = count.saturating_add(shown.saturating_sub(now));
        }
        if let Some(shown) = shown.retransmits {
            let count = base.retransmits.get_or_insert(0);
            *count = count.saturating_add(shown.saturating_sub(now.retransmits.unwrap_or_default()));
        }
        base.methods = base.methods.union(shown.methods);
    }
}
