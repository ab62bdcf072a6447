//! Answers of name servers.

use crate::plain_data;

/// One message, as it came to a socket. In the ring buffer it ends where the message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AnswerRecord {
    /// The id of the cgroup of the socket.
    pub cgroup: u64,
    /// Number of bytes in `message`.
    pub length: u32,
    /// Number of bytes that the message had.
    pub whole: u32,
    /// The message, or its beginning.
    pub message: [u8; Self::MOST],
}
const _: () = assert!(size_of::<AnswerRecord>() == AnswerRecord::HEAD + AnswerRecord::MOST);
plain_data!(AnswerRecord);

impl AnswerRecord {
    /// Bytes before `message`.
    pub const HEAD: usize = 8 + 4 + 4;
    /// The longest message that comes whole, in bytes: a power of two. Name servers do not send datagrams as long as this
    /// (RFC 9715).
    pub const MOST: usize = 2048;
}
