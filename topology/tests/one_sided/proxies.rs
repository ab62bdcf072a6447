//! Transparent proxies in the pods of the client and of the server, as the sidecars of a mesh.

use std::time::SystemTime;

use scopeprobe_topology::{
    edge::{Edge, Peer, Side},
    entity::Pod,
    flow::{FlowCounters, FlowKey, Protocol, Role},
};

use crate::world::{World, at, edges, ip, key, pod};

const CLIENT: &str = "10.244.1.2";
const SERVER: &str = "10.244.2.2";
const SERVICE: &str = "10.96.0.5";
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;

/// Counts of the flows of one call with a proxy in both pods.
#[derive(Clone, Copy)]
struct Counts {
    application: u64,
    upstream: u64,
    server: u64,
}

const TWENTY: Counts = Counts { application: 20, upstream: 20, server: 20 };

/// A flow of a container: its cgroup, and the network namespace of its pod.
fn report(world: &mut World, container: &str, role: Role, addresses: (&str, &str, u16), opened: u64) {
    report_at(world, container, role, addresses, opened, at(0));
}

fn report_at(
    world: &mut World,
    container: &str,
    role: Role,
    (local, remote, port): (&str, &str, u16),
    opened: u64,
    now: SystemTime,
) {
    let (pod, _) = container.split_once('/').expect("a pod and a container");
    let netns = if pod == "web" { 1 } else { 2 };
    let cgroup_id = match container {
        "web/app" => 101,
        "web/proxy" => 102,
        "db/app" => 201,
        "db/proxy" => 202,
        other => panic!("{other} is no container"),
    };
    let key = FlowKey { cgroup_id, netns, role, local: ip(local), remote: ip(remote), port, protocol: Protocol::Tcp };
    let counters = FlowCounters { opened, closed: opened, bytes_sent: 10 * opened, ..FlowCounters::default() };
    world.report(container, key, &counters, now);
}

fn sidecars() -> World {
    let mut world = World::new();
    for (name, node, address) in [("web", "node-1", CLIENT), ("db", "node-2", SERVER)] {
        let containers = ["app", "proxy"].map(|it| (format!("id-{name}/{it}"), it.to_owned())).into();
        world.directory.upsert_pod(Pod { containers, ..pod(name, node, address) }, at(0));
    }
    world.service(None, &["db"]);
    world
}

/// Reports what both nodes see of a call whose client's proxy calls `upstream`.
fn call(world: &mut World, dialled: (&str, u16), upstream: (&str, u16), counts: Counts) {
    report(world, "web/app", Role::Client, (CLIENT, dialled.0, dialled.1), counts.application);
    report(world, "web/proxy", Role::Server, ("127.0.0.1", CLIENT, OUTBOUND), counts.application);
    report(world, "web/proxy", Role::Client, (CLIENT, upstream.0, upstream.1), counts.upstream);
    report(world, "db/proxy", Role::Server, (SERVER, CLIENT, INBOUND), counts.upstream);
    report(world, "db/proxy", Role::Client, ("127.0.0.1", "127.0.0.1", 5432), counts.server);
    report(world, "db/app", Role::Server, ("127.0.0.1", "127.0.0.1", 5432), counts.server);
}

fn proxies(edge: &Edge) -> Vec<(Side, String, String)> {
    let name = |peer: &Peer| match peer {
        Peer::Workload(workload) => workload.name.clone(),
        other => format!("{other:?}"),
    };
    edge.via.iter().map(|proxy| (proxy.side, name(&proxy.peer), proxy.container.clone())).collect()
}

#[test]
fn call_through_both_sidecars_is_one_edge() {
    for upstream in [(SERVICE, 80), (SERVER, 5432)] {
        let mut world = sidecars();
        call(&mut world, (SERVICE, 80), upstream, TWENTY);
        let graph = world.graph(at(60));
        assert_eq!(edges(&graph), ["web -> db:5432 via db:80 20+0"], "{upstream:?}");
        let edge = &graph.edges[0];
        let named = |side, pod: &str| (side, pod.to_owned(), "proxy".to_owned());
        assert_eq!(proxies(edge), [named(Side::Client, "web"), named(Side::Server, "db")]);
        assert_eq!([&*edge.clients[0].container, &*edge.servers[0].container], ["app", "app"]);
        assert_eq!((edge.counters.opened, edge.counters.bytes_sent), (20, 200));
    }
}

#[test]
fn pod_that_is_called_at_its_address_through_sidecars_is_one_edge() {
    let mut world = sidecars();
    call(&mut world, (SERVER, 5432), (SERVER, 5432), TWENTY);
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 20+0"]);
}

#[test]
fn client_without_a_sidecar_reaches_the_server_behind_one() {
    let mut world = sidecars();
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVICE, 80), 20);
    report(&mut world, "db/proxy", Role::Server, (SERVER, CLIENT, INBOUND), 20);
    report(&mut world, "db/proxy", Role::Client, (SERVER, SERVER, 5432), 20);
    report(&mut world, "db/app", Role::Server, (SERVER, SERVER, 5432), 20);
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 via db:80 20+0"]);
    assert_eq!(proxies(&graph.edges[0]), [(Side::Server, "db".to_owned(), "proxy".to_owned())]);
}

#[test]
fn calls_of_a_proxy_wait_for_the_report_that_shows_that_it_is_transparent() {
    let mut world = sidecars();
    report(&mut world, "db/proxy", Role::Server, (SERVER, CLIENT, INBOUND), 20);
    report(&mut world, "db/proxy", Role::Client, ("127.0.0.1", "127.0.0.1", 5432), 20);
    report(&mut world, "db/app", Role::Server, ("127.0.0.1", "127.0.0.1", 5432), 20);
    let early = world.graph(at(1));
    assert_eq!((edges(&early), early.unsettled, early.settles_at), (Vec::new(), 40, Some(at(2))));
    let shown = ["db -> db:5432 20+0", "web -> db:15006 20+0"];
    assert_eq!(edges(&world.graph(at(2))), shown, "no client reports that it called another port");
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVER, 5432), 20);
    assert_eq!(edges(&world.graph(at(1))), ["web -> db:5432 20+0"]);
}

#[test]
fn several_ports_behind_one_proxy_are_apart() {
    let mut world = sidecars();
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVER, 5432), 20);
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVER, 9000), 5);
    report(&mut world, "db/proxy", Role::Server, (SERVER, CLIENT, INBOUND), 25);
    for (port, opened) in [(5432, 20), (9000, 5)] {
        report(&mut world, "db/proxy", Role::Client, ("127.0.0.1", "127.0.0.1", port), opened);
        report(&mut world, "db/app", Role::Server, ("127.0.0.1", "127.0.0.1", port), opened);
    }
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 20+0", "web -> db:9000 5+0"]);
}

#[test]
fn proxy_that_pools_connections_shows_both_legs_once() {
    let mut world = sidecars();
    call(&mut world, (SERVICE, 80), (SERVER, 5432), Counts { application: 20, upstream: 3, server: 3 });
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 3+0", "web -> web:15001 via db:80 20+0"]);
    let is_linked = |edge: &Edge| proxies(edge).contains(&(Side::Client, "web".to_owned(), "proxy".to_owned()));
    assert!(graph.edges.iter().all(|edge| is_linked(edge)), "{:?}", graph.edges);
}

#[test]
fn proxy_that_has_saved_connections_does_not_catch_up_with_later_ones() {
    let mut world = sidecars();
    call(&mut world, (SERVICE, 80), (SERVER, 5432), Counts { application: 2, upstream: 1, server: 1 });
    let shown = |[application, upstream]: [u64; 2]| {
        [format!("web -> db:5432 {upstream}+0"), format!("web -> web:15001 via db:80 {application}+0")]
    };
    assert_eq!(edges(&world.graph(at(59))), shown([2, 1]));
    // As many as the proxy lacks are new, and could be those whose other leg is not reported yet.
    report_at(&mut world, "web/app", Role::Client, (CLIENT, SERVICE, 80), 5, at(60));
    report_at(&mut world, "web/proxy", Role::Client, (CLIENT, SERVER, 5432), 2, at(60));
    report_at(&mut world, "db/proxy", Role::Server, (SERVER, CLIENT, INBOUND), 2, at(60));
    assert_eq!(edges(&world.graph(at(60)))[..], shown([5, 2]));
}

#[test]
fn proxy_that_clients_call_at_its_own_port_is_a_server() {
    let mut world = sidecars();
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVER, 8443), 20);
    report(&mut world, "db/proxy", Role::Server, (SERVER, CLIENT, 8443), 20);
    report(&mut world, "db/proxy", Role::Client, ("127.0.0.1", "127.0.0.1", 5432), 20);
    report(&mut world, "db/app", Role::Server, ("127.0.0.1", "127.0.0.1", 5432), 20);
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["db -> db:5432 20+0", "web -> db:8443 20+0"]);
    assert!(graph.edges.iter().all(|edge| edge.via.is_empty()));
}

#[test]
fn traffic_of_a_proxys_own_stays_its_own() {
    let mut world = sidecars();
    call(&mut world, (SERVICE, 80), (SERVICE, 80), TWENTY);
    report(&mut world, "web/proxy", Role::Client, (CLIENT, "172.18.0.2", 15012), 2);
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 via db:80 20+0", "web -> node-2:15012 2+0"]);
}

#[test]
fn call_that_is_excluded_from_redirection_is_counted_beside_the_proxys() {
    let mut world = sidecars();
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVER, 5432), 20);
    report(&mut world, "web/proxy", Role::Server, ("127.0.0.1", CLIENT, OUTBOUND), 7);
    report(&mut world, "web/proxy", Role::Client, (CLIENT, SERVER, 5432), 3);
    report(&mut world, "db/app", Role::Server, (SERVER, CLIENT, 5432), 23);
    assert_eq!(edges(&world.graph(at(60))), ["web -> db:5432 23+0"]);
}

#[test]
fn container_that_is_called_at_loopback_with_another_address_is_no_proxy() {
    let mut world = sidecars();
    for container in ["web/app", "web/proxy"] {
        report(&mut world, container, Role::Client, (CLIENT, "203.0.113.9", 443), 20);
    }
    report(&mut world, "web/app", Role::Client, (CLIENT, "127.0.0.1", 9000), 1);
    report(&mut world, "web/proxy", Role::Server, ("127.0.0.1", CLIENT, 9000), 1);
    assert_eq!(edges(&world.graph(at(60))), ["web -> web:9000 1+0", "web -> 203.0.113.9:443 40+0"]);
}

#[test]
fn pod_with_the_number_of_anothers_network_namespace_calls_for_itself() {
    let mut world = sidecars();
    call(&mut world, (SERVICE, 80), (SERVER, 5432), TWENTY);
    world.directory.upsert_pod(pod("next", "node-1", "10.244.1.9"), at(0));
    let called = key("next", Role::Client, ("10.244.1.9", SERVICE, 80));
    let counters = FlowCounters { opened: 50, closed: 50, ..FlowCounters::default() };
    world.report("next", FlowKey { netns: 1, ..called }, &counters, at(0));
    report(&mut world, "db/proxy", Role::Server, (SERVER, "10.244.1.9", INBOUND), 50);
    report(&mut world, "db/proxy", Role::Client, ("127.0.0.1", "127.0.0.1", 5432), 70);
    report(&mut world, "db/app", Role::Server, ("127.0.0.1", "127.0.0.1", 5432), 70);
    let shown = ["next -> db:5432 via db:80 50+0", "web -> db:5432 via db:80 20+0"];
    assert_eq!(edges(&world.graph(at(60))), shown);
}

#[test]
fn calls_of_another_protocol_are_not_those_that_a_proxy_shares() {
    let mut world = sidecars();
    call(&mut world, (SERVICE, 80), (SERVER, 5432), Counts { application: 20, upstream: 3, server: 3 });
    let before = edges(&world.graph(at(60)));
    let key = key("db/app", Role::Server, (SERVER, CLIENT, 5432));
    let counters = FlowCounters { opened: 50, closed: 50, ..FlowCounters::default() };
    world.report("db/app", FlowKey { protocol: Protocol::Udp, ..key }, &counters, at(0));
    let mut after = edges(&world.graph(at(60)));
    after.retain(|edge| edge != "web -> db:5432/UDP 50+0");
    assert_eq!(after, before);
}

#[test]
fn proxy_that_keeps_the_clients_address_is_no_caller() {
    // TPROXY, with the client's address as the source of the proxy's own connection.
    let mut world = sidecars();
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVER, 5432), 20);
    report(&mut world, "db/proxy", Role::Server, (SERVER, CLIENT, 5432), 20);
    report(&mut world, "db/proxy", Role::Client, (CLIENT, SERVER, 5432), 20);
    report(&mut world, "db/app", Role::Server, (SERVER, CLIENT, 5432), 20);
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 20+0"]);
    assert_eq!(graph.edges[0].servers[0].container, "app");
    assert_eq!(proxies(&graph.edges[0]), [(Side::Server, "db".to_owned(), "proxy".to_owned())]);
}

/// Two pods without sidecars whose network redirects to a proxy of each node, as an ambient mesh's does.
fn ambient() -> World {
    let mut world = World::new();
    world.directory.upsert_pod(pod("tunnel-1", "node-1", "10.244.1.9"), at(0));
    world.directory.upsert_pod(pod("tunnel-2", "node-2", "10.244.2.9"), at(0));
    world.service(None, &["db"]);
    world
}

/// A flow of a node's proxy in the network namespace of a pod.
fn report_tunnel(world: &mut World, number: u32, role: Role, (local, remote, port): (&str, &str, u16), opened: u64) {
    let (netns, cgroup_id) = (number, 300 + u64::from(number));
    let key = FlowKey { cgroup_id, netns, role, local: ip(local), remote: ip(remote), port, protocol: Protocol::Tcp };
    let counters = FlowCounters { opened, closed: opened, ..FlowCounters::default() };
    world.report(&format!("tunnel-{number}"), key, &counters, at(0));
}

const TUNNEL: u16 = 15008;

#[test]
fn call_through_proxies_of_both_nodes_is_one_edge() {
    let mut world = ambient();
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVICE, 80), 20);
    report_tunnel(&mut world, 1, Role::Server, ("127.0.0.1", CLIENT, OUTBOUND), 20);
    report_tunnel(&mut world, 1, Role::Client, (CLIENT, SERVER, TUNNEL), 20);
    report_tunnel(&mut world, 2, Role::Server, (SERVER, CLIENT, TUNNEL), 20);
    report_tunnel(&mut world, 2, Role::Client, (SERVER, SERVER, 5432), 20);
    report(&mut world, "db/app", Role::Server, (SERVER, SERVER, 5432), 20);
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["web -> db:5432 via db:80 20+0"]);
    let names: Vec<_> = proxies(&graph.edges[0]).into_iter().map(|(side, name, _)| (side, name)).collect();
    assert_eq!(names, [(Side::Client, "tunnel-1".to_owned()), (Side::Server, "tunnel-2".to_owned())]);
}

#[test]
fn calls_in_one_tunnel_with_the_clients_address_are_the_clients() {
    let mut world = ambient();
    report(&mut world, "web/app", Role::Client, (CLIENT, SERVICE, 80), 20);
    report_tunnel(&mut world, 1, Role::Server, ("127.0.0.1", CLIENT, OUTBOUND), 20);
    report_tunnel(&mut world, 1, Role::Client, (CLIENT, SERVER, TUNNEL), 1);
    report_tunnel(&mut world, 2, Role::Server, (SERVER, CLIENT, TUNNEL), 1);
    report_tunnel(&mut world, 2, Role::Client, (CLIENT, SERVER, 5432), 20);
    report(&mut world, "db/app", Role::Server, (SERVER, CLIENT, 5432), 20);
    let graph = world.graph(at(60));
    assert_eq!(edges(&graph), ["tunnel-1 -> tunnel-2:15008 1+0", "web -> db:5432 via db:80 20+0"]);
}
