//! Edge of a `Topology`: all conversations with one peer in one direction, through one Service port or none, at one port.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{TopologyPeer, workload_topology::is_zero};

/// All conversations between this workload and one peer, in one direction, through one Service port or none, at one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologyEdge {
    /// Identifier of the edge: 16 hexadecimal digits. It is a hash of client, server, Service port, port and protocol. The
    /// Topology of the peer lists the same edge under the same identifier.
    #[schemars(length(min = 16, max = 16))]
    pub id: String,
    /// The other end.
    pub peer: TopologyPeer,
    /// Service that the client called; absent if it called an address directly, or if only the server was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
    /// Port at which the server listens. Absent where it is unknown: behind a Service with several backends, or where the
    /// edge stands for several ports.
    #[schemars(range(min = 1, max = 65_535))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Transport protocol. With `UDP`, `opened` counts conversations: datagrams between one socket and one remote address
    /// and port, until 2 minutes pass without one. `active`, `failed` and `pending` are 0, and bytes are the datagrams' payload.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// Containers of this workload that take part; at most 10.
    #[schemars(length(max = 10), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// Pods of this workload that take part: the busiest, at most `spec.topology.pods` of the ScopeProbe, sorted by name.
    /// The Topology of the peer lists the peer's pods under the same `id`.
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<EdgePod>,
    /// Number of entries that are not listed in `pods`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted_pods: u64,
    /// Connections that were established, including those that were open when an agent attached.
    pub opened: u64,
    /// Number of `opened` connections that are open now.
    pub active: u64,
    /// Attempts that were refused, timed out or were given up.
    pub failed: u64,
    /// Attempts that have had no answer for two seconds or longer: a firewall or a NetworkPolicy may drop their packets. Each
    /// counts in `opened` or `failed` once it ends. Absent if there is none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pending: u64,
    /// Time of the last failed attempt, to the minute; absent if none failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failed: Option<Time>,
    /// TCP payload that this workload sent, in bytes, without retransmissions; absent where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// TCP payload that this workload received, in bytes; absent where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Number of `opened` connections whose payload is unknown or known in part: bytes are then a lower bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_bytes: u64,
    /// TCP segments that the observed ends (see `seen`) retransmitted. Those of connections in `withoutBytes` are unknown or
    /// known in part. Absent where they are unknown for all connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// Upper bound of the histogram bucket that holds the median smoothed round-trip time, in microseconds. Buckets end at
    /// 64, 128, 256 and so on; the last one, 524288, has no upper bound. The times are the client's where they can be told
    /// apart, else the server's. Absent where none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_microseconds: Option<u32>,
    /// Time at which an agent first observed the edge. It never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Time>,
    /// Time of the last activity, rounded down to the hour. The operator updates it only when it writes another change, so
    /// that it is a lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
    /// Ends that agents observed. Where one end was not observed, its address alone says who it is.
    pub seen: SeenEnds,
    /// Source of the peer's identity, best first: the `Cgroup` of its sockets (certain); their network namespace (`Netns`:
    /// the pod is certain, the container unknown); an address that `Conntrack` recorded; the owner of its `IP` address.
    pub identity: IdentitySource,
    /// Methods by which agents observed the conversations, at either end. `EBPF` records each connection; `SockDiag` (netlink)
    /// and `Procfs` list open sockets at intervals; `Conntrack` records connections between two lists.
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub methods: Vec<CaptureMethod>,
    /// Source of the direction. `Observed`: an agent observed the call or the listening socket of at least one connection.
    /// `Inferred`: the direction is a guess.
    pub direction: DirectionSource,
    /// DNS names that resolved to the address of an `IP` peer, where there were several; at most 4.
    #[schemars(length(max = 4), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// Number of addresses behind an `OtherExternal` peer; a lower bound where agents have folded flows
    /// (`status.folding` of NodeProbes).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub addresses: u64,
    /// Transparent proxies between client and server, in the order of the way; at most 4. The counts are those of the
    /// application, if the proxy opens one connection for each that it accepts. Otherwise both legs are edges of their own:
    /// the application's to the proxy, and the proxy's to the server.
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<EdgeProxy>,
    /// Security of the transport. Reserved: the operator does not set it yet; an absent value means unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport_security: Option<TransportSecurity>,
}

/// Transport protocol of an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TransportProtocol {
    /// Connections.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// Conversations: datagrams between one socket and one remote address and port.
    #[serde(rename = "UDP")]
    Udp,
}

impl From<topology::flow::Protocol> for TransportProtocol {
    fn from(protocol: topology::flow::Protocol) -> Self {
        match protocol {
            topology::flow::Protocol::Tcp => Self::Tcp,
            topology::flow::Protocol::Udp => Self::Udp,
        }
    }
}

impl From<TransportProtocol> for topology::flow::Protocol {
    fn from(protocol: TransportProtocol) -> Self {
        match protocol {
            TransportProtocol::Tcp => Self::Tcp,
            TransportProtocol::Udp => Self::Udp,
        }
    }
}

/// Port of a Service that a client called.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReference {
    /// Namespace of the Service.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the Service.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Port of the Service (`spec.ports[].port`), also where the client called its node port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// Name of this port; absent where it has none.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
}

/// Part of one pod in an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EdgePod {
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// Name of the container; absent where it is unknown.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Connections that were established.
    pub opened: u64,
    /// Attempts that failed, where it is known.
    pub failed: u64,
}

/// Transparent proxy of an edge: the network of one end's pod leads connections through it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EdgeProxy {
    /// End whose pod has the proxy in its network.
    pub side: EdgeSide,
    /// Owner of the proxy: the workload at that end, or that of a proxy of the node.
    pub peer: TopologyPeer,
    /// Name of the proxy's container; absent where it is unknown.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
}

/// End of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum EdgeSide {
    /// The client's end.
    Client,
    /// The server's end.
    Server,
}

impl From<topology::edge::Side> for EdgeSide {
    fn from(side: topology::edge::Side) -> Self {
        match side {
            topology::edge::Side::Client => Self::Client,
            topology::edge::Side::Server => Self::Server,
        }
    }
}

impl From<EdgeSide> for topology::edge::Side {
    fn from(side: EdgeSide) -> Self {
        match side {
            EdgeSide::Client => Self::Client,
            EdgeSide::Server => Self::Server,
        }
    }
}

/// Ends of an edge that agents observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum SeenEnds {
    /// Both ends.
    Both,
    /// The client's end only; the server is known by its address.
    Client,
    /// The server's end only; the client is known by its address.
    Server,
}

impl From<topology::edge::Seen> for SeenEnds {
    fn from(seen: topology::edge::Seen) -> Self {
        match seen {
            topology::edge::Seen::Both => Self::Both,
            topology::edge::Seen::Client => Self::Client,
            topology::edge::Seen::Server => Self::Server,
        }
    }
}

/// Source of a peer's identity, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum IdentitySource {
    /// The cgroup of the peer's sockets: certain.
    Cgroup,
    /// The network namespace of the peer's sockets: the pod is certain, the container is unknown.
    Netns,
    /// Connection tracking on the other end's node, and the owner of the address that it recorded.
    Conntrack,
    /// The owner of the address.
    #[serde(rename = "IP")]
    Ip,
}

impl From<topology::edge::Identity> for IdentitySource {
    fn from(identity: topology::edge::Identity) -> Self {
        match identity {
            topology::edge::Identity::Cgroup => Self::Cgroup,
            topology::edge::Identity::Netns => Self::Netns,
            topology::edge::Identity::Conntrack => Self::Conntrack,
            topology::edge::Identity::Ip => Self::Ip,
        }
    }
}

/// Method of observation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum CaptureMethod {
    /// Programs in the kernel: each connection.
    #[default]
    #[serde(rename = "EBPF")]
    Ebpf,
    /// Dumps of the kernel's socket tables, at intervals.
    SockDiag,
    /// Reads of `/proc/<pid>/net/tcp`, at intervals.
    Procfs,
    /// Events of the kernel's connection tracking, between two dumps.
    Conntrack,
}

impl CaptureMethod {
    const BITS: [(Self, topology::flow::Methods); 4] = {
        use topology::flow::Methods;
        [
            (Self::Ebpf, Methods::EBPF),
            (Self::SockDiag, Methods::SOCK_DIAG),
            (Self::Procfs, Methods::PROCFS),
            (Self::Conntrack, Methods::CONNTRACK),
        ]
    };

    /// Returns the methods of a set.
    #[must_use]
    pub fn of(methods: topology::flow::Methods) -> Vec<Self> {
        Self::BITS.into_iter().filter(|(_, bit)| methods.contains(*bit)).map(|(method, _)| method).collect()
    }

    /// Returns methods as a set.
    #[must_use]
    pub fn bits(methods: &[Self]) -> topology::flow::Methods {
        let bits = Self::BITS.into_iter().filter(|(method, _)| methods.contains(method));
        bits.fold(topology::flow::Methods::empty(), |all, (_, bit)| all.union(bit))
    }
}

/// Source of an edge's direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DirectionSource {
    /// An agent observed the call, or the listening socket, of at least one connection.
    #[default]
    Observed,
    /// A guess: no agent observed either for any of the connections.
    Inferred,
}

/// Security of the transport. Reserved: the operator does not set it yet; an absent value means unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TransportSecurity {
    /// TLS with certificates of both ends.
    #[serde(rename = "MutualTLS")]
    MutualTls,
    /// TLS with a certificate of the server alone.
    #[serde(rename = "TLS")]
    Tls,
    /// Plain text.
    None,
}
