//! Conversations of UDP datagrams, the counterpart of TCP connections.
//!
//! A conversation is one socket and one remote address and port. The end that sent the first datagram is the client. It
//! ends after [`SILENCE`] nanoseconds without a datagram, exact to a tick: datagrams of one tick have the time of the first
//! one, since reading the clock costs more than all else. A conversation that follows one that is over has the same
//! direction. If the table is full, the conversation that was silent longest is evicted; if it continues, it counts again.
//!
//! The agent replaces the table by a larger one where many conversations begin. The one before stays until its
//! conversations have gone on in the new one, or are over.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{ArrayOfMaps, LruHashMap},
    helpers::{bpf_ktime_get_ns, generated::bpf_jiffies64},
    macros::{btf_map, map},
    maps::Array,
};
use node_agent_common::{FlowKey, Role, conversation, direction::JudgedRole};

use crate::flows::{SlotHandle, add_wide};

/// In nanoseconds. Written by the agent before the programs are loaded, then frozen.
#[unsafe(no_mangle)]
static SILENCE: u64 = 0;

/// Key of a conversation.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Name {
    /// The socket's.
    pub cookie: u64,
    pub remote: [u8; 16],
    pub remote_port: u16,
    pub reserved: [u16; 3],
}

const _: () = assert!(size_of::<Name>() == conversation::KEY_BYTES as usize);

/// State of a conversation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Conversation {
    pub flow: FlowKey,
    /// Time of the last datagram by the kernel's clock, or of an earlier one in the same tick.
    last: u64,
    /// The flow's slot, so that the following datagrams need not look for it.
    slot: SlotHandle,
    /// Tick of that time, in the upper [`TICK_BITS`] bits, whether its role [`IS_GUESS`], and the number of datagrams for
    /// [`Ongoing::is_busy`].
    tick_and_datagrams: u64,
}

const _: () = assert!(size_of::<Conversation>() == conversation::VALUE_BYTES as usize);

impl Conversation {
    /// One that begins, without a slot.
    #[inline(always)]
    pub fn of(flow: FlowKey, is_guess: bool) -> Self {
        Self {
            flow,
            last: now(),
            slot: SlotHandle::NONE,
            tick_and_datagrams: tick() << LOWER_BITS | guess_bit(is_guess),
        }
    }

    #[inline(always)]
    pub fn set_slot(&mut self, slot: SlotHandle) {
        self.slot = slot;
    }

    #[inline(always)]
    fn is_guess(&self) -> bool {
        self.tick_and_datagrams & IS_GUESS != 0
    }

    #[inline(always)]
    fn as_words(&self) -> &Words {
        // SAFETY: as many words as the conversation has, which has no padding.
        unsafe { &*(&raw const *self).cast::<Words>() }
    }
}

/// A table of conversations. The agent makes them in other sizes.
type Table = LruHashMap<Name, Words, 1>;
/// A conversation as words: see [`StatsWords`](crate::flows::StatsWords).
type Words = [u64; conversation::VALUE_BYTES as usize / 8];

#[inline(always)]
fn guess_bit(is_guess: bool) -> u64 {
    if is_guess { IS_GUESS } else { 0 }
}

/// Returns the role in a flow. A key of no role does not exist.
#[inline(always)]
pub fn role_of(flow: &FlowKey, is_guess: bool) -> JudgedRole {
    JudgedRole { role: if matches!(flow.role(), Some(Role::Client)) { Role::Client } else { Role::Server }, is_guess }
}

/// The tables by [`conversation::CURRENT`] and [`conversation::EARLIER`].
#[btf_map(name = "CONVERSATIONS")]
static CONVERSATIONS: ArrayOfMaps<Table, { conversation::TABLES as usize }> = ArrayOfMaps::new();
/// Number of conversations that began, and what it means: see [`conversation`].
#[map(name = "BEGUN")]
static BEGUN: Array<u64> = Array::with_max_entries(conversation::COUNTS, 0);

/// Outcome for a conversation that was to begin.
pub enum Beginning {
    /// It has begun.
    First {
        /// True if it may be older, or its role is a guess.
        inferred: bool,
    },
    /// Another processor was faster: it goes on.
    Known,
    /// There was no memory to remember it.
    Nowhere,
}

/// Conversation that goes on.
#[derive(Clone, Copy)]
pub struct Ongoing(*mut Conversation);

impl Ongoing {
    #[inline(always)]
    pub fn flow(self) -> &'static FlowKey {
        // SAFETY: a value of the map, which stays readable while the program runs. Where it is given to another
        // conversation meanwhile, more have begun than are remembered, which says itself (`inferred`).
        unsafe { &(*self.0).flow }
    }

    #[inline(always)]
    pub fn slot(self) -> SlotHandle {
        // SAFETY: as above; one word.
        unsafe { core::ptr::read_volatile(&raw const (*self.0).slot) }
    }

    /// Returns whether the role is a guess.
    #[inline(always)]
    pub fn is_guess(self) -> bool {
        // SAFETY: as above; one word.
        unsafe { core::ptr::read_volatile(&raw const (*self.0).tick_and_datagrams) & IS_GUESS != 0 }
    }

    #[inline(always)]
    pub fn set_slot(self, slot: SlotHandle) {
        // SAFETY: as above; one word.
        unsafe { core::ptr::write_volatile(&raw mut (*self.0).slot, slot) }
    }

    /// Counts a datagram that needed the table. Returns whether the conversation should be stored with its socket: after
    /// [`BUSY`] datagrams, and after 256 further ones where that failed.
    #[inline(always)]
    pub fn is_busy(self) -> bool {
        // SAFETY: as above; one word. An addition that another processor overwrites does not matter.
        unsafe {
            let word = core::ptr::read_volatile(&raw const (*self.0).tick_and_datagrams);
            let datagrams = (word + 1) & DATAGRAMS;
            core::ptr::write_volatile(&raw mut (*self.0).tick_and_datagrams, word & !DATAGRAMS | datagrams);
            datagrams == BUSY
        }
    }
}

/// Number of datagrams after which a conversation is busy. Most DNS queries need fewer.
const BUSY: u64 = 16;
/// Bits of [`Conversation::tick_and_datagrams`].
const TICK_BITS: u32 = 55;
const LOWER_BITS: u32 = u64::BITS - TICK_BITS;
const DATAGRAMS: u64 = (1 << (LOWER_BITS - 1)) - 1;
const IS_GUESS: u64 = 1 << (LOWER_BITS - 1);

/// Returns a conversation that goes on; otherwise this end's role in the one before, if it is remembered. What is over is
/// forgotten.
#[inline(always)]
pub fn go_on(name: &Name) -> Result<Ongoing, Option<JudgedRole>> {
    let current = CONVERSATIONS.get(conversation::CURRENT).ok_or(None)?;
    if let Some(known) = current.get_ptr_mut(name) {
        return prolong(current, name, known.cast());
    }
    let earlier = CONVERSATIONS.get(conversation::EARLIER).ok_or(None)?;
    let known = earlier.get_ptr_mut(name).ok_or(None)?;
    // SAFETY: as in [`Ongoing::flow`]. If another processor was faster, it is there as well.
    let _ = current.insert(name, unsafe { &*known }, u64::from(BPF_NOEXIST));
    prolong(current, name, current.get_ptr_mut(name).ok_or(None)?.cast())
}

#[inline(always)]
fn prolong(table: &Table, name: &Name, known: *mut Conversation) -> Result<Ongoing, Option<JudgedRole>> {
    let tick = tick();
    // SAFETY: as in [`Ongoing::flow`].
    let before = unsafe {
        let word = core::ptr::read_volatile(&raw const (*known).tick_and_datagrams);
        if word >> LOWER_BITS == tick {
            return Ok(Ongoing(known));
        }
        let now = now();
        if !is_over(core::ptr::read_volatile(&raw const (*known).last), now) {
            core::ptr::write_volatile(&raw mut (*known).last, now);
            let word = tick << LOWER_BITS | word & (DATAGRAMS | IS_GUESS);
            core::ptr::write_volatile(&raw mut (*known).tick_and_datagrams, word);
            return Ok(Ongoing(known));
        }
        role_of(&(*known).flow, word & IS_GUESS != 0)
    };
    // Of several that find it over, one begins it again.
    let _ = table.remove(name);
    Err(Some(before))
}

/// Returns a count: see [`conversation`].
#[inline(always)]
fn read_count(index: u32) -> u64 {
    // SAFETY: a value of an array.
    BEGUN.get_ptr(index).map_or(0, |count| unsafe { core::ptr::read_volatile(count) })
}

/// Returns whether a conversation that begins now may be one that the table has evicted within the silence that ends one.
#[inline(always)]
pub fn may_be_evicted() -> bool {
    read_count(conversation::BEGUN) >= read_count(conversation::CERTAIN_BELOW)
}

/// Returns whether the table still has all conversations since the capture began.
#[inline(always)]
pub fn is_complete() -> bool {
    read_count(conversation::BEGUN) < read_count(conversation::COMPLETE_UP_TO)
}

/// Returns whether every socket that has a history is in the table of histories.
#[inline(always)]
pub fn has_histories() -> bool {
    read_count(conversation::HAS_HISTORIES) != 0
}

/// Records that the table of histories lacks some.
#[inline(always)]
pub fn lack_histories() {
    if let Some(flag) = BEGUN.get_ptr_mut(conversation::HAS_HISTORIES) {
        // SAFETY: a value of an array.
        unsafe { core::ptr::write_volatile(flag, 0) }
    }
}

/// Begins a conversation that does not go on.
#[inline(always)]
pub fn begin(name: &Name, conversation: &Conversation) -> Beginning {
    let Some(table) = CONVERSATIONS.get(conversation::CURRENT) else { return Beginning::Nowhere };
    if table.insert(name, conversation.as_words(), u64::from(BPF_NOEXIST)).is_ok() {
        if let Some(begun) = BEGUN.get_ptr_mut(conversation::BEGUN) {
            // SAFETY: a value of an array; the count is added to atomically.
            unsafe { add_wide(begun, 1) }
        }
        Beginning::First { inferred: conversation.is_guess() }
    } else if table.get_ptr(name).is_some() {
        Beginning::Known
    } else {
        Beginning::Nowhere
    }
}

/// Notes in the current table that a stored conversation had a datagram at that time. Adds the conversation if the table
/// has evicted it.
#[inline(always)]
pub fn note(name: &Name, flow: &FlowKey, slot: SlotHandle, last: u64, is_guess: bool) {
    let Some(current) = CONVERSATIONS.get(conversation::CURRENT) else { return };
    let Some(known) = current.get_ptr_mut(name).map(<*mut Words>::cast::<Conversation>) else {
        let conversation = Conversation { flow: *flow, last, slot, tick_and_datagrams: guess_bit(is_guess) };
        let _ = current.insert(name, conversation.as_words(), u64::from(BPF_NOEXIST));
        return;
    };
    // SAFETY: as in [`Ongoing::flow`].
    unsafe {
        if core::ptr::read_volatile(&raw const (*known).last) < last {
            core::ptr::write_volatile(&raw mut (*known).last, last);
        }
    }
}

/// Returns whether a conversation is over that had its last datagram at that time. Another processor's clock may be a
/// little ahead.
#[inline(always)]
pub fn is_over(last: u64, now: u64) -> bool {
    now.saturating_sub(last) > silence()
}

/// Returns whether the table should be brought up to date with a stored conversation, which was last done at that time.
/// The table would otherwise evict it as silent.
#[inline(always)]
pub fn is_note_due(noted: u64, now: u64) -> bool {
    now.saturating_sub(noted) > silence() / 4
}

#[inline(always)]
fn silence() -> u64 {
    // SAFETY: a static that is frozen before the program is loaded.
    unsafe { core::ptr::read_volatile(&raw const SILENCE) }
}

/// Returns the time in ticks of the kernel, at most 10 ms each. The kernel replaces the call by one load.
#[inline(always)]
pub fn tick() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_jiffies64() }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_ktime_get_ns() }
}
