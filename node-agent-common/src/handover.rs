//! Phases of a handover between two copies of the `sock_ops` program, of which the kernel calls one after the other.
//!
//! 1. One copy counts. It is the only one attached.
//! 2. It also notes each event that it counts ([`NOTES`]). The other copy is attached, and removes the notes.
//! 3. The other copy counts events without a note ([`CHECKS`]). The first one is detached: from then on, no event has a note.
//! 4. The other copy counts without looking for notes.
//!
//! Events that go on while the phase changes count once, if the agent waits for them after the first and the third step.

/// Set while the second copy is the one that counts, or began to.
pub const TWIN: u32 = 1;
/// Set while the counting copy notes what it has counted.
pub const NOTES: u32 = 2;
/// Set while the other copy counts what has no note.
pub const CHECKS: u32 = 4;

/// Maximum number of notes.
pub const ROOM: u32 = 16_384;
