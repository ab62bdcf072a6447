//! DNS responses.

use crate::plain_data;

/// One DNS message that a socket received. The record in the ring buffer ends with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AnswerRecord {
    /// ID of the socket's cgroup.
    pub cgroup: u64,
    /// Number of bytes in `message`.
    pub length: u32,
    /// Number of bytes of the whole message.
    pub whole: u32,
    /// The message, or its beginning.
    pub message: [u8; Self::MOST],
}
const _: () = assert!(size_of::<AnswerRecord>() == AnswerRecord::HEAD + AnswerRecord::MOST);
plain_data!(AnswerRecord);

impl AnswerRecord {
    /// Bytes before `message`.
    pub const HEAD: usize = 8 + 4 + 4;
    /// Maximum size of a message that is copied whole, in bytes: a power of two. DNS servers do not send datagrams of
    /// this size (RFC 9715).
    pub const MOST: usize = 2048;
}
