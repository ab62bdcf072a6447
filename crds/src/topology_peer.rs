//! Peer of an edge: a union. The field `type` determines which of the other fields are set.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// The other end of an edge. `type` says which of the other fields are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::peer_rules()))]
pub struct TopologyPeer {
    /// Type of the peer. `Workload`: pods of a workload. `Service`: a Service whose backend is unknown. `Node`: a node's
    /// address. `HostProcess`: a process on a node, outside of pods. `APIServer`: the cluster's API server, recognised by its
    /// address. `ExternalGroup`: addresses or DNS names that `spec.topology.externalGroups` gives a name. `DNSName`: the
    /// external name that resolved to the called address. `IP`: an external address. `External`: clients whose address a node
    /// replaced by its own. `OtherExternal`: all external addresses beyond `spec.topology.maxExternalPeers`, and those of flows
    /// that agents have folded (`status.folding` of NodeProbes).
    /// `UnknownPod`: a pod that the API server does not have, or a pod address whose
    /// owner at that time is unknown.
    #[serde(rename = "type")]
    pub type_: PeerType,
    /// API group and version of a `Workload`'s kind, for example `apps/v1`.
    #[schemars(length(max = 317))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Kind of a `Workload`: Deployment, StatefulSet, Pod, or another owner's.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Namespace of a `Workload` or `Service`.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of a `Workload`, `Service`, `Node`, `ExternalGroup` or `DNSName`; unit or command of a `HostProcess`.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Node of a `HostProcess`, or the node whose address servers observe instead of that of an `External`.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Address of an `IP`, or of an `UnknownPod` without `uid`.
    #[schemars(length(max = 45))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// UID of an `UnknownPod` that an agent observed and the API server does not have.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Cluster of the peer. Reserved: the operator does not set it yet; an absent value means this cluster.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

/// Type of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum PeerType {
    /// Pods of a workload.
    #[default]
    Workload,
    /// A Service whose backend is unknown: no backend answered, or no agent observed it.
    Service,
    /// A node's address; the process or host-network pod behind it is unknown.
    Node,
    /// A process on a node, outside of pods.
    HostProcess,
    /// The cluster's API server, recognised by its address.
    #[serde(rename = "APIServer")]
    ApiServer,
    /// Addresses and DNS names that `spec.topology.externalGroups` gives a name.
    ExternalGroup,
    /// An external DNS name that resolved to the address which the client called.
    #[serde(rename = "DNSName")]
    DnsName,
    /// An external address.
    #[serde(rename = "IP")]
    Ip,
    /// Clients whose address `node` replaced by its own, for example at a node port. The node's agent has reported all clients
    /// of the node, and these are none of them: they are outside of the cluster, or in pods that no agent observes.
    External,
    /// All external addresses beyond `spec.topology.maxExternalPeers`, and those of folded flows.
    OtherExternal,
    /// A pod that the API server does not have, or a pod address whose owner at that time is unknown.
    UnknownPod,
}
