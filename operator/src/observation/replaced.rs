//! State of a node before its current epoch.

use crds::Losses;

use crate::coverage::account::CoverageAccount;

/// Counts of a node's earlier epochs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EarlierObservation {
    /// Connections and failed attempts.
    pub seen: u64,
    /// Losses.
    pub losses: Losses,
}

/// A node's observation at the end of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplacedObservation {
    pub(super) origin: Vec<u8>,
    pub(super) earlier: EarlierObservation,
    pub(super) coverage: Option<CoverageAccount>,
    /// Time at which it last reported, in milliseconds since 1970-01-01 UTC by the operator's clock.
    pub(super) last_report_unix_ms: u64,
}
