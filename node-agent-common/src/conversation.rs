//! Tables and counts of UDP conversations, as indices of arrays.

/// Number of tables.
pub const TABLES: u32 = 2;
/// Table of conversations into which new ones go.
pub const CURRENT: u32 = 0;
/// Table that was the current one before, while some of its conversations may go on; the current one if there is none.
pub const EARLIER: u32 = 1;

/// Size of a conversation's key in the tables.
pub const KEY_BYTES: u32 = 32;
/// Size of a conversation's state in the tables.
pub const VALUE_BYTES: u32 = 72;

/// Number of socket histories: see [`history`](crate::direction::history).
pub const HISTORIES: u32 = 16_384;

/// Number of counts.
pub const COUNTS: u32 = 4;
/// Number of conversations that have begun, written by the programs.
pub const BEGUN: u32 = 0;
/// Number of begun conversations above which further ones may be preexisting, written by the agent. 0 while the capture
/// is too young to decide.
pub const CERTAIN_BELOW: u32 = 1;
/// Number of begun conversations up to which the tables still have all of them, written by the agent.
pub const COMPLETE_UP_TO: u32 = 2;
/// 1 while the table of histories has every socket that has one. The agent writes it when it has listed the sockets. The
/// programs write 0 if the table is full.
pub const HAS_HISTORIES: u32 = 3;
