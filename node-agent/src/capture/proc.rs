//! Reads the node's procfs and cgroup hierarchy: processes, their network namespaces and cgroups, and the counters of
//! each namespace.

pub(super) mod cgroups;
pub(super) mod processes;
pub(super) mod small_files;
pub(super) mod tcp_counters;
