//! Current conversation of a UDP socket, stored with the socket itself.
//!
//! A datagram of this conversation needs no lookup in the table of [`conversations`]. A conversation is stored once it is
//! busy. Another one takes its place after [`RIVAL_DATAGRAMS`] datagrams: a socket that alternates between many remotes
//! keeps its stored conversation.
//!
//! The storage has the time of the stored conversation's last datagram, exact to a tick. The programs bring the table up
//! to date at intervals, and when the conversation leaves the storage. The fields that identify the conversation never
//! change, so that all processors read them without a lock.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    cty::c_void,
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
};
use node_agent_common::{FlowKey, Role, direction::JudgedRole};

use crate::{
    conversations::{self, Name, Ongoing},
    destination::End,
    flows::SlotHandle,
    original_destinations,
};

/// Number of datagrams after which another conversation takes the place of the stored one. Those of a third one in between
/// begin the count again.
const RIVAL_DATAGRAMS: u64 = 64;

/// State of a stored conversation. Most datagrams need the first 56 bytes alone: with the kernel's word before them, one
/// cache line.
#[repr(C)]
struct State {
    remote: End,
    slot: SlotHandle,
    /// Time of the last datagram, or of an earlier one in the same tick.
    last: u64,
    /// Tick of that time.
    tick: u64,
    /// 1 if the last datagram that was sent with an address was sent to `remote`.
    is_destination: u64,
    flow: FlowKey,
    /// Time at which the table was brought up to date.
    noted: u64,
    /// Conversation that may take this one's place: upper half of a hash of its remote, and its number of datagrams in the
    /// lower half.
    rival: u64,
    /// 1 if the role is a guess. Never changed.
    is_guess: u64,
}

/// As words: the kernel wants storage described in BTF.
type Words = [u64; 16];
const _: () = assert!(size_of::<State>() == size_of::<Words>());

#[btf_map(name = "STORED")]
static STORED: SkStorage<Words> = SkStorage::new();

/// Conversation of a socket.
#[derive(Clone, Copy)]
pub struct Stored(*mut State);

/// Returns the address of the map, as helpers want it.
#[inline(always)]
fn map() -> *mut c_void {
    (&raw const STORED).cast_mut().cast()
}

/// Returns the conversation of a socket. Only UDP sockets have one.
#[inline(always)]
pub fn of(socket: *mut bpf_sock) -> Option<Stored> {
    // SAFETY: a socket that is not null.
    let state = unsafe { bpf_sk_storage_get(map(), socket.cast(), core::ptr::null_mut(), 0) };
    if state.is_null() { None } else { Some(Stored(state.cast())) }
}

impl Stored {
    #[inline(always)]
    fn word(self, field: impl FnOnce(*mut State) -> *mut u64) -> u64 {
        // SAFETY: a field of the storage, which stays readable while the program runs.
        unsafe { core::ptr::read_volatile(field(self.0)) }
    }

    #[inline(always)]
    fn set(self, field: impl FnOnce(*mut State) -> *mut u64, value: u64) {
        // SAFETY: as above; whole words.
        unsafe { core::ptr::write_volatile(field(self.0), value) }
    }

    #[inline(always)]
    pub fn remote(self) -> &'static End {
        // SAFETY: as in `word`; never changed.
        unsafe { &(*self.0).remote }
    }

    #[inline(always)]
    fn flow(self) -> &'static FlowKey {
        // SAFETY: as in `word`; never changed.
        unsafe { &(*self.0).flow }
    }

    #[inline(always)]
    fn slot(self) -> SlotHandle {
        // SAFETY: as in `word`; never changed.
        unsafe { (*self.0).slot }
    }

    #[inline(always)]
    pub fn is_client(self) -> bool {
        matches!(self.flow().role(), Some(Role::Client))
    }

    /// Returns this end's role. It stays readable when the storage is deleted.
    #[inline(always)]
    pub fn role(self) -> JudgedRole {
        conversations::role_of(self.flow(), self.is_guess())
    }

    #[inline(always)]
    fn is_guess(self) -> bool {
        // SAFETY: addresses of fields, as everywhere below.
        self.word(|state| unsafe { &raw mut (*state).is_guess }) != 0
    }

    /// Returns whether the last datagram that was sent with an address was sent to this conversation's remote.
    #[inline(always)]
    pub fn is_destination(self) -> bool {
        // SAFETY: see `is_guess`.
        self.word(|state| unsafe { &raw mut (*state).is_destination }) != 0
    }

    #[inline(always)]
    pub fn set_destination(self, is_destination: bool) {
        // Only what changes, since other processors read the same line.
        if self.is_destination() != is_destination {
            // SAFETY: see `is_destination`.
            self.set(|state| unsafe { &raw mut (*state).is_destination }, is_destination.into());
        }
    }

    /// Counts a datagram of this conversation. Returns false if [`Stored::settle`] has something to do first.
    #[inline(always)]
    pub fn count_datagram(self, sent: u64, received: u64) -> bool {
        let tick = conversations::tick();
        // SAFETY: see `is_destination`.
        if self.word(|state| unsafe { &raw mut (*state).tick }) != tick {
            let now = conversations::now();
            // SAFETY: see `is_destination`.
            let (last, noted) =
                unsafe { (self.word(|state| &raw mut (*state).last), self.word(|state| &raw mut (*state).noted)) };
            if conversations::is_over(last, now) || conversations::is_note_due(noted, now) {
                return false;
            }
            self.set_last(now, tick);
        }
        self.slot().count_datagram(sent, received)
    }

    #[inline(always)]
    fn set_last(self, now: u64, tick: u64) {
        // SAFETY: see `is_destination`.
        unsafe {
            self.set(|state| &raw mut (*state).last, now);
            self.set(|state| &raw mut (*state).tick, tick);
        }
    }

    /// Counts a datagram of another conversation of the socket. Returns whether it should take this one's place.
    #[inline(always)]
    pub fn is_displaced_by(self, remote: &End) -> bool {
        let [high, low, port] = remote.words();
        let hash = (high ^ low ^ (low >> 29) ^ (port << 40)) & !u64::from(u32::MAX);
        // SAFETY: see `is_destination`.
        let rival = self.word(|state| unsafe { &raw mut (*state).rival });
        let is_same = rival & !u64::from(u32::MAX) == hash;
        let next = if is_same { rival.wrapping_add(1) } else { hash };
        // SAFETY: see `is_destination`.
        self.set(|state| unsafe { &raw mut (*state).rival }, next);
        next & u64::from(u32::MAX) >= RIVAL_DATAGRAMS
    }
}

/// Brings the table up to date with the stored conversation of this name, which has a datagram now. Removes it from the
/// storage if it is over, or its slot was taken back. A function of its own, so that the stack suffices.
#[inline(never)]
pub fn settle(stored: Stored, socket: *mut bpf_sock, name: &Name) {
    let now = conversations::now();
    // SAFETY: see `Stored::is_destination`.
    let is_over = conversations::is_over(stored.word(|state| unsafe { &raw mut (*state).last }), now);
    if !is_over {
        stored.set_last(now, conversations::tick());
        conversations::note(name, stored.flow(), stored.slot(), now, stored.is_guess());
        // SAFETY: see `Stored::is_destination`.
        stored.set(|state| unsafe { &raw mut (*state).noted }, now);
    }
    if is_over || !stored.slot().is_current() {
        delete(stored, socket, name.cookie);
    }
}

/// Stores a conversation with its socket, in place of the displaced one. If there is no memory, the conversation stays in
/// the table alone.
#[inline(always)]
pub fn store(conversation: Ongoing, socket: *mut bpf_sock, name: &Name, displaced: Option<Stored>) {
    if !renew_slot(conversation) {
        return;
    }
    if let Some(displaced) = displaced {
        displace(displaced, socket, name.cookie);
    }
    create(conversation, socket, name);
}

/// Returns whether the conversation's flow has a slot, which the conversation then has as well. As [`settle`].
#[inline(never)]
fn renew_slot(conversation: Ongoing) -> bool {
    let slot = SlotHandle::provide_own(conversation.flow());
    conversation.set_slot(slot);
    slot.is_current()
}

/// As [`settle`].
#[inline(never)]
fn create(conversation: Ongoing, socket: *mut bpf_sock, name: &Name) {
    let now = conversations::now();
    let state = State {
        remote: End::of(name.remote, name.remote_port),
        slot: conversation.slot(),
        last: now,
        tick: conversations::tick(),
        // Until a datagram is sent there with an address. Before, the map of original destinations is asked.
        is_destination: 0,
        flow: *conversation.flow(),
        noted: now,
        rival: 0,
        is_guess: conversation.is_guess().into(),
    };
    // SAFETY: a full socket, and a value of the map's size, which the kernel copies.
    unsafe {
        let value = (&raw const state).cast_mut().cast();
        bpf_sk_storage_get(map(), socket.cast(), value, BPF_SK_STORAGE_GET_F_CREATE.into());
    }
}

/// Removes a conversation from the storage, and notes in the table that it goes on. As [`settle`].
#[inline(never)]
fn displace(stored: Stored, socket: *mut bpf_sock, cookie: u64) {
    let End { address, port, .. } = *stored.remote();
    let name = Name { cookie, remote: address, remote_port: port, reserved: [0; 3] };
    delete(stored, socket, cookie);
    // Last, for other processors may have counted meanwhile.
    // SAFETY: see `Stored::is_destination`.
    let last = stored.word(|state| unsafe { &raw mut (*state).last });
    conversations::note(&name, stored.flow(), stored.slot(), last, stored.is_guess());
}

#[inline(always)]
fn delete(stored: Stored, socket: *mut bpf_sock, cookie: u64) {
    if stored.is_destination() {
        original_destinations::note(cookie, stored.remote());
    }
    // SAFETY: a socket that is not null. The kernel keeps the memory until the program ends.
    unsafe { bpf_sk_storage_delete(map(), socket.cast()) };
}
