//! The table of flows: a key has a slot, a slot has counters.
//!
//! The agent provides slots through `FREE` and reclaims them. Events of flows without a slot are counted in `LOST`.

use core::hint::black_box;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, ArrayOfMaps},
    macros::{btf_map, map},
    maps::{HashMap, PerCpuArray, Queue, RingBuf},
};
use node_agent_common::{FlowKey, FlowStats, Loss, NewFlow, RTT_BUCKETS, chunk, folding::OFF, rtt_bucket};

use crate::{folding, memory::Access, socket::TcpSocket, sockmaps};

/// The agent sets the sizes of these when it loads them.
const SLOTS: u32 = 65_536;
const CHUNKS: usize = (SLOTS / chunk::SLOTS) as usize;

#[map(name = "SLOT_OF")]
static SLOT_OF: HashMap<FlowKey, u32> = HashMap::with_max_entries(SLOTS, BPF_F_NO_PREALLOC);
/// Counters as words. For a structure, kernels from 5.15 to 6.2 would demand chunks with the same description in BTF
/// (`timer_off` in `bpf_map_meta_equal`), and the agent's have none.
pub type StatsWords = [u64; size_of::<FlowStats>() / 8];
const _: () = assert!(size_of::<StatsWords>() == size_of::<FlowStats>());

/// Counters of the slots, in chunks: the agent adds one before it provides the slots in it.
#[btf_map(name = "STATS")]
static STATS: ArrayOfMaps<Array<StatsWords, { chunk::SLOTS as usize }, { BPF_F_MMAPABLE as usize }>, CHUNKS> =
    ArrayOfMaps::new();
#[map(name = "FREE")]
static FREE: Queue<u32> = Queue::with_max_entries(SLOTS, 0);
#[map(name = "NEW_FLOWS")]
static NEW_FLOWS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
#[map(name = "LOST")]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(Loss::COUNT, 0);

/// Event of a connection.
#[derive(Clone, Copy)]
pub enum Event {
    Opened,
    Failed,
    Closed {
        /// Payload.
        sent: u64,
        /// Payload.
        received: u64,
        /// Segments sent again.
        retransmits: u32,
        /// The smoothed round-trip time, in microseconds; 0 where none was measured.
        srtt: u32,
        /// True if its opening was not counted.
        older: bool,
        /// True if its role is a guess.
        inferred: bool,
        /// True if its payload may have gone past TCP.
        past_tcp: bool,
    },
    /// Its end was not seen, but has to have come.
    Gone,
    /// A conversation of datagrams has begun, by one with this payload. It counts as closed at once: nothing tells its
    /// end.
    Conversation {
        sent: u64,
        received: u64,
        inferred: bool,
    },
    /// A conversation of datagrams goes on.
    Datagram {
        sent: u64,
        received: u64,
    },
}

impl Event {
    /// Returns whether it is the end of a connection that was counted as opened, or is preexisting.
    #[inline(always)]
    fn is_end(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Gone)
    }

    /// Of a socket that ends now, whose beginning and role are accounted for.
    #[inline(always)]
    pub fn closed<A: Access>(socket: TcpSocket<A>) -> Self {
        Self::closed_after(socket, false, false)
    }

    /// Of a socket that ends now: see [`Event::Closed`].
    #[inline(always)]
    pub fn closed_after<A: Access>(socket: TcpSocket<A>, older: bool, inferred: bool) -> Self {
        let (sent, received) = (socket.sent(), socket.received());
        Self::Closed {
            sent,
            received,
            retransmits: socket.retransmits(),
            srtt: socket.srtt(),
            older,
            inferred,
            past_tcp: sockmaps::end(socket, sent | received),
        }
    }
}

/// Slot of a flow, and the slot's generation when the flow had it. The agent ends the generation when it takes the slot
/// from the flow.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct SlotHandle(u64);

impl SlotHandle {
    /// No slot: beyond any table.
    pub const NONE: Self = Self(u32::MAX as u64);

    #[inline(always)]
    fn new(slot: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(slot))
    }

    /// Returns the handle of the flow's slot; gives it one if it has none. If it is a folded row's, the key becomes that
    /// row's, so that the conversation stays there.
    #[inline(always)]
    pub fn provide(key: &mut FlowKey) -> Self {
        let Some(row) = row_of(key, false) else { return Self::NONE };
        if row.is_new() {
            announce(key, row);
        }
        *key = row.key(key);
        Self::of(key, row.slot())
    }

    /// The same for a flow that is to have a row of its own: no slot if it is folded.
    #[inline(always)]
    pub fn provide_own(key: &FlowKey) -> Self {
        let Some(row) = row_of(key, false) else { return Self::NONE };
        if row.is_new() {
            announce(key, row);
        }
        if row.is_folded() { Self::NONE } else { Self::of(key, row.slot()) }
    }

    /// Returns the handle of a row that has had this slot just now.
    #[inline(always)]
    fn of(key: &FlowKey, slot: u32) -> Self {
        let Some(stats) = counters(slot) else { return Self::NONE };
        // SAFETY: a value of an array.
        let generation = unsafe { core::ptr::read_volatile(&raw const (*stats).generation) };
        // The agent deletes the key first: if it is still there, the generation that was read is the flow's.
        if known_slot(key) == Some(slot) { Self::new(slot, generation) } else { Self::NONE }
    }

    /// Returns whether there is a slot, and it is still the flow's.
    #[inline(always)]
    pub fn is_current(self) -> bool {
        self.stats().is_some()
    }

    /// Adds the payload of a datagram if the slot is still the flow's. Returns whether it is.
    #[inline(always)]
    pub fn count_datagram(self, sent: u64, received: u64) -> bool {
        let Some(stats) = self.stats() else { return false };
        // SAFETY: a value of an array.
        unsafe { add_payload(stats, sent, received) };
        true
    }

    /// Returns the slot's counters if it is still the flow's.
    #[inline(always)]
    fn stats(self) -> Option<*mut FlowStats> {
        let stats = counters(self.0 as u32)?;
        // SAFETY: a value of an array.
        let generation = unsafe { core::ptr::read_volatile(&raw const (*stats).generation) };
        (generation == (self.0 >> 32) as u32).then_some(stats)
    }
}

/// Counts an event of this flow, or its loss.
#[inline(always)]
pub fn count(key: &FlowKey, event: Event) {
    let Some(row) = row_of(key, event.is_end()) else { return lose_event(event) };
    let Some(stats) = counters(row.slot()) else { return lose_event(event) };
    // SAFETY: a value of an array lives as long as the program; other CPUs and the agent see whole atomic additions.
    unsafe {
        match event {
            Event::Opened => add(&raw mut (*stats).opened, 1),
            Event::Failed => add(&raw mut (*stats).failed, 1),
            // `closed` last: the agent reads it first, and so never misses anything else of a close that it knows of.
            Event::Closed { sent, received, retransmits, srtt, older, inferred, past_tcp } => {
                add_wide(&raw mut (*stats).sent, sent);
                add_wide(&raw mut (*stats).received, received);
                if retransmits != 0 {
                    add(&raw mut (*stats).retransmits, retransmits);
                }
                if srtt != 0 {
                    // Always one of them; hidden from the compiler, so that it leaves the comparison to the verifier.
                    let bucket = black_box(rtt_bucket(srtt));
                    if bucket < RTT_BUCKETS {
                        add((&raw mut (*stats).rtt).cast::<u32>().add(bucket), 1);
                    }
                }
                if older {
                    add(&raw mut (*stats).older, 1);
                }
                if inferred {
                    add(&raw mut (*stats).inferred, 1);
                }
                if past_tcp {
                    add(&raw mut (*stats).past_tcp, 1);
                }
                add(&raw mut (*stats).closed, 1);
            }
            Event::Gone => {
                add(&raw mut (*stats).unseen, 1);
                add(&raw mut (*stats).closed, 1);
            }
            Event::Conversation { sent, received, inferred } => {
                add(&raw mut (*stats).opened, 1);
                add_payload(stats, sent, received);
                if inferred {
                    add(&raw mut (*stats).inferred, 1);
                }
                add(&raw mut (*stats).closed, 1);
            }
            Event::Datagram { sent, received } => add_payload(stats, sent, received),
        }
    }
    if row.is_new() {
        announce(key, row);
    }
}

/// Adds the payload of a datagram, which goes one way: an atomic addition of zero would cost as much as any.
///
/// # Safety
/// `stats` has to point into a map's value.
#[inline(always)]
unsafe fn add_payload(stats: *mut FlowStats, sent: u64, received: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        if sent != 0 {
            add_wide(&raw mut (*stats).sent, sent);
        }
        if received != 0 {
            add_wide(&raw mut (*stats).received, received);
        }
    }
}

/// The slot's counters; none beyond the chunks.
#[inline(always)]
fn counters(slot: u32) -> Option<*mut FlowStats> {
    Some(STATS.get_value_ptr_mut(slot / chunk::SLOTS, &(slot % chunk::SLOTS))?.cast())
}

/// Row that counts a flow: its slot in the low half, then the bits below. One word, as a function of its own returns it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Row(u64);

impl Row {
    /// The row got its slot just now.
    const NEW: u64 = 1 << 32;
    /// The row's key is the folded one.
    const FOLDED: u64 = 1 << 33;
    const NONE: Self = Self(u64::MAX);

    #[inline(always)]
    fn slot(self) -> u32 {
        self.0 as u32
    }

    /// Returns the row's key, given the flow's.
    #[inline(always)]
    fn key(self, flow: &FlowKey) -> FlowKey {
        if self.is_folded() { flow.folded() } else { *flow }
    }

    #[inline(always)]
    fn is_folded(self) -> bool {
        self.0 & Self::FOLDED != 0
    }

    #[inline(always)]
    fn is_new(self) -> bool {
        self.0 & Self::NEW != 0
    }
}

/// Returns the flow's row, which is new if there is none: see [`folding`].
#[inline(always)]
fn row_of(key: &FlowKey, is_end: bool) -> Option<Row> {
    if let Some(slot) = known_slot(key) {
        return Some(Row(u64::from(slot)));
    }
    let row = row_without_own(key, is_end);
    if row.0 == Row::NONE.0 { None } else { Some(row) }
}

/// Returns the row of a flow that had none of its own. A function of its own: most events do not come here.
#[inline(never)]
fn row_without_own(key: &FlowKey, is_end: bool) -> Row {
    let phase = folding::phase();
    if phase == OFF || !folding::is_external(key) {
        return provide_row(key, 0);
    }
    let folded = key.folded();
    let known = known_slot(&folded);
    if !folding::is_folded(phase, is_end, known.map(balance)) {
        return provide_row(key, 0);
    }
    match known {
        Some(slot) => Row(u64::from(slot) | Row::FOLDED),
        None => provide_row(&folded, Row::FOLDED),
    }
}

/// Returns the row of a key that had none, with these bits.
#[inline(never)]
fn provide_row(key: &FlowKey, bits: u64) -> Row {
    if let Ok(Some(slot)) = FREE.pop() {
        if SLOT_OF.insert(key, slot, u64::from(BPF_NOEXIST)).is_ok() {
            return Row(u64::from(slot) | bits | Row::NEW);
        }
        // Another CPU was faster, or the kernel has no memory just now.
        let _ = FREE.push(slot, 0);
    }
    // Another CPU may have taken the last slot for this very flow.
    known_slot(key).map_or(Row::NONE, |slot| Row(u64::from(slot) | bits))
}

/// Returns the number of open connections in a slot. The agent keeps it at 0 for slots that are free.
#[inline(always)]
fn balance(slot: u32) -> i32 {
    // SAFETY: a value of an array, whose counters are read as they are.
    counters(slot).map_or(0, |stats| unsafe {
        let opened = core::ptr::read_volatile(&raw const (*stats).opened);
        opened.wrapping_sub(core::ptr::read_volatile(&raw const (*stats).closed)) as i32
    })
}

#[inline(always)]
fn known_slot(key: &FlowKey) -> Option<u32> {
    // SAFETY: the value is written once, before the element can be found.
    SLOT_OF.get_ptr(key).map(|slot| unsafe { *slot })
}

/// Notifies the agent of a row that got its slot. A function of its own, so that its stack is free while others run: the
/// kernel adds up the stacks along calls, in steps of 32 bytes on old kernels, and admits 512 bytes.
#[inline(never)]
fn announce(key: &FlowKey, row: Row) {
    let sight = NewFlow { key: row.key(key), slot: row.slot(), reserved: 0 };
    if NEW_FLOWS.output::<NewFlow>(sight, 0).is_err() {
        lose(Loss::NewFlow);
    }
}

#[inline(always)]
fn lose_event(event: Event) {
    lose(match event {
        Event::Opened | Event::Conversation { .. } => Loss::Opened,
        Event::Failed => Loss::Failed,
        Event::Closed { .. } | Event::Gone | Event::Datagram { .. } => Loss::Closed,
    });
}

/// Counts something that could not be stored.
#[inline(always)]
pub fn lose(what: Loss) {
    if let Some(counter) = LOST.get_ptr_mut(what as u32) {
        // SAFETY: an array's value. Atomic although it is this CPU's own: a softirq may interrupt this program.
        unsafe { add_wide(counter, 1) }
    }
}

/// # Safety
/// `counter` has to point into a map's value.
#[inline(always)]
unsafe fn add(counter: *mut u32, amount: u32) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller's promise, and u32 fields of 8-byte aligned values.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, amount) };
}

/// # Safety
/// `counter` has to point into a map's value.
#[inline(always)]
pub unsafe fn add_wide(counter: *mut u64, amount: u64) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller's promise, and u64 fields of 8-byte aligned values.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, amount) };
}
