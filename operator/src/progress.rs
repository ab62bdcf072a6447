//! Progress of the lease's holder from its start to its work.

/// Progress of the lease's holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something is missing yet.
    Starting,
    /// The API server does not answer or refuses, for this reason.
    Waiting(String),
    /// Another installation has the cluster.
    Blocked(String),
    /// All parts run.
    Running,
}
