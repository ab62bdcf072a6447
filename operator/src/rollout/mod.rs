//! From ScopeProbes and Nodes to DaemonSets and node labels: dereference → validate → assign → build → apply.
//!
//! Everything but `controller`, `dereference`, `apply`, `sweep`, `demoter` and `prune` is pure.

pub mod applied;
pub mod apply;
pub mod assignment;
pub mod build;
pub mod choice;
pub mod controller;
pub mod demoter;
pub mod demotion;
pub mod dereference;
pub mod millicores;
pub mod outcome;
pub mod privileges;
pub mod prune;
pub mod sweep;
pub mod validate;

/// The field manager of everything that the operator applies, apart from node labels.
pub const FIELD_MANAGER: &str = "scopeprobe-operator";
/// The field manager of node labels: what it does not apply any more is gone.
pub const NODE_FIELD_MANAGER: &str = "scopeprobe-operator-node";
