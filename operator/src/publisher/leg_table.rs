//! Table of connections through transparent proxies in a checkpoint: where those of each flow are, as far as the flows'
//! counters do not show it to the next operator.

use std::collections::HashMap;

use prost::Message as _;
use report::octets;
use topology::{
    edge::EdgeCounters,
    flow::{FlowKey, Protocol, Role},
    graph::{PlacedLeg, PodHash, RecordedLeg},
};

use super::pod_table::{address, at, place};

/// Error of records that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LegTableError {
    /// The table is no message.
    #[error("the table of proxied connections is malformed: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// Some of its records are malformed.
    #[error("{malformed} of {all} records of proxied connections are malformed")]
    Legs { malformed: usize, all: usize },
}

#[derive(Clone, PartialEq, prost::Message)]
struct Table {
    #[prost(string, repeated, tag = "1")]
    nodes: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    legs: Vec<LegRow>,
}

/// Record of a flow.
#[derive(Clone, PartialEq, prost::Message)]
struct LegRow {
    /// Place in `Table::nodes`.
    #[prost(uint32, tag = "1")]
    node: u32,
    #[prost(fixed64, tag = "2")]
    pod: u64,
    #[prost(uint64, tag = "3")]
    cgroup_id: u64,
    #[prost(uint32, tag = "4")]
    netns: u32,
    #[prost(bytes = "vec", tag = "5")]
    local: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    remote: Vec<u8>,
    #[prost(uint32, tag = "7")]
    port: u32,
    /// Facts, a bit for each.
    #[prost(uint32, tag = "8")]
    facts: u32,
    /// Port of the leg.
    #[prost(uint32, tag = "9")]
    leg_port: u32,
    #[prost(uint32, tag = "10")]
    proxys_port: u32,
    /// Opened, failed, bytes sent, bytes received, without bytes, inferred and retransmits of what is placed; matched,
    /// unanswered, attempts, apart, inward. Without the last zeros.
    #[prost(uint64, repeated, tag = "11")]
    counts: Vec<u64>,
}

const IS_SERVERS: u32 = 1;
const IS_UDP: u32 = 2;
const IS_REDIRECTED: u32 = 4;
const IS_PROXYS: u32 = 8;
const IS_POOLED: u32 = 16;
const IS_EVIDENT: u32 = 32;
const ALL_FACTS: u32 = 63;

/// Number of counts of a record.
const COUNTS: usize = 12;

/// Encodes records within so many bytes, those of the most connections first. Returns the table and the number of records in
/// it.
pub(super) fn encode(legs: &[RecordedLeg], bytes: usize) -> (Vec<u8>, usize) {
    let mut ranked: Vec<&RecordedLeg> = legs.iter().collect();
    ranked.sort_by_key(|recorded| std::cmp::Reverse(recorded.leg.placed.opened));
    loop {
        let encoded = encode_all(&ranked);
        if encoded.len() <= bytes || ranked.is_empty() {
            return (encoded, ranked.len());
        }
        // In proportion, and a little less: each step leaves fewer.
        ranked.truncate((ranked.len() * bytes / encoded.len()).min(ranked.len() - 1));
    }
}

fn encode_all(ranked: &[&RecordedLeg]) -> Vec<u8> {
    let (mut table, mut nodes) = (Table::default(), HashMap::new());
    let mut legs = ranked.to_vec();
    legs.sort_unstable_by_key(|recorded| (&recorded.node, recorded.key, recorded.pod));
    for recorded in legs {
        let node = place(&mut nodes, recorded.node.as_str(), |node| table.nodes.push((*node).to_owned()));
        table.legs.push(row(recorded, node));
    }
    table.encode_to_vec()
}

fn row(RecordedLeg { node: _, key, pod, leg }: &RecordedLeg, node: u32) -> LegRow {
    let facts = [
        (key.role == Role::Server, IS_SERVERS),
        (key.protocol == Protocol::Udp, IS_UDP),
        (leg.is_redirected, IS_REDIRECTED),
        (leg.is_proxys, IS_PROXYS),
        (leg.is_pooled, IS_POOLED),
        (leg.is_evident, IS_EVIDENT),
    ];
    let mut counts = counts(leg).to_vec();
    counts.truncate(counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1));
    LegRow {
        node,
        pod: pod.0,
        cgroup_id: key.cgroup_id,
        netns: key.netns,
        local: octets(key.local),
        remote: octets(key.remote),
        port: key.port.into(),
        facts: facts.iter().filter(|(is, _)| *is).fold(0, |facts, (_, fact)| facts | fact),
        leg_port: leg.port.into(),
        proxys_port: leg.proxys_port.into(),
        counts,
    }
}

/// Returns all counts of a record.
pub(super) fn counts(leg: &PlacedLeg) -> [u64; COUNTS] {
    let EdgeCounters { opened, failed, bytes_sent, bytes_received, without_bytes, inferred, retransmits, .. } =
        leg.placed;
    let PlacedLeg { matched, unanswered, attempts, apart, inward, .. } = *leg;
    [
        opened,
        failed,
        bytes_sent,
        bytes_received,
        without_bytes,
        inferred,
        retransmits,
        matched,
        unanswered,
        attempts,
        apart,
        inward,
    ]
}

/// Decodes a table. Records that are malformed are left out.
pub(super) fn decode(bytes: &[u8]) -> (Vec<RecordedLeg>, Option<LegTableError>) {
    let table = match Table::decode(bytes) {
        Ok(table) => table,
        Err(error) => return (Vec::new(), Some(error.into())),
    };
    let legs: Vec<RecordedLeg> = table.legs.iter().filter_map(|row| row.leg(&table.nodes)).collect();
    let (malformed, all) = (table.legs.len() - legs.len(), table.legs.len());
    (legs, (malformed > 0).then_some(LegTableError::Legs { malformed, all }))
}

impl LegRow {
    fn leg(&self, nodes: &[String]) -> Option<RecordedLeg> {
        let port = |number: u32| u16::try_from(number).ok();
        let is = |fact: u32| self.facts & fact != 0;
        if self.facts & !ALL_FACTS != 0 || self.counts.len() > COUNTS {
            return None;
        }
        let count = |number: usize| self.counts.get(number).copied().unwrap_or_default();
        let placed = EdgeCounters {
            opened: count(0),
            failed: count(1),
            bytes_sent: count(2),
            bytes_received: count(3),
            without_bytes: count(4),
            inferred: count(5),
            retransmits: count(6),
            ..EdgeCounters::default()
        };
        let leg = PlacedLeg {
            placed,
            matched: count(7),
            unanswered: count(8),
            attempts: count(9),
            apart: count(10),
            inward: count(11),
            port: port(self.leg_port)?,
            proxys_port: port(self.proxys_port)?,
            is_redirected: is(IS_REDIRECTED),
            is_proxys: is(IS_PROXYS),
            is_pooled: is(IS_POOLED),
            is_evident: is(IS_EVIDENT),
        };
        let key = FlowKey {
            cgroup_id: self.cgroup_id,
            netns: self.netns,
            role: if is(IS_SERVERS) { Role::Server } else { Role::Client },
            local: address(&self.local)?,
            remote: address(&self.remote)?,
            port: port(self.port)?,
            protocol: if is(IS_UDP) { Protocol::Udp } else { Protocol::Tcp },
        };
        Some(RecordedLeg { node: at(nodes, self.node)?.clone(), key, pod: PodHash(self.pod), leg })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Records of different flows.
    pub(in crate::publisher) fn legs() -> impl Strategy<Value = Vec<RecordedLeg>> {
        let key = (any::<u64>(), any::<u32>(), any::<[bool; 6]>(), any::<[std::net::IpAddr; 2]>(), any::<[u16; 3]>());
        let leg = ("node-[0-3]", any::<u64>(), key, any::<[u64; COUNTS]>(), 0..=COUNTS);
        prop::collection::vec(leg, 0..20).prop_map(|rows| {
            let of = |(number, row): (usize, (String, u64, _, [u64; COUNTS], usize))| {
                let (
                    node,
                    pod,
                    (cgroup_id, netns, facts, [local, remote], [port, leg_port, proxys_port]),
                    counts,
                    kept,
                ) = row;
                let cgroup_id: u64 = cgroup_id;
                let [is_servers, is_udp, is_redirected, is_proxys, is_pooled, is_evident] = facts;
                let facts = [
                    (is_servers, IS_SERVERS),
                    (is_udp, IS_UDP),
                    (is_redirected, IS_REDIRECTED),
                    (is_proxys, IS_PROXYS),
                    (is_pooled, IS_POOLED),
                    (is_evident, IS_EVIDENT),
                ];
                let row = LegRow {
                    node: 0,
                    pod,
                    cgroup_id: cgroup_id.wrapping_add(number as u64),
                    netns,
                    local: octets(local),
                    remote: octets(remote),
                    port: u32::from(port),
                    facts: facts.into_iter().filter(|(is, _)| *is).map(|(_, fact)| fact).sum(),
                    leg_port: u32::from(leg_port),
                    proxys_port: u32::from(proxys_port),
                    counts: counts[..kept].to_vec(),
                };
                row.leg(&[node]).expect("it is well-formed")
            };
            rows.into_iter().enumerate().map(of).collect()
        })
    }

    fn in_order(mut legs: Vec<RecordedLeg>) -> Vec<RecordedLeg> {
        legs.sort_by_key(|recorded| (recorded.node.clone(), recorded.key, recorded.pod));
        legs
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn records_are_read_as_they_are_written(legs in legs()) {
            let (table, count) = encode(&legs, usize::MAX);
            prop_assert_eq!(count, legs.len());
            let (read, error) = decode(&table);
            prop_assert_eq!((read, error), (in_order(legs), None));
        }

        #[test]
        fn records_with_the_most_connections_stay_where_not_all_fit(legs in legs(), bytes in 0..1500_usize) {
            let (table, count) = encode(&legs, bytes);
            prop_assert!(table.len() <= bytes);
            let (read, error) = decode(&table);
            prop_assert_eq!((read.len(), error), (count, None));
            let least = read.iter().map(|recorded| recorded.leg.placed.opened).min();
            let omitted = legs.iter().filter(|recorded| !read.contains(recorded));
            prop_assert!(omitted.map(|recorded| recorded.leg.placed.opened).max() <= least || count == 0);
        }

        #[test]
        fn table_of_any_bytes_is_read_without_failing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn malformed_record_loses_no_other() {
        let row = LegRow { local: vec![10, 0, 0, 1], remote: vec![10, 0, 0, 2], port: 80, ..LegRow::default() };
        let malformed = [
            LegRow { node: 1, ..row.clone() },
            LegRow { local: vec![1], ..row.clone() },
            LegRow { remote: Vec::new(), ..row.clone() },
            LegRow { port: 65_536, ..row.clone() },
            LegRow { leg_port: 65_536, ..row.clone() },
            LegRow { facts: 64, ..row.clone() },
            LegRow { counts: vec![0; 13], ..row.clone() },
        ];
        let all = malformed.len() + 1;
        let legs = malformed.into_iter().chain([row]).collect();
        let table = Table { nodes: vec!["node-1".to_owned()], legs };
        let (read, error) = decode(&table.encode_to_vec());
        assert_eq!((read.len(), error), (1, Some(LegTableError::Legs { malformed: all - 1, all })));
        assert!(matches!(decode(b"\xff\xff"), (legs, Some(LegTableError::Malformed(_))) if legs.is_empty()));
    }
}
