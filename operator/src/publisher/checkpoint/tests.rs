use std::{borrow::Cow, collections::BTreeMap};

use proptest::prelude::*;
use topology::{
    entity::{Pod, PodLifetime},
    flow::{FlowKey, Protocol, Role},
    graph::{PlacedLeg, PodHash},
};

use super::*;

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let part = ("[a-z]{0,3}", any::<u64>(), any::<u64>());
    prop::collection::btree_map("[a-z]{1,8}", part, 0..6).prop_map(|ends| {
        let of = |(pod, (container, opened, failed))| Endpoint { pod, container, opened, failed };
        let mut ends: Vec<Endpoint> = ends.into_iter().map(of).collect();
        ends.sort();
        ends
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    (any::<[u64; 10]>(), endpoints(), endpoints()).prop_map(|(numbers, clients, servers)| {
        let [
            known_to_servers,
            opened,
            failed,
            bytes_sent,
            bytes_received,
            without_bytes,
            retransmits,
            by_servers @ ..,
        ] = numbers;
        let counters = EdgeCounters {
            opened,
            failed,
            bytes_sent,
            bytes_received,
            without_bytes,
            retransmits,
            ..EdgeCounters::default()
        };
        let [opened, bytes_sent, bytes_received] = by_servers;
        let from_servers = EdgeCounters { opened, bytes_sent, bytes_received, ..EdgeCounters::default() };
        let counts = Counts { counters, clients, servers };
        let known_to_servers = known_to_servers.min(counts.counters.opened);
        Entry { earlier: Earlier { counts, known_to_servers }, from_servers }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn checkpoint_is_read_as_it_is_written(edges in prop::collection::hash_map(any::<u64>(), entry(), 0..20)) {
        let edges: HashMap<EdgeId, Entry> = edges.into_iter().map(|(id, entry)| (EdgeId(id), entry)).collect();
        let text = encoded(edges.iter().map(|(id, entry)| (*id, entry)));
        prop_assert_eq!(text.is_none(), edges.is_empty());
        if let Some(text) = text {
            prop_assert_eq!(decode(&text).map(|checkpoint| checkpoint.edges), Ok(edges));
        }
    }

    #[test]
    fn checkpoint_of_any_text_is_read_without_failing(text in "(1:)?[A-Za-z0-9+/:=]{0,60}") {
        let _ = decode(&text);
    }
}

/// Beside many edges and pods, records keep their part of the checkpoint.
#[test]
fn checkpoint_keeps_records_of_proxied_connections() {
    let pods: Vec<RecordedPod<'_>> = (0..3000).map(recorded).collect();
    let entry =
        Entry { from_servers: EdgeCounters { opened: u64::MAX, ..EdgeCounters::default() }, ..Entry::default() };
    let edges: Vec<Entry> = (0..1500).map(|_| entry.clone()).collect();
    for number in [10, 1000] {
        let legs: Vec<RecordedLeg> = (0..number).map(leg).collect();
        let to_record = ToRecord { workload: &workload(), pods: &pods, legs: &legs };
        let (text, omitted) = encode((0..).map(EdgeId).zip(&edges), to_record);
        let text = text.expect("there are edges");
        assert!(text.len() <= MAX_CHECKPOINT, "{}", text.len());
        let (read, error) = decode(&text).expect("it was encoded").legs();
        assert_eq!((read.len() + omitted.legs, error), (legs.len(), None));
        assert!(read.len() >= number.min(100), "{}", read.len());
    }
}

fn leg(number: usize) -> RecordedLeg {
    let key = FlowKey {
        cgroup_id: 1_000_000 + number as u64,
        netns: 4_026_532_000,
        role: Role::Client,
        local: "10.244.1.2".parse().expect("an address"),
        remote: "10.244.2.3".parse().expect("an address"),
        port: 80,
        protocol: Protocol::Tcp,
    };
    let leg = PlacedLeg { matched: number as u64, is_pooled: true, ..PlacedLeg::default() };
    RecordedLeg { node: "node-1".to_owned(), key, pod: PodHash::of("a"), leg }
}

fn encoded<'a>(edges: impl Iterator<Item = (EdgeId, &'a Entry)>) -> Option<String> {
    encode(edges, ToRecord { workload: &workload(), pods: &[], legs: &[] }).0
}

fn workload() -> Workload {
    let [namespace, kind, name, group] = ["shop", "Deployment", "web", "apps"].map(str::to_owned);
    Workload { namespace, kind, name, group }
}

fn recorded(number: usize) -> RecordedPod<'static> {
    let pod = Pod {
        uid: format!("{number:08x}-0000-4000-8000-0123456789ab"),
        namespace: "shop".to_owned(),
        name: format!("web-{number}"),
        node: "node-1".to_owned(),
        host_network: false,
        ips: Vec::new(),
        ended: false,
        workload: workload(),
        containers: BTreeMap::from([(format!("{number:064x}"), "main".to_owned())]),
        host_ports: Vec::new(),
        life: PodLifetime::default(),
    };
    RecordedPod { pod: Cow::Owned(pod), node_uid: None, observed: None, backends: Vec::new() }
}

#[test]
fn checkpoint_that_is_too_long_loses_pods_first_and_then_the_last_edges() {
    let of = |number: u64, pods: usize| Counts {
        counters: EdgeCounters { opened: u64::MAX - number, bytes_sent: u64::MAX, ..EdgeCounters::default() },
        clients: (0..pods)
            .map(|pod| Endpoint {
                pod: format!("{number}-{pod}-{}", "x".repeat(240)),
                container: "main".to_owned(),
                opened: 1,
                failed: 0,
            })
            .collect(),
        servers: Vec::new(),
    };
    let of = |number: u64, pods: usize| Entry {
        earlier: Earlier { counts: of(number, pods), known_to_servers: 0 },
        ..Entry::default()
    };
    let encoded = |edges: u64, pods: usize| {
        let all: Vec<Entry> = (0..edges).map(|number| of(number, pods)).collect();
        let text = encoded((0..).map(EdgeId).zip(&all)).expect("there are edges");
        assert!(text.len() <= MAX_CHECKPOINT, "{}", text.len());
        decode(&text).expect("it was encoded").edges
    };
    let without_pods = encoded(500, 10);
    assert_eq!(without_pods.len(), 500);
    assert!(without_pods.values().all(|entry| entry.earlier.counts.clients.is_empty()));
    let fewer = encoded(5000, 0);
    assert!(fewer.len() < 5000 && fewer.len() > 500, "{}", fewer.len());
    assert!((0..fewer.len() as u64).all(|id| fewer.contains_key(&EdgeId(id))), "the first ones stay");
    assert_eq!(encoded(15, 10)[&EdgeId(7)].earlier.counts.clients.len(), 10);
}

#[test]
fn checkpoint_that_is_too_long_keeps_the_first_pods() {
    let pods: Vec<RecordedPod<'_>> = (0..3000).map(recorded).collect();
    let lengths = |edges: u64| {
        let entry = Entry {
            earlier: Earlier::default(),
            from_servers: EdgeCounters { opened: u64::MAX, ..EdgeCounters::default() },
        };
        let edges: Vec<Entry> = (0..edges).map(|_| entry.clone()).collect();
        let (text, omitted) =
            encode((0..).map(EdgeId).zip(&edges), ToRecord { workload: &workload(), pods: &pods, legs: &[] });
        let text = text.expect("there are edges and pods");
        assert!(text.len() <= MAX_CHECKPOINT, "{}", text.len());
        let checkpoint = decode(&text).expect("it was encoded");
        let (found, error) = checkpoint.pods(&workload());
        assert_eq!((found.len() + omitted.pods, error), (pods.len(), None));
        let mut numbers: Vec<usize> = found.iter().map(found_number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..found.len()).collect::<Vec<_>>(), "the first ones stay");
        (checkpoint.edges.len(), found.len())
    };
    let (edges, with_few_edges) = lengths(10);
    assert!(edges == 10 && with_few_edges > 300 && with_few_edges < 3000, "{edges} {with_few_edges}");
    let (edges, with_many_edges) = lengths(1500);
    assert!(edges == 1500 && with_many_edges > 0 && with_many_edges < with_few_edges, "{edges} {with_many_edges}");
}

fn found_number(found: &RecordedPod<'_>) -> usize {
    found.pod.name.trim_start_matches("web-").parse().expect("a number")
}

#[test]
fn malformed_pods_lose_no_edge() {
    let entry = Entry { from_servers: EdgeCounters { opened: 7, ..EdgeCounters::default() }, ..Entry::default() };
    let mut encoder = Encoder::default();
    encoder.add(EdgeId(1), &entry);
    let body = Body { pod_table: b"\xff\xff garbage".to_vec(), ..encoder.body };
    let text = format!("{VERSION}{}", STANDARD_NO_PAD.encode(body.encode_to_vec()));
    let checkpoint = decode(&text).expect("its frame is well-formed");
    assert_eq!(checkpoint.edges, HashMap::from([(EdgeId(1), entry)]));
    let (pods, error) = checkpoint.pods(&workload());
    assert!(pods.is_empty() && matches!(error, Some(PodTableError::Malformed(_))), "{error:?}");
}

#[test]
fn checkpoint_of_another_version_is_an_error() {
    let counts = Counts { counters: EdgeCounters { opened: 1, ..EdgeCounters::default() }, ..Counts::default() };
    let entry = Entry { earlier: Earlier { counts, known_to_servers: 0 }, ..Entry::default() };
    let text = encoded([(EdgeId(1), &entry)].into_iter()).expect("there is an edge");
    assert_eq!(decode(&text).map(|checkpoint| checkpoint.edges.len()), Ok(1));
    assert_eq!(decode(&text.replacen("1:", "2:", 1)), Err(CheckpointError::Version));
    assert!(matches!(decode("1:?"), Err(CheckpointError::Base64(_))));
    assert!(matches!(decode("1:/w"), Err(CheckpointError::Malformed(_))));
}
