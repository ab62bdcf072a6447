//! `Topology`: who one workload talks to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// Nothing yet; what people expect of the workload will stand here.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "scopeprobe.io",
    version = "v1alpha1",
    kind = "Topology",
    plural = "topologies",
    singular = "topology",
    shortname = "stopo",
    category = "scopeprobe-all",
    namespaced,
    status = "TopologyStatus",
    derive = "PartialEq",
    doc = "Who one workload talks to. Named `<kind>-<workload>` in lower case and deleted with its workload.",
    printcolumn(name = "To", type_ = "string", json_path = ".status.summary.to"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.summary.from"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.totals.failed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("default" = {}))]
pub struct TopologySpec {}

/// What was observed of one workload's connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = schema::signed_integers)]
pub struct TopologyStatus {
    /// The workload; its namespace is this object's.
    pub workload: WorkloadRef,
    /// One line for each direction, for people.
    pub summary: Summary,
    /// Sums over all edges of both directions, those included that `spec.topology.maxEdges` leaves out.
    pub totals: Totals,
    /// Whom the workload calls, busiest first when chosen, sorted by peer when listed.
    #[schemars(length(max = 500), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<TopologyEdge>,
    /// Who calls the workload, in the same way.
    #[schemars(length(max = 500), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<TopologyEdge>,
    /// How many edges are not listed.
    pub omitted: OmittedEdges,
    /// `Observed`: agents report from all nodes on which the workload runs. `Truncated`: not all edges are listed, or totals
    /// exceed 9223372036854775807 and stop there.
    #[schemars(schema_with = "schema::conditions")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A workload of a Topology's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadRef {
    /// Deployment, StatefulSet, DaemonSet, CronJob, Job, Pod, or the kind of another owner.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// What its newest pod says in the label `app.kubernetes.io/name`. These labels are the Topology's, too, unless somebody
    /// else has set them there.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The same of `app.kubernetes.io/version`.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The same of `app.kubernetes.io/instance`.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The same of `app.kubernetes.io/component`.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// The same of `app.kubernetes.io/part-of`.
    #[schemars(length(max = 63))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
}

/// One line for each direction, for people: the columns of `kubectl get topology`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// Whom the workload calls, for example `catalog:8080, cart:8080`; `-` for nobody.
    #[schemars(length(max = 256))]
    pub to: String,
    /// Who calls the workload; `-` for nobody.
    #[schemars(length(max = 256))]
    pub from: String,
}

/// Sums over edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Connections that were established, those included that were open when an agent first looked.
    pub opened: u64,
    /// Of these, open now.
    pub active: u64,
    /// Attempts that were refused, timed out or were given up.
    pub failed: u64,
    /// TCP payload that this workload sent, in bytes, without retransmissions.
    pub bytes_sent: u64,
    /// TCP payload that this workload received, in bytes.
    pub bytes_received: u64,
    /// Of `opened`, connections whose payload is not, or not fully, known: bytes are then a lower bound.
    #[serde(skip_serializing_if = "is_zero")]
    pub without_bytes: u64,
    /// TCP segments that had to be sent again, as on the edges; absent where it is known of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
}

/// How many edges are not listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OmittedEdges {
    /// In `egress`.
    pub egress: u64,
    /// In `ingress`.
    pub ingress: u64,
}

/// All conversations between this workload and one peer, in one direction, through one Service or none, at one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologyEdge {
    /// The other end.
    pub peer: TopologyPeer,
    /// The Service that the client dialled, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
    /// The port at which the server listens; where the server is not known, the port that the client dialled; 0 for
    /// several ports of `OtherExternal`.
    pub port: u16,
    /// What is spoken at that port. With `UDP`, `opened` counts conversations: a socket and an address and port that it
    /// exchanges datagrams with, until none has come or gone for 2 minutes; `active` and `failed` are 0, for nothing tells
    /// of them; and bytes are the payload of datagrams that have left a socket or reached one.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// This workload's containers that take part; at most 10.
    #[schemars(length(max = 10), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// The peer's containers that take part, as far as known; at most 10.
    #[schemars(length(max = 10), inner(length(max = 63)), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_containers: Vec<String>,
    /// This workload's pods that take part, by name; at most 10, the busiest.
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<EdgePod>,
    /// The peer's pods that take part, as far as known, by name; at most 10, the busiest.
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_pods: Vec<EdgePod>,
    /// How many entries are not listed in `pods`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted_pods: u64,
    /// How many entries are not listed in `peerPods`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted_peer_pods: u64,
    /// Connections that were established, those included that were open when an agent first looked.
    pub opened: u64,
    /// Of these, open now.
    pub active: u64,
    /// Attempts that were refused, timed out or were given up.
    pub failed: u64,
    /// TCP payload that this workload sent, in bytes, without retransmissions; absent where nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// TCP payload that this workload received, in bytes; absent where nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Of `opened`, connections whose payload is not, or not fully, known: bytes are then a lower bound.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_bytes: u64,
    /// TCP segments that had to be sent again: by both ends where both were seen, else by the one that was (see `seen`).
    /// Of connections in `withoutBytes` they are not, or not fully, known. Absent where nothing is known of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    /// The median round-trip time of the connections that agents know of, smoothed as TCP does, is below this, in
    /// microseconds, and not below half of it: one of 64 (anything below), 128, 256 and so on to 524288 (anything from
    /// 262144). The client's measurements where they are told apart, else the server's; absent where none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_microseconds: Option<u32>,
    /// The part of the counters that agents no longer know, because they were started again or have let go of pods that
    /// are gone: it is remembered here only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<EarlierCounts>,
    /// Which ends an agent has observed.
    pub seen: SeenEnds,
    /// How the peer's identity is known.
    pub identity: IdentitySource,
    /// How the conversations were observed, at either end.
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub methods: Vec<CaptureMethod>,
    /// How it is known which end called.
    pub direction: DirectionSource,
    /// Where several DNS names led to the address of an `External` peer: these names, at most 4.
    #[schemars(length(max = 4), inner(length(max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// How many addresses are behind an `OtherExternal` peer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub addresses: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What carries an edge's payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TransportProtocol {
    /// Connections.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// Conversations: datagrams between one socket and one address and port.
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

/// The part of an edge's counters that agents no longer know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EarlierCounts {
    /// Of `opened`.
    pub opened: u64,
    /// Of `failed`.
    pub failed: u64,
    /// Of `bytesSent`.
    pub bytes_sent: u64,
    /// Of `bytesReceived`.
    pub bytes_received: u64,
    /// Of `withoutBytes`.
    #[serde(skip_serializing_if = "is_zero")]
    pub without_bytes: u64,
    /// Of `retransmits`.
    #[serde(skip_serializing_if = "is_zero")]
    pub retransmits: u64,
}

/// The other end of an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopologyPeer {
    /// A workload's kind (`Deployment`, `StatefulSet`, `Pod`, …); `UnknownPod` for a pod without an object (by UID), or for
    /// an address of a pods' network of which it is not known whose it was then (by address); `Service` where nobody
    /// answered or the backend is not known; `HostProcess`; `Node` for a node's address; `ApiServer` for the cluster's API
    /// server, where it is known by its address; `ExternalGroup` for an address in one of `spec.topology.externalGroups`;
    /// `External` for another one outside of the cluster, or for the DNS name that led to it; `OtherExternal` for all those
    /// that are too many to be listed each.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// The namespace of a workload or Service.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The name of the workload, Service, node, process or external group, the DNS name of an `External` peer, or the
    /// pod's UID.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The node of a `HostProcess`.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The address of an `UnknownPod`, or of an `External` peer of which no DNS name, or more than one, is known.
    #[schemars(length(max = 45))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReference {
    /// Its namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(max = 63))]
    pub name: String,
}

/// One pod's part in an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EdgePod {
    /// The pod's name.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// The container's name; absent where it is not known.
    #[schemars(length(max = 63))]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// Connections established.
    pub opened: u64,
    /// Attempts that failed, where it is known.
    pub failed: u64,
    /// The part of `opened` that agents no longer know.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub earlier_opened: u64,
    /// The part of `failed` that agents no longer know.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub earlier_failed: u64,
}

/// Which ends of an edge an agent has observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum SeenEnds {
    /// Both.
    Both,
    /// The client's only: the server is known by its address.
    Client,
    /// The server's only: the client is known by its address.
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

/// How a peer's identity is known, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum IdentitySource {
    /// By the cgroup of its sockets: certain.
    Cgroup,
    /// By the network namespace of its sockets: the pod is certain, its container is not known.
    Netns,
    /// By connection tracking of the other end's node, and by who owned the address that it knows.
    Conntrack,
    /// By who owned the address.
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

/// How conversations were observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum CaptureMethod {
    /// By programs in the kernel, connection by connection.
    #[default]
    Ebpf,
    /// By dumps of the kernel's socket tables, now and then.
    SockDiag,
    /// By reading `/proc/<pid>/net/tcp`, now and then.
    Procfs,
    /// By the kernel's connection tracking, between two dumps.
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

    /// Those of a set.
    #[must_use]
    pub fn of(methods: topology::flow::Methods) -> Vec<Self> {
        Self::BITS.into_iter().filter(|(_, bit)| methods.contains(*bit)).map(|(method, _)| method).collect()
    }

    /// As a set.
    #[must_use]
    pub fn bits(methods: &[Self]) -> topology::flow::Methods {
        let bits = Self::BITS.into_iter().filter(|(method, _)| methods.contains(method));
        bits.fold(topology::flow::Methods::empty(), |all, (_, bit)| all.union(bit))
    }
}

/// How it is known which end called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum DirectionSource {
    /// The call itself was seen, or the listening socket.
    #[default]
    Observed,
    /// Of none of its connections was either seen: which end called is a guess.
    Inferred,
}
