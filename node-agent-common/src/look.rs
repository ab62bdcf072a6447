//! The first look at the open sockets, while which the programs note what they count.

/// It is over, or has not begun.
pub const OVER: u32 = 0;
/// Every opening and every end is noted.
pub const NOTES_ALL: u32 = 1;
/// Some were not, for want of room: what has no note may have been counted.
pub const LACKS_NOTES: u32 = 2;
