//! Counts of an agent that ended, and connections that it missed, over a restart of the operator.

use std::time::{Duration, SystemTime};

use scopeprobe_topology::{
    archive::{Archive, Published},
    directory::Directory,
    edge::{Edge, Endpoint},
    entity::{CgroupOwner, Pod, PodLifetime},
    flow::{FlowCounters, Role},
    graph::{Graph, Options},
    ledger::{Epoch, Ledger},
    sighting::{Ages, Sighting},
};

use crate::world::{EPOCH, RETENTION, SETTLE, World, at, edges, key, pod, workload};

const SERVICE: (&str, &str, u16) = ("10.244.1.2", "10.96.0.5", 80);
const SECOND: Epoch = Epoch([2; 16]);

/// The client and one of the servers are on a node, the other server is on another one.
struct Shop {
    world: World,
    archive: Archive,
}

impl Shop {
    fn new() -> Self {
        let mut world = World::new();
        for (name, node, address) in [("near", "node-1", "10.244.1.3"), ("far", "node-2", "10.244.2.3")] {
            let pod = Pod { workload: workload("db"), ..pod(name, node, address) };
            world.directory.upsert_pod(pod, at(0));
        }
        world.service(None, &["near", "far"]);
        Self { world, archive: Archive::new() }
    }

    /// Reports what the client, the server beside it and the other server have counted, the first two in this epoch.
    fn report(&mut self, epoch: Epoch, opened: [u64; 3], now: SystemTime) {
        let counters = |opened| FlowCounters { opened, closed: opened, bytes_sent: opened, ..FlowCounters::default() };
        self.report_counters(epoch, opened.map(counters), now);
    }

    fn report_counters(&mut self, epoch: Epoch, [client, near, far]: [FlowCounters; 3], now: SystemTime) {
        let flows = [
            ("web", Role::Client, SERVICE, "node-1", epoch, client),
            ("near", Role::Server, ("10.244.1.3", "10.244.1.2", 5432), "node-1", epoch, near),
            ("far", Role::Server, ("10.244.2.3", "10.244.1.2", 5432), "node-2", EPOCH, far),
        ];
        for (who, role, addresses, node, epoch, counters) in flows {
            let key = key(who, role, addresses);
            let owner = CgroupOwner::PodContainer { pod_uid: format!("uid-{who}"), container_id: format!("id-{who}") };
            self.world.ledger.identify(node, epoch, key.cgroup_id, owner).expect("the present epoch");
            self.world.ledger.apply(node, epoch, key, &counters, now).expect("the present epoch");
        }
    }

    fn graph(&mut self, now: SystemTime) -> Graph {
        let options = Options { now, settle: SETTLE, retention: RETENTION, max_external: usize::MAX };
        self.archive.build(&self.world.ledger, &self.world.directory, &options)
    }

    /// A new operator knows what was published, and enters the agents' present epochs.
    fn restart_operator(&mut self, now: SystemTime) {
        let graph = self.graph(now);
        let published = graph.edges.iter().map(|edge| Published {
            edge: Edge::clone(edge),
            earlier: graph.earlier.get(&edge.key).cloned().unwrap_or_default(),
        });
        self.archive = Archive::new();
        self.archive.restore(published, now);
        self.world.ledger = Ledger::new();
        self.world.ledger.enter("node-1", SECOND).expect("the first epoch");
        self.world.ledger.enter("node-2", EPOCH).expect("the first epoch");
    }
}

type Opened<'a> = Vec<(&'a str, u64)>;

fn opened(ends: &[Endpoint]) -> Opened<'_> {
    ends.iter().map(|end| (end.pod.as_str(), end.opened)).collect()
}

fn shown(graph: &Graph) -> (u64, Opened<'_>, Opened<'_>) {
    let [edge] = &graph.edges[..] else { panic!("{:?}", graph.edges) };
    let Edge { counters, clients, servers, .. } = &**edge;
    (counters.opened, opened(clients), opened(servers))
}

#[test]
fn connections_that_only_a_server_has_seen_stay_after_the_next_operator() {
    let mut shop = Shop::new();
    shop.report(EPOCH, [30, 10, 20], at(0));
    // The client's agent ends, and misses five connections to the server that another agent observes.
    shop.world.ledger.enter("node-1", SECOND).expect("another epoch");
    shop.report(SECOND, [7, 3, 29], at(10));
    let before = shop.graph(at(60));
    assert_eq!(shown(&before), (42, vec![("web", 42)], vec![("far", 29), ("near", 13)]));

    // Traffic has gone on since the last objects were written.
    shop.restart_operator(at(60));
    shop.report(SECOND, [57, 3, 79], at(61));
    shop.archive.settle(&shop.world.ledger, &shop.world.directory, at(62));
    assert_eq!(shown(&shop.graph(at(70))), (92, vec![("web", 92)], vec![("far", 79), ("near", 13)]));
    shop.report(SECOND, [107, 3, 129], at(80));
    assert_eq!(shown(&shop.graph(at(90))), (142, vec![("web", 142)], vec![("far", 129), ("near", 13)]));
}

/// The agent of a client and of one of its servers crashes while a connection to the other server is open. That server's agent
/// knows the connection's bytes, but not that they are not those of the connections that the client's agent missed.
#[test]
fn bytes_of_several_servers_are_those_that_were_published() {
    let of_client = |opened: u64, received: u64| FlowCounters {
        opened,
        closed: opened,
        bytes_received: received,
        ..FlowCounters::default()
    };
    let of_server =
        |opened: u64, sent: u64| FlowCounters { opened, closed: opened, bytes_sent: sent, ..FlowCounters::default() };
    let mut shop = Shop::new();
    shop.report_counters(EPOCH, [of_client(30, 2900), of_server(10, 1000), of_server(20, 2000)], at(0));
    shop.world.ledger.enter("node-1", SECOND).expect("another epoch");
    let after = [of_client(7, 700), of_server(3, 300), of_server(29, 2900)];
    shop.report_counters(SECOND, after, at(10));
    let bytes = |graph: &Graph| graph.edges.iter().map(|edge| edge.counters.bytes_received).collect::<Vec<_>>();
    let before = bytes(&shop.graph(at(60)));

    shop.restart_operator(at(60));
    shop.report_counters(SECOND, after, at(61));
    shop.archive.settle(&shop.world.ledger, &shop.world.directory, at(62));
    assert_eq!(bytes(&shop.graph(at(70))), before);
}

/// A flow's first connection lies between two readings of the agent, the first of which may be before the pod's creation. An
/// operator that began later does not know who had the address then, but both ends of the connections are observed.
#[test]
fn server_that_was_created_within_the_first_reading_has_all_connections() {
    let mut world = World::new();
    world.directory = Directory::new();
    let created = |seconds| PodLifetime { created: Some(at(seconds)), ..PodLifetime::default() };
    for (name, node, address, seconds) in [("web", "node-1", "10.244.1.2", 0), ("db", "node-2", "10.244.2.2", 10)] {
        let pod = Pod { life: created(seconds), ..pod(name, node, address) };
        world.directory.upsert_pod(pod, at(600));
    }
    let [client, server] = [
        ("web", Role::Client, ("10.244.1.2", "10.244.2.2", 5432), 20),
        ("db", Role::Server, ("10.244.2.2", "10.244.1.2", 5432), 19),
    ];
    for (who, role, addresses, opened) in [client, server] {
        let node = if who == "web" { "node-1" } else { "node-2" };
        let owner = CgroupOwner::PodContainer { pod_uid: format!("uid-{who}"), container_id: format!("id-{who}") };
        let (key, counters) =
            (key(who, role, addresses), FlowCounters { opened, closed: opened, ..FlowCounters::default() });
        world.ledger.identify(node, EPOCH, key.cgroup_id, owner).expect("the present epoch");
        let seconds = Duration::from_secs;
        let sighting = Sighting::new(&Ages::of(seconds(592), seconds(592), seconds(10)), at(600), at(600));
        world.ledger.apply(node, EPOCH, key, &counters, sighting).expect("the present epoch");
    }
    assert_eq!(edges(&world.graph(at(640))), ["web -> db:5432 20+0"]);
}
