//! Open connections that one epoch counted in a folded row and the next one in rows of their own, or the other way around.

use super::Account;
use crate::{count, flow::FlowCounters};

/// Connections that were open when an epoch ended, and their payload and retransmissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ledger) struct OpenShare {
    pub(in crate::ledger) connections: u64,
    bytes_sent: u64,
    bytes_received: u64,
    retransmits: u64,
}

impl OpenShare {
    fn with(&self, other: &Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            connections: combine(self.connections, other.connections),
            bytes_sent: combine(self.bytes_sent, other.bytes_sent),
            bytes_received: combine(self.bytes_received, other.bytes_received),
            retransmits: combine(self.retransmits, other.retransmits),
        }
    }

    /// Returns both together.
    pub(in crate::ledger) fn plus(&self, other: &Self) -> Self {
        self.with(other, count::add)
    }

    /// Returns this one without the other.
    pub(in crate::ledger) fn minus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    /// Returns the preexisting part of counters.
    pub(in crate::ledger) fn preexisting(counters: &FlowCounters) -> Self {
        Self {
            connections: counters.preexisting,
            bytes_sent: counters.preexisting_bytes_sent,
            bytes_received: counters.preexisting_bytes_received,
            retransmits: counters.preexisting_retransmits,
        }
    }
}

impl Account {
    /// Returns what was open at the end of the last epoch and is not among the preexisting connections of this one.
    pub(in crate::ledger) fn unclaimed(&self) -> OpenShare {
        if self.over {
            return OpenShare::default();
        }
        self.open_before().minus(&OpenShare::preexisting(&self.current()))
    }

    /// Returns what was open at the end of the last epoch.
    pub(in crate::ledger) fn open_before(&self) -> OpenShare {
        let base = self.base();
        OpenShare {
            connections: base.totals.active,
            bytes_sent: base.open_bytes_sent,
            bytes_received: base.open_bytes_received,
            retransmits: base.open_retransmits,
        }
    }

    /// Takes what is needed out of this account, as far as it is unclaimed. `opened` and the bytes stay as they are.
    pub(in crate::ledger) fn give_open(&mut self, needed: &OpenShare) -> OpenShare {
        let given = self.unclaimed().with(needed, Ord::min);
        self.set_open_before(&self.open_before().minus(&given));
        given
    }

    /// Adds connections that another account has counted: as preexisting ones they do not count again.
    pub(in crate::ledger) fn receive_open(&mut self, share: &OpenShare) {
        self.set_open_before(&self.open_before().plus(share));
    }

    fn set_open_before(&mut self, open: &OpenShare) {
        if *open == self.open_before() {
            return;
        }
        let base = self.base.get_or_insert_default();
        base.totals.active = open.connections;
        base.open_bytes_sent = open.bytes_sent;
        base.open_bytes_received = open.bytes_received;
        base.open_retransmits = open.retransmits;
    }
}
