//! Counts of UDP conversations, as indices of an array.

/// Number of counts.
pub const COUNTS: u32 = 2;
/// Number of conversations that have begun, written by the programs.
pub const BEGUN: u32 = 0;
/// Number of begun conversations above which further ones may be preexisting, written by the agent. 0 while the capture
/// is too young to decide.
pub const CERTAIN_BELOW: u32 = 1;
