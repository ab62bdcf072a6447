//! Operator: rolls out agents, receives their reports, and writes their observations as Kubernetes objects.
//!
//! `collector` receives reports. `topology` joins them with the index that `cluster` maintains. `publisher` writes
//! the Topology objects. `rollout` chooses the agent of each node. `status` writes the results into NodeProbes and
//! ScopeProbes.
#![forbid(unsafe_code)]

pub mod api_budget;
pub mod api_client;
pub mod api_problems;
pub mod certificates;
pub mod cleanup;
pub mod cluster;
pub mod cluster_claim;
pub mod collector;
pub mod coverage;
pub mod edge_metrics;
pub mod event_recorder;
pub mod fence;
pub mod guarded;
pub mod guarded_watch;
pub mod health;
pub mod invalid_field;
pub mod leader_endpoints;
pub mod lease;
pub mod listen;
pub mod metrics;
pub mod observation;
pub mod open_files;
pub mod operator_deployment;
pub mod progress;
pub mod publish_settings;
pub mod publisher;
pub mod ready;
pub mod rollout;
pub mod runtime;
pub mod settings;
mod share_of_time;
pub mod shared_ledger;
pub mod status;
pub mod text;
