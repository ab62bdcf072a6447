//! Reads back what an earlier operator has published, as edges. Pure.

use crds::{
    CaptureMethod, DirectionSource, EarlierCounts, EdgePod, IdentitySource, SeenEnds, Topology, TopologyEdge,
    TopologyPeer,
};
use kube::ResourceExt;
use topology::{
    archive::Published,
    count,
    counts::Counts,
    edge::{Edge, EdgeCounters, EdgeKey, Endpoint, Identity, Peer, Seen},
    entity::{ServiceRef, Workload},
    rtt::RttBucket,
};

/// The edges of an object, both ways. Those that make no sense are left out.
pub(super) fn edges(topology: &Topology) -> Vec<Published> {
    let Some(status) = &topology.status else { return Vec::new() };
    let own = Peer::Workload(Workload {
        namespace: topology.namespace().unwrap_or_default(),
        kind: status.workload.kind.clone(),
        name: status.workload.name.clone(),
    });
    let outgoing = status.egress.iter().filter_map(|edge| published(edge, own.clone(), true));
    let incoming = status.ingress.iter().filter_map(|edge| published(edge, own.clone(), false));
    outgoing.chain(incoming).collect()
}

fn published(edge: &TopologyEdge, own: Peer, outgoing: bool) -> Option<Published> {
    let other = peer(edge)?;
    let service = edge.service.as_ref();
    let service =
        service.map(|service| ServiceRef { namespace: service.namespace.clone(), name: service.name.clone() });
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
    let all = EarlierCounts {
        opened: edge.opened,
        failed: edge.failed,
        bytes_sent: edge.bytes_sent.unwrap_or_default(),
        bytes_received: edge.bytes_received.unwrap_or_default(),
        without_bytes: edge.without_bytes,
        retransmits: edge.retransmits.unwrap_or_default(),
    };
    let whole = |pod: &EdgePod| (pod.opened, pod.failed);
    let earlier = |pod: &EdgePod| (pod.earlier_opened, pod.earlier_failed);
    let Counts { counters, clients, servers } = counts(edge, &all, whole, outgoing);
    let inferred = match edge.direction {
        DirectionSource::Observed => 0,
        DirectionSource::Inferred => count::add(counters.opened, counters.failed),
    };
    let counters = EdgeCounters { inferred, ..counters };
    let from_servers = if seen == Seen::Server { counters } else { EdgeCounters::default() };
    Some(Published {
        edge: Edge {
            key: EdgeKey { client, server, service, port: edge.port, protocol: edge.protocol.into() },
            counters: EdgeCounters { active: edge.active, ..counters },
            from_servers,
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
        },
        earlier: counts(edge, &edge.earlier.unwrap_or_default(), earlier, outgoing),
    })
}

/// From the client's point of view.
fn counts(edge: &TopologyEdge, of: &EarlierCounts, parts: impl Fn(&EdgePod) -> (u64, u64), outgoing: bool) -> Counts {
    let endpoints = |pods: &[EdgePod]| -> Vec<Endpoint> {
        let ends = pods.iter().map(|pod| {
            let (opened, failed) = parts(pod);
            Endpoint { pod: pod.pod.clone(), container: pod.container.clone(), opened, failed }
        });
        ends.collect()
    };
    let (own, others) = (endpoints(&edge.pods), endpoints(&edge.peer_pods));
    let (clients, servers) = if outgoing { (own, others) } else { (others, own) };
    let (bytes_sent, bytes_received) =
        if outgoing { (of.bytes_sent, of.bytes_received) } else { (of.bytes_received, of.bytes_sent) };
    let counters = EdgeCounters {
        opened: of.opened,
        failed: of.failed,
        bytes_sent,
        bytes_received,
        without_bytes: of.without_bytes,
        retransmits: of.retransmits,
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

fn peer(edge: &TopologyEdge) -> Option<Peer> {
    let TopologyPeer { kind, namespace, name, node, ip } = edge.peer.clone();
    let dialled = edge.service.as_ref();
    Some(match (kind.as_str(), namespace, name, node, ip) {
        ("External", None, None, None, Some(ip)) => Peer::External { ip: ip.parse().ok()? },
        ("External", None, Some(name), None, None) => Peer::ExternalName { name },
        ("ExternalGroup", None, Some(name), None, None) => Peer::ExternalGroup { name },
        ("ApiServer", None, Some(_), None, None) => Peer::ApiServer,
        ("OtherExternal", None, None, None, None) => Peer::OtherExternal,
        ("Node", None, Some(node), None, None) => Peer::Node { node },
        ("HostProcess", None, Some(name), Some(node), None) => Peer::HostProcess { node, name },
        ("UnknownPod", None, Some(uid), None, None) => Peer::UnknownPod { uid },
        ("UnknownPod", None, None, None, Some(ip)) => Peer::SomePod { ip: ip.parse().ok()? },
        // A workload may be of a kind of this name, too.
        ("Service", Some(namespace), Some(name), None, None)
            if dialled.is_some_and(|service| service.namespace == namespace && service.name == name) =>
        {
            Peer::Service(ServiceRef { namespace, name })
        }
        (_, Some(namespace), Some(name), None, None) => Peer::Workload(Workload { namespace, kind, name }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use topology::flow::{Methods, Protocol};

    use super::{super::object, *};
    use crate::publisher::adjacency;

    fn workload(kind: &str, name: &str) -> Workload {
        Workload { namespace: "shop".to_owned(), kind: kind.to_owned(), name: name.to_owned() }
    }

    fn ends(pod: &str, opened: u64, failed: u64) -> Vec<Endpoint> {
        vec![Endpoint { pod: pod.to_owned(), container: "main".to_owned(), opened, failed }]
    }

    fn edge(client: Peer, server: Peer, service: Option<&str>, seen: Seen) -> Edge {
        let service = service.map(|name| ServiceRef { namespace: "shop".to_owned(), name: name.to_owned() });
        let counters = EdgeCounters {
            opened: 9,
            active: 2,
            failed: 3,
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
            from_servers: if seen == Seen::Server {
                EdgeCounters { active: 0, ..counters }
            } else {
                EdgeCounters::default()
            },
            clients: pods(&client, "web-1", 9, 3),
            servers: pods(&server, "db-1", 8, 0),
            seen,
            client_identity: certain(seen != Seen::Server),
            server_identity: certain(seen != Seen::Client),
            key: EdgeKey { client, server, service, port: 5432, protocol: Protocol::Tcp },
            methods: Methods::EBPF.union(Methods::CONNTRACK),
            dns_names: Vec::new(),
            addresses: 0,
            knows_retransmits: true,
            rtt: Some(RttBucket::of(300)),
        }
    }

    fn over_udp(edge: Edge) -> Edge {
        Edge { key: EdgeKey { protocol: Protocol::Udp, ..edge.key }, ..edge }
    }

    #[test]
    fn what_was_published_comes_back_from_both_sides() {
        let web = Peer::Workload(workload("Deployment", "web"));
        let db = Peer::Workload(workload("StatefulSet", "db"));
        let node = || "node-1".to_owned();
        let service = ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() };
        let external = Peer::External { ip: "fd00::1".parse().expect("an address") };
        let other_external = Peer::External { ip: "10.1.2.3".parse().expect("an address") };
        let graph = topology::graph::Graph {
            edges: vec![
                edge(web.clone(), db.clone(), None, Seen::Both),
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
                edge(Peer::Node { node: node() }, db, None, Seen::Server),
            ],
            ..topology::graph::Graph::default()
        };
        let earlier = |edge: &Edge| Counts {
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
        let all: HashMap<EdgeKey, Counts> = graph.edges.iter().map(|edge| (edge.key.clone(), earlier(edge))).collect();
        let mut wanted: Vec<Published> =
            graph.edges.iter().map(|edge| Published { edge: edge.clone(), earlier: earlier(edge) }).collect();
        wanted.sort_by(|one, other| one.edge.key.cmp(&other.edge.key));

        let mut found = Vec::new();
        for (workload, edges) in adjacency::by_workload(&graph) {
            let mut topology = Topology::new("t", crds::TopologySpec::default());
            topology.metadata.namespace = Some("shop".to_owned());
            topology.status = Some(object::status(workload, &edges, &all, &BTreeSet::new(), 500));
            found.extend(super::edges(&topology));
        }
        found.sort_by(|one, other| one.edge.key.cmp(&other.edge.key));
        found.dedup();
        assert_eq!(found, wanted);
    }
}
