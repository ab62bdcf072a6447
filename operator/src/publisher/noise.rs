//! Separates changes of counters that are worth a write from those that can wait until quiescence.

use std::time::Duration;

use crds::{EdgePod, PeerType, TopologyEdge, TopologyStatus, Totals};
use topology::{
    edge::EdgeCounters,
    graph::{PlacedLeg, RecordedLeg},
};

use super::{
    checkpoint::{self, Checkpoint},
    edge_id::EdgeId,
    leg_table,
};

/// A change of less than one part in so many is no news by itself.
const PRECISION: u64 = 100;

/// Returns whether no counter differs by 1 % or more, none became or left 0, and no attempt failed in another minute.
/// Both must be equal except for counters, as [`super::structure::has_same_structure`] defines.
pub(super) fn is_noise(known: &TopologyStatus, wanted: &TopologyStatus) -> bool {
    let said = |status: &TopologyStatus| -> Vec<String> {
        status.conditions.iter().map(|condition| condition.message.clone()).collect()
    };
    said(known) == said(wanted)
        && known.totals.last_failed == wanted.totals.last_failed
        && totals(&known.totals).into_iter().zip(totals(&wanted.totals)).all(is_close)
        && all_close(&known.egress, &wanted.egress, edges_are_close)
        && all_close(&known.ingress, &wanted.ingress, edges_are_close)
        && is_checkpoint_close(known, wanted)
}

/// Whether the checkpoints do not differ in what this object alone has to keep: counters of edges on which the workload is
/// the client, or whose client is no workload. The object of another client keeps the others', so that a rollout of
/// clients does not rewrite their server's object. This object alone has its records of proxied connections as well.
pub(super) fn is_checkpoint_kept(known: &TopologyStatus, wanted: &TopologyStatus) -> bool {
    is_each_kept(known, wanted, |(known, wanted)| known == wanted, Checkpoint::has_same_legs)
}

fn is_checkpoint_close(known: &TopologyStatus, wanted: &TopologyStatus) -> bool {
    is_each_kept(known, wanted, |(known, wanted)| known.into_iter().zip(wanted).all(is_close), has_close_legs)
}

/// Returns whether both checkpoints have records of the same flows, and these differ in counts only, by less than 1 %.
fn has_close_legs(known: &Checkpoint, wanted: &Checkpoint) -> bool {
    if known.has_same_legs(wanted) {
        return true;
    }
    let (known, wanted) = (known.legs().0, wanted.legs().0);
    let is_of_same = |known: &RecordedLeg, wanted: &RecordedLeg| {
        let facts = |leg: PlacedLeg| PlacedLeg {
            placed: EdgeCounters::default(),
            matched: 0,
            unanswered: 0,
            attempts: 0,
            apart: 0,
            inward: 0,
            ..leg
        };
        (&known.node, known.key, known.pod) == (&wanted.node, wanted.key, wanted.pod)
            && facts(known.leg) == facts(wanted.leg)
            && leg_table::counts(&known.leg).into_iter().zip(leg_table::counts(&wanted.leg)).all(is_close)
    };
    all_close(&known, &wanted, is_of_same)
}

/// Returns whether the known checkpoint has the pods of the wanted one, and the counters of each edge and the records of
/// proxied connections are kept.
fn is_each_kept(
    known: &TopologyStatus,
    wanted: &TopologyStatus,
    is_kept: impl Fn(([u64; 6], [u64; 6])) -> bool,
    are_legs_kept: impl Fn(&Checkpoint, &Checkpoint) -> bool,
) -> bool {
    if known.checkpoint == wanted.checkpoint {
        return true;
    }
    let read = |status: &TopologyStatus| {
        status.checkpoint.as_deref().and_then(|text| checkpoint::decode(text).ok()).unwrap_or_default()
    };
    let (before, after) = (read(known), read(wanted));
    before.has_pods_of(&after) && own_counters(&before, &after, wanted).all(is_kept) && are_legs_kept(&before, &after)
}

/// Counters of both checkpoints that this object has to keep, edge by edge.
fn own_counters(
    before: &Checkpoint,
    after: &Checkpoint,
    wanted: &TopologyStatus,
) -> impl Iterator<Item = ([u64; 6], [u64; 6])> {
    let others = |edge: &&TopologyEdge| edge.peer.type_ != PeerType::Workload;
    let own = wanted.egress.iter().chain(wanted.ingress.iter().filter(others));
    let ids = own.filter_map(|edge| EdgeId::parse(&edge.id));
    ids.map(move |id| (counters_at(before, id), counters_at(after, id)))
}

/// Without retransmits, which are a server's as well and go with its pods.
fn counters_at(checkpoint: &Checkpoint, id: EdgeId) -> [u64; 6] {
    let Some(checkpoint::Entry { earlier, .. }) = checkpoint.edges.get(&id) else { return [0; 6] };
    let EdgeCounters { opened, failed, bytes_sent, bytes_received, without_bytes, .. } = earlier.counts.counters;
    [opened, failed, bytes_sent, bytes_received, without_bytes, earlier.known_to_servers]
}

/// For how long nothing has to change until what is left to be written is. Bytes of open connections are at rest when two
/// scans of the agents have shown the same.
pub(super) fn rest(wanted: &Totals, counter_interval: Duration, scan_interval: Duration) -> Duration {
    if wanted.active > 0 { counter_interval.max(scan_interval * 3 / 2) } else { counter_interval }
}

fn is_close((known, wanted): (u64, u64)) -> bool {
    known == wanted || known > 0 && wanted > 0 && known.abs_diff(wanted).saturating_mul(PRECISION) < known
}

fn all_close<T>(known: &[T], wanted: &[T], are_close: impl Fn(&T, &T) -> bool) -> bool {
    known.len() == wanted.len() && known.iter().zip(wanted).all(|(known, wanted)| are_close(known, wanted))
}

fn totals(totals: &Totals) -> [u64; 7] {
    let Totals { opened, active, failed, pending, bytes_sent, bytes_received, without_bytes, .. } = *totals;
    [opened, active, failed, pending, bytes_sent, bytes_received, without_bytes]
}

fn edges_are_close(known: &TopologyEdge, wanted: &TopologyEdge) -> bool {
    // Of too many edges, others may be listed.
    known.id == wanted.id
        && known.last_failed == wanted.last_failed
        && known.omitted_pods == wanted.omitted_pods
        && known.bytes_sent.is_some() == wanted.bytes_sent.is_some()
        && known.bytes_received.is_some() == wanted.bytes_received.is_some()
        && known.retransmits.is_some() == wanted.retransmits.is_some()
        && known.rtt_microseconds.is_some() == wanted.rtt_microseconds.is_some()
        && edge(known).into_iter().zip(edge(wanted)).all(is_close)
        && all_close(&known.pods, &wanted.pods, pods_are_close)
}

fn edge(edge: &TopologyEdge) -> [u64; 9] {
    [
        edge.opened,
        edge.active,
        edge.failed,
        edge.pending,
        edge.bytes_sent.unwrap_or_default(),
        edge.bytes_received.unwrap_or_default(),
        edge.without_bytes,
        edge.retransmits.unwrap_or_default(),
        edge.addresses,
    ]
}

fn pods_are_close(known: &EdgePod, wanted: &EdgePod) -> bool {
    let counts = |pod: &EdgePod| [pod.opened, pod.failed];
    (&known.pod, &known.container) == (&wanted.pod, &wanted.container)
        && counts(known).into_iter().zip(counts(wanted)).all(is_close)
}

#[cfg(test)]
mod tests {
    use crds::{Summary, TopologyPeer};
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use topology::{
        counts::{Counts, Earlier},
        entity::Workload,
        flow::{FlowKey, Protocol, Role},
        graph::PodHash,
    };

    use super::*;
    use crate::publisher::checkpoint::ToRecord;

    fn status(opened: u64, active: u64, bytes: u64) -> TopologyStatus {
        let edge = TopologyEdge {
            peer: TopologyPeer { type_: PeerType::Node, name: Some("n".to_owned()), ..TopologyPeer::default() },
            opened,
            active,
            bytes_sent: Some(bytes),
            ..serde_json::from_value(serde_json::json!({
                "id": "0000000000000001", "peer": {"type": "Node"}, "port": 80, "opened": 0, "active": 0, "failed": 0,
                "seen": "Both", "identity": "IP", "methods": [], "direction": "Observed",
            }))
            .expect("it is an edge")
        };
        TopologyStatus {
            summary: Summary::default(),
            totals: Totals { opened, active, bytes_sent: bytes, ..Totals::default() },
            egress: vec![edge],
            ..TopologyStatus::default()
        }
    }

    #[test]
    fn a_percent_is_news_and_less_is_not() {
        let known = status(1000, 10, 50_000);
        assert!(is_noise(&known, &known));
        assert!(is_noise(&known, &status(1009, 10, 50_499)));
        assert!(!is_noise(&known, &status(1010, 10, 50_000)));
        assert!(!is_noise(&known, &status(1000, 10, 50_500)));
        assert!(!is_noise(&known, &status(1000, 0, 50_000)), "it became idle");
        assert!(!is_noise(&status(1000, 0, 0), &status(1000, 0, 1)), "the first byte");
    }

    #[test]
    fn what_another_edge_says_is_no_noise() {
        let (known, mut other) = (status(1000, 10, 50_000), status(1000, 10, 50_000));
        other.egress[0].id = "0000000000000002".to_owned();
        assert!(!is_noise(&known, &other));
        other = status(1000, 10, 50_000);
        other.egress[0].pods.push(EdgePod::default());
        assert!(!is_noise(&known, &other));
    }

    #[test]
    fn pending_attempt_is_news() {
        let (known, mut other) = (status(1000, 10, 50_000), status(1000, 10, 50_000));
        (other.egress[0].pending, other.totals.pending) = (1, 1);
        assert!(!is_noise(&known, &other) && !is_noise(&other, &known));
    }

    #[test]
    fn a_failure_is_news() {
        let (known, mut other) = (status(1000, 10, 50_000), status(1000, 10, 50_000));
        other.egress[0].last_failed = Some(Time(Timestamp::UNIX_EPOCH));
        assert!(!is_noise(&known, &other));
    }

    fn with_checkpoint(mut status: TopologyStatus, opened: u64, retransmits: u64) -> TopologyStatus {
        let counters = EdgeCounters { opened, retransmits, ..EdgeCounters::default() };
        let counts = Counts { counters, ..Counts::default() };
        let earlier = Earlier { counts, known_to_servers: 0 };
        let entry = checkpoint::Entry { earlier, ..checkpoint::Entry::default() };
        let workload =
            Workload { namespace: String::new(), kind: String::new(), name: String::new(), group: String::new() };
        let to_record = ToRecord { workload: &workload, pods: &[], legs: &[] };
        status.checkpoint = checkpoint::encode([(EdgeId(1), &entry)].into_iter(), to_record).0;
        status
    }

    /// The same edge as egress, as ingress from a node, and as ingress from a workload.
    #[test]
    fn a_percent_of_the_checkpoint_is_news_to_the_object_that_keeps_it() {
        let egress = || status(1000, 10, 50_000);
        let ingress = |type_: PeerType| {
            let mut status = egress();
            status.ingress = std::mem::take(&mut status.egress);
            status.ingress[0].peer.type_ = type_;
            status
        };
        for kept in [egress(), ingress(PeerType::Node)] {
            let with = |opened: u64| with_checkpoint(kept.clone(), opened, 0);
            assert!(is_noise(&with(500), &with(504)) && !is_checkpoint_kept(&with(500), &with(504)));
            assert!(!is_noise(&with(500), &with(505)));
            assert!(!is_noise(&kept, &with(1)) && !is_checkpoint_kept(&kept, &with(1)));
            assert!(is_checkpoint_kept(&with(500), &with_checkpoint(kept.clone(), 500, 7)));
        }
        let with = |opened: u64| with_checkpoint(ingress(PeerType::Workload), opened, 0);
        assert!(is_noise(&with(500), &with(900)) && is_checkpoint_kept(&with(500), &with(900)));
    }

    #[test]
    fn a_percent_of_a_proxied_connections_record_is_news() {
        let with = |matched: u64, is_pooled: bool| {
            let ip = "10.244.1.2".parse().expect("an address");
            let (role, protocol) = (Role::Client, Protocol::Tcp);
            let key = FlowKey { cgroup_id: 1, netns: 1, role, local: ip, remote: ip, port: 80, protocol };
            let leg = PlacedLeg { matched, is_pooled, ..PlacedLeg::default() };
            let legs = [RecordedLeg { node: "node-1".to_owned(), key, pod: PodHash::of("a"), leg }];
            let workload =
                Workload { namespace: String::new(), kind: String::new(), name: String::new(), group: String::new() };
            let to_record = ToRecord { workload: &workload, pods: &[], legs: &legs };
            TopologyStatus {
                checkpoint: checkpoint::encode(std::iter::empty(), to_record).0,
                ..status(1000, 10, 50_000)
            }
        };
        let known = with(500, false);
        assert!(is_noise(&known, &with(500, false)) && is_checkpoint_kept(&known, &with(500, false)));
        assert!(is_noise(&known, &with(504, false)) && !is_checkpoint_kept(&known, &with(504, false)));
        assert!(!is_noise(&known, &with(505, false)));
        assert!(!is_noise(&known, &with(500, true)), "it has become shared");
        assert!(!is_noise(&status(1000, 10, 50_000), &known) && !is_noise(&known, &status(1000, 10, 50_000)));
    }

    /// A connection that sends a few bytes from time to time is written more and more rarely.
    #[test]
    fn steady_traffic_is_written_as_often_as_its_counters_grow_by_a_percent() {
        let mut written = status(1, 1, 100);
        let mut writes = 0;
        for bytes in (0..100_000).map(|round| 100 + 20 * round) {
            let wanted = status(1, 1, bytes);
            if !is_noise(&written, &wanted) {
                (written, writes) = (wanted, writes + 1);
            }
        }
        assert!((500..1100).contains(&writes), "{writes} writes in 100,000 rounds");
    }

    #[test]
    fn open_connections_are_at_rest_when_two_looks_have_shown_the_same() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_hours(1));
        let scan = Duration::from_secs(30);
        assert_eq!(rest(&status(5, 0, 9).totals, second, scan), second);
        assert_eq!(rest(&status(5, 1, 9).totals, second, scan), Duration::from_secs(45));
        assert_eq!(rest(&status(5, 1, 9).totals, hour, scan), hour);
    }
}
