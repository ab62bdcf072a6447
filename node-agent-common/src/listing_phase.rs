//! Phases of the first listing of open sockets. During it, the programs note the connections that they count.

/// The listing has ended, or not begun.
pub const OVER: u32 = 0;
/// The programs note every opening and every end.
pub const NOTES_ALL: u32 = 1;
/// Some notes are missing, for lack of room: a connection without a note may have been counted.
pub const LACKS_NOTES: u32 = 2;
