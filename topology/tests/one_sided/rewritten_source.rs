//! A node puts another address in the place of the client's on the way.

use scopeprobe_topology::{
    edge::{Edge, Identity, Seen},
    entity::{Node, Pod},
    flow::{FlowCounters, Methods, Role},
    graph::Graph,
};

use crate::world::{EPOCH, World, at, edges, ip, pod, workload};

#[test]
fn a_node_port_leads_to_its_service_and_is_not_counted_twice() {
    let mut world = World::new();
    world.service(Some(30_080), &["db"]);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 30_080), 7, at(0));
    // The server sees the bridge's address instead of the pod's.
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 7, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 via db:80 7+0"]);
}

#[test]
fn a_bridge_that_only_the_agent_knows_is_the_nodes() {
    let mut world = World::new();
    world.service(Some(30_080), &["db"]);
    for number in [1, 2] {
        let ips = vec![ip(&format!("172.18.0.{number}"))];
        world.directory.upsert_node(Node { name: format!("node-{number}"), ips, pod_networks: Vec::new() });
    }
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 30_080), 7, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 7, at(0));
    let unknown = edges(&world.graph(at(60)));
    assert_eq!(unknown, ["web -> db:5432 via db:80 7+0", "10.244.2.1 -> db:5432 7+0"]);
    // An address that all nodes have names none of them.
    for (node, addresses) in [("node-1", vec![ip("172.17.0.1")]), ("node-2", vec![ip("172.17.0.1"), ip("10.244.2.1")])]
    {
        assert_eq!(world.ledger.set_node_addresses(node, EPOCH, &addresses), Ok(true));
        assert_eq!(world.ledger.set_node_addresses(node, EPOCH, &addresses), Ok(false));
    }
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 via db:80 7+0"]);
    world.flow("db", Role::Server, ("10.244.2.2", "172.17.0.1", 5432), 3, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 via db:80 7+0", "172.17.0.1 -> db:5432 3+0"]);
}

#[test]
fn what_comes_from_outside_through_a_node_is_not_hidden_by_the_nodes_own_probes() {
    let mut world = World::new();
    world.flow("kubelet", Role::Client, ("10.244.2.1", "10.244.2.2", 5432), 10, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 110, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["node-2/kubelet -> db:5432 10+0", "node-2 -> db:5432 100+0"]);
}

#[test]
fn a_nodes_own_calls_through_a_service_are_seen_with_its_address_and_with_its_bridges() {
    let mut world = World::new();
    world.directory.upsert_pod(Pod { workload: workload("db"), ..pod("db-too", "node-1", "10.244.1.3") }, at(0));
    world.service(None, &["db", "db-too"]);
    world.flow("monitor", Role::Client, ("172.18.0.2", "10.96.0.5", 80), 7, at(0));
    world.flow("db-too", Role::Server, ("10.244.1.3", "172.18.0.2", 5432), 4, at(0));
    // The backend on the same node.
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 3, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["node-2/monitor -> db:5432 via db:80 7+0"]);
    // Another node's bridge is not its own, and connections beyond its count are another client's.
    world.flow("db-too", Role::Server, ("10.244.1.3", "10.244.1.1", 5432), 2, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["node-2/monitor -> db:5432 via db:80 7+0", "node-1 -> db:5432 2+0"]);
}

/// Observed ends, the server's identity, and the connections of its pods.
type Ends = (Seen, Identity, Vec<(String, u64)>);

fn ends(graph: &Graph) -> Vec<Ends> {
    let pods = |edge: &Edge| edge.servers.iter().map(|server| (server.pod.clone(), server.opened)).collect();
    graph.edges.iter().map(|edge| (edge.seen, edge.server_identity, pods(edge))).collect()
}

/// In IPVS mode, kube-proxy gives each node the addresses of all Services. A process of the node that calls a Service
/// therefore has the Service's address as its source.
#[test]
fn a_client_that_has_the_services_address_is_seen_with_its_nodes() {
    let mut world = World::new();
    world.service(None, &["db"]);
    world.flow("monitor", Role::Client, ("10.96.0.5", "10.96.0.5", 80), 7, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "172.18.0.2", 5432), 7, at(0));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["node-2/monitor -> db:5432 via db:80 7+0"]);
    assert_eq!(ends(&graph), [(Seen::Both, Identity::Cgroup, vec![("db".to_owned(), 7)])]);
}

#[test]
fn which_of_a_workloads_pods_answered_is_a_guess_where_the_clients_address_was_replaced() {
    let mut world = World::new();
    world.directory.upsert_pod(Pod { workload: workload("db"), ..pod("db-too", "node-1", "10.244.1.3") }, at(0));
    world.service(Some(30_080), &["db", "db-too"]);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 30_080), 5, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 3, at(0));
    world.flow("db-too", Role::Server, ("10.244.1.3", "172.18.0.2", 5432), 2, at(0));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 via db:80 5+0"]);
    let pods = vec![("db".to_owned(), 3), ("db-too".to_owned(), 2)];
    assert_eq!(ends(&graph), [(Seen::Both, Identity::Ip, pods)]);
}

/// Without observing all backends, the connections behind the node's address cannot be assigned to the client.
#[test]
fn edge_names_no_pod_if_an_unobserved_backend_may_have_answered() {
    let mut world = World::with_a_dark_node();
    world.directory.upsert_pod(Pod { workload: workload("db"), ..pod("db-too", "node-3", "10.244.3.4") }, at(0));
    world.service(Some(30_080), &["db", "db-too"]);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 30_080), 5, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 5, at(0));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 via db:80 5+0"]);
    assert_eq!(ends(&graph), [(Seen::Client, Identity::Ip, Vec::new())]);
}

/// An agent that scans at intervals misses connections, but other clients may have the same address.
#[test]
fn what_comes_from_outside_through_a_node_is_not_taken_for_a_clients_that_was_missed() {
    for backends in [&["db"][..], &["db", "replica"]] {
        let mut world = World::new();
        world.directory.upsert_pod(pod("replica", "node-1", "10.244.1.3"), at(0));
        world.service(Some(30_080), backends);
        let counters = FlowCounters { opened: 5, closed: 5, methods: Methods::SOCK_DIAG, ..FlowCounters::default() };
        world.counters("web", Role::Client, ("10.244.1.2", "172.18.0.2", 30_080), &counters, at(0));
        world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 105, at(0));
        assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 via db:80 5+0", "node-2 -> db:5432 100+0"]);
    }
}

/// flannel and Calico replace the address of a pod that calls anything outside of the pods' networks.
#[test]
fn call_of_a_server_in_a_nodes_network_is_one_edge_if_the_clients_node_replaces_its_address() {
    let mut world = World::new();
    let to_exporter = |local| (local, "172.18.0.2", 9100);
    world.flow("web", Role::Client, to_exporter("10.244.1.2"), 20, at(0));
    world.flow("exporter", Role::Server, ("172.18.0.2", "172.18.0.1", 9100), 20, at(0));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> node-2/exporter:9100 20+0"]);
    assert_eq!(ends(&graph), [(Seen::Both, Identity::Cgroup, vec![(String::new(), 20)])]);
    // More connections of the server are of clients behind that node that no agent observes.
    world.flow("exporter", Role::Server, ("172.18.0.2", "172.18.0.1", 9100), 25, at(0));
    let expected = ["web -> node-2/exporter:9100 20+0", "node-1 -> node-2/exporter:9100 5+0"];
    assert_eq!(edges(&world.graph(at(60))), expected);
}

#[test]
fn another_nodes_address_is_not_that_of_a_client_without_a_service() {
    let mut world = World::new();
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 9100), 20, at(0));
    world.flow("exporter", Role::Server, ("172.18.0.2", "172.18.0.2", 9100), 20, at(0));
    let expected = ["web -> node-2/exporter:9100 20+0", "node-2 -> node-2/exporter:9100 20+0"];
    assert_eq!(edges(&world.graph(at(60))), expected);
}

#[test]
fn newest_connections_behind_a_nodes_address_wait_for_the_clients_report() {
    let mut world = World::new();
    let to_exporter = ("10.244.1.2", "172.18.0.2", 9100);
    let seen = ("172.18.0.2", "172.18.0.1", 9100);
    world.flow("web", Role::Client, to_exporter, 10, at(0));
    world.flow("exporter", Role::Server, seen, 10, at(0));
    world.flow("exporter", Role::Server, seen, 20, at(60));
    let graph = world.graph(at(61));
    assert_eq!((edges(&graph), graph.unsettled), (vec!["web -> node-2/exporter:9100 10+0".to_owned()], 10));
    world.flow("web", Role::Client, to_exporter, 20, at(61));
    assert_eq!(edges(&world.graph(at(61))), ["web -> node-2/exporter:9100 20+0"]);
}

/// Docker in Docker, kind in a pod, a VPN's sidecar.
#[test]
fn network_inside_of_a_pod_calls_with_the_pods_address() {
    let mut world = World::new();
    world.service(None, &["db"]);
    world.flow("web", Role::Client, ("172.17.0.2", "10.244.2.2", 5432), 20, at(0));
    world.flow("web", Role::Client, ("172.17.0.2", "10.96.0.5", 80), 10, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 30, at(0));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 20+0", "web -> db:5432 via db:80 10+0"]);
    let db = |opened| (Seen::Both, Identity::Cgroup, vec![("db".to_owned(), opened)]);
    assert_eq!(ends(&graph), [db(20), db(10)]);
}
