//! Capture by eBPF. A `sock_ops` program counts in the kernel; where it cannot be attached, programs on the tracepoint
//! `inet_sock_set_state` use the same maps. An iterator lists preexisting sockets.
//!
//! `sock_ops` keeps the first of these behind the programs of other owners, which `loaded_programs` lists.
//!
//! Start: `start` runs the `preflight` and then tries each [`Attach`](super::Attach) in turn. `programs` loads and attaches
//! the programs with the `offsets` that `btf` found; `tracepoint` does so for the second and third choice. `load_errors`
//! explains the kernel's errors, and `self_test` checks that connections are counted. `balancers` attaches programs before
//! those of a load balancer at the sockets, by the order of `cgroup_hooks`.
//!
//! Counting: the programs count into `counters`, by `slots`, and announce a new flow through `new_flows`. `listing` reads
//! the open sockets. `preexisting` separates preexisting connections from counted ones, and `attempts` does so for attempts
//! in progress. `tracked_sockets` finds the ends that a tracepoint missed, and `snmp_audit` counts what it missed otherwise.
//! `accounts` computes the totals, and `folding` decides when external flows share rows. `capture` combines all of them.

mod accounts;
mod attach_types;
mod attempts;
mod balancers;
mod btf;
mod capture;
mod cgroup_hooks;
mod conversation_tables;
mod counters;
mod datagrams;
mod folding;
mod keys;
mod listing;
mod load_errors;
mod loaded_programs;
mod new_flows;
mod object;
mod offsets;
mod pending_attempts;
mod preexisting;
mod preflight;
mod programs;
mod running_kernel;
mod seeds;
mod self_test;
mod slots;
mod snmp_audit;
mod sock_ops;
mod start;
mod table_sizes;
mod tasks;
mod tracepoint;
mod tracked_sockets;

pub use capture::EbpfCapture;
pub use start::{probe, start_ebpf};
