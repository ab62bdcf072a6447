//! State of the fallback capture: connections as scans and conntrack have shown them, and the flows' counters. Pure.

pub(super) mod accounts;
pub(super) mod connections;
#[cfg(test)]
mod connections_crowd;
#[cfg(test)]
mod connections_model;
pub(super) mod conntrack_entry;
pub(super) mod conntrack_only;
pub(super) mod conntrack_table;
pub(super) mod entries;
pub(super) mod namespace;
