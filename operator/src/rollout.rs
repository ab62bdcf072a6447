//! Computes DaemonSets and node labels from ScopeProbes and Nodes: assign → validate → dereference → build → apply.
//!
//! Everything but `assigner`, `controller`, `dereference`, `apply` and `fallback_controller` is pure.

pub mod agent_options;
pub mod apply;
pub mod apply_cache;
pub mod assigner;
pub mod assignment;
pub mod build;
mod collector_access;
pub mod controller;
pub mod dereference;
pub mod fallback_controller;
pub mod fallback_policy;
pub mod millicores;
pub mod mode;
pub mod obstacles;
pub mod outcome;
pub mod privileges;
pub mod validate;

/// Field manager of everything that the operator applies, except node labels.
pub const FIELD_MANAGER: &str = "scopeprobe-operator";
/// Field manager of node labels: a label that it does not apply any more is removed.
pub const NODE_FIELD_MANAGER: &str = "scopeprobe-operator-node";
