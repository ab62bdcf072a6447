//! Privileges of the agents of each mode, with the operation that needs each. The tables of docs/privileges.md follow from
//! it, and the capabilities of the chart's admission policy and of the agent's tests on other kernels (tests/kernels).

use super::mode::AgentMode;

/// A capability, without `CAP_`, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As a container's `securityContext` writes it.
    pub name: &'static str,
    /// Operation that needs it, in Markdown.
    pub operation: &'static str,
}

const BPF: Capability = Capability {
    name: "BPF",
    operation: "`bpf(2)`: creating maps and loading programs (Linux ≥ 5.8; older kernels need `CAP_SYS_ADMIN` for that)",
};
const PERFMON: Capability = Capability {
    name: "PERFMON",
    operation: "reading kernel objects by pointer in the programs: `bpf_skc_to_tcp_sock`, the iterators, and \
                `bpf_probe_read_kernel` for the network namespace of a UDP socket",
};
const CGROUP_PROGRAMS: Capability = Capability {
    name: "NET_ADMIN",
    operation: "loading the `sock_ops` program, which counts TCP, those that count UDP (`cgroup_skb`, `sendmsg`), and those \
                that note original destinations (`connect`); attaching them to a cgroup",
};
const LOCKED_MEMORY: Capability = Capability {
    name: "SYS_RESOURCE",
    operation: "raising `RLIMIT_MEMLOCK`: kernels before 5.11 count eBPF maps as locked memory",
};
const CONNTRACK: Capability = Capability {
    name: "NET_ADMIN",
    operation: "receiving conntrack events by netlink, with a receive buffer above the system's limit",
};
const OTHERS_NAMESPACES: Capability = Capability {
    name: "SYS_PTRACE",
    operation: "opening `/proc/<pid>/ns/net` and `/proc/<pid>/fd` of other processes",
};
const ENTER_NAMESPACES: Capability = Capability {
    name: "SYS_ADMIN",
    operation: "`setns(2)`: entering the pods' network namespaces to list their sockets (`sock_diag`)",
};
const OTHERS_FILES: Capability =
    Capability { name: "DAC_READ_SEARCH", operation: "reading `/proc/<pid>/fd` of processes of other users" };

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
    use std::{env, fmt::Write as _, fs, path::Path};

    use super::*;

    /// Variable that makes the tests write the files.
    const WRITE: &str = "SCOPEPROBE_WRITE_GENERATED";

    /// Compares a file with its generated content, which follows from the content that it has.
    fn compare(path: &str, generate: impl FnOnce(&str) -> String) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        let committed = fs::read_to_string(&file).expect("the file can be read");
        let generated = generate(&committed);
        if env::var_os(WRITE).is_some() {
            fs::write(&file, &generated).expect("the file can be written");
        } else {
            assert!(committed == generated, "{path} differs from the code: run `make generated`");
        }
    }

    /// Returns the rows of a mode's capabilities.
    fn rows(mode: AgentMode) -> String {
        capabilities(mode).iter().fold(String::new(), |mut rows, Capability { name, operation }| {
            let _ = writeln!(rows, "| `CAP_{name}` | {operation} |");
            rows
        })
    }

    /// Returns the page with the rows of all modes written anew, each below the heading with its mode.
    fn with_rows_of_each_mode(page: &str) -> String {
        let mut sections: Vec<String> = page.split("\n## ").map(str::to_owned).collect();
        for mode in AgentMode::ALL {
            let heading = format!("(DaemonSet of mode `{}`)", mode.as_str());
            let section = sections.iter_mut().find(|section| section.contains(&heading));
            let section = section.unwrap_or_else(|| panic!("docs/privileges.md has no section {heading}"));
            let (before, table) = section.split_once("|---|---|\n").expect("the section begins with a table");
            let others: String = table.split_inclusive('\n').filter(|line| !line.starts_with("| `CAP_")).collect();
            *section = format!("{before}|---|---|\n{}{others}", rows(mode));
        }
        sections.join("\n## ")
    }

    #[test]
    fn page_of_privileges_has_the_capabilities_of_each_mode() {
        compare("docs/privileges.md", with_rows_of_each_mode);
    }

    #[test]
    fn kernel_guests_have_the_capabilities_of_each_mode() {
        let mut lines = String::from("# Capabilities of each mode's DaemonSet. Written by `make generated`.\n");
        for mode in AgentMode::ALL {
            let names: Vec<_> = capabilities(mode).iter().map(|capability| capability.name).collect();
            let _ = writeln!(lines, "{} {}", mode.as_str(), names.join(","));
        }
        compare("tests/kernels/capabilities.txt", |_| lines);
    }

    #[test]
    fn admission_policy_allows_the_capabilities_of_each_mode() {
        let mut lines = String::from("# Capabilities of each mode's DaemonSet. Written by `make generated`.\n");
        for mode in AgentMode::ALL {
            let names: Vec<_> = capabilities(mode).iter().map(|capability| capability.name).collect();
            let _ = writeln!(lines, "{}: [{}]", mode.as_str(), names.join(", "));
        }
        compare("charts/scopeprobe/files/capabilities.yaml", |_| lines);
    }
}
