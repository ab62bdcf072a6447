//! Conversations of datagrams.

/// Number of counts.
pub const COUNTS: u32 = 2;
/// The programs': how many conversations have begun.
pub const BEGUN: u32 = 0;
/// The agent's: those that begin beyond this number may be older. 0 while the capture is too young to know.
pub const CERTAIN_BELOW: u32 = 1;
