//! Assignment of the kernel's slots to flows, and their counts since the last reading.
//!
//! A slot's counters only grow. A slot is released in three steps, so that no count is lost or assigned to the wrong
//! flow. Its key is deleted from the kernel's index. After a grace period, in which programs that found the slot before
//! finish, it is read for the last time. Then the kernel may assign it again.

use std::time::{Duration, Instant};

use node_agent_common::{FlowKey, FlowStats, RTT_BUCKETS};
use topology::packed::PackedNumbers;

/// Time for which a program may still use a slot after its key was deleted. Programs take microseconds; this suffices
/// for one that was preempted on a busy machine.
const GRACE: Duration = Duration::from_secs(5);

/// State of a slot.
#[derive(Debug, Default)]
enum Slot {
    /// Never assigned to a flow.
    #[default]
    New,
    /// May be assigned to a flow; with its counters.
    Free(PackedNumbers),
    Assigned(Box<Assignment>),
}

impl Slot {
    fn collect(&mut self, read: impl Fn() -> FlowStats, now: Instant, take: &mut impl FnMut(FlowKey, &FlowStats)) {
        let Self::Assigned(loan) = self else { return };
        let current = read();
        if current == loan.last {
            return;
        }
        let since = difference(&current, &loan.last);
        loan.last = current;
        loan.changed_at = now;
        if let Some(key) = loan.key {
            take(key, &since);
        }
    }
}

/// Assignment of a slot to a flow.
#[derive(Debug)]
struct Assignment {
    /// Flow of the slot; `None` for a slot without a flow: the self-test's.
    key: Option<FlowKey>,
    last: FlowStats,
    changed_at: Instant,
    deleted_at: Option<Instant>,
}

/// All slots that are or have been in use.
#[derive(Debug, Default)]
pub(super) struct Slots {
    states: Vec<Slot>,
    used: u32,
    /// Slots in use by folded rows.
    folded: u32,
}

impl Slots {
    /// Records that the kernel assigned this slot to this flow.
    pub(super) fn assign(&mut self, slot: u32, key: FlowKey, now: Instant) {
        let index = slot as usize;
        if self.states.len() <= index {
            self.states.resize_with(index + 1, Slot::default);
        }
        let last = match &self.states[index] {
            Slot::New => FlowStats::default(),
            Slot::Free(counters) => unpack(counters),
            Slot::Assigned(_) => return,
        };
        self.used += 1;
        self.folded += u32::from(key.is_folded());
        self.states[index] =
            Slot::Assigned(Box::new(Assignment { key: Some(key), last, changed_at: now, deleted_at: None }));
    }

    /// Returns whether the flow of this slot is known.
    pub(super) fn is_known(&self, slot: u32) -> bool {
        matches!(self.states.get(slot as usize), Some(Slot::Assigned(_)))
    }

    /// Slots in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Slots in use by folded rows.
    pub(super) fn folded(&self) -> u32 {
        self.folded
    }

    /// Returns the flows whose keys are in the kernel's index.
    pub(super) fn flows(&self) -> impl Iterator<Item = FlowKey> {
        self.states.iter().filter_map(|slot| match slot {
            Slot::Assigned(loan) if loan.deleted_at.is_none() => loan.key,
            _ => None,
        })
    }

    /// Leaves connections out of the slot's counts: the agent has added them to the opened ones.
    pub(super) fn leave_out_opened(&mut self, slot: u32, connections: u32) {
        if let Some(Slot::Assigned(loan)) = self.states.get_mut(slot as usize) {
            loan.last.opened = loan.last.opened.wrapping_add(connections);
        }
    }

    /// Returns the counts of each flow's slot since the last call, if it changed.
    pub(super) fn collect(
        &mut self,
        read: impl Fn(u32) -> FlowStats,
        now: Instant,
        mut take: impl FnMut(FlowKey, &FlowStats),
    ) {
        for (index, slot) in (0_u32..).zip(&mut self.states) {
            slot.collect(|| read(index), now, &mut take);
        }
    }

    /// Returns the counts of these slots only, as [`Self::collect`].
    pub(super) fn collect_of(
        &mut self,
        slots: &[u32],
        read: impl Fn(u32) -> FlowStats,
        now: Instant,
        mut take: impl FnMut(FlowKey, &FlowStats),
    ) {
        for index in slots {
            if let Some(slot) = self.states.get_mut(*index as usize) {
                slot.collect(|| read(*index), now, &mut take);
            }
        }
    }

    /// Flows that could give back their slot, having counted nothing for so long.
    pub(super) fn idle(&self, least: Duration, now: Instant) -> Vec<(u32, FlowKey)> {
        (0_u32..)
            .zip(&self.states)
            .filter_map(|(index, slot)| {
                let Slot::Assigned(loan) = slot else { return None };
                let idle = loan.deleted_at.is_none() && now.saturating_duration_since(loan.changed_at) >= least;
                idle.then_some((index, loan.key?))
            })
            .collect()
    }

    /// The flow's key has been deleted from the kernel's index.
    pub(super) fn deleted(&mut self, slot: u32, now: Instant) {
        if let Some(Slot::Assigned(loan)) = self.states.get_mut(slot as usize) {
            loan.deleted_at = Some(now);
        }
    }

    /// Detaches a slot whose key was deleted from its flow: later counts are ignored.
    pub(super) fn disown(&mut self, slot: u32, now: Instant) {
        if let Some(Slot::Assigned(loan)) = self.states.get_mut(slot as usize) {
            self.folded -= u32::from(loan.key.take().is_some_and(|key| key.is_folded()));
            loan.deleted_at = Some(now);
        }
    }

    /// Slots that the kernel may lend again, each with the number of connections that the caller adds to the opened ones of
    /// its counters: then these equal the ended ones, as the programs expect. To be called right after [`Slots::collect`].
    pub(super) fn release(&mut self, now: Instant) -> Vec<(u32, u32)> {
        let mut released = Vec::new();
        for (index, slot) in (0_u32..).zip(&mut self.states) {
            let Slot::Assigned(loan) = slot else { continue };
            if loan.deleted_at.is_some_and(|at| now.saturating_duration_since(at) >= GRACE) {
                let missing = loan.last.closed.wrapping_sub(loan.last.opened);
                self.folded -= u32::from(loan.key.is_some_and(|key| key.is_folded()));
                *slot = Slot::Free(pack(&FlowStats { opened: loan.last.closed, ..loan.last }));
                self.used -= 1;
                released.push((index, missing));
            }
        }
        released
    }
}

/// Numbers of [`FlowStats`] beside the histogram.
const PLAIN: usize = 10;

fn pack(stats: &FlowStats) -> PackedNumbers {
    let FlowStats { opened, closed, failed, retransmits, older, unseen, inferred, past_tcp, .. } = *stats;
    let counts = [opened, closed, failed, retransmits, older, unseen, inferred, past_tcp];
    let mut numbers = [0; PLAIN + RTT_BUCKETS];
    (numbers[0], numbers[1]) = (stats.sent, stats.received);
    for (number, count) in numbers[2..].iter_mut().zip(counts.iter().chain(&stats.rtt)) {
        *number = u64::from(*count);
    }
    PackedNumbers::pack(&numbers)
}

fn unpack(packed: &PackedNumbers) -> FlowStats {
    let numbers = packed.unpack::<{ PLAIN + RTT_BUCKETS }>();
    // All but the first two come from counts of 32 bits.
    let count = |index: usize| u32::try_from(numbers[index]).unwrap_or(u32::MAX);
    FlowStats {
        sent: numbers[0],
        received: numbers[1],
        opened: count(2),
        closed: count(3),
        failed: count(4),
        retransmits: count(5),
        older: count(6),
        unseen: count(7),
        inferred: count(8),
        past_tcp: count(9),
        rtt: std::array::from_fn(|bucket| count(PLAIN + bucket)),
        generation: 0,
        reserved: 0,
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
        past_tcp: current.past_tcp.wrapping_sub(last.past_tcp),
        generation: 0,
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
    fn flow_that_begins_during_a_reading_is_read_once() {
        let now = Instant::now();
        let mut slots = Slots::default();
        let mut read = Vec::new();
        let counters = |slot: u32| opened(slot + 1);
        slots.assign(0, key(80), now);
        slots.collect(counters, now, |key, since| read.push((key, since.opened)));
        slots.assign(1, key(81), now);
        slots.collect_of(&[1, 7], counters, now, |key, since| read.push((key, since.opened)));
        slots.collect(counters, now, |key, since| read.push((key, since.opened)));
        assert_eq!(read, [(key(80), 1), (key(81), 2)]);
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
        // The connections that have no end leave none open: 6 are taken back.
        assert_eq!(slots.release(start + GRACE), [(1, 0_u32.wrapping_sub(6))]);
        assert_eq!(slots.used(), 0);

        // Lent again, with its other counters as they are.
        slots.assign(1, key(443), start + GRACE);
        assert_eq!(collected(&mut slots, &[9, 0], start + GRACE), []);
        assert_eq!(collected(&mut slots, &[9, 2], start + GRACE), [(key(443), 2)]);
    }

    #[test]
    fn counters_of_a_free_slot_survive_packing() {
        let stats = FlowStats {
            sent: u64::MAX,
            received: 2,
            opened: 3,
            closed: u32::MAX,
            failed: 5,
            older: 6,
            unseen: 7,
            retransmits: 8,
            rtt: std::array::from_fn(|bucket| u32::try_from(bucket).unwrap() + 9),
            inferred: 30,
            past_tcp: 31,
            generation: 0,
            reserved: 0,
        };
        assert_eq!(unpack(&pack(&stats)), stats);
    }

    #[test]
    fn a_slot_is_not_lent_again_before_its_grace_is_over() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        slots.assign(0, key(80), start);
        slots.deleted(0, start);
        assert_eq!(slots.release(start + GRACE / 2), []);
        // The flow came back meanwhile, with another slot: both are its own.
        slots.assign(1, key(80), start);
        assert_eq!(collected(&mut slots, &[1, 2], start), [(key(80), 1), (key(80), 2)]);
        assert_eq!(slots.release(start + GRACE), [(0, 0_u32.wrapping_sub(1))]);
    }

    #[test]
    fn slots_of_folded_rows_are_counted_while_in_use() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        for (slot, key) in [(0, key(80)), (1, key(80).folded()), (2, key(81).folded())] {
            slots.assign(slot, key, start);
        }
        slots.leave_out_opened(1, 3);
        assert_eq!(collected(&mut slots, &[0, 4, 0], start), [(key(80).folded(), 1)]);
        slots.deleted(1, start);
        assert_eq!(slots.flows().collect::<Vec<_>>(), [key(80), key(81).folded()]);
        assert_eq!(slots.folded(), 2, "one is in its grace");
        slots.disown(2, start);
        slots.release(start + GRACE);
        assert_eq!((slots.folded(), slots.used()), (0, 1));
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
    fn disowned_slot_counts_for_no_flow() {
        let (mut slots, start) = (Slots::default(), Instant::now());
        slots.assign(0, key(80), start);
        slots.disown(0, start);
        assert_eq!(collected(&mut slots, &[4], start), []);
        assert_eq!(slots.release(start + GRACE), [(0, 0_u32.wrapping_sub(4))]);
    }
}
