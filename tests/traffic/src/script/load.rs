//! Load of one process with itself, as one command.

use serde::{Deserialize, Serialize};

/// Connections and conversations to make; both ends are in the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadPlan {
    /// Number of conversations of datagrams, each with an address of its own.
    pub conversations: u32,
    /// Number of short connections, each to an address of its own.
    pub connections: u32,
    /// Number of connections, each to an address of its own, that are opened first and stay open to the end.
    pub held: u32,
}

/// Counts of the process itself; answers a [`LoadPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadCounts {
    /// Number of datagrams that arrived, each of another conversation.
    pub udp: u64,
    /// Number of connections that were accepted.
    pub tcp: u64,
}
