//! Identity of agents: a token of their ServiceAccount, bound to a pod and to this collector. The API server reviews it;
//! the pod decides the node.
//!
//! `agent` has both verdicts, `claims` reads a token without trusting it, `verdict` judges a review, `cache` remembers verdicts, and `authenticator`
//! asks the API server.

mod agent;
mod authenticator;
mod cache;
mod claims;
mod verdict;

pub(super) use self::agent::Agent;
pub use self::authenticator::Authenticator;
