//! Authorizes callers: an agent reports for the node of its pod.

use std::{sync::Arc, time::Instant};

use tonic::{Status, metadata::MetadataMap};

use super::identity::{Agent, Authenticator};

/// Callers that may report.
#[derive(Clone)]
pub enum Access {
    /// Anyone, for any node: for tests.
    Anyone,
    /// Agents, each for the node of its pod.
    Agents(Arc<Authenticator>),
}

/// Caller of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Any caller; may report for any node.
    Anyone,
    /// An agent.
    Agent(Agent),
}

impl Access {
    /// Authenticates the caller of a stream.
    pub(super) async fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        match self {
            Self::Anyone => Ok(Caller::Anyone),
            Self::Agents(authenticator) => authenticator.authenticate(metadata).await.map(Caller::Agent),
        }
    }
}

impl Caller {
    /// Returns an error if the caller may not report for this node.
    pub(super) fn check_node(&self, node: &str) -> Result<(), Status> {
        match self {
            Self::Agent(agent) if agent.node != node => Err(Status::permission_denied(format!(
                "node: {node:?} from pod {}, which is on {:?}; an agent reports for its own node",
                agent.pod, agent.node
            ))),
            Self::Anyone | Self::Agent(_) => Ok(()),
        }
    }

    /// Returns the caller's pod.
    pub(super) fn pod(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::Agent(agent) => Some(&agent.pod),
        }
    }

    /// Returns when the caller has to prove its identity again.
    pub(super) fn expires(&self) -> Option<Instant> {
        match self {
            Self::Anyone => None,
            Self::Agent(agent) => Some(agent.expires),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_reports_for_the_node_of_its_pod() {
        let agent = Agent { node: "node-1".to_owned(), pod: "agent-x".to_owned(), expires: Instant::now() };
        let agent = Caller::Agent(agent);
        assert!(agent.check_node("node-1").is_ok());
        let refused = agent.check_node("node-2").unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        for word in ["\"node-1\"", "\"node-2\"", "agent-x"] {
            assert!(refused.message().contains(word), "{refused}");
        }
        assert!(Caller::Anyone.check_node("node-2").is_ok());
    }
}
