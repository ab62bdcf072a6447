//! Tells the operator what is observed, as `report.proto` says: one stream, one message under way, cumulative
//! counters, a snapshot at the beginning of each stream and epoch.

pub mod operator_url;
pub mod session;
pub mod stream;
pub mod wire;
