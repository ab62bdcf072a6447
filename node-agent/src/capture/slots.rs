//! Which flow each of the kernel's slots is lent to, and what it has counted since it was read last.
//!
//! A slot's counters only grow. It comes back in three steps, so that no count is lost or given to the wrong flow: its
//! key is deleted from the kernel's index; after a grace period, in which programs that had found the slot before
//! finish, it is read for the last time; then the kernel may lend it again.

use std::time::{Duration, Instant};

use node_agent_common::{FlowKey, FlowStats};

/// How long a program may still use a slot that it has found before the slot's key was deleted. Programs take
/// microseconds; this is long enough for one that was preempted on a crowded machine.
const GRACE: Duration = Duration::from_secs(5);

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
    lent: Vec<Option<Slot>>,
    /// The counters of slots that are not lent, where not zero.
    base: Vec<FlowStats>,
    used: u32,
}

impl Slots {
    /// The kernel has lent this slot to this flow.
    pub(super) fn assign(&mut self, slot: u32, key: FlowKey, now: Instant) {
        let index = slot as usize;
        if self.lent.len() <= index {
            self.lent.resize_with(index + 1, || None);
            self.base.resize(index + 1, FlowStats::default());
        }
        if self.lent[index].is_none() {
            self.used += 1;
            self.lent[index] = Some(Slot { key: Some(key), last: self.base[index], changed_at: now, deleted_at: None });
        }
    }

    /// Whether it is known whom this slot is lent to.
    pub(super) fn is_known(&self, slot: u32) -> bool {
        self.lent.get(slot as usize).is_some_and(Option::is_some)
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// What each flow's slot has counted since the last call, where it has counted anything.
    pub(super) fn collect(
        &mut self,
        read: impl Fn(u32) -> FlowStats,
        now: Instant,
        mut take: impl FnMut(FlowKey, &FlowStats),
    ) {
        for (index, slot) in (0_u32..).zip(&mut self.lent) {
            let Some(slot) = slot else { continue };
            let current = read(index);
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
            .zip(&self.lent)
            .filter_map(|(index, slot)| {
                let slot = slot.as_ref()?;
                let idle = slot.deleted_at.is_none() && now.saturating_duration_since(slot.changed_at) >= least;
                idle.then_some((index, slot.key?))
            })
            .collect()
    }

    /// The flow's key has been deleted from the kernel's index.
    pub(super) fn deleted(&mut self, slot: u32, now: Instant) {
        if let Some(Some(slot)) = self.lent.get_mut(slot as usize) {
            slot.deleted_at = Some(now);
        }
    }

    /// Nobody's from now on, and its key has been deleted: what it has counted and will count is left out.
    pub(super) fn disown(&mut self, slot: u32, now: Instant) {
        if let Some(Some(slot)) = self.lent.get_mut(slot as usize) {
            slot.key = None;
            slot.deleted_at = Some(now);
        }
    }

    /// Slots that the kernel may lend again. To be called right after [`Slots::collect`].
    pub(super) fn release(&mut self, now: Instant) -> Vec<u32> {
        let mut released = Vec::new();
        for (index, place) in (0_u32..).zip(&mut self.lent) {
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
        unseen: current.unseen.wrapping_sub(last.unseen),
        retransmits: current.retransmits.wrapping_sub(last.retransmits),
        rtt: std::array::from_fn(|bucket| current.rtt[bucket].wrapping_sub(last.rtt[bucket])),
        inferred: current.inferred.wrapping_sub(last.inferred),
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use node_agent_common::Role;

    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey::new(1, 1, Role::Client, port, [1; 16], [2; 16])
    }

    fn opened(opened: u32) -> FlowStats {
        FlowStats { opened, ..FlowStats::default() }
    }

    fn collected(slots: &mut Slots, kernel: &[u32], now: Instant) -> Vec<(FlowKey, u32)> {
        let mut found = Vec::new();
        slots.collect(|slot| opened(kernel[slot as usize]), now, |key, since| found.push((key, since.opened)));
        found
    }

    #[test]
    fn what_was_counted_belongs_to_the_flow_that_the_slot_was_lent_to() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        slots.assign(1, key(80), start);
        assert_eq!(collected(&mut slots, &[9, 5], start), [(key(80), 5)]);
        assert_eq!(collected(&mut slots, &[9, 5], start), []);

        slots.deleted(1, start);
        // A program that had found the slot before its key was deleted counts late: still the first flow's.
        assert_eq!(collected(&mut slots, &[9, 6], start + GRACE), [(key(80), 1)]);
        assert_eq!(slots.release(start + GRACE), [1]);
        assert_eq!(slots.used(), 0);

        // Lent again, with its counters as they are.
        slots.assign(1, key(443), start + GRACE);
        assert_eq!(collected(&mut slots, &[9, 6], start + GRACE), []);
        assert_eq!(collected(&mut slots, &[9, 8], start + GRACE), [(key(443), 2)]);
    }

    #[test]
    fn a_slot_is_not_lent_again_before_its_grace_is_over() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        slots.assign(0, key(80), start);
        slots.deleted(0, start);
        assert_eq!(slots.release(start + GRACE / 2), Vec::<u32>::new());
        // The flow came back meanwhile, with another slot: both are its own.
        slots.assign(1, key(80), start);
        assert_eq!(collected(&mut slots, &[1, 2], start), [(key(80), 1), (key(80), 2)]);
        assert_eq!(slots.release(start + GRACE), [0]);
    }

    #[test]
    fn only_silent_slots_are_idle() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        let later = start + Duration::from_mins(1);
        for slot in 0..3 {
            slots.assign(slot, key(80 + u16::try_from(slot).unwrap()), start);
        }
        collected(&mut slots, &[1, 0, 0], later);
        slots.deleted(2, later);
        assert_eq!(slots.idle(Duration::from_secs(30), later), [(1, key(81))]);
    }

    #[test]
    fn counters_that_begin_again_go_on() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        slots.assign(0, key(80), start);
        let all = u64::from(u32::MAX);
        assert_eq!(collected(&mut slots, &[u32::MAX], start).first().map(|it| u64::from(it.1)), Some(all));
        assert_eq!(collected(&mut slots, &[4], start), [(key(80), 5)]);
    }

    #[test]
    fn a_disowned_slot_counts_for_nobody() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        slots.assign(0, key(80), start);
        slots.disown(0, start);
        assert_eq!(collected(&mut slots, &[4], start), []);
        assert_eq!(slots.release(start + GRACE), [0]);
    }
}
