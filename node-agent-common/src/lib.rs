//! Data that the kernel programs and the agent exchange: fixed layouts of integers and byte arrays, in the machine's
//! byte order, without padding. The two sides share nothing else.
#![no_std]

mod answer;
pub mod balancing;
pub mod chunk;
pub mod conversation;
pub mod direction;
mod flow;
pub mod folding;
pub mod handover;
pub mod listing_phase;
mod offsets;
mod pending;
mod program;
mod role;
mod socket;
pub mod sockmap;
mod task;

pub use answer::AnswerRecord;
pub use flow::{FlowKey, FlowStats, Loss, NewFlow, Protocol, RTT_BUCKETS, rtt_bucket};
pub use offsets::Offsets;
pub use pending::PendingAttempt;
pub use program::ProgramRecord;
pub use role::{Origin, Role};
pub use socket::{SocketRecord, TrackedSocket, callback, state};
pub use task::TaskRecord;

/// Marks a layout as plain data for aya, which copies it as bytes to and from maps.
macro_rules! plain_data {
    ($($layout:ty),+) => {
        $(
            // SAFETY: `repr(C)`, Copy and 'static; all fields are integers and arrays of them, without padding (the
            // size asserted beside each layout is the sum of its fields), so any bytes are a valid value.
            #[cfg(feature = "user")]
            #[expect(unsafe_code, reason = "the only way to tell aya that a type is plain data")]
            unsafe impl aya::Pod for $layout {}
        )+
    };
}
pub(crate) use plain_data;
