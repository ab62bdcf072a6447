//! Entries of pending attempts.

use crate::{FlowKey, plain_data};

/// Attempt to connect whose SYN was retransmitted and has no answer yet, by the cookie of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PendingAttempt {
    /// Flow of the client.
    pub flow: FlowKey,
    /// Retransmissions that the program has seen. The number grows while the socket waits for an answer.
    pub retransmits: u64,
    /// 1 from just before the program counts the answer, until it removes the entry after that; otherwise 0.
    pub is_answered: u64,
}
const _: () = assert!(size_of::<PendingAttempt>() == size_of::<FlowKey>() + 16);
plain_data!(PendingAttempt);
