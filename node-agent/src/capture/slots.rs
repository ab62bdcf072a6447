//! Which flow each of the kernel's slots is lent to, and what it has counted since it was read last.
//!
//! A slot's counters only grow. It comes back in three steps, so that no count is lost or given to the wrong flow: its
//! key is deleted from the kernel's index; after a grace period, in which programs that had found the slot before
//! finish, it is read for the last time; then the kernel may lend it again.

use std::time::{Duration, Instant};

use node_agent_common::{FlowKey, FlowStats};

use super::counters::Counters;

/// How long a program may still use a slot that it has found before the slot's key was deleted. Programs take
/// microseconds; this is long enough for one that was preempted on a crowded machine.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Slot {
    /// `None` for a slot whose counts are nobody's: the self-test's.
    key: Option<FlowKey>,
    last: FlowStats,
    changed_at: Instant,
    deleted_at: Option<Instant>,
}

/// All slots that are or have been in use.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Option<Slot>>,
    /// The counters of slots that are not lent, where not zero.
    base: Vec<FlowStats>,
    used: u32,
}

impl Slots {
    /// The kernel has lent this slot to this flow.
    pub(super) fn assign(&mut self, slot: u32, key: FlowKey, now: Instant) {
        let index = slot as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
            self.base.resize(index + 1, FlowStats::default());
        }
        if self.slots[index].is_none() {
            self.used += 1;
            self.slots[index] =
                Some(Slot { key: Some(key), last: self.base[index], changed_at: now, deleted_at: None });
        }
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// What each flow's slot has counted since the last call, where it has counted anything.
    pub(super) fn collect(&mut self, counters: &Counters, now: Instant, mut take: impl FnMut(FlowKey, &FlowStats)) {
        for (index, slot) in (0_u32..).zip(&mut self.slots) {
            let Some(slot) = slot else { continue };
            let current = counters.read(index);
            if current == slot.last {
                continue;
            }
            let since = difference(&current, &slot.last);
            slot.last = current;
            slot.changed_at = now;
            if let Some(key) = slot.key {
                take(key, &since);
            }
        }
    }

    /// Flows that could give back their slot, having counted nothing for so long.
    pub(super) fn idle(&self, least: Duration, now: Instant) -> Vec<(u32, FlowKey)> {
        (0_u32..)
            .zip(&self.slots)
            .filter_map(|(index, slot)| {
                let slot = slot.as_ref()?;
                let idle = slot.deleted_at.is_none() && now.saturating_duration_since(slot.changed_at) >= least;
                idle.then_some((index, slot.key?))
            })
            .collect()
    }

    /// The flow's key has been deleted from the kernel's index.
    pub(super) fn deleted(&mut self, slot: u32, now: Instant) {
        if let Some(Some(slot)) = self.slots.get_mut(slot as usize) {
            slot.deleted_at = Some(now);
        }
    }

    /// Nobody's from now on, and its key has been deleted: what it has counted and will count is left out.
    pub(super) fn disown(&mut self, slot: u32, now: Instant) {
        if let Some(Some(slot)) = self.slots.get_mut(slot as usize) {
            slot.key = None;
            slot.deleted_at = Some(now);
        }
    }

    /// Slots that the kernel may lend again. To be called right after [`Slots::collect`].
    pub(super) fn release(&mut self, now: Instant) -> Vec<u32> {
        let mut released = Vec::new();
        for (index, place) in (0_u32..).zip(&mut self.slots) {
            let over = |slot: &Slot| slot.deleted_at.is_some_and(|at| now.saturating_duration_since(at) >= GRACE);
            if let Some(slot) = place.take_if(|slot| over(slot)) {
                self.base[index as usize] = slot.last;
                self.used -= 1;
                released.push(index);
            }
        }
        released
    }
}

fn difference(current: &FlowStats, last: &FlowStats) -> FlowStats {
    FlowStats {
        opened: current.opened.wrapping_sub(last.opened),
        closed: current.closed.wrapping_sub(last.closed),
        failed: current.failed.wrapping_sub(last.failed),
        sent: current.sent.wrapping_sub(last.sent),
        received: current.received.wrapping_sub(last.received),
        older: current.older.wrapping_sub(last.older),
    }
}
