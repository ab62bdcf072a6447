//! The operator: rolls agents out, takes their reports in, and writes what they saw as Kubernetes objects.
//!
//! The way of a connection: `collector` takes a report in; `topology` joins it with what `watches` knows of
//! the cluster; `publisher` writes the Topology objects. Next to it `rollout` decides which node runs what, and
//! `status` writes what came of it into NodeProbe and ScopeProbe.
#![forbid(unsafe_code)]

pub mod cluster_state;
pub mod collector;
pub mod coverage;
pub mod guarded;
pub mod guarded_watch;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod observation;
pub mod publish_settings;
pub mod publisher;
pub mod rollout;
pub mod runtime;
pub mod settings;
pub mod status;
pub mod watches;
