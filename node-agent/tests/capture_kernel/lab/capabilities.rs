//! The capture with exactly the capabilities of the DaemonSet, while the laboratory around it has all.

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Leaves this thread with no other capabilities than those of `SCOPEPROBE_LAB_CAPABILITIES` (`BPF,PERFMON,…`), where
/// that is set. Processes that it starts have all of root's again.
pub fn limit() {
    let names = std::env::var("SCOPEPROBE_LAB_CAPABILITIES").unwrap_or_default();
    if !names.is_empty() {
        keep_only(&names);
    }
}

/// Leaves this thread, and those that it starts, with these capabilities alone.
pub fn keep_only(names: &str) {
    let kept: CapabilitySet = names
        .split(',')
        .map(|name| CapabilitySet::from_name(name).unwrap_or_else(|| panic!("{name} is no capability")))
        .collect();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
        .unwrap();
}
