//! `status.checkpoint`: state for the operator's next start. Of an edge's counters, it has the part of which agents keep no
//! record any more, and the part that only servers' agents report. It also has pods, which agents report by UID only, and where
//! connections through transparent proxies were shown.
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
    graph::RecordedLeg,
};

use super::{
    edge_id::EdgeId,
    leg_table::{self, LegTableError},
    pod_table::{self, PodTableError},
};

const VERSION: &str = "1:";
/// Maximum number of pods of an edge's end whose parts are kept.
const MAX_PARTS: usize = 10;
/// Maximum size of the table of pods, in bytes: half of a checkpoint.
const MAX_POD_TABLE: usize = MAX_CHECKPOINT / 8 * 3;
/// Maximum size of the table of proxied connections, in bytes: a quarter of a checkpoint.
const MAX_LEG_TABLE: usize = MAX_CHECKPOINT / 16 * 3;
/// Upper bound of the tag and length of a table.
const FIELD: usize = 8;

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
    /// Table of proxied connections. An older operator does not write it.
    #[prost(bytes = "vec", tag = "4")]
    leg_table: Vec<u8>,
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
    leg_table: Vec<u8>,
}

impl Checkpoint {
    /// Returns the pods of a checkpoint of this workload's object, and an error if some are malformed.
    pub(super) fn pods(&self, own: &Workload) -> (Vec<RecordedPod<'static>>, Option<PodTableError>) {
        pod_table::decode(&self.pod_table, own)
    }

    /// Returns the records of proxied connections, and an error if some are malformed.
    pub(super) fn legs(&self) -> (Vec<RecordedLeg>, Option<LegTableError>) {
        leg_table::decode(&self.leg_table)
    }

    /// Returns whether both checkpoints have the same records of proxied connections.
    pub(super) fn has_same_legs(&self, other: &Self) -> bool {
        self.leg_table == other.leg_table
    }

    /// Returns whether this checkpoint has the pods of the other one, regardless of their times.
    pub(super) fn has_pods_of(&self, other: &Self) -> bool {
        self.pod_table == other.pod_table || pod_table::contains(&self.pod_table, &other.pod_table)
    }
}

/// Contents of a checkpoint of a workload's object, beside edges.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToRecord<'a> {
    pub(super) workload: &'a Workload,
    /// Pods, the most important ones first.
    pub(super) pods: &'a [RecordedPod<'a>],
    /// Proxied connections of the workload's pods.
    pub(super) legs: &'a [RecordedLeg],
}

/// Numbers of what does not fit into a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Omitted {
    /// Pods.
    pub(super) pods: usize,
    /// Records of proxied connections.
    pub(super) legs: usize,
}

/// Encodes the entries of edges, the most important first, and the rest. Returns `None` if there is nothing, and what did not
/// fit. Where not all fits, pods' parts of edges go first, then pods, and then the last edges. Records of proxied connections
/// have a part of their own.
pub(super) fn encode<'a>(
    edges: impl Iterator<Item = (EdgeId, &'a Entry)>,
    to_record: ToRecord<'_>,
) -> (Option<String>, Omitted) {
    let mut encoder = Encoder::default();
    for (id, entry) in edges {
        encoder.add(id, entry);
    }
    let (body, omitted) = encoder.into_body_within(MAX_CHECKPOINT, to_record);
    let text = body.map(|body| format!("{VERSION}{}", STANDARD_NO_PAD.encode(body.encode_to_vec())));
    (text, omitted)
}

/// Decodes a checkpoint.
///
/// # Errors
/// Returns an error if it has another version or is malformed. Malformed pods are an error of [`Checkpoint::pods`] only, and
/// records of proxied connections of [`Checkpoint::legs`].
pub(super) fn decode(text: &str) -> Result<Checkpoint, CheckpointError> {
    let encoded = text.strip_prefix(VERSION).ok_or(CheckpointError::Version)?;
    let bytes = STANDARD_NO_PAD.decode(encoded)?;
    let Body { pods, edges, pod_table, leg_table } = Body::decode(bytes.as_slice())?;
    let edges = edges.iter().map(|edge| (EdgeId(edge.id), edge.entry(&pods))).collect();
    Ok(Checkpoint { edges, pod_table, leg_table })
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

    /// Returns the body, and what did not fit.
    fn into_body_within(
        self,
        characters: usize,
        ToRecord { workload, pods, legs }: ToRecord<'_>,
    ) -> (Option<Body>, Omitted) {
        let mut body = self.body;
        let (leg_table, recorded_legs) = leg_table::encode(legs, MAX_LEG_TABLE);
        let bytes =
            (characters - VERSION.len()) / 4 * 3 - leg_table.len() - if leg_table.is_empty() { 0 } else { FIELD };
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
        (body.pod_table, body.leg_table) = (table, leg_table);
        let omitted = Omitted { pods: pods.len() - recorded, legs: legs.len() - recorded_legs };
        ((body != Body::default()).then_some(body), omitted)
    }
}

#[cfg(test)]
mod tests;
