//! Computes and writes NodeProbe and ScopeProbe status.
//!
//! `node_probe` and `scope_probe` say what a status should be, purely; `writer` writes what differs from what is there,
//! and not too often; `restore` reads back what an earlier operator has written; `repair` mends what does not decode.

pub mod conditions;
pub mod coverage;
pub mod events;
pub mod explanation;
pub mod history;
pub mod node_probe;
pub mod repair;
pub mod restore;
pub mod scope_probe;
#[cfg(test)]
mod simulation;
pub mod writer;
