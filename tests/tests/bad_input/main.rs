//! Tests bad input: the sender gets a clear error, and everything else continues.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod case;
mod constraints;
#[cfg(feature = "cluster-tests")]
mod edges;
#[cfg(feature = "cluster-tests")]
mod node;
mod node_affinity;
#[cfg(feature = "cluster-tests")]
mod report;
mod spec;
mod topology_spec;
