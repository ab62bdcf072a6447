//! The map: edges between peers, each once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display, Formatter},
};

use crds::{CaptureMethod, EdgePod, IdentitySource, PeerType, SeenEnds, TopologyPeer, TransportProtocol};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

/// Kind of a map that is written as JSON or YAML.
pub const KIND: &str = "TopologyMap";
/// API version of [`KIND`]. The API server does not know it.
pub const API_VERSION: &str = "view.scopeprobe.io/v1alpha1";

/// All edges of the objects that were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Map {
    api_version: String,
    kind: String,
    /// Edges, in the order of client, server, Service, port and protocol.
    pub edges: Vec<Edge>,
    /// What the objects say is missing from them, in alphabetical order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caveats: Vec<String>,
}

/// All conversations between two peers through one Service port or none, at one port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edge {
    /// Identifier of the edge, the same in the objects of both ends. In a map of several clusters, it begins with the cluster.
    pub id: String,
    /// Peer that opened the connections.
    pub client: Peer,
    /// Peer that accepted them.
    pub server: Peer,
    /// Service that the client called, as `namespace/name:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Port at which the server listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Transport protocol.
    pub protocol: TransportProtocol,
    /// Counters, as the client sees them.
    pub counters: Counters,
    /// Ends that agents observed. `None` for several edges in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<SeenEnds>,
    /// Source of the peer's identity, in the object that was read. `None` for several edges in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentitySource>,
    /// Methods of the agents that observed it, in the object that was read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<CaptureMethod>,
    /// True if the direction of some connections is a guess.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_inferred: bool,
    /// Transparent proxies on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<String>,
    /// Time at which an agent first observed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Time>,
    /// Lower bound of the time of the last activity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Time>,
    /// Time of the last failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failed: Option<Time>,
    /// Pods of the client, in the client's object.
    #[serde(default, skip_serializing_if = "EdgePods::is_empty")]
    pub client_pods: EdgePods,
    /// Pods of the server, in the server's object.
    #[serde(default, skip_serializing_if = "EdgePods::is_empty")]
    pub server_pods: EdgePods,
}

/// Pods of one end of an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EdgePods {
    /// The busiest pods.
    pub listed: Vec<EdgePod>,
    /// Number of further entries that the object does not list.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl EdgePods {
    /// Returns whether no pod is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.omitted == 0
    }
}

/// Counters of an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Counters {
    /// Connections that were established.
    pub opened: u64,
    /// Those that are open.
    pub active: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts without an answer.
    #[serde(default)]
    pub pending: u64,
    /// Payload from client to server, in bytes; `None` where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Payload from server to client, in bytes; `None` where it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Connections of which not all bytes are known.
    #[serde(default)]
    pub without_bytes: u64,
}

/// One end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Peer {
    /// A peer of the objects.
    One(Box<TopologyPeer>),
    /// Several of them.
    Group(Group),
}

/// Several peers in one: those of a namespace, or of one type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Group {
    /// Name of the group.
    pub group: String,
    /// True if its peers are outside of the cluster.
    pub is_external: bool,
}

impl Map {
    /// Returns a map of these edges in their order, each identifier once, and these caveats.
    #[must_use]
    pub fn new(mut edges: Vec<Edge>, mut caveats: Vec<String>) -> Self {
        edges.sort_by(|one, other| one.order().cmp(&other.order()));
        caveats.sort();
        caveats.dedup();
        Self { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), edges, caveats }
    }

    /// Returns a map of edges of several maps, each identifier once, and a caveat if the maps differ in its counters. Their
    /// order does not matter.
    #[must_use]
    pub fn joined(edges: Vec<Edge>, caveats: Vec<String>) -> Self {
        let mut by_id: BTreeMap<String, Vec<(bool, Edge)>> = BTreeMap::new();
        for edge in edges {
            by_id.entry(edge.id.clone()).or_default().push((true, edge));
        }
        Self::of_ends(by_id, caveats)
    }

    /// Returns a map of edges by identifier, each of an object of its client (`true`) or its server. Both objects may differ in
    /// its counters. If two of one end do, there is a caveat.
    pub(crate) fn of_ends(by_id: BTreeMap<String, Vec<(bool, Edge)>>, mut caveats: Vec<String>) -> Self {
        let is_different = |edges: &Vec<(bool, Edge)>| {
            [true, false].into_iter().any(|is_by_client| {
                let mut of_end = edges.iter().filter(|(end, _)| *end == is_by_client).map(|(_, edge)| edge.counters);
                of_end.next().is_some_and(|first| of_end.any(|counters| counters != first))
            })
        };
        if by_id.values().any(is_different) {
            caveats.push(
                "the objects are not of one cluster at one time: of an edge that is there several times, the one with the \
                 most connections is shown"
                    .to_owned(),
            );
        }
        Self::new(by_id.into_values().filter_map(Edge::of_several).collect(), caveats)
    }

    /// Returns the same map with the name of its cluster in each peer, identifier and caveat. Maps of several clusters can be
    /// joined then.
    #[must_use]
    pub fn of_cluster(self, cluster: &str) -> Self {
        let cluster = printable(cluster);
        let of = |edge: Edge| Edge {
            id: format!("{cluster}/{}", edge.id),
            client: edge.client.of_cluster(&cluster),
            server: edge.server.of_cluster(&cluster),
            ..edge
        };
        let caveats = self.caveats.iter().map(|caveat| format!("{cluster}: {caveat}"));
        let caveats = caveats.collect();
        Self::new(self.edges.into_iter().map(of).collect(), caveats)
    }

    /// Returns the names of the clusters that peers have; none for a map of one cluster.
    #[must_use]
    pub fn clusters(&self) -> BTreeSet<&str> {
        self.ends().filter_map(Peer::cluster).collect()
    }

    /// Returns both ends of all edges, as often as they occur.
    pub fn ends(&self) -> impl Iterator<Item = &Peer> {
        self.edges.iter().flat_map(Edge::ends)
    }

    /// Returns a map of the edges that satisfy a condition.
    #[must_use]
    pub fn retain(self, mut keeps: impl FnMut(&Edge) -> bool) -> Self {
        let Self { api_version, kind, mut edges, caveats } = self;
        edges.retain(|edge| keeps(edge));
        Self { api_version, kind, edges, caveats }
    }
}

impl Edge {
    fn order(&self) -> impl Ord + '_ {
        (&self.client, &self.server, &self.service, self.port, self.protocol, &self.id)
    }

    /// Returns one edge of several with the same identifier: that of a client's object, or else the one with the most
    /// connections. Each list of pods is the first that is there.
    pub(crate) fn of_several(mut edges: Vec<(bool, Self)>) -> Option<Self> {
        edges.sort_by(|(is_by_client, edge), (is_other_by_client, other)| {
            (is_other_by_client, other.counters, other).cmp(&(is_by_client, edge.counters, edge))
        });
        let mut edges = edges.into_iter().map(|(_, edge)| edge);
        let mut first = edges.next()?;
        for edge in edges {
            if first.client_pods.is_empty() {
                first.client_pods = edge.client_pods;
            }
            if first.server_pods.is_empty() {
                first.server_pods = edge.server_pods;
            }
        }
        Some(first)
    }

    /// Returns whether a text names the server, or the Service that the client called: `name`, `namespace/name` or
    /// `namespace/name:port`.
    #[must_use]
    pub fn is_call_to(&self, text: &str) -> bool {
        let of_service = |service: &str| {
            let text = self.server.without_cluster(text);
            let (full, _) = service.rsplit_once(':')?;
            Some(text == service || text == full || full.split_once('/').is_some_and(|(_, name)| name == text))
        };
        self.server.is_named(text) || self.service.as_deref().and_then(of_service) == Some(true)
    }

    /// Returns the client and the server.
    pub fn ends(&self) -> impl Iterator<Item = &Peer> {
        [&self.client, &self.server].into_iter()
    }

    /// Returns what the client called: the Service, or the server of this name with its port.
    #[must_use]
    pub fn called_by_name(&self, server: &str) -> String {
        match (&self.service, self.port) {
            (Some(service), _) => service.clone(),
            (None, Some(port)) => format!("{server}:{port}"),
            (None, None) => server.to_owned(),
        }
    }
}

impl Counters {
    /// Returns whether attempts have failed or are pending.
    #[must_use]
    pub fn has_failures(&self) -> bool {
        self.failed > 0 || self.pending > 0
    }

    /// Adds other counters. Of bytes, the sum of what is known.
    pub fn add(&mut self, other: &Self) {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
        *self = Self {
            opened: self.opened.saturating_add(other.opened),
            active: self.active.saturating_add(other.active),
            failed: self.failed.saturating_add(other.failed),
            pending: self.pending.saturating_add(other.pending),
            bytes_sent: sum(self.bytes_sent, other.bytes_sent),
            bytes_received: sum(self.bytes_received, other.bytes_received),
            without_bytes: self.without_bytes.saturating_add(other.without_bytes),
        };
    }
}

impl Peer {
    /// Returns the peer that an object has.
    #[must_use]
    pub fn one(peer: TopologyPeer) -> Self {
        Self::One(Box::new(peer))
    }

    /// Returns the namespace of a workload or Service.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::One(peer) if matches!(peer.type_, PeerType::Workload | PeerType::Service) => {
                peer.namespace.as_deref()
            }
            Self::One(_) | Self::Group(_) => None,
        }
    }

    /// Returns the cluster, in a map of several.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Self::One(peer) => peer.cluster.as_deref(),
            Self::Group(_) => None,
        }
    }

    fn of_cluster(self, cluster: &str) -> Self {
        match self {
            Self::One(peer) => Self::one(TopologyPeer { cluster: Some(cluster.to_owned()), ..*peer }),
            Self::Group(group) => Self::Group(Group { group: format!("{}@{cluster}", group.group), ..group }),
        }
    }

    /// Returns a text without this peer's cluster at its end.
    fn without_cluster<'t>(&self, text: &'t str) -> &'t str {
        let stripped = self.cluster().and_then(|cluster| text.strip_suffix(cluster)?.strip_suffix('@'));
        stripped.unwrap_or(text)
    }

    /// Returns the kind of a workload.
    #[must_use]
    pub fn kind(&self) -> Option<&str> {
        match self {
            Self::One(peer) => peer.kind.as_deref(),
            Self::Group(_) => None,
        }
    }

    /// Returns whether it is outside of the cluster, or stands for peers that are.
    #[must_use]
    pub fn is_external(&self) -> bool {
        use PeerType::{DnsName, External, ExternalGroup, Ip, OtherExternal};
        match self {
            Self::One(peer) => matches!(peer.type_, DnsName | External | ExternalGroup | Ip | OtherExternal),
            Self::Group(group) => group.is_external,
        }
    }

    /// Returns whether a text names it: `name`, `namespace/name`, `kind/name` or `namespace/kind/name`, with the kind in any
    /// case, or the name that the map shows. In a map of several clusters, `@cluster` may follow.
    #[must_use]
    pub fn is_named(&self, text: &str) -> bool {
        let name = match self {
            Self::One(peer) => peer.name.as_deref(),
            Self::Group(group) => Some(group.group.as_str()),
        };
        let shown = self.to_string();
        let is_with_kind = |kind: &str| text.strip_prefix(&shown) == Some(&format!(" ({kind})"));
        if shown == text || self.kind().is_some_and(is_with_kind) {
            return true;
        }
        let text = self.without_cluster(text);
        let (Some(namespace), Some(name)) = (self.namespace(), name) else { return name == Some(text) };
        // Of the two types with a namespace, only workloads have a kind.
        let kind = self.kind().unwrap_or("Service");
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [one] => *one == name,
            [first, last] => *last == name && (*first == namespace || first.eq_ignore_ascii_case(kind)),
            [first, middle, last] => *first == namespace && middle.eq_ignore_ascii_case(kind) && *last == name,
            _ => false,
        }
    }
}

impl Display for Peer {
    /// Writes a short name: `namespace/name` of a workload, and `@cluster` in a map of several. Different peers may have the
    /// same. Characters that control a terminal become `?`: who writes an object or a file decides on names.
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let peer = match self {
            Self::One(peer) => peer,
            Self::Group(Group { group, .. }) => return formatter.write_str(&printable(group)),
        };
        let TopologyPeer { type_, namespace, name, node, ip, uid, .. } = &**peer;
        let or = |text: &Option<String>| text.clone().unwrap_or_default();
        let text = match type_ {
            PeerType::Workload => format!("{}/{}", or(namespace), or(name)),
            PeerType::Service => format!("{}/{} (Service)", or(namespace), or(name)),
            PeerType::Node => format!("node {}", or(name)),
            PeerType::HostProcess => format!("{} on {}", or(name), or(node)),
            PeerType::ApiServer => "API server".to_owned(),
            PeerType::ExternalGroup | PeerType::DnsName => or(name),
            PeerType::Ip => or(ip),
            PeerType::External => format!("clients behind {}", or(node)),
            PeerType::OtherExternal => "other external addresses".to_owned(),
            PeerType::UnknownPod => format!("unknown pod {}", or(if uid.is_some() { uid } else { ip })),
        };
        formatter.write_str(&printable(&text))?;
        match self.cluster() {
            Some(cluster) => write!(formatter, "@{}", printable(cluster)),
            None => Ok(()),
        }
    }
}

/// Returns a text in which characters that control a terminal, or the direction of text, are replaced by `?`.
#[must_use]
pub fn printable(text: &str) -> String {
    let is_control = |character: char| {
        character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|character| if is_control(character) { '?' } else { character }).collect()
}
