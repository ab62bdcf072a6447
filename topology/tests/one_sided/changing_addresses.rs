//! Servers and clients that an address alone does not show, and that change: pods behind host ports, addresses that move
//! between nodes, listeners that come and go, networks inside of pods.

use scopeprobe_topology::{
    archive::Archive,
    edge::Identity,
    entity::{Backend, CgroupOwner, HostPort, Node, Service, ServicePort, ServiceRef},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::Options,
    nat_peer::NatPeer,
};

use crate::world::{EPOCH, RETENTION, SETTLE, World, at, edges, ip, key, pod, workload};

fn options(seconds: u64) -> Options {
    Options { now: at(seconds), settle: SETTLE, retention: RETENTION, max_external: usize::MAX }
}

fn failed(failed: u64) -> FlowCounters {
    FlowCounters { failed, ..FlowCounters::default() }
}

fn opened(opened: u64) -> FlowCounters {
    FlowCounters { opened, closed: opened, ..FlowCounters::default() }
}

fn proc(
    world: &mut World,
    node: &str,
    name: &str,
    role: Role,
    at_: (&str, &str, u16),
    counters: &FlowCounters,
    seconds: u64,
) {
    let key: FlowKey = key(name, role, at_);
    let owner = CgroupOwner::HostProcess { name: name.to_owned() };
    world.ledger.identify(node, EPOCH, key.cgroup_id, owner).expect("the present epoch");
    world.ledger.apply(node, EPOCH, key, counters, at(seconds)).expect("the present epoch");
}

fn host_port(world: &mut World, name: &str, port: u16, container_port: u16, seconds: u64) {
    let mut pod = world.directory.pod(&format!("uid-{name}")).expect("the pod is known").clone();
    pod.host_ports = vec![HostPort { ip: None, port, container_port, protocol: Protocol::Tcp }];
    world.directory.upsert_pod(pod, at(seconds));
}

#[test]
fn attempts_at_a_pods_loopback_before_its_sidecar_listened_are_the_pods() {
    let mut world = World::new();
    let lo = ("127.0.0.1", "127.0.0.1", 6379);
    world.counters("web", Role::Client, lo, &failed(5), at(0));
    assert_eq!(edges(&world.graph(at(30))), ["web -> web:6379 0+5"]);
    world.counters("web", Role::Client, lo, &FlowCounters { failed: 5, ..opened(3) }, at(60));
    world.flow("web", Role::Server, lo, 3, at(60));
    assert_eq!(edges(&world.graph(at(100))), ["web -> web:6379 3+5"]);
}

#[test]
fn link_local_addresses_of_ipv6_join_nodes_of_one_link() {
    let mut world = World::new();
    proc(&mut world, "node-1", "bird", Role::Client, ("fe80::1", "fe80::2", 179), &opened(3), 0);
    proc(&mut world, "node-2", "bird", Role::Server, ("fe80::2", "fe80::1", 179), &opened(3), 0);
    assert_eq!(edges(&world.graph(at(60))), ["node-1/bird -> node-2/bird:179 3+0"]);
}

#[test]
fn shared_address_is_found_from_a_node_that_lacks_it() {
    let mut world = World::new();
    world.directory.upsert_node(Node {
        name: "node-3".to_owned(),
        ips: vec![ip("172.18.0.3")],
        pod_networks: Vec::new(),
    });
    world.ledger.enter("node-3", EPOCH).expect("the first epoch");
    // An anycast address, or one that has moved (keepalived) and that a dead node's agent reported last.
    let vip = "192.0.2.10";
    for node in ["node-1", "node-2"] {
        world.ledger.set_node_addresses(node, EPOCH, &[ip(vip)]).expect("the present epoch");
    }
    proc(&mut world, "node-3", "curl", Role::Client, ("172.18.0.3", vip, 443), &opened(5), 0);
    proc(&mut world, "node-2", "lb", Role::Server, (vip, "172.18.0.3", 443), &opened(5), 0);
    assert_eq!(edges(&world.graph(at(60))), ["node-3/curl -> node-2/lb:443 5+0"]);
}

#[test]
fn address_of_a_node_object_is_no_other_nodes() {
    let mut world = World::new();
    let call = ("10.244.1.2", "172.18.0.2", 9100);
    world.counters("web", Role::Client, call, &opened(5), at(0));
    let shown = ["web -> node-2:9100 5+0"];
    assert_eq!(edges(&world.graph(at(60))), shown);
    // The other node's agent names the address as its own, and so does the node's, or not.
    world.ledger.set_node_addresses("node-1", EPOCH, &[ip("172.18.0.2")]).expect("the present epoch");
    assert_eq!(edges(&world.graph(at(60))), shown);
    world.ledger.set_node_addresses("node-2", EPOCH, &[ip("172.18.0.2")]).expect("the present epoch");
    assert_eq!(edges(&world.graph(at(60))), shown);
    proc(&mut world, "node-2", "exporter", Role::Server, ("172.18.0.2", "10.244.1.2", 9100), &opened(5), 0);
    assert_eq!(edges(&world.graph(at(60))), ["web -> node-2/exporter:9100 5+0"]);
}

#[test]
fn host_port_answers_for_no_earlier_calls() {
    let mut world = World::new();
    world.counters("web", Role::Client, ("10.244.1.2", "172.18.0.2", 80), &failed(5), at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> node-2:80 0+5"]);
    world.directory.upsert_pod(pod("proxy", "node-2", "10.244.2.9"), at(100));
    host_port(&mut world, "proxy", 80, 8080, 100);
    assert_eq!(edges(&world.graph(at(160))), ["web -> node-2:80 0+5"]);
}

#[test]
fn host_port_takes_no_calls_that_a_process_of_the_node_answered() {
    let mut world = World::new();
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 80), 5, at(0));
    proc(&mut world, "node-2", "nginx", Role::Server, ("172.18.0.2", "172.18.0.1", 80), &opened(5), 0);
    let expected = ["web -> node-2/nginx:80 5+0"];
    assert_eq!(edges(&world.graph(at(60))), expected);
    world.directory.upsert_pod(pod("proxy", "node-2", "10.244.2.9"), at(100));
    host_port(&mut world, "proxy", 80, 8080, 100);
    assert_eq!(edges(&world.graph(at(160))), expected);
}

#[test]
fn network_inside_of_a_pod_reaches_the_cache_of_its_node() {
    let mut world = World::new();
    let cache = "169.254.20.10";
    world.flow("web", Role::Client, ("172.17.0.2", cache, 53), 20, at(0));
    proc(&mut world, "node-1", "cache", Role::Server, (cache, "10.244.1.2", 53), &opened(20), 0);
    assert_eq!(edges(&world.graph(at(60))), ["web -> node-1/cache:53 20+0"]);
}

#[test]
fn direct_call_of_a_pod_takes_nothing_from_others_behind_its_node() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("near", "node-2", "10.244.2.3"), at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 100, at(0));
    world.flow("near", Role::Client, ("10.244.2.3", "10.244.2.2", 5432), 10, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["near -> db:5432 10+0", "node-2 -> db:5432 100+0"]);
}

#[test]
fn calls_leave_a_pod_that_no_longer_has_the_host_port() {
    let mut world = World::new();
    let mut archive = Archive::new();
    host_port(&mut world, "db", 15_432, 5432, 0);
    world.counters("web", Role::Client, ("10.244.1.2", "172.18.0.2", 15_432), &failed(1), at(0));
    assert_eq!(edges(&archive.build(&world.ledger, &world.directory, &options(60))), ["web -> db:5432 0+1"]);
    host_port(&mut world, "db", 15_433, 5432, 61);
    let shown = edges(&archive.build(&world.ledger, &world.directory, &options(62)));
    assert_eq!(shown, ["web -> node-2:15432 0+1"]);
}

#[test]
fn services_address_at_a_port_that_it_lacks_is_the_service_in_ipvs_mode() {
    let mut world = World::new();
    world.service(None, &["db"]);
    for node in ["node-1", "node-2"] {
        world.ledger.set_node_addresses(node, EPOCH, &[ip("10.96.0.5")]).expect("the present epoch");
    }
    world.counters("web", Role::Client, ("10.244.1.2", "10.96.0.5", 8080), &failed(3), at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> service db:8080 0+3"]);
}

#[test]
fn host_port_at_an_address_that_only_the_agent_knows_leads_to_the_pod() {
    let mut world = World::new();
    world.ledger.set_node_addresses("node-2", EPOCH, &[ip("192.0.2.2")]).expect("the present epoch");
    host_port(&mut world, "db", 15_432, 5432, 0);
    world.flow("web", Role::Client, ("10.244.1.2", "192.0.2.2", 15_432), 20, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 20, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 20+0"]);
}

#[test]
fn newest_calls_of_a_host_port_wait_for_the_pods() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("other", "node-2", "10.244.2.9"), at(0));
    host_port(&mut world, "other", 15_432, 5432, 0);
    world.directory.remove_pod("uid-other", at(1));
    host_port(&mut world, "db", 15_432, 5432, 2);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 15_432), 10, at(10));
    world.flow("db", Role::Server, ("10.244.2.2", "172.18.0.1", 5432), 10, at(10));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 10+0"]);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 15_432), 20, at(60));
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 10+0"]);
}

/// From a process in the node's network to a pod with a host port, in one workload.
#[test]
fn workload_that_moves_to_a_host_port_keeps_its_earlier_calls() {
    let mut world = World::new();
    let mut first = pod("ingress-a", "node-2", "172.18.0.2");
    first.host_network = true;
    first.workload = workload("ingress");
    world.directory.upsert_pod(first, at(0));
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 80), 5, at(1));
    world.flow("ingress-a", Role::Server, ("172.18.0.2", "172.18.0.1", 80), 5, at(1));
    assert_eq!(edges(&world.graph(at(60))), ["web -> ingress:80 5+0"]);
    world.directory.remove_pod("uid-ingress-a", at(100));
    let mut second = pod("ingress-b", "node-2", "10.244.2.9");
    second.workload = workload("ingress");
    world.directory.upsert_pod(second, at(100));
    host_port(&mut world, "ingress-b", 80, 8080, 100);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 80), 8, at(120));
    world.flow("ingress-b", Role::Server, ("10.244.2.9", "172.18.0.1", 8080), 3, at(120));
    assert_eq!(edges(&world.graph(at(160))), ["web -> ingress:80 5+0", "web -> ingress:8080 3+0"]);
}

/// IPVS: all nodes have all Services' addresses. Two Services that share nothing but the number of their port.
#[test]
fn services_addresses_that_all_nodes_have_keep_groups_apart() {
    let mut world = World::new();
    let addresses: Vec<_> = (1..20).map(|number| format!("10.97.0.{number}")).collect();
    for (number, address) in addresses.iter().enumerate() {
        let (name, backend) = (format!("s-{number}"), format!("10.244.2.{}", 100 + number));
        world.directory.upsert_pod(pod(&name, "node-2", &backend), at(0));
        let backends = vec![Backend { ip: ip(&backend), port: 5000, pod_uid: Some(format!("uid-{name}")) }];
        let ports = vec![ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends }];
        let service = ServiceRef { namespace: "shop".to_owned(), name: name.clone() };
        world.directory.upsert_service(Service { name: service, addresses: vec![ip(address)], ports }, at(0));
        world.flow("web", Role::Client, ("10.244.1.2", address, 80), 3, at(0));
        world.flow(&name, Role::Server, (&backend, "10.244.1.2", 5000), 3, at(0));
    }
    let addresses: Vec<_> = addresses.iter().map(|address| ip(address)).collect();
    for node in ["node-1", "node-2"] {
        world.ledger.set_node_addresses(node, EPOCH, &addresses).expect("the present epoch");
    }
    let mut archive = Archive::new();
    assert_eq!(archive.build(&world.ledger, &world.directory, &options(60)).edges.len(), 19);
    world.flow("web", Role::Client, ("10.244.1.2", "10.97.0.1", 80), 4, at(61));
    world.flow("s-0", Role::Server, ("10.244.2.100", "10.244.1.2", 5000), 4, at(61));
    assert_eq!(archive.build(&world.ledger, &world.directory, &options(70)).edges.len(), 19);
    assert_eq!(archive.joined_flows(), 2);
}

/// Two pods with the same port of a node without agent, one after the other. Conntrack knew of five connections.
#[test]
fn conntrack_entries_of_a_host_port_count_once() {
    let mut world = World::with_a_dark_node();
    host_port(&mut world, "dark-a", 15_432, 5432, 0);
    host_port(&mut world, "dark-b", 15_432, 5432, 0);
    let called = ("10.244.1.2", "172.18.0.3", 15_432);
    world.flow("web", Role::Client, called, 20, at(0));
    let peers = [(NatPeer { ip: ip("10.244.3.2"), port: 5432 }, 5)];
    world
        .ledger
        .record_nat_peers("node-1", EPOCH, &key("web", Role::Client, called), &peers)
        .expect("the present epoch");
    assert_eq!(edges(&world.graph(at(60))), ["web -> dark-a:5432 5+0", "web -> node-3:15432 15+0"]);
}

/// The pod that answered behind a host port is a guess where the client's address was replaced.
#[test]
fn pods_behind_one_host_port_are_a_guess() {
    let mut world = World::new();
    world.directory.upsert_pod(pod("other", "node-2", "10.244.2.9"), at(0));
    world.directory.upsert_pod(pod("second", "node-1", "10.244.1.9"), at(0));
    host_port(&mut world, "db", 15_432, 5432, 0);
    host_port(&mut world, "other", 15_432, 5432, 0);
    for (who, address) in [("web", "10.244.1.2"), ("second", "10.244.1.9")] {
        world.flow(who, Role::Client, (address, "172.18.0.2", 15_432), 10, at(0));
    }
    for (who, address) in [("db", "10.244.2.2"), ("other", "10.244.2.9")] {
        world.flow(who, Role::Server, (address, "172.18.0.1", 5432), 10, at(0));
    }
    let graph = world.graph(at(60));
    assert!(graph.edges.iter().all(|edge| edge.server_identity == Identity::Ip));
}

/// Network inside of a pod calls the node's own address that several nodes have.
#[test]
fn network_inside_of_a_pod_reaches_a_shared_address_of_its_node() {
    let mut world = World::new();
    for node in ["node-1", "node-2"] {
        world.ledger.set_node_addresses(node, EPOCH, &[ip("172.16.9.1")]).expect("the present epoch");
    }
    world.flow("web", Role::Client, ("172.17.0.2", "172.16.9.1", 53), 20, at(0));
    proc(&mut world, "node-1", "cache", Role::Server, ("172.16.9.1", "10.244.1.2", 53), &opened(20), 0);
    assert_eq!(edges(&world.graph(at(60))), ["web -> node-1/cache:53 20+0"]);
}

#[test]
fn failures_before_a_retired_flow_of_a_listener_count_once() {
    let mut world = World::new();
    let mut archive = Archive::new();
    let at_ = |client| ("172.18.0.2", client, 9777);
    let to = ("10.244.1.2", "172.18.0.2", 9777);
    proc(&mut world, "node-2", "late", Role::Server, at_("10.244.2.2"), &opened(1), 0);
    proc(&mut world, "node-2", "late", Role::Server, at_("172.18.0.1"), &opened(1), 550);
    world.counters("web", Role::Client, to, &failed(5), at(100));
    world.counters("web", Role::Client, to, &failed(6), at(650));
    let before = edges(&archive.build(&world.ledger, &world.directory, &options(650)));
    world.ledger.begin_snapshot("node-2", EPOCH).expect("the present epoch");
    proc(&mut world, "node-2", "late", Role::Server, at_("172.18.0.1"), &opened(1), 650);
    world.ledger.end_snapshot("node-2", EPOCH, at(650)).expect("the present epoch");
    archive.retire(&mut world.ledger, &world.directory, at(651), RETENTION);
    let shown = edges(&archive.build(&world.ledger, &world.directory, &options(655)));
    assert_eq!(shown, before);
}
