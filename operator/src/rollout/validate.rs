//! Validates a ScopeProbe: its values, and whether it has nodes in this cluster. Pure.

use std::collections::BTreeSet;

use crds::ScopeProbe;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{ResourceExt, core::Selector};

use super::{agent_options::AgentOptions, assignment::Assignments, mode::AgentMode};
use crate::{invalid_field::InvalidField, publish_settings::PublishSettings};

/// Reason for which a ScopeProbe has no node. The user must change a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNodes {
    /// No node matches.
    #[error(
        "spec.nodeSelector and spec.nodeAffinity select no Linux node: compare them with `kubectl get nodes --show-labels`"
    )]
    NoNodeSelected,
    /// Every node that matches belongs to another ScopeProbe.
    #[error(
        "every node that spec.nodeSelector and spec.nodeAffinity select belongs to an older ScopeProbe ({owners}): narrow one of them"
    )]
    AllNodesTaken {
        /// The names of the others, separated by commas.
        owners: String,
    },
}

impl NoNodes {
    /// The same as one word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoNodeSelected => "NoNodeSelected",
            Self::AllNodesTaken { .. } => "AllNodesTaken",
        }
    }
}

/// A ScopeProbe whose `spec` was read into the types of its consumers.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidProbe {
    /// Its name.
    pub name: String,
    /// Options of its agents.
    pub agents: AgentOptions,
    /// Settings of the publisher, which apply if it is the oldest ScopeProbe.
    pub publish: PublishSettings,
}

impl TryFrom<&ScopeProbe> for ValidProbe {
    type Error = InvalidField;

    fn try_from(probe: &ScopeProbe) -> Result<Self, InvalidField> {
        let affinity = &probe.spec.node_affinity.match_expressions;
        let labels = LabelSelector { match_expressions: Some(affinity.clone()), ..LabelSelector::default() };
        Selector::try_from(labels).map_err(|error| {
            InvalidField::new(
                "spec.nodeAffinity.matchExpressions",
                error.to_string(),
                "requirements on labels of nodes",
            )
        })?;
        Ok(Self {
            name: probe.name_any(),
            agents: AgentOptions::try_from(&probe.spec)?,
            publish: PublishSettings::try_from(&probe.spec.topology)?,
        })
    }
}

/// Returns the modes of a ScopeProbe's nodes: at least one.
///
/// # Errors
/// Returns the reason for which the ScopeProbe has no node.
pub fn modes(probe: &str, assignments: &Assignments) -> Result<BTreeSet<AgentMode>, NoNodes> {
    let modes = assignments.modes(probe);
    if !modes.is_empty() {
        return Ok(modes);
    }
    match assignments.taken.get(probe) {
        None => Err(NoNodes::NoNodeSelected),
        Some(taken) => {
            let owners: BTreeSet<_> = taken.values().map(String::as_str).collect();
            Err(NoNodes::AllNodesTaken { owners: owners.into_iter().collect::<Vec<_>>().join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rollout::{assignment::Assignment, mode::ModeCause};

    #[test]
    fn a_probe_needs_a_node_of_its_own() {
        let mut assignments = Assignments::default();
        assert_eq!(modes("p", &assignments), Err(NoNodes::NoNodeSelected));

        let taken = [("n1", "b"), ("n2", "a"), ("n3", "b")].map(|(node, owner)| (node.to_owned(), owner.to_owned()));
        assignments.taken.insert("p".to_owned(), BTreeMap::from(taken));
        assert_eq!(modes("p", &assignments), Err(NoNodes::AllNodesTaken { owners: "a, b".to_owned() }));

        let own = Assignment {
            probe: "p".to_owned(),
            requested: crds::RequestedMode::Auto,
            mode: AgentMode::Ebpf,
            cause: ModeCause::Supported,
        };
        assignments.nodes.insert("n4".to_owned(), own);
        assert_eq!(modes("p", &assignments), Ok([AgentMode::Ebpf].into()));
    }
}
