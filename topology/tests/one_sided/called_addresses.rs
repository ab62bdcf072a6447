//! Addresses that do not name a server by themselves: a Service's at another port, loopback at the number of a node port, an
//! address that several nodes have, a node's before a server listened there.

use std::time::SystemTime;

use scopeprobe_topology::{
    entity::{CgroupOwner, HostPort},
    flow::{FlowCounters, FlowKey, Protocol, Role},
};

use crate::world::{EPOCH, World, at, edges, ip, key};

const BRIDGE: &str = "172.17.0.1";

fn failed(failed: u64) -> FlowCounters {
    FlowCounters { failed, ..FlowCounters::default() }
}

fn opened(opened: u64) -> FlowCounters {
    FlowCounters { opened, closed: opened, ..FlowCounters::default() }
}

impl World {
    /// A process of a node has such a flow.
    fn process(&mut self, node: &str, name: &str, key: FlowKey, counters: &FlowCounters, seconds: u64) {
        let owner = CgroupOwner::HostProcess { name: name.to_owned() };
        self.ledger.identify(node, EPOCH, key.cgroup_id, owner).expect("the present epoch");
        self.ledger.apply(node, EPOCH, key, counters, at(seconds)).expect("the present epoch");
    }

    fn host_port(&mut self, name: &str, address: Option<&str>, port: u16) {
        let mut pod = self.directory.pod(&format!("uid-{name}")).expect("the pod is known").clone();
        let host_port = HostPort { ip: address.map(ip), port, container_port: 5432, protocol: Protocol::Tcp };
        pod.host_ports = vec![host_port];
        self.directory.upsert_pod(pod, at(0));
    }

    /// Cleans up as the operator does.
    fn condense(&mut self, now: SystemTime) {
        let nodes: Vec<String> = self.ledger.nodes().map(str::to_owned).collect();
        let directory = &self.directory;
        for node in nodes {
            self.ledger.condense(&node, |flow, one, next| directory.are_one(flow.remote, one, next, now));
        }
    }

    fn with_bridges() -> Self {
        let mut world = Self::new();
        for node in ["node-1", "node-2"] {
            world.ledger.set_node_addresses(node, EPOCH, &[ip(BRIDGE)]).expect("the present epoch");
        }
        world
    }
}

#[test]
fn services_address_at_a_port_that_it_lacks_is_the_service() {
    let mut world = World::new();
    world.counters("web", Role::Client, ("10.244.1.2", "10.96.0.5", 8080), &failed(3), at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> 10.96.0.5:8080 0+3"]);
    world.service(None, &["db"]);
    assert_eq!(edges(&world.graph(at(60))), ["web -> service db:8080 0+3"]);
}

#[test]
fn loopback_at_the_number_of_a_node_port_leads_to_the_service_from_the_nodes_network_alone() {
    let mut world = World::new();
    world.service(Some(30_080), &["db"]);
    let to_loopback = ("127.0.0.1", "127.0.0.1", 30_080);
    world.counters("web", Role::Client, to_loopback, &failed(5), at(0));
    world.process("node-2", "curl", key("curl", Role::Client, to_loopback), &failed(2), 0);
    let expected = ["web -> web:30080 0+5", "node-2/curl -> db:5432 via db:80 0+2"];
    assert_eq!(edges(&world.graph(at(60))), expected);
}

#[test]
fn what_calls_an_address_of_its_own_node_stays_there() {
    let mut world = World::with_bridges();
    let to_bridge = |who, port| key(who, Role::Client, (BRIDGE, BRIDGE, port));
    let at_bridge = |who, port| key(who, Role::Server, (BRIDGE, BRIDGE, port));
    for (node, count) in [("node-1", 10), ("node-2", 20)] {
        world.process(node, "client", to_bridge("client", 7000), &opened(count), 0);
        world.process(node, "server", at_bridge("server", 7000), &opened(count), 0);
    }
    // No server listens there on the first node.
    world.process("node-1", "client", to_bridge("client", 7001), &failed(5), 0);
    world.process("node-2", "client", to_bridge("client", 7001), &opened(2), 0);
    world.process("node-2", "server", at_bridge("server", 7001), &opened(2), 0);
    let expected = [
        "node-1/client -> node-1/server:7000 10+0",
        "node-1/client -> node-1:7001 0+5",
        "node-2/client -> node-2/server:7000 20+0",
        "node-2/client -> node-2/server:7001 2+0",
    ];
    assert_eq!(edges(&world.graph(at(60))), expected);
}

#[test]
fn pod_reaches_the_bridge_of_its_own_node() {
    let mut world = World::with_bridges();
    world.flow("web", Role::Client, ("10.244.1.2", BRIDGE, 53), 4, at(0));
    for (node, remote, count) in [("node-1", "10.244.1.2", 4), ("node-2", "10.244.2.2", 9)] {
        world.process(node, "cache", key("cache", Role::Server, (BRIDGE, remote, 53)), &opened(count), 0);
    }
    let expected = ["db -> node-2/cache:53 9+0", "web -> node-1/cache:53 4+0"];
    assert_eq!(edges(&world.graph(at(60))), expected);
}

/// A node-local DNS cache, and the metadata server of a cloud.
#[test]
fn link_local_address_is_that_of_the_own_node() {
    let mut world = World::new();
    let cache = "169.254.20.10";
    world.flow("web", Role::Client, ("10.244.1.2", cache, 53), 4, at(0));
    world.flow("web", Role::Client, ("10.244.1.2", "169.254.169.254", 80), 1, at(0));
    world.process("node-1", "cache", key("cache", Role::Server, (cache, "10.244.1.2", 53)), &opened(4), 0);
    world.process("node-2", "cache", key("cache", Role::Server, (cache, "10.244.2.2", 53)), &opened(9), 0);
    world.counters("db", Role::Client, ("10.244.2.2", cache, 54), &failed(2), at(0));
    world.process("node-1", "cache", key("cache", Role::Server, (cache, "10.244.1.2", 54)), &opened(1), 0);
    let expected = [
        "db -> node-2/cache:53 9+0",
        "db -> 169.254.20.10:54 0+2",
        "web -> node-1/cache:53 4+0",
        "web -> node-1/cache:54 1+0",
        "web -> 169.254.169.254:80 1+0",
    ];
    assert_eq!(edges(&world.graph(at(60))), expected);
}

#[test]
fn listener_answers_for_no_earlier_calls() {
    let mut world = World::new();
    let late = |opened_there| (key("late", Role::Server, ("172.18.0.2", "10.244.2.2", 9777)), opened(opened_there));
    world.counters("web", Role::Client, ("10.244.1.2", "172.18.0.2", 9777), &failed(5), at(0));
    assert_eq!(edges(&world.graph(at(20))), ["web -> node-2:9777 0+5"]);
    let (key, counters) = late(1);
    world.process("node-2", "late", key, &counters, 30);
    world.flow("db", Role::Client, ("10.244.2.2", "172.18.0.2", 9777), 1, at(30));
    assert_eq!(edges(&world.graph(at(60))), ["db -> node-2/late:9777 1+0", "web -> node-2:9777 0+5"]);
    // Later failed attempts are of the listener.
    world.counters("web", Role::Client, ("10.244.1.2", "172.18.0.2", 9777), &failed(7), at(70));
    let expected = ["db -> node-2/late:9777 1+0", "web -> node-2/late:9777 0+2", "web -> node-2:9777 0+5"];
    assert_eq!(edges(&world.graph(at(100))), expected);
}

#[test]
fn attempts_before_a_server_listened_in_the_nodes_network_are_not_its_own() {
    let mut world = World::new();
    let to_node = ("10.244.1.2", "172.18.0.2", 9777);
    world.counters("web", Role::Client, to_node, &failed(5), at(0));
    world.counters("web", Role::Client, to_node, &FlowCounters { failed: 6, ..opened(3) }, at(60));
    let answered = key("late", Role::Server, ("172.18.0.2", "10.244.1.2", 9777));
    world.process("node-2", "late", answered, &opened(3), 60);
    world.condense(at(200));
    let expected = ["web -> node-2/late:9777 3+1", "web -> node-2:9777 0+5"];
    assert_eq!(edges(&world.graph(at(200))), expected);
}

#[test]
fn host_port_leads_to_the_pod() {
    let mut world = World::new();
    world.host_port("db", None, 15_432);
    world.flow("web", Role::Client, ("10.244.1.2", "172.18.0.2", 15_432), 20, at(0));
    world.flow("db", Role::Client, ("10.244.2.2", "172.18.0.2", 15_432), 3, at(0));
    world.flow("db", Role::Server, ("10.244.2.2", "172.18.0.1", 5432), 20, at(0));
    // A call of its own host port comes back from the bridge.
    world.flow("db", Role::Server, ("10.244.2.2", "10.244.2.1", 5432), 3, at(0));
    assert_eq!(edges(&world.graph(at(60))), ["db -> db:5432 3+0", "web -> db:5432 20+0"]);
    // The other node has no such port.
    world.counters("web", Role::Client, ("10.244.1.2", "172.18.0.1", 15_432), &failed(2), at(0));
    let expected = ["db -> db:5432 3+0", "web -> db:5432 20+0", "web -> node-1:15432 0+2"];
    assert_eq!(edges(&world.graph(at(60))), expected);
}

#[test]
fn host_port_at_one_address_leads_to_the_pod_from_there_alone() {
    let mut world = World::new();
    world.host_port("db", Some("172.18.0.2"), 15_432);
    world.counters("web", Role::Client, ("10.244.1.2", "172.18.0.2", 15_432), &failed(1), at(0));
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 0+1"]);
    world.host_port("db", Some("192.0.2.1"), 15_432);
    assert_eq!(edges(&world.graph(at(60))), ["web -> node-2:15432 0+1"]);
}
