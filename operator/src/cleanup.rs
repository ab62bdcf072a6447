//! Removes what no ScopeProbe, or no operator, needs any more.

pub mod prune;
pub mod sweep;
