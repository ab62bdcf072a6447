//! Conntrack entries of ends that no agent observes.

use std::sync::Arc;

use scopeprobe_topology::{
    edge::{Edge, Endpoint, Identity, Peer, Seen},
    flow::Role,
    graph::Graph,
    nat_peer::NatPeer,
};

use crate::world::{EPOCH, World, at, ip, key, workload};

impl World {
    /// Records conntrack entries of a flow's node.
    fn lead(&mut self, who: &str, role: Role, addresses: (&str, &str, u16), nat_peers: &[(&str, u16, u64)]) {
        let node = self.directory.pod(&format!("uid-{who}")).expect("the pod is known").node.clone();
        let nat_peers: Vec<(NatPeer, u64)> =
            nat_peers.iter().map(|(address, port, count)| (NatPeer { ip: ip(address), port: *port }, *count)).collect();
        self.ledger.record_nat_peers(&node, EPOCH, &key(who, role, addresses), &nat_peers).expect("the present epoch");
    }
}

const CALLED: (&str, &str, u16) = ("10.244.1.2", "10.96.0.5", 80);

#[test]
fn connection_tracking_knows_the_backends_that_no_agent_sees() {
    let mut world = World::with_a_dark_node();
    world.service(None, &["dark-a", "dark-b"]);
    world.flow("web", Role::Client, CALLED, 6, at(0));
    world.lead("web", Role::Client, CALLED, &[("10.244.3.2", 5432, 3), ("10.244.3.3", 5432, 2)]);
    let graph = world.graph(at(10));
    let known = |edge: &Edge| match &edge.key.server {
        Peer::Workload(workload) => (workload.name.clone(), edge.counters.opened, edge.server_identity),
        _ => ("?".to_owned(), edge.counters.opened, edge.server_identity),
    };
    let expected = [
        ("dark-a".to_owned(), 3, Identity::Conntrack),
        ("dark-b".to_owned(), 2, Identity::Conntrack),
        ("?".to_owned(), 1, Identity::Ip),
    ];
    assert_eq!(graph.edges.iter().map(Arc::as_ref).map(known).collect::<Vec<_>>(), expected);
    assert!(graph.edges.iter().all(|edge| edge.seen == Seen::Client && edge.key.service.is_some()));
    assert_eq!(graph.edges[0].servers[0].pod, "dark-a");
}

#[test]
fn what_an_agent_sees_is_not_taken_from_connection_tracking() {
    let mut world = World::with_a_dark_node();
    world.service(None, &["db", "dark-a"]);
    world.flow("web", Role::Client, CALLED, 5, at(0));
    world.lead("web", Role::Client, CALLED, &[("10.244.2.2", 5432, 3), ("10.244.3.2", 5432, 2)]);
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 1, at(0));
    let opened = |graph: &Graph| {
        let of = |edge: &Edge| (edge.counters.opened, edge.seen, edge.server_identity);
        graph.edges.iter().map(Arc::as_ref).map(of).collect::<Vec<_>>()
    };
    let (both, tracked) = ((1, Seen::Both, Identity::Cgroup), (2, Seen::Client, Identity::Conntrack));
    assert_eq!(opened(&world.graph(at(10))), [tracked, both, (2, Seen::Client, Identity::Ip)]);
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 3, at(11));
    assert_eq!(opened(&world.graph(at(20))), [tracked, (3, Seen::Both, Identity::Cgroup)]);
}

#[test]
fn connection_tracking_knows_the_pods_of_the_only_workload() {
    let mut world = World::with_a_dark_node();
    world.service(None, &["dark-a"]);
    world.flow("web", Role::Client, CALLED, 4, at(0));
    let found = |world: &World| {
        let graph = world.graph(at(10));
        (graph.edges.len(), graph.edges[0].server_identity, graph.edges[0].servers.clone())
    };
    assert_eq!(found(&world), (1, Identity::Ip, Vec::new()));
    world.lead("web", Role::Client, CALLED, &[("10.244.3.2", 5432, 9)]);
    let pod = Endpoint { pod: "dark-a".to_owned(), container: String::new(), opened: 4, failed: 0 };
    assert_eq!(found(&world), (1, Identity::Conntrack, vec![pod]));
}

#[test]
fn connection_tracking_knows_the_client_behind_a_nodes_address() {
    let seen = ("10.244.2.2", "172.18.0.1", 5432);
    let mut world = World::with_a_dark_node();
    world.flow("db", Role::Server, seen, 5, at(0));
    world.lead("db", Role::Server, seen, &[("10.244.3.2", 0, 4)]);
    let graph = world.graph(at(10));
    let known = |edge: &Edge| (edge.key.client.clone(), edge.counters.opened, edge.client_identity, edge.seen);
    let expected = [
        (Peer::Workload(workload("dark-a")), 4, Identity::Conntrack, Seen::Server),
        (Peer::Node { node: "node-1".to_owned() }, 1, Identity::Ip, Seen::Server),
    ];
    assert_eq!(graph.edges.iter().map(Arc::as_ref).map(known).collect::<Vec<_>>(), expected);
}
