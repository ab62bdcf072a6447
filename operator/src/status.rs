//! Computes and writes NodeProbe and ScopeProbe status.
//!
//! - `node_probe` and `scope_probe` compute the desired status, without I/O.
//! - `writer` writes statuses that differ from the published ones, at a limited rate. `written_statuses` decides which.
//! - `figures` sums statuses for the metrics.
//! - `restore` reads the statuses that an earlier operator wrote.
//! - `repair` repairs objects that do not decode.

pub mod conditions;
pub mod coverage;
pub mod events;
pub mod explanation;
mod figures;
pub mod history;
pub mod node_probe;
mod readiness;
pub mod repair;
pub mod restore;
pub mod scope_probe;
#[cfg(test)]
mod simulation;
pub mod writer;
mod written_statuses;
