//! Reports observations to the operator by `report.proto`: one stream, one message in flight, cumulative counters, and a
//! snapshot at the beginning of each stream and epoch.

pub mod credentials;
pub mod operator_url;
pub mod session;
pub mod stream;
pub mod wire;
