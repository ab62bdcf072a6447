//! Capture without eBPF: combines scans of the kernel's socket tables with conntrack events between two scans.
//!
//! - `worker` scans the network namespaces, by `netlink::sock_diag` or `proc_net` (`reader`). It leaves out namespaces
//!   without changes. `cpu_budget` keeps the scans within their share of the CPU.
//! - `netlink::conntrack` reports the connections that open and close between two scans.
//! - `state` merges both: `state::connections` has a `namespace` for each network namespace, and a `conntrack_table` for
//!   connections that no scan has returned (`conntrack_only`). `state::accounts` holds the flows' counters.
//! - `capture` is the interface to the rest of the agent.

mod capabilities;
mod capture;
mod cpu_budget;
mod netlink;
mod proc_net;
mod reader;
mod settings;
mod shared;
mod socket;
mod socket_owners;
mod state;
mod worker;

pub use capture::{FallbackCapture, Passes, probe_fallback, start_fallback};
pub use settings::FallbackSettings;
