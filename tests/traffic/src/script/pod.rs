//! Commands to a process that is one pod after the other.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Command to the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodCommand {
    /// Starts a pod. It answers clients with its name and calls other pods.
    Start(PodScript),
    /// Stops the pod; answered with [`PodAnswer::Calls`].
    Stop,
}

/// Answer of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodAnswer {
    /// The command succeeded.
    Done,
    /// Calls of the pod that was stopped.
    Calls(PodCalls),
}

/// Behaviour of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodScript {
    /// Name of the pod, at most 16 bytes.
    pub name: String,
    /// Milliseconds between two calls.
    pub pause_ms: u64,
    /// Seed of the pseudorandom choice of each call's target.
    pub seed: u64,
    /// Addresses that the pod calls.
    pub targets: Vec<IpAddr>,
}

/// Calls of a pod, by its own counts. Refused calls are in neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodCalls {
    /// Number of answered calls by the name of the pod that answered.
    pub answered: BTreeMap<String, u64>,
    /// Calls that were neither answered nor refused.
    pub unanswered: Vec<UnansweredCall>,
}

/// Call that was neither answered nor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UnansweredCall {
    /// Address of the server.
    pub target: IpAddr,
    /// Start of the call, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// End of the call, in milliseconds since 1970.
    pub until_unix_ms: u64,
}
