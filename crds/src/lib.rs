//! The kinds of `scopeprobe.io/v1alpha1`: what a person asks for ([`ScopeProbe`]), what runs on each node
//! ([`NodeProbe`]) and what was seen ([`Topology`]).
//!
//! The types are the source: `cargo run -p scopeprobe-crds --bin crdgen` writes the manifests that the chart installs
//! and the reference in `docs/api.md`; a test fails when either is stale.
#![forbid(unsafe_code)]
#![expect(clippy::duplicated_attributes, reason = "printer columns share their types")]

pub mod manifests;
mod node_probe;
pub mod reference;
mod schema;
mod scope_probe;
mod workload_topology;

pub use kube::core::Duration;

pub use crate::{node_probe::*, scope_probe::*, workload_topology::*};

/// The API group of all kinds.
pub const GROUP: &str = "scopeprobe.io";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// Node label: which mode's agents run there (`ebpf`, `ebpf-memlock` or `fallback`). The agents' DaemonSets select it.
pub const MODE_LABEL: &str = "scopeprobe.io/mode";
/// Label of nodes and of everything made for a ScopeProbe: its name.
pub const PROBE_LABEL: &str = "scopeprobe.io/probe";
