//! Assigns nodes to ScopeProbes, and modes to their agents. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crds::{ModeOverride, RequestedMode, ScopeProbe, ScopeProbeSpec};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt as _},
};

use super::{
    fallback_policy::NodeFallback,
    mode::{AgentMode, Asker, ModeCause, choose},
};
use crate::cluster::NodeFacts;

/// Properties of a ScopeProbe that an assignment depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFacts {
    /// Its name.
    pub name: String,
    /// Time of creation.
    pub created: Option<Timestamp>,
    /// Labels of its nodes.
    pub nodes: Selector,
    /// Requested mode.
    pub mode: RequestedMode,
    /// Overrides of the mode; the first one that selects a node applies.
    pub overrides: Vec<ModeOverride>,
}

impl ProbeFacts {
    /// Returns the properties of a ScopeProbe.
    #[must_use]
    pub fn of(probe: &ScopeProbe) -> Self {
        Self {
            name: probe.name_any(),
            created: probe.creation_timestamp().map(|time| time.0),
            nodes: nodes(&probe.spec),
            mode: probe.spec.mode,
            overrides: probe.spec.mode_overrides.clone(),
        }
    }

    /// Returns the mode that it requests for a node, and the field that does.
    fn requested(&self, labels: &BTreeMap<String, String>) -> (RequestedMode, Asker) {
        let selecting = self.overrides.iter().find(|it| selects(&it.node_selector, labels));
        selecting.map_or((self.mode, Asker::Probe), |it| (it.mode, Asker::Override))
    }
}

/// Assignment of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The ScopeProbe to which it belongs.
    pub probe: String,
    /// Mode that the ScopeProbe requests for this node.
    pub requested: RequestedMode,
    /// The mode in which its agent is started.
    pub mode: AgentMode,
    /// Reason for this mode.
    pub cause: ModeCause,
}

impl Assignment {
    /// Returns whether the agent's request for the Fallback mode is granted: no mode was requested, and the kernel
    /// permits an attempt.
    #[must_use]
    pub fn is_up_to_agent(&self) -> bool {
        self.requested == RequestedMode::Auto
            && match &self.cause {
                ModeCause::Supported | ModeCause::KernelUnknown | ModeCause::EbpfFailed(_) => true,
                ModeCause::UnfitKernel(_) | ModeCause::Forced(_) => false,
            }
    }
}

/// Assignments of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignments {
    /// Assignments by node. Nodes without an entry are not probed.
    pub nodes: BTreeMap<String, Assignment>,
    /// For each ScopeProbe, the selected nodes that belong to an older one, with its name.
    pub taken: BTreeMap<String, BTreeMap<String, String>>,
}

impl Assignments {
    /// Returns the nodes of one ScopeProbe.
    pub fn of<'a>(&'a self, probe: &'a str) -> impl Iterator<Item = (&'a str, &'a Assignment)> {
        self.nodes.iter().filter(move |(_, assignment)| assignment.probe == probe).map(|(node, it)| (node.as_str(), it))
    }

    /// Returns the modes of one ScopeProbe's nodes.
    #[must_use]
    pub fn modes(&self, probe: &str) -> BTreeSet<AgentMode> {
        self.of(probe).map(|(_, assignment)| assignment.mode).collect()
    }
}

/// Assigns every Linux node to the oldest ScopeProbe that selects it; of several created in the same second, to the first
/// by name. `fallbacks` are nodes on which eBPF failed.
#[must_use]
pub fn assign(probes: &[ProbeFacts], nodes: &[NodeFacts], fallbacks: &BTreeMap<String, NodeFallback>) -> Assignments {
    let mut by_age: Vec<_> = probes.iter().collect();
    by_age.sort_by_key(|probe| (probe.created.unwrap_or(Timestamp::MAX), &probe.name));
    let mut assignments = Assignments::default();
    for node in nodes.iter().filter(|node| node.os == "linux") {
        let mut selecting = by_age.iter().filter(|probe| probe.nodes.matches(&node.labels));
        let Some(winner) = selecting.next() else { continue };
        let (requested, asker) = winner.requested(&node.labels);
        let (mode, cause) = choose(requested, asker, &node.kernel, fallbacks.get(&node.name));
        let assignment = Assignment { probe: winner.name.clone(), requested, mode, cause };
        assignments.nodes.insert(node.name.clone(), assignment);
        for other in selecting {
            assignments.taken.entry(other.name.clone()).or_default().insert(node.name.clone(), winner.name.clone());
        }
    }
    assignments
}

/// Returns the selector of a ScopeProbe's nodes. Requirements that the schema would refuse select nothing more: `validate`
/// reports them.
fn nodes(spec: &ScopeProbeSpec) -> Selector {
    let labels = LabelSelector {
        match_labels: Some(spec.node_selector.clone()),
        match_expressions: Some(spec.node_affinity.match_expressions.clone()),
    };
    Selector::try_from(labels).unwrap_or_else(|_| spec.node_selector.clone().into_iter().collect())
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(name: &str, second: i64, selector: &[(&str, &str)], mode: RequestedMode) -> ProbeFacts {
        ProbeFacts {
            name: name.to_owned(),
            created: Some(Timestamp::from_second(second).unwrap()),
            nodes: pairs(selector).into_iter().collect(),
            mode,
            overrides: Vec::new(),
        }
    }

    fn node(name: &str, kernel: &str, labels: &[(&str, &str)]) -> NodeFacts {
        NodeFacts {
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            labels: pairs(labels),
            os: "linux".to_owned(),
            kernel: kernel.to_owned(),
            boot_id: String::new(),
        }
    }

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn assign(probes: &[ProbeFacts], nodes: &[NodeFacts]) -> Assignments {
        super::assign(probes, nodes, &BTreeMap::new())
    }

    #[test]
    fn the_first_override_that_selects_a_node_counts() {
        let mode_override = |labels: &[(&str, &str)], mode| ModeOverride { node_selector: pairs(labels), mode };
        let mut probe = probe("p", 1, &[], RequestedMode::Fallback);
        probe.overrides = vec![
            mode_override(&[("pool", "a"), ("zone", "1")], RequestedMode::Auto),
            mode_override(&[("pool", "a")], RequestedMode::Ebpf),
            mode_override(&[("pool", "a")], RequestedMode::Fallback),
        ];
        let nodes = [
            node("both", "6.1", &[("pool", "a"), ("zone", "1")]),
            node("pool", "6.1", &[("pool", "a"), ("zone", "2")]),
            node("none", "6.1", &[("zone", "1")]),
        ];
        let all = assign(&[probe], &nodes).nodes;
        let of = |name: &str| (all[name].requested, all[name].mode, all[name].cause.clone());
        assert_eq!(of("both"), (RequestedMode::Auto, AgentMode::Ebpf, ModeCause::Supported));
        assert_eq!(of("pool"), (RequestedMode::Ebpf, AgentMode::Ebpf, ModeCause::Forced(Asker::Override)));
        assert_eq!(of("none"), (RequestedMode::Fallback, AgentMode::Fallback, ModeCause::Forced(Asker::Probe)));
        assert!(all["both"].is_up_to_agent() && !all["pool"].is_up_to_agent() && !all["none"].is_up_to_agent());
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
    fn virtual_nodes_are_selected_on_request_alone() {
        let selector = |spec: serde_json::Value| {
            let spec = serde_json::json!({"apiVersion": "scopeprobe.io/v1alpha1", "kind": "ScopeProbe", "metadata": {"name": "p"}, "spec": spec});
            ProbeFacts::of(&serde_json::from_value(spec).unwrap()).nodes
        };
        let labels = |labels: &[(&str, &str)]| pairs(labels);
        let [plain, virtual_node, fargate] =
            [&[("zone", "a")], &[("type", "virtual-kubelet")], &[("eks.amazonaws.com/compute-type", "fargate")]]
                .map(|it| labels(it));
        let usual = selector(serde_json::json!({}));
        assert_eq!([&plain, &virtual_node, &fargate].map(|labels| usual.matches(labels)), [true, false, false]);
        let all = selector(serde_json::json!({"nodeAffinity": {"matchExpressions": []}}));
        assert_eq!([&plain, &virtual_node, &fargate].map(|labels| all.matches(labels)), [true, true, true]);
        let both = selector(serde_json::json!({
            "nodeSelector": {"pool": "x"},
            "nodeAffinity": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
        }));
        assert!(both.matches(&labels(&[("pool", "x"), ("zone", "b")])));
        assert!(!both.matches(&labels(&[("pool", "x")])) && !both.matches(&plain));
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
