//! Reads back what an earlier operator has published, as edges. Pure.

use std::{borrow::Borrow, collections::HashMap, time::SystemTime};

use crds::{
    CaptureMethod, DirectionSource, EdgeProxy, IdentitySource, SeenEnds, Topology, TopologyEdge, TopologyStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use topology::{
    archive::Published,
    count,
    counts::{Counts, Earlier},
    directory::RecordedPod,
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Identity, LastSeen, Peer, Proxy, Seen, Times},
    entity::{ServicePortRef, ServiceRef, Workload},
    graph::PlacedLegs,
    rtt::RttBucket,
};

use super::{
    checkpoint::{self, Checkpoint, CheckpointError},
    edge_id::EdgeId,
    leg_table::LegTableError,
    peer::{self, group},
    pod_records,
    pod_table::PodTableError,
};

/// API versions and kinds that an object names.
pub(super) fn references(topology: &Topology) -> impl Iterator<Item = (&str, &str)> {
    let status = topology.status.iter();
    status.flat_map(|status| {
        let own = (status.workload.api_version.as_str(), status.workload.kind.as_str());
        let peers = status.egress.iter().chain(&status.ingress).map(|edge| &edge.peer);
        let peers = peers.filter_map(|peer| peer.api_version.as_deref().zip(peer.kind.as_deref()));
        peers.chain([own]).filter(|(api_version, _)| !api_version.is_empty())
    })
}

/// Contents of objects that an earlier operator has published.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// Edges, both ways. Those that make no sense are left out.
    pub(super) edges: Vec<Published>,
    /// Pods of all checkpoints, each once.
    pub(super) pods: Vec<RecordedPod<'static>>,
    /// Records of proxied connections.
    pub(super) legs: PlacedLegs,
    /// Objects with a checkpoint that cannot be read, or not as a whole, by namespace and name.
    pub(super) errors: Vec<(String, String, RestoreError)>,
    /// Number of pods that are left out because two objects claim them.
    pub(super) contested_pods: usize,
}

/// Error of an object's checkpoint. The rest of the object is restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    /// Nothing of the checkpoint can be read.
    #[error("the checkpoint is lost, and with it counters that no agent reports any more: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// Pods of the checkpoint cannot be read.
    #[error("connections of deleted pods may appear as those of an UnknownPod: {0}")]
    Pods(#[from] PodTableError),
    /// Records of proxied connections cannot be read.
    #[error("connections through transparent proxies may be on the edges to the proxy and to the server: {0}")]
    Legs(#[from] LegTableError),
}

/// Reads objects.
pub(super) fn read(topologies: impl IntoIterator<Item = impl Borrow<Topology>>) -> Restored {
    let mut restored = Restored::default();
    let mut recorded = Vec::new();
    for topology in topologies {
        let topology = topology.borrow();
        let Some(status) = &topology.status else { continue };
        let mut fail = |error: RestoreError| {
            restored.errors.push((topology.namespace().unwrap_or_default(), topology.name_any(), error));
        };
        let checkpoint = status.checkpoint.as_deref().map_or_else(Checkpoint::default, |text| {
            checkpoint::decode(text).map_err(|error| fail(error.into())).unwrap_or_default()
        });
        let own = own_workload(topology, status);
        let (pods, error) = checkpoint.pods(&own);
        if let Some(error) = error {
            fail(error.into());
        }
        recorded.extend(pods.into_iter().map(|pod| (own.clone(), pod)));
        let (legs, error) = checkpoint.legs();
        if let Some(error) = error {
            fail(error.into());
        }
        for leg in legs {
            restored.legs.restore(leg);
        }
        restored.edges.extend(edges(status, own, &checkpoint));
    }
    (restored.pods, restored.contested_pods) = pod_records::merge(recorded);
    restored
}

fn own_workload(topology: &Topology, status: &TopologyStatus) -> Workload {
    Workload {
        namespace: topology.namespace().unwrap_or_default(),
        kind: status.workload.kind.clone(),
        name: status.workload.name.clone(),
        group: group(&status.workload.api_version).to_owned(),
    }
}

fn edges(status: &TopologyStatus, own: Workload, checkpoint: &Checkpoint) -> Vec<Published> {
    let own = Peer::Workload(own);
    let outgoing = status.egress.iter().filter_map(|edge| published(edge, &own, true, &checkpoint.edges));
    let incoming = status.ingress.iter().filter_map(|edge| published(edge, &own, false, &checkpoint.edges));
    outgoing.chain(incoming).collect()
}

fn published(
    edge: &TopologyEdge,
    own: &Peer,
    outgoing: bool,
    checkpoint: &HashMap<EdgeId, checkpoint::Entry>,
) -> Option<Published> {
    let (own, other) = (own.clone(), peer::read(&edge.peer)?);
    let service = edge.service.as_ref();
    let service = service.map(|of| ServicePortRef {
        service: ServiceRef { namespace: of.namespace.clone(), name: of.name.clone() },
        port: of.port,
    });
    let seen = seen(edge.seen);
    let other_identity = match edge.identity {
        IdentitySource::Cgroup => Identity::Cgroup,
        IdentitySource::Netns => Identity::Netns,
        IdentitySource::Conntrack => Identity::Conntrack,
        IdentitySource::Ip => Identity::Ip,
    };
    let certain = |is: bool| if is { Identity::Cgroup } else { Identity::Ip };
    let (client, server, client_identity, server_identity) = if outgoing {
        (own, other, certain(seen != Seen::Server), other_identity)
    } else {
        (other, own, other_identity, certain(seen != Seen::Client))
    };
    let Counts { counters, clients, servers } = counts(edge, outgoing);
    let inferred = match edge.direction {
        DirectionSource::Observed => 0,
        DirectionSource::Inferred => count::add(counters.opened, counters.failed),
    };
    let counters = EdgeCounters { inferred, ..counters };
    let key = EdgeKey { client, server, service, port: edge.port, protocol: edge.protocol.into() };
    let checkpoint::Entry { earlier, from_servers } = checkpoint.get(&EdgeId::of(&key)).cloned().unwrap_or_default();
    let from_servers = if seen == Seen::Server { counters.without(&earlier.counts.counters) } else { from_servers };
    Some(Published {
        earlier: Earlier { counts: own_part(earlier.counts, outgoing), ..earlier },
        edge: Edge {
            key,
            times: times(edge),
            counters: EdgeCounters { active: edge.active, ..counters },
            from_servers,
            clients_from_servers: Vec::new(),
            servers_from_servers: Vec::new(),
            clients,
            servers,
            seen,
            client_identity,
            server_identity,
            methods: CaptureMethod::bits(&edge.methods),
            dns_names: edge.dns_names.clone(),
            addresses: edge.addresses,
            knows_retransmits: edge.retransmits.is_some(),
            rtt: edge.rtt_microseconds.and_then(RttBucket::with_bound),
            via: edge.via.iter().filter_map(proxy).collect(),
        },
    })
}

/// Reads a proxy; `None` where its peer is malformed.
fn proxy(shown: &EdgeProxy) -> Option<Proxy> {
    Some(Proxy { side: shown.side.into(), peer: peer::read(&shown.peer)?, container: shown.container.clone() })
}

fn times(edge: &TopologyEdge) -> Option<Times> {
    let time = |time: &Option<Time>| time.as_ref().map(|time| SystemTime::from(time.0));
    let first_seen = time(&edge.first_seen)?;
    // It is rounded down.
    let last_seen = time(&edge.last_seen).unwrap_or(first_seen).max(first_seen);
    Some(Times { first_seen, last_seen: LastSeen::At(last_seen), last_failed: time(&edge.last_failed) })
}

/// Of an edge from a workload to itself, an object has the parts of both ends.
fn own_part(mut own: Counts, outgoing: bool) -> Counts {
    if outgoing {
        own.servers.clear();
    } else {
        own.clients.clear();
    }
    own
}

/// From the client's point of view, with the parts of the object's own end.
fn counts(edge: &TopologyEdge, outgoing: bool) -> Counts {
    let own = edge.pods.iter().map(|pod| Endpoint {
        pod: pod.pod.clone(),
        container: pod.container.clone(),
        opened: pod.opened,
        failed: pod.failed,
    });
    let own: Vec<Endpoint> = own.collect();
    let (clients, servers) = if outgoing { (own, Vec::new()) } else { (Vec::new(), own) };
    let (own_sent, own_received) = (edge.bytes_sent.unwrap_or_default(), edge.bytes_received.unwrap_or_default());
    let (bytes_sent, bytes_received) = if outgoing { (own_sent, own_received) } else { (own_received, own_sent) };
    let counters = EdgeCounters {
        opened: edge.opened,
        failed: edge.failed,
        bytes_sent,
        bytes_received,
        without_bytes: edge.without_bytes,
        retransmits: edge.retransmits.unwrap_or_default(),
        ..EdgeCounters::default()
    };
    Counts { counters, clients, servers }
}

fn seen(seen: SeenEnds) -> Seen {
    match seen {
        SeenEnds::Both => Seen::Both,
        SeenEnds::Client => Seen::Client,
        SeenEnds::Server => Seen::Server,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc, time::Duration};

    use proptest::prelude::*;
    use topology::{
        edge::Side,
        flow::{Methods, Protocol},
    };

    use super::*;
    use crate::{
        cluster::Index,
        publisher::{
            adjacency, leg_table,
            object::{self, Limits, ObjectInputs},
            pod_records::PodRecords,
        },
    };

    fn workload(kind: &str, name: &str) -> Workload {
        let (namespace, group) = ("shop".to_owned(), "apps".to_owned());
        Workload { namespace, kind: kind.to_owned(), name: name.to_owned(), group }
    }

    fn ends(pod: &str, opened: u64, failed: u64) -> Vec<Endpoint> {
        vec![Endpoint { pod: pod.to_owned(), container: "main".to_owned(), opened, failed }]
    }

    fn edge(client: Peer, server: Peer, service: Option<&str>, seen: Seen) -> Edge {
        let name = |name: &str| ServiceRef { namespace: "shop".to_owned(), name: name.to_owned() };
        let service = service.map(|of| ServicePortRef { service: name(of), port: 80 });
        let port = (!matches!(server, Peer::Service(_))).then_some(5432);
        // To the hour, and to the minute.
        let time = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let times = Times {
            first_seen: time(1_000_000_003),
            last_seen: LastSeen::At(time(1_000_000_800)),
            last_failed: Some(time(1_000_000_740)),
        };
        let counters = EdgeCounters {
            opened: 9,
            active: 2,
            failed: 3,
            pending: 0,
            bytes_sent: 100,
            bytes_received: 200,
            without_bytes: 5,
            inferred: if seen == Seen::Server { 12 } else { 0 },
            retransmits: 7,
        };
        let certain = |is: bool| if is { Identity::Cgroup } else { Identity::Ip };
        let pods = |peer: &Peer, pod: &str, opened: u64, failed: u64| match peer {
            Peer::Workload(_) => ends(pod, opened, failed),
            _ => Vec::new(),
        };
        Edge {
            counters,
            times: Some(times),
            from_servers: EdgeCounters { opened: 2, bytes_sent: 20, bytes_received: 30, ..EdgeCounters::default() },
            clients_from_servers: Vec::new(),
            servers_from_servers: Vec::new(),
            clients: pods(&client, "web-1", 9, 3),
            servers: pods(&server, "db-1", 8, 0),
            seen,
            client_identity: certain(seen != Seen::Server),
            server_identity: certain(seen != Seen::Client),
            key: EdgeKey { client, server, service, port, protocol: Protocol::Tcp },
            methods: Methods::EBPF.union(Methods::CONNTRACK),
            dns_names: Vec::new(),
            addresses: 0,
            knows_retransmits: true,
            rtt: Some(RttBucket::of(300)),
            via: vec![Proxy { side: Side::Server, peer: Peer::ApiServer, container: "proxy".to_owned() }],
        }
    }

    fn over_udp(edge: Edge) -> Edge {
        Edge { key: EdgeKey { protocol: Protocol::Udp, ..edge.key }, ..edge }
    }

    /// Returns the edge as the objects of both ends publish it: each has the endpoints of its own side.
    fn sides(edge: &Edge, earlier: &Earlier) -> Vec<Published> {
        let from_servers = if edge.seen == Seen::Server {
            EdgeCounters { active: 0, ..edge.counters.without(&earlier.counts.counters) }
        } else {
            edge.from_servers
        };
        let edge = Edge { from_servers, ..edge.clone() };
        let whole = || Published { edge: edge.clone(), earlier: earlier.clone() };
        let (mut by_client, mut by_server) = (whole(), whole());
        (by_client.edge.servers, by_client.earlier.counts.servers) = (Vec::new(), Vec::new());
        (by_server.edge.clients, by_server.earlier.counts.clients) = (Vec::new(), Vec::new());
        let is_workload = |peer: &Peer| matches!(peer, Peer::Workload(_));
        let of_client = is_workload(&edge.key.client).then_some(by_client);
        let of_server = is_workload(&edge.key.server).then_some(by_server);
        of_client.into_iter().chain(of_server).collect()
    }

    #[test]
    fn what_was_published_comes_back_from_both_sides() {
        let web = Peer::Workload(workload("Deployment", "web"));
        let db = Peer::Workload(workload("StatefulSet", "db"));
        let node = || "node-1".to_owned();
        let service = ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() };
        let external = Peer::External { ip: "fd00::1".parse().expect("an address") };
        let other_external = Peer::External { ip: "10.1.2.3".parse().expect("an address") };
        let edges = vec![
            edge(web.clone(), db.clone(), None, Seen::Both),
            edge(web.clone(), web.clone(), Some("web"), Seen::Both),
            edge(web.clone(), db.clone(), Some("db"), Seen::Both),
            over_udp(edge(web.clone(), db.clone(), Some("db"), Seen::Both)),
            edge(web.clone(), Peer::Service(service), Some("db"), Seen::Client),
            edge(web.clone(), external.clone(), None, Seen::Client),
            edge(web.clone(), Peer::HostProcess { node: node(), name: "sshd".to_owned() }, None, Seen::Both),
            edge(web.clone(), Peer::UnknownPod { uid: "u".to_owned() }, None, Seen::Both),
            edge(web.clone(), Peer::SomePod { ip: "10.244.1.7".parse().expect("an address") }, None, Seen::Client),
            edge(web.clone(), Peer::ExternalName { name: "api.example.com".to_owned() }, None, Seen::Client),
            edge(web.clone(), Peer::ExternalGroup { name: "payments".to_owned() }, None, Seen::Client),
            edge(web.clone(), Peer::ApiServer, None, Seen::Client),
            edge(external, db.clone(), None, Seen::Server),
            Edge { addresses: 7, ..edge(Peer::OtherExternal, db.clone(), None, Seen::Server) },
            Edge {
                dns_names: vec!["a.example.com".to_owned(), "b.example.com".to_owned()],
                ..edge(web.clone(), other_external, None, Seen::Client)
            },
            edge(Peer::BehindNode { node: node() }, db.clone(), None, Seen::Server),
            edge(Peer::Node { node: node() }, db, None, Seen::Server),
        ];
        let edges = edges.into_iter().map(Arc::new).collect();
        let graph = topology::graph::Graph { edges, ..topology::graph::Graph::default() };
        let counts = |edge: &Edge| Counts {
            counters: EdgeCounters {
                opened: 4,
                failed: 1,
                bytes_sent: 30,
                bytes_received: 40,
                without_bytes: 2,
                retransmits: 3,
                ..EdgeCounters::default()
            },
            clients: edge.clients.iter().flat_map(|_| ends("web-1", 4, 1)).collect(),
            servers: edge.servers.iter().flat_map(|_| ends("db-1", 3, 0)).collect(),
        };
        let earlier = |edge: &Edge| Earlier { counts: counts(edge), known_to_servers: 3 };
        let all: HashMap<EdgeKey, Earlier> = graph.edges.iter().map(|edge| (edge.key.clone(), earlier(edge))).collect();
        let mut wanted: Vec<Published> = graph.edges.iter().flat_map(|edge| sides(edge, &earlier(edge))).collect();
        let by_key_and_side = |one: &Published, other: &Published| {
            (&one.edge.key, one.edge.clients.is_empty()).cmp(&(&other.edge.key, other.edge.clients.is_empty()))
        };
        wanted.sort_by(by_key_and_side);

        let index = Index::default();
        let records = PodRecords::new(&index, []);
        let limits = Limits { edges: 500, pods: 10 };
        let world =
            ObjectInputs { index: &index, earlier: &all, records: &records, limits, now: SystemTime::UNIX_EPOCH };
        let mut found = Vec::new();
        for (workload, edges) in adjacency::by_workload(&graph) {
            let mut topology = Topology::new("t", crds::TopologySpec::default());
            topology.metadata.namespace = Some("shop".to_owned());
            let facts = index.facts_of(workload);
            topology.status = Some(object::status(workload, &facts, &edges, &BTreeSet::new(), &[], &world));
            found.extend(read([&topology]).edges);
        }
        found.sort_by(by_key_and_side);
        assert_eq!(found, wanted);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(30) })]

        #[test]
        fn records_of_proxied_connections_come_back(legs in leg_table::tests::legs()) {
            let (index, earlier) = (Index::default(), HashMap::new());
            let records = PodRecords::new(&index, []);
            let limits = Limits { edges: 500, pods: 10 };
            let now = SystemTime::UNIX_EPOCH;
            let world = ObjectInputs { index: &index, earlier: &earlier, records: &records, limits, now };
            let own = workload("Deployment", "web");
            let mut topology = Topology::new("deployment-web", crds::TopologySpec::default());
            let (facts, edges) = (index.facts_of(&own), adjacency::Edges::default());
            topology.status = Some(object::status(&own, &facts, &edges, &BTreeSet::new(), &legs, &world));
            let mut wanted = PlacedLegs::default();
            for leg in legs {
                wanted.restore(leg);
            }
            prop_assert_eq!(read([&topology]).legs, wanted);
        }
    }

    #[test]
    fn malformed_checkpoint_is_an_error_and_loses_no_edge() {
        let mut topology = Topology::new("deployment-web", crds::TopologySpec::default());
        topology.metadata.namespace = Some("shop".to_owned());
        let graph = topology::graph::Graph {
            edges: vec![Arc::new(edge(
                Peer::Workload(workload("Deployment", "web")),
                Peer::ApiServer,
                None,
                Seen::Client,
            ))],
            ..topology::graph::Graph::default()
        };
        let (index, earlier) = (Index::default(), HashMap::new());
        let records = PodRecords::new(&index, []);
        let limits = Limits { edges: 500, pods: 10 };
        let world =
            ObjectInputs { index: &index, earlier: &earlier, records: &records, limits, now: SystemTime::UNIX_EPOCH };
        let workloads = adjacency::by_workload(&graph);
        let (workload, edges) = workloads.iter().next().expect("one workload");
        topology.status =
            Some(object::status(workload, &index.facts_of(workload), edges, &BTreeSet::new(), &[], &world));
        // Bytes of fields 3 and 4, which are no message.
        for (checkpoint, error) in [
            (
                "2:AAAA",
                "the checkpoint is lost, and with it counters that no agent reports any more: its version is not 1",
            ),
            ("1:%", "the checkpoint is lost, and with it counters that no agent reports any more: it is not Base64"),
            (
                "1:GgL//w",
                "connections of deleted pods may appear as those of an UnknownPod: the table of pods is malformed",
            ),
            (
                "1:IgL//w",
                "connections through transparent proxies may be on the edges to the proxy and to the server: the table",
            ),
        ] {
            topology.status.as_mut().expect("just set").checkpoint = Some(checkpoint.to_owned());
            let restored = read([&topology]);
            assert_eq!(restored.edges.len(), 1, "{checkpoint}");
            let [(namespace, name, found)] = restored.errors.as_slice() else { panic!("{:?}", restored.errors) };
            assert_eq!((namespace.as_str(), name.as_str()), ("shop", "deployment-web"));
            assert!(found.to_string().starts_with(error), "{found}");
        }
    }
}
