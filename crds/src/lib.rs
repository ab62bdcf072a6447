//! Kinds of `scopeprobe.io/v1alpha1`: a request ([`ScopeProbe`]), the state of each node's agent ([`NodeProbe`]), and the
//! observed connections of each workload ([`Topology`]).
//!
//! The types are the source: `make crds` generates the manifests that the chart installs and the reference
//! `docs/api.md` from them. A test fails if either is stale.
#![forbid(unsafe_code)]
#![expect(clippy::duplicated_attributes, reason = "printer columns share their types")]

pub mod manifests;
mod node_probe;
pub mod reference;
mod schema;
mod scope_probe;
mod topology_edge;
mod topology_peer;
mod workload_topology;

pub use kube::core::Duration;

pub use crate::{node_probe::*, scope_probe::*, topology_edge::*, topology_peer::*, workload_topology::*};

/// API group of all kinds.
pub const GROUP: &str = "scopeprobe.io";
/// API version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// Label of a node: the agents that run there (`ebpf`, `ebpf-memlock` or `fallback`). The agents' DaemonSets select it.
pub const MODE_LABEL: &str = "scopeprobe.io/mode";
/// Label of nodes and of all objects that the operator creates for a ScopeProbe: the name of the ScopeProbe.
pub const PROBE_LABEL: &str = "scopeprobe.io/probe";
