//! The cluster's objects, kept up to date by watches: one for each kind.
//!
//! `state` has ScopeProbes, Nodes and NodeProbes, for control. `index` has pods, their owners, Services, Nodes and
//! Namespaces, so that addresses and cgroups get names; `watches` lists their watches.

mod api_versions;
mod app;
mod changes;
mod index;
mod listed;
mod namespaces;
mod nodes;
mod owners;
mod pods;
mod profile;
mod referenced;
mod services;
mod shared_index;
mod state;
mod steps;
mod watches;
mod workload_facts;

pub use self::{
    app::AppLabels,
    changes::ClusterChanges,
    index::Index,
    nodes::{NodeFacts, NodeSteps, Nodes},
    referenced::OwnerIdentity,
    shared_index::ClusterIndex,
    state::{ClusterState, WatchedCluster},
    watches::run as keep_index,
    workload_facts::WorkloadFacts,
};
