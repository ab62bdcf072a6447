//! Tests extreme numbers: the API server accepts each object, and an edge with a greater number than the API can hold costs
//! only itself.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crds::{Topology, TopologySpec};
use proptest::prelude::*;
use serde_json::Value;
use topology::{
    archive::{Archive, Published},
    count::MAX_COUNT,
    directory::Directory,
    edge::Edge,
    entity::{Backend, CgroupOwner, Pod, PodLifetime, Service, ServicePort, ServiceRef, Workload},
    flow::{FlowCounters, FlowKey, Methods, Protocol, Role},
    graph::{Graph, Options},
    ledger::{Epoch, Ledger},
    nat_peer::NatPeer,
    rtt::{RttBucket, RttHistogram},
};

use super::{
    adjacency,
    object::{self, Limits, ObjectInputs},
    pod_records::PodRecords,
    restore,
};
use crate::cluster::{Index, WorkloadFacts};

const MAX_EDGES: usize = 3;
const SERVICE: &str = "10.96.0.1";
/// Pods by workload: two of each, one on each node.
const PODS: [(&str, usize, &str); 6] = [
    ("web", 0, "10.244.0.2"),
    ("web", 1, "10.244.1.2"),
    ("db", 0, "10.244.0.3"),
    ("db", 1, "10.244.1.3"),
    ("cache", 0, "10.244.0.4"),
    ("cache", 1, "10.244.1.4"),
];

#[derive(Clone, Debug)]
enum SimulationStep {
    /// A flow between two of the pods, at one of its ends or at both, through the Service or not; or to the outside.
    Report {
        client: usize,
        server: usize,
        ends: (bool, bool),
        way: Way,
        counters: Box<FlowCounters>,
        tracked: u64,
    },
    NewEpoch(usize),
    /// What is not reported again is over, and goes.
    Retire,
    /// Another operator begins with what was published.
    RestartOperator,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Direct,
    Service,
    Outside(u8),
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0..100_u64,
        1 => Just(MAX_COUNT - 1),
        2 => Just(MAX_COUNT),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

fn counters() -> impl Strategy<Value = FlowCounters> {
    let counts = prop::collection::vec(count(), 17);
    let rtt = prop::collection::vec(prop_oneof![Just(u32::MAX), 0..9_u32], RttBucket::COUNT);
    (counts, rtt, 0..3_u64, prop::option::of(count()), any::<bool>()).prop_map(
        |(counts, rtt, run, retransmits, sampled)| FlowCounters {
            run,
            opened: counts[0],
            closed: counts[1],
            failed: counts[2],
            preexisting: counts[3],
            bytes_sent: counts[4],
            bytes_received: counts[5],
            preexisting_bytes_sent: counts[6],
            preexisting_bytes_received: counts[7],
            open_bytes_sent: counts[8],
            open_bytes_received: counts[9],
            methods: if sampled { Methods::SOCK_DIAG } else { Methods::EBPF },
            inferred: counts[10],
            without_bytes: counts[11],
            open_without_bytes: counts[12],
            retransmits,
            preexisting_retransmits: counts[13],
            open_retransmits: counts[14],
            pending_begun: counts[15],
            pending_ended: counts[16],
            rtt: RttHistogram::from_counts(&rtt).unwrap_or_default(),
        },
    )
}

fn step() -> impl Strategy<Value = SimulationStep> {
    let way = prop_oneof![Just(Way::Direct), Just(Way::Service), (0..5_u8).prop_map(Way::Outside)];
    let ends = any::<(bool, bool)>();
    let report = (0..PODS.len(), 0..PODS.len(), ends, way, counters(), count()).prop_map(
        |(client, server, ends, way, counters, tracked)| SimulationStep::Report {
            client,
            server,
            ends,
            way,
            counters: Box::new(counters),
            tracked,
        },
    );
    prop_oneof![
        12 => report,
        1 => (0..2_usize).prop_map(SimulationStep::NewEpoch),
        1 => Just(SimulationStep::Retire),
        1 => Just(SimulationStep::RestartOperator),
    ]
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node(number: usize) -> String {
    format!("node-{number}")
}

fn workload(name: &str) -> Workload {
    let (namespace, group) = ("shop".to_owned(), "apps".to_owned());
    Workload { namespace, kind: "Deployment".to_owned(), name: name.to_owned(), group }
}

fn directory(now: SystemTime) -> Directory {
    let mut directory = Directory::new();
    for (of, on, address) in PODS {
        let pod = Pod {
            uid: format!("uid-{address}"),
            namespace: "shop".to_owned(),
            name: format!("{of}-{on}"),
            node: node(on),
            host_network: false,
            ips: vec![ip(address)],
            ended: false,
            workload: workload(of),
            containers: [(format!("id-{address}"), "main".to_owned())].into(),
            host_ports: Vec::new(),
            life: PodLifetime::default(),
        };
        directory.upsert_pod(pod, now);
    }
    let backends = PODS.iter().filter(|(of, ..)| *of != "web").map(|(_, _, address)| Backend {
        ip: ip(address),
        port: 8080,
        pod_uid: Some(format!("uid-{address}")),
    });
    let ports = vec![ServicePort { port: 80, protocol: Protocol::Tcp, node_port: None, backends: backends.collect() }];
    let name = ServiceRef { namespace: "shop".to_owned(), name: "data".to_owned() };
    directory.upsert_service(Service { name, addresses: vec![ip(SERVICE)], ports }, now);
    directory
}

struct Operator {
    ledger: Ledger,
    archive: Archive,
    directory: Directory,
    epochs: [u8; 2],
    now: SystemTime,
}

impl Operator {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
        let (ledger, archive) = (Ledger::new(), Archive::new());
        Self { ledger, archive, directory: directory(now), epochs: [1; 2], now }
    }

    fn epoch(&self, on: usize) -> Epoch {
        Epoch([self.epochs[on]; 16])
    }

    fn report(&mut self, pod: usize, key: FlowKey, counters: &FlowCounters, nat_peer: Option<(NatPeer, u64)>) {
        let (_, on, address) = PODS[pod];
        let (node, epoch) = (node(on), self.epoch(on));
        let owner =
            CgroupOwner::PodContainer { pod_uid: format!("uid-{address}"), container_id: format!("id-{address}") };
        let taken = self
            .ledger
            .identify(&node, epoch, key.cgroup_id, owner)
            .and_then(|_| self.ledger.apply(&node, epoch, key, counters, self.now))
            .and_then(|_| self.ledger.record_nat_peers(&node, epoch, &key, nat_peer.as_slice()));
        assert!(taken.is_ok(), "the epoch is the present one");
    }

    fn step(&mut self, step: &SimulationStep) {
        self.now += Duration::from_secs(1);
        match step {
            SimulationStep::Report { client, server, ends, way, counters, tracked } => {
                let (from, to) = (ip(PODS[*client].2), ip(PODS[*server].2));
                let (remote, port) = match way {
                    Way::Direct => (to, 8080),
                    Way::Service => (ip(SERVICE), 80),
                    Way::Outside(last) => (IpAddr::from([192, 0, 2, *last]), 443),
                };
                let key = |pod: usize, role, local, remote, port| FlowKey {
                    cgroup_id: pod as u64,
                    netns: 1,
                    role,
                    local,
                    remote,
                    port,
                    protocol: Protocol::Tcp,
                };
                let nat_peer = (NatPeer { ip: to, port: 8080 }, *tracked);
                if ends.0 {
                    self.report(*client, key(*client, Role::Client, from, remote, port), counters, Some(nat_peer));
                }
                if ends.1 {
                    self.report(*server, key(*server, Role::Server, to, from, 8080), counters, None);
                }
            }
            SimulationStep::NewEpoch(on) => self.epochs[*on] = self.epochs[*on].wrapping_add(1),
            SimulationStep::Retire => {
                for on in 0..2 {
                    let (node, epoch) = (node(on), self.epoch(on));
                    let begun = self.ledger.begin_snapshot(&node, epoch);
                    assert!(begun.and_then(|()| self.ledger.end_snapshot(&node, epoch, self.now)).is_ok());
                }
                self.archive.retire(&mut self.ledger, &self.directory, self.now, Duration::ZERO);
            }
            SimulationStep::RestartOperator => {
                let published = self.published();
                self.ledger = Ledger::new();
                self.archive = Archive::new();
                self.archive.restore(published, self.now);
            }
        }
    }

    fn graph(&mut self) -> Graph {
        let retention = Duration::from_hours(1);
        let options = Options { now: self.now, settle: Duration::from_secs(2), retention, max_external: 2 };
        self.archive.build(&self.ledger, &self.directory, &options)
    }

    fn published(&mut self) -> Vec<Published> {
        let graph = self.graph();
        restore::read(objects(&graph)).edges
    }
}

/// The objects, with all that is to be in them.
fn objects(graph: &Graph) -> Vec<Topology> {
    let index = Index::default();
    let limits = Limits { edges: MAX_EDGES, pods: 5 };
    let records = PodRecords::new(&index, []);
    let world =
        ObjectInputs { index: &index, earlier: &graph.earlier, records: &records, limits, now: SystemTime::UNIX_EPOCH };
    let of = |(workload, edges): (&Workload, adjacency::Edges<'_>)| {
        let mut topology = Topology::new(&workload.name, TopologySpec::default());
        topology.metadata.namespace = Some(workload.namespace.clone());
        topology.status =
            Some(object::status(workload, &WorkloadFacts::default(), &edges, &BTreeSet::new(), &[], &world));
        topology
    };
    adjacency::by_workload(graph).into_iter().map(of).collect()
}

/// The API server refuses integers beyond 64 bits with a sign.
fn integers_fit(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_i64().is_some_and(|number| number >= 0),
        Value::Array(items) => items.iter().all(integers_fit),
        Value::Object(fields) => fields.values().all(integers_fit),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn each_object_can_be_written(steps in prop::collection::vec(step(), 1..40)) {
        let mut operator = Operator::new();
        for step in &steps {
            operator.step(step);
            let graph = operator.graph();
            let by_workload = adjacency::by_workload(&graph);
            for (topology, edges) in objects(&graph).iter().zip(by_workload.values()) {
                let status = topology.status.clone().unwrap_or_default();
                prop_assert!(integers_fit(&serde_json::to_value(&status).unwrap()), "{status:#?}");
                let is_exact = |edge: &&&Arc<Edge>| edge.counters.is_exact();
                for (listed, omitted, all) in [
                    (status.egress.len(), status.omitted.egress, &edges.egress),
                    (status.ingress.len(), status.omitted.ingress, &edges.ingress),
                ] {
                    prop_assert_eq!(listed, all.iter().filter(is_exact).count().min(MAX_EDGES), "those that can be");
                    prop_assert_eq!(listed as u64 + omitted, all.len() as u64);
                }
                let says_so = status.conditions.iter().any(|it| it.type_ == "Truncated" && it.status == "True");
                let is_complete = status.omitted.egress + status.omitted.ingress == 0;
                prop_assert!(says_so || is_complete && status.totals.opened < MAX_COUNT, "{status:#?}");
            }
        }
    }
}
