//! Core without I/O: flows, entities, and the graph that is computed from them. No Kubernetes client, no clock.
//!
//! A flow enters through [`ledger::Ledger`], which keeps one continuous account of all epochs of all agents.
//! [`directory::Directory`] resolves names. [`graph::build`] joins both ends of each conversation into edges.
#![forbid(unsafe_code)]

pub mod activity;
pub mod archive;
pub mod clock;
pub mod count;
pub mod counts;
pub mod directory;
pub mod edge;
pub mod entity;
#[cfg(any(test, feature = "examples"))]
pub mod examples;
pub mod external;
pub mod flow;
pub mod graph;
mod hash;
pub mod history;
pub mod ledger;
pub mod nat_peer;
mod network_table;
pub mod ownership;
pub mod packed;
pub mod plural;
pub mod rtt;
pub mod sighting;
