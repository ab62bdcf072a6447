//! Conversations of UDP datagrams, the counterpart of TCP connections.
//!
//! A conversation is one socket and one remote address and port. The end that sent the first datagram is the client. It
//! ends after [`SILENCE`] nanoseconds without a datagram. If the table is full, the conversation that was silent longest
//! is evicted; if it continues, it counts again.
//!
//! The agent replaces the table by a larger one where many conversations begin. The one before stays until its
//! conversations have gone on in the new one, or are over.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{ArrayOfMaps, LruHashMap},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, map},
    maps::Array,
};
use node_agent_common::{FlowKey, conversation};

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
    /// Time of the last datagram by the kernel's clock.
    last: u64,
    /// The flow's slot, so that the following datagrams need not look for it.
    slot: SlotHandle,
}

const _: () = assert!(size_of::<Conversation>() == conversation::VALUE_BYTES as usize);

impl Conversation {
    /// One that begins.
    #[inline(always)]
    pub fn of(flow: FlowKey, slot: SlotHandle) -> Self {
        Self { flow, last: now(), slot }
    }
}

/// A table of conversations. The agent makes them in other sizes.
type Table = LruHashMap<Name, Words, 1>;
/// A conversation as words: see [`StatsWords`](crate::flows::StatsWords).
type Words = [u64; conversation::VALUE_BYTES as usize / 8];

/// The tables by [`conversation::CURRENT`] and [`conversation::EARLIER`].
#[btf_map(name = "CONVERSATIONS")]
static CONVERSATIONS: ArrayOfMaps<Table, { conversation::TABLES as usize }> = ArrayOfMaps::new();
/// Number of conversations that began, and the number from which on a new one may be one that was evicted: see
/// [`conversation`].
#[map(name = "BEGUN")]
static BEGUN: Array<u64> = Array::with_max_entries(conversation::COUNTS, 0);

/// Outcome for a conversation that was to begin.
pub enum Beginning {
    /// It has begun.
    First {
        /// True if it may be older.
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
}

/// Returns a conversation that goes on. What is over is forgotten.
#[inline(always)]
pub fn go_on(name: &Name) -> Option<Ongoing> {
    let current = CONVERSATIONS.get(conversation::CURRENT)?;
    if let Some(known) = current.get_ptr_mut(name) {
        return prolong(current, name, known.cast());
    }
    let earlier = CONVERSATIONS.get(conversation::EARLIER)?;
    let known = earlier.get_ptr_mut(name)?;
    // SAFETY: as in [`Ongoing::flow`]. If another processor was faster, it is there as well.
    let _ = current.insert(name, unsafe { &*known }, u64::from(BPF_NOEXIST));
    prolong(current, name, current.get_ptr_mut(name)?.cast())
}

#[inline(always)]
fn prolong(table: &Table, name: &Name, known: *mut Conversation) -> Option<Ongoing> {
    let now = now();
    // SAFETY: a static that is frozen before the program is loaded.
    let silence = unsafe { core::ptr::read_volatile(&raw const SILENCE) };
    // SAFETY: as in [`Ongoing::flow`].
    unsafe {
        // Another processor's clock may be a little ahead.
        if now.saturating_sub(core::ptr::read_volatile(&raw const (*known).last)) <= silence {
            core::ptr::write_volatile(&raw mut (*known).last, now);
            return Some(Ongoing(known));
        }
    }
    // Of several that find it over, one begins it again.
    let _ = table.remove(name);
    None
}

/// Begins a conversation that does not go on.
#[inline(always)]
pub fn begin(name: &Name, conversation: &Conversation) -> Beginning {
    let Some(table) = CONVERSATIONS.get(conversation::CURRENT) else { return Beginning::Nowhere };
    // SAFETY: as many words as the conversation has, which has no padding.
    let words = unsafe { &*(&raw const *conversation).cast::<Words>() };
    if table.insert(name, words, u64::from(BPF_NOEXIST)).is_ok() {
        Beginning::First { inferred: count_beginning() }
    } else if table.get_ptr(name).is_some() {
        Beginning::Known
    } else {
        Beginning::Nowhere
    }
}

#[inline(always)]
fn count_beginning() -> bool {
    let (Some(begun), Some(certain)) =
        (BEGUN.get_ptr_mut(conversation::BEGUN), BEGUN.get_ptr(conversation::CERTAIN_BELOW))
    else {
        return true;
    };
    // SAFETY: values of an array; the count is added to atomically.
    unsafe {
        add_wide(begun, 1);
        core::ptr::read_volatile(begun) > core::ptr::read_volatile(certain)
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_ktime_get_ns() }
}
