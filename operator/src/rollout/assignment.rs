//! Which node belongs to which ScopeProbe, and in which mode its agent is started. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crds::RequestedMode;
use jiff::Timestamp;

use super::kernel::{self, KernelHint};

/// What an assignment has to know of a ScopeProbe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFacts {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Labels that its nodes have.
    pub node_selector: BTreeMap<String, String>,
    /// The mode that it asks for.
    pub mode: RequestedMode,
}

/// What an assignment has to know of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its operating system; empty while it is not known.
    pub os: String,
    /// Its kernel's release.
    pub kernel: String,
}

/// Which DaemonSet an agent belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AgentMode {
    /// With the capabilities that eBPF needs.
    Ebpf,
    /// Without them.
    Fallback,
}

impl AgentMode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ebpf, Self::Fallback];

    /// As labels, names and the agent's flag write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Fallback => "fallback",
        }
    }
}

/// Why a node's agent is started in its mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeCause {
    /// The kernel is recent enough.
    Supported,
    /// The kernel is too old.
    KernelTooOld,
    /// The kernel's release says nothing; the agent will find out.
    KernelUnknown,
    /// The ScopeProbe asks for this mode.
    ForcedByProbe,
}

/// What one node gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The ScopeProbe to which it belongs.
    pub probe: String,
    /// The mode in which its agent is started.
    pub mode: AgentMode,
    /// Why.
    pub cause: ModeCause,
}

/// What all nodes get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignments {
    /// By node. Nodes without an entry are not probed.
    pub nodes: BTreeMap<String, Assignment>,
    /// By ScopeProbe: the nodes that it selects and that belong to an older one, by node.
    pub taken: BTreeMap<String, BTreeMap<String, String>>,
}

impl Assignments {
    /// The nodes of one ScopeProbe.
    pub fn of<'a>(&'a self, probe: &'a str) -> impl Iterator<Item = (&'a str, &'a Assignment)> {
        self.nodes.iter().filter(move |(_, assignment)| assignment.probe == probe).map(|(node, it)| (node.as_str(), it))
    }

    /// The modes in which one ScopeProbe has nodes.
    #[must_use]
    pub fn modes(&self, probe: &str) -> BTreeSet<AgentMode> {
        self.of(probe).map(|(_, assignment)| assignment.mode).collect()
    }
}

/// Gives every Linux node to the oldest ScopeProbe that selects it; of those made in the same second, to the first by
/// name.
#[must_use]
pub fn assign(probes: &[ProbeFacts], nodes: &[NodeFacts]) -> Assignments {
    let mut by_age: Vec<_> = probes.iter().collect();
    by_age.sort_by_key(|probe| (probe.created.unwrap_or(Timestamp::MAX), &probe.name));
    let mut assignments = Assignments::default();
    for node in nodes.iter().filter(|node| node.os == "linux") {
        let mut selecting = by_age.iter().filter(|probe| selects(&probe.node_selector, &node.labels));
        let Some(winner) = selecting.next() else { continue };
        let (mode, cause) = mode(winner.mode, &node.kernel);
        assignments.nodes.insert(node.name.clone(), Assignment { probe: winner.name.clone(), mode, cause });
        for other in selecting {
            assignments.taken.entry(other.name.clone()).or_default().insert(node.name.clone(), winner.name.clone());
        }
    }
    assignments
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn mode(requested: RequestedMode, kernel: &str) -> (AgentMode, ModeCause) {
    match requested {
        RequestedMode::Ebpf => (AgentMode::Ebpf, ModeCause::ForcedByProbe),
        RequestedMode::Fallback => (AgentMode::Fallback, ModeCause::ForcedByProbe),
        RequestedMode::Auto => match kernel::hint(kernel) {
            KernelHint::Capable => (AgentMode::Ebpf, ModeCause::Supported),
            KernelHint::TooOld => (AgentMode::Fallback, ModeCause::KernelTooOld),
            KernelHint::Unknown => (AgentMode::Ebpf, ModeCause::KernelUnknown),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(name: &str, second: i64, selector: &[(&str, &str)], mode: RequestedMode) -> ProbeFacts {
        ProbeFacts {
            name: name.to_owned(),
            created: Some(Timestamp::from_second(second).unwrap()),
            node_selector: pairs(selector),
            mode,
        }
    }

    fn node(name: &str, kernel: &str, labels: &[(&str, &str)]) -> NodeFacts {
        NodeFacts {
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            labels: pairs(labels),
            os: "linux".to_owned(),
            kernel: kernel.to_owned(),
        }
    }

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_kernel_decides_unless_the_probe_does() {
        let nodes = [node("new", "6.1.0", &[]), node("old", "4.18.0", &[]), node("odd", "custom", &[])];
        let modes = |requested| {
            let all = assign(&[probe("p", 1, &[], requested)], &nodes).nodes;
            ["new", "old", "odd"].map(|name| (all[name].mode, all[name].cause))
        };
        assert_eq!(
            modes(RequestedMode::Auto),
            [
                (AgentMode::Ebpf, ModeCause::Supported),
                (AgentMode::Fallback, ModeCause::KernelTooOld),
                (AgentMode::Ebpf, ModeCause::KernelUnknown)
            ]
        );
        assert_eq!(modes(RequestedMode::Ebpf), [(AgentMode::Ebpf, ModeCause::ForcedByProbe); 3]);
        assert_eq!(modes(RequestedMode::Fallback), [(AgentMode::Fallback, ModeCause::ForcedByProbe); 3]);
    }

    #[test]
    fn the_oldest_that_selects_a_node_gets_it_and_the_others_know() {
        let probes = [
            probe("young", 20, &[], RequestedMode::Auto),
            probe("old", 10, &[("zone", "a")], RequestedMode::Auto),
            probe("also-young", 20, &[], RequestedMode::Auto),
        ];
        let nodes = [node("n1", "6.1", &[("zone", "a")]), node("n2", "6.1", &[("zone", "b")])];
        let assignments = assign(&probes, &nodes);
        assert_eq!(assignments.nodes["n1"].probe, "old");
        assert_eq!(assignments.nodes["n2"].probe, "also-young", "of the same age, the first by name");
        assert_eq!(assignments.taken["young"], pairs(&[("n1", "old"), ("n2", "also-young")]));
        assert_eq!(assignments.taken["also-young"], pairs(&[("n1", "old")]));
        assert!(!assignments.taken.contains_key("old"));
        let reversed: Vec<_> = probes.iter().rev().cloned().collect();
        assert_eq!(assign(&reversed, &nodes), assignments, "the order of the lists does not matter");
    }

    #[test]
    fn other_systems_and_unselected_nodes_are_left_alone() {
        let windows = NodeFacts { os: "windows".to_owned(), ..node("w", "10.0.20348", &[("pool", "x")]) };
        let unknown = NodeFacts { os: String::new(), ..node("u", "", &[("pool", "x")]) };
        let other = node("o", "6.1", &[("pool", "y")]);
        let assignments = assign(&[probe("p", 1, &[("pool", "x")], RequestedMode::Ebpf)], &[windows, unknown, other]);
        assert_eq!(assignments, Assignments::default());
    }
}
