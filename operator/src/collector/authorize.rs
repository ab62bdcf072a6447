//! Authorizes agents to report for nodes. No credentials are required yet: the stream is plain text, which agents must
//! accept explicitly.

use report::v1alpha1::AgentReport;
use tonic::{Request, Status, Streaming};

/// Caller of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Any caller; may report for any node.
    Anyone,
}

/// Authenticates the caller of a stream.
#[expect(clippy::unnecessary_wraps, reason = "credentials can be wrong as soon as there are any")]
pub(super) fn authorize(_request: &Request<Streaming<AgentReport>>) -> Result<Caller, Status> {
    Ok(Caller::Anyone)
}

/// Returns an error if the caller may not report for this node.
#[expect(clippy::unnecessary_wraps, reason = "a caller that is known may report for its own node only")]
pub(super) fn may_report(caller: &Caller, _node: &str) -> Result<(), Status> {
    match caller {
        Caller::Anyone => Ok(()),
    }
}
