//! `status.checkpoint`: state for the operator's next start. Of an edge's counters, it has the part of which agents keep no
//! record any more, and the part that only servers' agents report. It also has pods, which agents report by UID only.
//!
//! Format: the version, a colon, and a Protocol Buffers message in Base64. Readers ignore other versions.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use crds::MAX_CHECKPOINT;
use prost::Message as _;
use topology::{
    counts::{Counts, Earlier},
    directory::RecordedPod,
    edge::{EdgeCounters, Endpoint},
    entity::Workload,
};

use super::{
    edge_id::EdgeId,
    pod_table::{self, PodTableError},
};

const VERSION: &str = "1:";
/// Maximum number of pods of an edge's end whose parts are kept.
const MAX_PARTS: usize = 10;
/// Maximum size of the table of pods, in bytes: half of a checkpoint.
const MAX_POD_TABLE: usize = MAX_CHECKPOINT / 8 * 3;

/// Error of a checkpoint of which nothing can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckpointError {
    /// Written in another format.
    #[error("its version is not {}", VERSION.trim_end_matches(':'))]
    Version,
    /// Not Base64.
    #[error("it is not Base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// No message.
    #[error("it is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
}

/// Contents of a checkpoint.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    /// Pods and containers, by the place in this list.
    #[prost(message, repeated, tag = "1")]
    pods: Vec<Pod>,
    #[prost(message, repeated, tag = "2")]
    edges: Vec<Edge>,
    /// Table of pods, apart from the rest, so that an error in it affects nothing else. An older operator does not write it.
    #[prost(bytes = "vec", tag = "3")]
    pod_table: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
struct Pod {
    #[prost(string, tag = "1")]
    pod: String,
    #[prost(string, tag = "2")]
    container: String,
}

/// Counters from the client's point of view.
#[derive(Clone, PartialEq, prost::Message)]
struct Edge {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    opened: u64,
    #[prost(uint64, tag = "3")]
    failed: u64,
    #[prost(uint64, tag = "4")]
    bytes_sent: u64,
    #[prost(uint64, tag = "5")]
    bytes_received: u64,
    #[prost(uint64, tag = "6")]
    without_bytes: u64,
    #[prost(uint64, tag = "7")]
    retransmits: u64,
    #[prost(message, repeated, tag = "8")]
    clients: Vec<Part>,
    #[prost(message, repeated, tag = "9")]
    servers: Vec<Part>,
    #[prost(uint64, tag = "10")]
    opened_by_servers: u64,
    #[prost(uint64, tag = "11")]
    bytes_sent_by_servers: u64,
    #[prost(uint64, tag = "12")]
    bytes_received_by_servers: u64,
    /// Connections among `opened` that servers' agents do not report either. An older operator does not write it.
    #[prost(uint64, tag = "13")]
    forgotten_by_servers: u64,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Part {
    /// Place in `Body::pods`.
    #[prost(uint32, tag = "1")]
    pod: u32,
    #[prost(uint64, tag = "2")]
    opened: u64,
    #[prost(uint64, tag = "3")]
    failed: u64,
}

/// Counts of an edge that the next operator cannot learn from agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Part that agents no longer report.
    pub(super) earlier: Earlier,
    /// Connections, and their bytes, that only servers' agents report. These do not know that they are this edge's.
    pub(super) from_servers: EdgeCounters,
}

/// Contents of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Checkpoint {
    /// Entries of edges.
    pub(super) edges: HashMap<EdgeId, Entry>,
    pod_table: Vec<u8>,
}

impl Checkpoint {
    /// Returns the pods of a checkpoint of this workload's object, and an error if some are malformed.
    pub(super) fn pods(&self, own: &Workload) -> (Vec<RecordedPod<'static>>, Option<PodTableError>) {
        pod_table::decode(&self.pod_table, own)
    }

    /// Returns whether this checkpoint has the pods of the other one, regardless of their times.
    pub(super) fn has_pods_of(&self, other: &Self) -> bool {
        self.pod_table == other.pod_table || pod_table::contains(&self.pod_table, &other.pod_table)
    }
}

/// Pods to record in the checkpoint of a workload's object, the most important ones first.
#[derive(Clone, Copy, Debug)]
pub(super) struct PodsToRecord<'a> {
    pub(super) workload: &'a Workload,
    pub(super) pods: &'a [RecordedPod<'a>],
}

/// Encodes the entries of edges, the most important first, and pods. Returns `None` if there are none, and the number of
/// pods that did not fit. Where not all fit, pods' parts of edges go first, then pods, and then the last edges.
pub(super) fn encode<'a>(
    edges: impl Iterator<Item = (EdgeId, &'a Entry)>,
    pods: PodsToRecord<'_>,
) -> (Option<String>, usize) {
    let mut encoder = Encoder::default();
    for (id, entry) in edges {
        encoder.add(id, entry);
    }
    let (body, recorded) = encoder.into_body_within(MAX_CHECKPOINT, pods);
    let text = body.map(|body| format!("{VERSION}{}", STANDARD_NO_PAD.encode(body.encode_to_vec())));
    (text, pods.pods.len() - recorded)
}

/// Decodes a checkpoint.
///
/// # Errors
/// Returns an error if it has another version or is malformed. Malformed pods are an error of [`Checkpoint::pods`] only.
pub(super) fn decode(text: &str) -> Result<Checkpoint, CheckpointError> {
    let encoded = text.strip_prefix(VERSION).ok_or(CheckpointError::Version)?;
    let bytes = STANDARD_NO_PAD.decode(encoded)?;
    let Body { pods, edges, pod_table } = Body::decode(bytes.as_slice())?;
    let edges = edges.iter().map(|edge| (EdgeId(edge.id), edge.entry(&pods))).collect();
    Ok(Checkpoint { edges, pod_table })
}

impl Edge {
    fn entry(&self, pods: &[Pod]) -> Entry {
        let endpoints = |parts: &[Part]| {
            let known = parts.iter().filter_map(|part| Some((part, pods.get(usize::try_from(part.pod).ok()?)?)));
            let mut endpoints: Vec<Endpoint> = known
                .map(|(part, pod)| Endpoint {
                    pod: pod.pod.clone(),
                    container: pod.container.clone(),
                    opened: part.opened,
                    failed: part.failed,
                })
                .collect();
            endpoints.sort();
            endpoints
        };
        let counts = Counts {
            counters: EdgeCounters {
                opened: self.opened,
                failed: self.failed,
                bytes_sent: self.bytes_sent,
                bytes_received: self.bytes_received,
                without_bytes: self.without_bytes,
                retransmits: self.retransmits,
                ..EdgeCounters::default()
            },
            clients: endpoints(&self.clients),
            servers: endpoints(&self.servers),
        };
        let from_servers = EdgeCounters {
            opened: self.opened_by_servers,
            bytes_sent: self.bytes_sent_by_servers,
            bytes_received: self.bytes_received_by_servers,
            ..EdgeCounters::default()
        };
        let known_to_servers = self.opened.saturating_sub(self.forgotten_by_servers);
        Entry { earlier: Earlier { counts, known_to_servers }, from_servers }
    }
}

#[derive(Default)]
struct Encoder {
    body: Body,
    places: HashMap<Pod, u32>,
}

impl Encoder {
    fn add(
        &mut self,
        id: EdgeId,
        Entry { earlier: Earlier { counts: earlier, known_to_servers }, from_servers }: &Entry,
    ) {
        let EdgeCounters { opened, failed, bytes_sent, bytes_received, without_bytes, retransmits, .. } =
            earlier.counters;
        let clients = self.parts(&earlier.clients);
        let servers = self.parts(&earlier.servers);
        self.body.edges.push(Edge {
            id: id.0,
            opened,
            failed,
            bytes_sent,
            bytes_received,
            without_bytes,
            retransmits,
            clients,
            servers,
            opened_by_servers: from_servers.opened,
            bytes_sent_by_servers: from_servers.bytes_sent,
            bytes_received_by_servers: from_servers.bytes_received,
            forgotten_by_servers: opened.saturating_sub(*known_to_servers),
        });
    }

    fn parts(&mut self, endpoints: &[Endpoint]) -> Vec<Part> {
        let mut named: Vec<&Endpoint> = endpoints.iter().filter(|end| !end.pod.is_empty()).collect();
        named.sort_unstable_by_key(|end| (std::cmp::Reverse(end.opened.saturating_add(end.failed)), *end));
        named.truncate(MAX_PARTS);
        named.into_iter().map(|end| Part { pod: self.place(end), opened: end.opened, failed: end.failed }).collect()
    }

    fn place(&mut self, end: &Endpoint) -> u32 {
        let pod = Pod { pod: end.pod.clone(), container: end.container.clone() };
        let pods = &mut self.body.pods;
        *self.places.entry(pod).or_insert_with_key(|pod| {
            pods.push(pod.clone());
            // Ten for each of at most a thousand edges.
            u32::try_from(pods.len() - 1).unwrap_or(u32::MAX)
        })
    }

    /// Returns the body and the number of pods in its table.
    fn into_body_within(
        self,
        characters: usize,
        PodsToRecord { workload, pods }: PodsToRecord<'_>,
    ) -> (Option<Body>, usize) {
        /// Upper bound of the table's tag and length.
        const FIELD: usize = 8;
        let mut body = self.body;
        let bytes = (characters - VERSION.len()) / 4 * 3;
        let (mut table, mut recorded) = pod_table::encode(pods, workload, MAX_POD_TABLE);
        if body.encoded_len() + table.len() + FIELD > bytes {
            body.pods.clear();
            for edge in &mut body.edges {
                (edge.clients, edge.servers) = (Vec::new(), Vec::new());
            }
        }
        let left = bytes.saturating_sub(body.encoded_len() + FIELD);
        if table.len() > left {
            (table, recorded) = pod_table::encode(pods, workload, left);
        }
        while body.encoded_len() > bytes {
            body.edges.truncate(body.edges.len() * 9 / 10);
        }
        body.pod_table = table;
        ((body != Body::default()).then_some(body), recorded)
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::BTreeMap};

    use proptest::prelude::*;
    use topology::entity::{Pod, PodLifetime};

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

    fn encoded<'a>(edges: impl Iterator<Item = (EdgeId, &'a Entry)>) -> Option<String> {
        encode(edges, PodsToRecord { workload: &workload(), pods: &[] }).0
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
                encode((0..).map(EdgeId).zip(&edges), PodsToRecord { workload: &workload(), pods: &pods });
            let text = text.expect("there are edges and pods");
            assert!(text.len() <= MAX_CHECKPOINT, "{}", text.len());
            let checkpoint = decode(&text).expect("it was encoded");
            let (found, error) = checkpoint.pods(&workload());
            assert_eq!((found.len() + omitted, error), (pods.len(), None));
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
}
