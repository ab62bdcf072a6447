//! `status.checkpoint`: for the operator's next start, the part of an edge's counters of which agents keep no record any
//! more, and the part that only servers' agents report.
//!
//! Format: the version, a colon, and a Protocol Buffers message in Base64. Readers ignore other versions.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use crds::MAX_CHECKPOINT;
use prost::Message as _;
use topology::{
    counts::{Counts, Earlier},
    edge::{EdgeCounters, Endpoint},
};

use super::edge_id::EdgeId;

const VERSION: &str = "1:";
/// Maximum number of pods of an edge's end whose parts are kept.
const MAX_PARTS: usize = 10;

/// Contents of a checkpoint.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    /// Pods and containers, by the place in this list.
    #[prost(message, repeated, tag = "1")]
    pods: Vec<Pod>,
    #[prost(message, repeated, tag = "2")]
    edges: Vec<Edge>,
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

/// Encodes the entries of edges, the most important first; `None` if there are none. Where not all fit, pods go first and
/// then the last edges.
pub(super) fn encode<'a>(edges: impl Iterator<Item = (EdgeId, &'a Entry)>) -> Option<String> {
    let mut encoder = Encoder::default();
    for (id, entry) in edges {
        encoder.add(id, entry);
    }
    let body = encoder.into_body_within(MAX_CHECKPOINT)?;
    Some(format!("{VERSION}{}", STANDARD_NO_PAD.encode(body.encode_to_vec())))
}

/// Decodes a checkpoint; empty if it has another version or is malformed.
pub(super) fn decode(text: &str) -> HashMap<EdgeId, Entry> {
    let bytes = text.strip_prefix(VERSION).and_then(|body| STANDARD_NO_PAD.decode(body).ok());
    let Some(Body { pods, edges }) = bytes.and_then(|bytes| Body::decode(bytes.as_slice()).ok()) else {
        return HashMap::new();
    };
    edges.iter().map(|edge| (EdgeId(edge.id), edge.entry(&pods))).collect()
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

    fn into_body_within(self, characters: usize) -> Option<Body> {
        let mut body = self.body;
        let bytes = (characters - VERSION.len()) / 4 * 3;
        if body.encoded_len() > bytes {
            body.pods.clear();
            for edge in &mut body.edges {
                (edge.clients, edge.servers) = (Vec::new(), Vec::new());
            }
        }
        while body.encoded_len() > bytes {
            body.edges.truncate(body.edges.len() * 9 / 10);
        }
        (!body.edges.is_empty()).then_some(body)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            let text = encode(edges.iter().map(|(id, entry)| (*id, entry)));
            prop_assert_eq!(text.is_none(), edges.is_empty());
            prop_assert_eq!(decode(&text.unwrap_or_default()), edges);
        }

        #[test]
        fn checkpoint_of_any_text_is_read_without_failing(text in "(1:)?[A-Za-z0-9+/:=]{0,60}") {
            decode(&text);
        }
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
            let text = encode((0..).map(EdgeId).zip(&all)).expect("there are edges");
            assert!(text.len() <= MAX_CHECKPOINT, "{}", text.len());
            decode(&text)
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
    fn checkpoint_of_another_version_is_ignored() {
        let counts = Counts { counters: EdgeCounters { opened: 1, ..EdgeCounters::default() }, ..Counts::default() };
        let entry = Entry { earlier: Earlier { counts, known_to_servers: 0 }, ..Entry::default() };
        let text = encode([(EdgeId(1), &entry)].into_iter()).expect("there is an edge");
        assert_eq!(decode(&text).len(), 1);
        assert!(decode(&text.replacen("1:", "2:", 1)).is_empty());
    }
}
