//! A Service with a backend on the client's node and one on another, while agents and operators restart: its client's
//! agent does not know which backend took which connection.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use scopeprobe_topology::{
    archive::Archive,
    directory::Directory,
    entity::{Backend, Network, Node, Service, ServicePort, ServiceRef},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    graph::Graph,
    ledger::{Epoch, Ledger},
};

use crate::world::{ip, options, pod, published, report_flow};

const WEB: &str = "10.244.1.2";
/// Backends by number; the client runs on the first one's node.
const DB: [&str; 2] = ["10.244.1.3", "10.244.2.3"];
const SERVICE: &str = "10.96.0.5";
const PORT: u16 = 5432;
/// Bytes that each connection sends; it receives twice as many.
const BYTES: u64 = 10;

fn directory() -> Directory {
    let mut directory = Directory::new();
    for number in [1, 2] {
        directory.upsert_node(Node {
            name: format!("node-{number}"),
            ips: Vec::new(),
            pod_networks: Network::parse(&format!("10.244.{number}.0/24")).into_iter().collect(),
        });
    }
    directory.upsert_pod(pod("web", 0, 0, WEB), SystemTime::UNIX_EPOCH);
    for (number, address) in (0..2_u8).zip(DB) {
        directory.upsert_pod(pod("db", number, usize::from(number), address), SystemTime::UNIX_EPOCH);
    }
    let backend = |number: usize| Backend { ip: ip(DB[number]), port: PORT, pod_uid: Some(format!("uid-db-{number}")) };
    let service = Service {
        name: ServiceRef { namespace: "shop".to_owned(), name: "db".to_owned() },
        addresses: vec![ip(SERVICE)],
        ports: vec![ServicePort {
            port: 80,
            protocol: Protocol::Tcp,
            node_port: None,
            backends: (0..2).map(backend).collect(),
        }],
    };
    directory.upsert_service(service, SystemTime::UNIX_EPOCH);
    directory
}

#[derive(Clone, Debug)]
enum Event {
    /// So many short connections that this backend takes.
    Call(usize, u64),
    Reports(usize),
    /// An agent restarts, after it has reported everything or not.
    AgentRestarts(usize, bool),
    Publishes,
    OperatorRestarts,
}

/// An event; agents restart on these nodes, after they have told everything or not.
fn event(restarts: Option<(usize, bool)>) -> impl Strategy<Value = Event> {
    let (nodes, crash) = restarts.unwrap_or((1, false));
    prop_oneof![
        8 => (0..2_usize, 1..5_u64).prop_map(|(backend, calls)| Event::Call(backend, calls)),
        6 => (0..2_usize).prop_map(Event::Reports),
        u32::from(restarts.is_some()) =>
            (0..nodes, any::<bool>()).prop_map(move |(node, told)| Event::AgentRestarts(node, told || !crash)),
        2 => Just(Event::Publishes),
        1 => Just(Event::OperatorRestarts),
    ]
}

/// Connections that agents count: of the client, and of each backend.
#[derive(Default)]
struct Calls {
    by_client: u64,
    by_backend: [u64; 2],
}

struct World {
    directory: Directory,
    now: SystemTime,
    truth: u64,
    /// The most connections by which the edges have exceeded the truth.
    excess: u64,
    calls: Calls,
    epochs: [u8; 2],
    reported: [SystemTime; 2],
    ledger: Ledger,
    archive: Archive,
    published: Graph,
}

impl World {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH;
        let mut world = Self {
            directory: directory(),
            now,
            truth: 0,
            excess: 0,
            calls: Calls::default(),
            epochs: [1, 1],
            reported: [now; 2],
            ledger: Ledger::new(),
            archive: Archive::new(),
            published: Graph::default(),
        };
        world.restart_operator();
        world
    }

    fn restart_operator(&mut self) {
        (self.ledger, self.archive) = (Ledger::new(), Archive::new());
        self.archive.restore(published(&self.published), self.now);
        for node in 0..2 {
            self.report(node);
        }
    }

    fn report(&mut self, node: usize) {
        let (name, epoch) = (format!("node-{}", node + 1), Epoch([self.epochs[node]; 16]));
        let client = (Role::Client, WEB, SERVICE, 80, "web", 0, self.calls.by_client);
        let server = (Role::Server, DB[node], WEB, PORT, "db", u8::from(node == 1), self.calls.by_backend[node]);
        let flows = [client, server];
        self.ledger.begin_snapshot(&name, epoch).expect("the present epoch");
        for (role, local, remote, port, who, number, opened) in flows.into_iter().skip(node) {
            if opened == 0 {
                continue;
            }
            let cgroup_id = 5 + u64::from(role == Role::Server);
            let key = FlowKey {
                cgroup_id,
                netns: 1,
                role,
                local: ip(local),
                remote: ip(remote),
                port,
                protocol: Protocol::Tcp,
            };
            let (sent, received) = match role {
                Role::Client => (BYTES * opened, 2 * BYTES * opened),
                Role::Server => (2 * BYTES * opened, BYTES * opened),
            };
            let counters = FlowCounters {
                opened,
                closed: opened,
                bytes_sent: sent,
                bytes_received: received,
                ..FlowCounters::default()
            };
            report_flow(&mut self.ledger, (&name, epoch), key, (who, number), &counters, self.now);
        }
        self.ledger.end_snapshot(&name, epoch, self.now).expect("the present epoch");
        self.reported[node] = self.now;
    }

    fn shown(&mut self) -> Graph {
        let options = options(self.now, Duration::from_secs(1));
        self.archive.settle_in_time(&self.ledger, &self.directory, &options);
        let graph = self.archive.build_shown(&self.ledger, &self.directory, &options);
        self.excess = self.excess.max(opened(&graph).saturating_sub(self.truth));
        graph
    }

    fn rest(&mut self) -> u64 {
        for node in 0..2 {
            self.report(node);
        }
        self.now += Duration::from_secs(10);
        let _ = self.shown();
        self.now += Duration::from_secs(10);
        self.published = self.shown();
        opened(&self.published)
    }

    fn go_on(&mut self, events: &[Event]) {
        for event in events {
            self.now += Duration::from_millis(300);
            for node in 0..2 {
                if self.now.duration_since(self.reported[node]).unwrap_or_default() > Duration::from_secs(1) {
                    self.report(node);
                }
            }
            match *event {
                Event::Call(backend, calls) => {
                    self.truth += calls;
                    self.calls.by_client += calls;
                    self.calls.by_backend[backend] += calls;
                }
                Event::Reports(node) => self.report(node),
                Event::AgentRestarts(node, told) => {
                    if told {
                        self.report(0);
                        self.report(1);
                        self.now += Duration::from_secs(3);
                        self.published = self.shown();
                    }
                    self.epochs[node] += 1;
                    self.calls.by_backend[node] = 0;
                    if node == 0 {
                        self.calls.by_client = 0;
                    }
                    self.report(node);
                    if told {
                        self.now += Duration::from_secs(3);
                        self.published = self.shown();
                    }
                }
                Event::Publishes => self.published = self.shown(),
                Event::OperatorRestarts => self.restart_operator(),
            }
            let _ = self.shown();
        }
    }
}

/// Returns the number of connections on all edges.
fn opened(graph: &Graph) -> u64 {
    graph.edges.iter().map(|edge| edge.counters.opened).sum()
}

/// Lets the first events happen, and then others, by which the edges have to grow exactly. They never exceed the truth.
fn check(before: &[Event], events: &[Event]) -> Result<(), TestCaseError> {
    let mut world = World::new();
    world.go_on(&[Event::Call(0, 1), Event::Call(1, 1)]);
    let _ = world.rest();
    world.go_on(before);
    let shown = world.rest();
    let truth = world.truth;
    world.go_on(events);
    let now = world.rest();
    prop_assert_eq!(world.excess, 0, "connections that did not happen");
    prop_assert_eq!(now - shown, world.truth - truth, "shown {}: {:#?}", shown, world.published.edges);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// The client's agent crashes, and misses connections that the other backend's agent has counted.
    #[test]
    fn edges_of_several_backends_grow_exactly_after_crashes(
        before in prop::collection::vec(event(Some((1, true))), 0..40),
        events in prop::collection::vec(event(None), 0..60),
    ) {
        check(&before, &events)?;
    }

    /// Agents are replaced one after the other.
    #[test]
    fn edges_of_several_backends_grow_exactly_after_updates(
        before in prop::collection::vec(event(Some((2, false))), 0..40),
        events in prop::collection::vec(event(Some((2, false))), 0..60),
    ) {
        check(&before, &events)?;
    }
}

/// What only the other backend has counted was published on two edges, and each look at what agents report shows all of it
/// on one. At the last look, the client's agent has reported a call that the backend's has not.
#[test]
fn connections_that_moved_between_edges_are_not_forgotten() {
    let before = [Event::Call(1, 2), Event::AgentRestarts(0, false), Event::OperatorRestarts];
    let calls = |number: usize| vec![Event::Call(0, 1); number];
    let mut events = vec![Event::Call(0, 1), Event::OperatorRestarts];
    for number in [4, 9, 1, 8, 6] {
        events.extend(calls(number));
        events.push(Event::Publishes);
    }
    events.pop();
    events.extend([Event::Call(1, 1), Event::Reports(0)]);
    check(&before, &events).expect("no connection is forgotten");
}

/// The client's agent has missed two calls, which were published as only a server's. When the next operator's accounts are
/// settled, a call that the client's agent has reported in the meantime is among the most that servers have counted alone.
#[test]
fn calls_after_a_restart_do_not_take_the_place_of_missed_ones() {
    use Event::{AgentRestarts, Call, OperatorRestarts, Publishes, Reports};
    let calls = |number: usize| vec![Call(0, 1); number];
    let missed = vec![Call(0, 1), Call(1, 2), AgentRestarts(0, false)];
    let ahead = vec![Publishes, AgentRestarts(0, false), OperatorRestarts, Call(1, 1), Reports(1)];
    let before = [missed, calls(4), vec![Publishes, Reports(0)], calls(5), ahead].concat();
    check(&before, &[Call(0, 1)]).expect("the next call counts");
}

/// The other backend's calls are published without an observed client. Before the next operator's accounts are settled, the
/// client is observed, and its agent restarts: these calls do not count on its edge as well.
#[test]
fn calls_without_an_observed_client_count_once_until_accounts_are_settled() {
    use Event::{AgentRestarts, Call, OperatorRestarts};
    for missed in [4, 21] {
        let before = [Call(1, missed), AgentRestarts(0, false), OperatorRestarts];
        for after in 0..7 {
            let calls = vec![Call(0, 1); after];
            let restarts = vec![AgentRestarts(0, true), OperatorRestarts];
            let events = [vec![Call(0, 1), OperatorRestarts], calls, restarts].concat();
            check(&before, &events).expect("each call counts once");
        }
    }
}

/// The other backend's agent has forgotten calls that only it had counted. They are not taken for its later calls, which
/// the client's agent has forgotten before the next operator's accounts are settled.
#[test]
fn calls_that_a_servers_agent_has_forgotten_count_once() {
    use Event::{AgentRestarts, Call, OperatorRestarts};
    let forgotten = [Call(1, 3), AgentRestarts(0, false), OperatorRestarts, AgentRestarts(1, true)];
    let then = [OperatorRestarts, Call(1, 4), AgentRestarts(0, true), OperatorRestarts];
    check(&[forgotten, then].concat(), &[]).expect("each call counts once");
}
