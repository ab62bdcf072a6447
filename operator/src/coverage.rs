//! Coverage: the counted share of a node's connections. Pure: all times are arguments.
//!
//! An [`account::CoverageAccount`] keeps a node's observed and unobserved time with what was seen and lost in it. A
//! [`share::Share`] sums it up for a window.

pub mod account;
pub mod gap;
pub mod period;
pub mod share;

/// Milliseconds since 1970-01-01 UTC, by the operator's clock.
pub type UnixMs = u64;

/// Milliseconds of a minute.
pub const MINUTE: u64 = 60_000;
/// Milliseconds of an hour.
pub const HOUR: u64 = 60 * MINUTE;
/// Milliseconds of a day.
pub const DAY: u64 = 24 * HOUR;
/// The step in which the windows move.
pub const STEP: u64 = 5 * MINUTE;
