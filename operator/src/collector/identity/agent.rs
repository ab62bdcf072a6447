//! Verdicts on a token: an agent, or a refusal.

use std::time::Instant;

use tonic::Status;

use crate::settings::COLLECTOR_AUDIENCE as AUDIENCE;

/// An agent whose token was reviewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::collector) struct Agent {
    /// Node of its pod.
    pub node: String,
    /// Its pod.
    pub pod: String,
    /// Time at which its token expires.
    pub expires: Instant,
}

/// Reason for which a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The request has no token.
    #[error("authorization: the request has no bearer token; agents send the token of --token-file")]
    NoToken,
    /// The token has another format.
    #[error("authorization: the token is no JSON Web Token of a ServiceAccount ({0})")]
    Malformed(&'static str),
    /// The token is for another purpose.
    #[error("authorization: the token's audience is {found:?}; the collector accepts {AUDIENCE:?}")]
    OtherAudience {
        /// Audiences of the token.
        found: Vec<String>,
    },
    /// The token is another account's.
    #[error("authorization: the token is {found:?}'s; the collector accepts {expected:?}")]
    OtherAccount {
        /// Owner of the token.
        found: String,
        /// ServiceAccount of agents.
        expected: String,
    },
    /// The token belongs to no pod.
    #[error("authorization: the token is not bound to a pod; agents have one from their pod's projected volume")]
    NotBound,
    /// The API server does not accept the token.
    #[error("authorization: the API server does not accept the token ({0}); come again with a fresh one")]
    NotAuthenticated(String),
}

impl Refusal {
    /// Returns the refusal as a status of gRPC.
    pub fn status(&self) -> Status {
        match self {
            Self::NoToken | Self::Malformed(_) | Self::OtherAudience { .. } | Self::NotAuthenticated(_) => {
                Status::unauthenticated(self.to_string())
            }
            Self::OtherAccount { .. } | Self::NotBound => Status::permission_denied(self.to_string()),
        }
    }
}
