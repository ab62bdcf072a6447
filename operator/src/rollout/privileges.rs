//! Privileges of the agents of each mode, with the operation that needs each. docs/privileges.md has the same.

use super::mode::AgentMode;

/// A capability, without `CAP_`, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As a container's `securityContext` writes it.
    pub name: &'static str,
    /// The operation that needs it.
    pub operation: &'static str,
}

const BPF: Capability = Capability { name: "BPF", operation: "making eBPF maps and loading programs" };
const PERFMON: Capability =
    Capability { name: "PERFMON", operation: "reading fields of kernel objects by pointer in eBPF programs" };
const CGROUP_PROGRAMS: Capability =
    Capability { name: "NET_ADMIN", operation: "loading a sock_ops program and attaching it to a cgroup" };
const LOCKED_MEMORY: Capability = Capability {
    name: "SYS_RESOURCE",
    operation: "raising the limit of locked memory, as which kernels below 5.11 count eBPF maps",
};
const CONNTRACK: Capability =
    Capability { name: "NET_ADMIN", operation: "hearing of connections by conntrack's events, with a large buffer" };
const OTHERS_NAMESPACES: Capability =
    Capability { name: "SYS_PTRACE", operation: "opening /proc/<pid>/ns/net and /proc/<pid>/fd of other processes" };
const ENTER_NAMESPACES: Capability =
    Capability { name: "SYS_ADMIN", operation: "entering network namespaces (setns) to list their sockets" };
const OTHERS_FILES: Capability =
    Capability { name: "DAC_READ_SEARCH", operation: "reading /proc/<pid>/fd of processes of other users" };

/// The least that a mode works with.
#[must_use]
pub fn capabilities(mode: AgentMode) -> &'static [Capability] {
    match mode {
        AgentMode::Ebpf => &[BPF, PERFMON, CGROUP_PROGRAMS],
        AgentMode::EbpfMemlock => &[BPF, PERFMON, CGROUP_PROGRAMS, LOCKED_MEMORY],
        AgentMode::Fallback => &[CONNTRACK, OTHERS_NAMESPACES, ENTER_NAMESPACES, OTHERS_FILES],
    }
}

/// Returns whether `AppArmor`'s profile for containers must be off: it denies access to processes outside of it,
/// regardless of capabilities.
#[must_use]
pub fn needs_no_apparmor(mode: AgentMode) -> bool {
    mode == AgentMode::Fallback
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_name_each_capability_where_it_is_given() {
        let page = include_str!("../../../docs/privileges.md");
        for mode in AgentMode::ALL {
            let heading = format!("(DaemonSet of mode `{}`)", mode.as_str());
            let section = page.split("\n## ").find(|section| section.contains(&heading));
            let section = section.unwrap_or_else(|| panic!("no section {heading}"));
            for capability in capabilities(mode) {
                let row = format!("| `CAP_{}` |", capability.name);
                assert!(section.contains(&row), "{heading} has no row {row}");
            }
            let rows = section.lines().filter(|line| line.starts_with("| `CAP_")).count();
            assert_eq!(rows, capabilities(mode).len(), "{heading} names what is not given");
        }
    }
}
