//! Original destinations of sockets behind a load balancer at the sockets, such as Cilium's kube-proxy replacement.
//!
//! Its programs on `connect()` and `sendmsg()` replace a Service's address by a backend's before a packet exists. The
//! programs here run before its own. They note the destination that a task asks for in the storage of the socket, where it
//! stays until the connection has ended. The agent attaches them only while there are programs of others on `connect()`.
//!
//! TCP: [`decide`] compares the note with the remote address when the socket sends its SYN. From then on the note does not
//! change, so that all events of a connection count in one flow. Datagrams: `original_destinations` runs after the load
//! balancer, and enters pairs of a backend and its original destination into a table, until a conversation begins.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr},
    btf_maps::SkStorage,
    cty::c_void,
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::{btf_map, cgroup_sock_addr, map},
    maps::{Array, LruHashMap},
    programs::SockAddrContext,
};
use node_agent_common::{Loss, balancing};

use crate::{
    conversations::Name,
    destination::{End, destination_v4, destination_v6, socket_of},
    flows::lose,
};

/// See [`balancing`].
#[map(name = "BALANCING")]
static BALANCING: Array<u64> = Array::with_max_entries(1, 0);

/// A destination that a task asked for, and the word of [`BALANCING`] then.
#[repr(C)]
#[derive(Clone, Copy)]
struct Note {
    end: End,
    word: u64,
}

/// Notes of a socket.
#[repr(C)]
struct Notes {
    /// Of the last `connect()`.
    connected: Note,
    /// Of the last `sendmsg()` with an address.
    sent: Note,
}

/// As words: the kernel wants storage described in BTF.
type Words = [u64; 8];
const _: () = assert!(size_of::<Notes>() == size_of::<Words>());

#[btf_map(name = "ASKED")]
static ASKED: SkStorage<Words> = SkStorage::new();

/// Original destinations of unconnected sockets, by the backend that they send to: they may use several.
#[map(name = "BALANCED")]
static BALANCED: LruHashMap<Name, End> = LruHashMap::with_max_entries(4096, 0);

const PASS: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn asked_connect_v4(context: SockAddrContext) -> i32 {
    note(context.sock_addr, &destination_v4(context.sock_addr), |notes| {
        // SAFETY: the address of a field.
        unsafe { &raw mut (*notes).connected }
    });
    PASS
}

#[cgroup_sock_addr(connect6)]
pub fn asked_connect_v6(context: SockAddrContext) -> i32 {
    note(context.sock_addr, &destination_v6(context.sock_addr), |notes| {
        // SAFETY: as above.
        unsafe { &raw mut (*notes).connected }
    });
    PASS
}

#[cgroup_sock_addr(sendmsg4)]
pub fn asked_sendmsg_v4(context: SockAddrContext) -> i32 {
    note(context.sock_addr, &destination_v4(context.sock_addr), |notes| {
        // SAFETY: as above.
        unsafe { &raw mut (*notes).sent }
    });
    PASS
}

#[cgroup_sock_addr(sendmsg6)]
pub fn asked_sendmsg_v6(context: SockAddrContext) -> i32 {
    note(context.sock_addr, &destination_v6(context.sock_addr), |notes| {
        // SAFETY: as above.
        unsafe { &raw mut (*notes).sent }
    });
    PASS
}

/// Without memory for it, the connection is shown at its backend.
#[inline(always)]
fn note(call: *mut bpf_sock_addr, end: &End, field: impl FnOnce(*mut Notes) -> *mut Note) {
    let Some(socket) = socket_of(call) else { return };
    // SAFETY: a socket that is not null. New storage consists of zeros.
    let notes =
        unsafe { bpf_sk_storage_get(map(), socket.cast(), core::ptr::null_mut(), BPF_SK_STORAGE_GET_F_CREATE.into()) };
    if notes.is_null() {
        return lose(Loss::BalancedDestination);
    }
    let [address, rest, port] = end.words();
    let note = field(notes.cast()).cast::<[u64; 4]>();
    // SAFETY: a note in the storage is four words, and the socket is locked by its task.
    unsafe { core::ptr::write_volatile(note, [address, rest, port, word()]) };
}

/// Returns the address of the map, as helpers want it.
#[inline(always)]
fn map() -> *mut c_void {
    (&raw const ASKED).cast_mut().cast()
}

#[inline(always)]
fn word() -> u64 {
    // SAFETY: an array's value.
    BALANCING.get_ptr(0).map_or(balancing::NEVER, |word| unsafe { core::ptr::read_volatile(word) })
}

#[inline(always)]
fn notes_of(socket: *mut bpf_sock) -> Option<*mut Notes> {
    // SAFETY: a socket that is not null.
    let notes = unsafe { bpf_sk_storage_get(map(), socket.cast(), core::ptr::null_mut(), 0) };
    if notes.is_null() { None } else { Some(notes.cast()) }
}

impl Note {
    /// Reads a note by words: a structure would be read byte by byte.
    ///
    /// # Safety
    /// `note` has to point into the storage.
    #[inline(always)]
    unsafe fn read(note: *const Self) -> Self {
        // SAFETY: the caller's promise; four words.
        unsafe { core::mem::transmute::<[u64; 4], Self>(core::ptr::read_volatile(note.cast::<[u64; 4]>())) }
    }

    /// Returns the destination if it was noted since there is a load balancer.
    #[inline(always)]
    fn current(self, word: u64) -> Option<End> {
        (word & balancing::NOW != 0 && self.word == word).then_some(self.end)
    }
}

/// Returns whether sockets may have notes. To be asked before the functions below: it costs one load.
#[inline(always)]
pub fn may_be() -> bool {
    word() != balancing::NEVER
}

/// Decides by which destination a TCP socket is known that connects now. To be called before any other event of its
/// connection: a note that does not differ from its remote end goes.
#[inline(always)]
pub fn decide(socket: *mut bpf_sock, remote: &End) {
    if socket.is_null() {
        return;
    }
    let Some(notes) = notes_of(socket) else { return };
    // SAFETY: a field of the storage.
    let asked = unsafe { Note::read(&raw const (*notes).connected) }.current(word());
    if asked.is_none_or(|asked| asked == *remote) {
        forget(socket);
    }
}

/// Returns the original destination of a TCP connection, unless that is its remote end.
#[inline(always)]
pub fn destination(socket: *mut bpf_sock) -> Option<End> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: a field of the storage.
    notes_of(socket).map(|notes| unsafe { Note::read(&raw const (*notes).connected) }.end)
}

/// Removes the note of a TCP connection, if there is one.
#[inline(always)]
pub fn forget(socket: *mut bpf_sock) {
    if !socket.is_null() {
        // SAFETY: a socket that is not null. The kernel keeps the memory until the program ends.
        unsafe { bpf_sk_storage_delete(map(), socket.cast()) };
    }
}

/// Records the destination of a datagram after the load balancer has seen it.
#[inline(always)]
pub fn record_sent(socket: *mut bpf_sock, cookie: u64, to: &End) {
    let word = word();
    if word & balancing::NOW == 0 {
        return;
    }
    let Some(notes) = notes_of(socket) else { return };
    // SAFETY: a field of the storage.
    let Some(asked) = (unsafe { Note::read(&raw const (*notes).sent) }).current(word) else { return };
    let name = name(cookie, to);
    let known = balanced(&name);
    if asked == *to {
        if known.is_some() {
            let _ = BALANCED.remove(&name);
        }
    } else if known != Some(asked) && BALANCED.insert(&name, &asked, 0).is_err() {
        lose(Loss::BalancedDestination);
    }
}

/// Returns the original destination of a conversation that begins with a datagram to this remote end, unless that is the
/// end itself.
#[inline(never)]
pub fn destination_of_conversation(socket: *mut bpf_sock, name: &Name, is_connected: bool) -> Option<End> {
    let word = word();
    if word & balancing::NOW == 0 {
        return None;
    }
    if !is_connected {
        return balanced(name);
    }
    // SAFETY: a field of the storage.
    let note = unsafe { Note::read(&raw const (*notes_of(socket)?).connected) };
    note.current(word)
}

#[inline(always)]
fn balanced(name: &Name) -> Option<End> {
    // SAFETY: a value of the map, which stays readable while the program runs; it consists of three words.
    BALANCED
        .get_ptr(name)
        .map(|end| unsafe { core::mem::transmute::<[u64; 3], End>(core::ptr::read_volatile(end.cast::<[u64; 3]>())) })
}

#[inline(always)]
fn name(cookie: u64, end: &End) -> Name {
    Name { cookie, remote: end.address, remote_port: end.port, reserved: [0; 3] }
}
