use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use topology::{
    edge::{Edge, EdgeCounters, EdgeKey},
    entity::PodLifetime,
    examples,
    flow::{Methods, Protocol},
    graph::Graph,
    ownership::ObservedTimes,
};

use super::*;
use crate::publisher::adjacency;

fn workload(name: &str) -> Workload {
    let [namespace, kind, group] = ["shop", "Deployment", "apps"].map(str::to_owned);
    Workload { namespace, kind, name: name.to_owned(), group }
}

pub(in crate::publisher) fn recorded(uid: &str, owner: &str) -> RecordedPod<'static> {
    let pod = Pod {
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        name: format!("{owner}-{uid}"),
        node: "node-1".to_owned(),
        host_network: false,
        ips: Vec::new(),
        ended: false,
        workload: workload(owner),
        containers: BTreeMap::new(),
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    };
    RecordedPod { pod: Cow::Owned(pod), node_uid: None, observed: None, backends: Vec::new() }
}

fn uids<'a>(pods: &'a [RecordedPod<'_>]) -> Vec<&'a str> {
    pods.iter().map(|recorded| recorded.pod.uid.as_str()).collect()
}

#[test]
fn pod_that_one_object_claims_is_its_workloads() {
    let claims = [(workload("web"), recorded("a", "web")), (workload("db"), recorded("b", "db"))];
    let (merged, contested) = merge(claims);
    assert_eq!((uids(&merged), contested), (vec!["a", "b"], 0));
}

#[test]
fn pod_that_two_objects_claim_is_left_out() {
    let claims = [
        (workload("web"), recorded("a", "web")),
        (workload("db"), recorded("a", "db")),
        (workload("db"), recorded("b", "db")),
    ];
    let (merged, contested) = merge(claims);
    assert_eq!((uids(&merged), contested), (vec!["b"], 1));
}

#[test]
fn object_of_the_pods_workload_decides() {
    // The other object has recorded it as a pod of a peer, before the pod had another owner.
    let claims = [(workload("db"), recorded("a", "web")), (workload("cache"), recorded("a", "cache"))];
    let (merged, contested) = merge(claims);
    assert_eq!((merged[0].pod.workload.name.as_str(), merged.len(), contested), ("cache", 1, 0));
    // Objects that agree are no contradiction.
    let claims = [(workload("db"), recorded("a", "web")), (workload("cache"), recorded("a", "web"))];
    assert_eq!(merge(claims).0.len(), 1);
}

#[test]
fn claim_that_has_the_end_of_a_pod_is_the_newer_one() {
    let time = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let with = |gone: Option<SystemTime>| {
        let observed = Some(ObservedTimes { known: time(1), ended: None, gone });
        (workload("db"), RecordedPod { observed, ..recorded("a", "web") })
    };
    let (merged, _) = merge([with(None), with(Some(time(5)))]);
    assert_eq!(merged[0].observed.and_then(|times| times.gone), Some(time(5)));
}

/// Two clients, one of a workload without an object, and a server. Each has two deleted pods, and one of them has a part.
#[test]
fn object_records_its_removed_pods_and_those_of_peers_without_an_object() {
    let mut index = Index::default();
    let pods = ["web", "job", "db"]
        .into_iter()
        .flat_map(|owner| [recorded(&format!("{owner}-1"), owner), recorded(&format!("{owner}-2"), owner)]);
    index.restore_pods(pods.collect(), SystemTime::UNIX_EPOCH);
    let end = |owner: &str| {
        vec![Endpoint { pod: format!("{owner}-{owner}-1"), container: String::new(), opened: 1, failed: 0 }]
    };
    let edge = |client: &str| {
        let (client_peer, server) = (Peer::Workload(workload(client)), Peer::Workload(workload("db")));
        let key = EdgeKey { client: client_peer, server, service: None, port: Some(80), protocol: Protocol::Tcp };
        let counters = EdgeCounters { opened: 1, ..EdgeCounters::default() };
        Edge { clients: end(client), servers: end("db"), methods: Methods::EBPF, ..examples::edge(key, counters) }
    };
    let graph = Graph { edges: [edge("job"), edge("web")].map(Arc::new).to_vec(), ..Graph::default() };
    let workloads = adjacency::by_workload(&graph);
    let job = workload("job");
    let records = PodRecords::new(&index, [&job]);
    let of = |name: &str| {
        let own = workload(name);
        let pods = records.of(&own, &workloads[&own]);
        uids(&pods).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("web"), ["web-1"]);
    assert_eq!(of("db"), ["db-1", "job-1"]);
}
