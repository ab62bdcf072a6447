//! Removes what no ScopeProbe, or no operator, needs any more.

pub mod garbage_collector;
pub mod prune;
