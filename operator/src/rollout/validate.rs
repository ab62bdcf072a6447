//! Validates what the schema cannot: whether a ScopeProbe's values make sense in this cluster. Pure.

use std::collections::BTreeSet;

use super::assignment::Assignments;

/// Invalid value that the user must change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No node matches.
    #[error("spec.nodeSelector selects no Linux node: compare it with `kubectl get nodes --show-labels`")]
    NoNodeSelected,
    /// Every node that matches belongs to another ScopeProbe.
    #[error("every node that spec.nodeSelector selects belongs to an older ScopeProbe ({owners}): narrow one of them")]
    AllNodesTaken {
        /// The names of the others, separated by commas.
        owners: String,
    },
}

impl Invalid {
    /// The same as one word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoNodeSelected => "NoNodeSelected",
            Self::AllNodesTaken { .. } => "AllNodesTaken",
        }
    }
}

/// Checks that a ScopeProbe has nodes.
///
/// # Errors
/// Why it has none, and what a person has to change.
pub fn validate(probe: &str, assignments: &Assignments) -> Result<(), Invalid> {
    if assignments.of(probe).next().is_some() {
        return Ok(());
    }
    match assignments.taken.get(probe) {
        None => Err(Invalid::NoNodeSelected),
        Some(taken) => {
            let owners: BTreeSet<_> = taken.values().map(String::as_str).collect();
            Err(Invalid::AllNodesTaken { owners: owners.into_iter().collect::<Vec<_>>().join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rollout::{
        assignment::Assignment,
        choice::{AgentMode, ModeCause},
    };

    #[test]
    fn a_probe_needs_a_node_of_its_own() {
        let mut assignments = Assignments::default();
        assert_eq!(validate("p", &assignments), Err(Invalid::NoNodeSelected));

        let taken = [("n1", "b"), ("n2", "a"), ("n3", "b")].map(|(node, owner)| (node.to_owned(), owner.to_owned()));
        assignments.taken.insert("p".to_owned(), BTreeMap::from(taken));
        assert_eq!(validate("p", &assignments), Err(Invalid::AllNodesTaken { owners: "a, b".to_owned() }));

        let own = Assignment {
            probe: "p".to_owned(),
            requested: crds::RequestedMode::Auto,
            mode: AgentMode::Ebpf,
            cause: ModeCause::Supported,
        };
        assignments.nodes.insert("n4".to_owned(), own);
        assert_eq!(validate("p", &assignments), Ok(()));
    }
}
