//! Tells changes of counters that are worth a write from those that can wait until nothing changes any more.

use std::time::Duration;

use crds::{EarlierCounts, EdgePod, TopologyEdge, TopologyStatus, Totals};

/// A change of less than one part in so many is no news by itself.
const PRECISION: u64 = 100;

/// Returns whether no counter differs by 1 % or more, and none became or left 0. Both must be equal except for
/// counters, as [`super::object::structure`] defines.
pub(super) fn is_noise(known: &TopologyStatus, wanted: &TopologyStatus) -> bool {
    let said = |status: &TopologyStatus| -> Vec<String> {
        status.conditions.iter().map(|condition| condition.message.clone()).collect()
    };
    said(known) == said(wanted)
        && totals(&known.totals).into_iter().zip(totals(&wanted.totals)).all(is_close)
        && all_close(&known.egress, &wanted.egress, edges_are_close)
        && all_close(&known.ingress, &wanted.ingress, edges_are_close)
}

/// For how long nothing has to change until what is left to be written is. Bytes of open connections are at rest when two
/// scans of the agents have shown the same.
pub(super) fn rest(wanted: &TopologyStatus, counter_interval: Duration, scan_interval: Duration) -> Duration {
    if wanted.totals.active > 0 { counter_interval.max(scan_interval * 3 / 2) } else { counter_interval }
}

fn is_close((known, wanted): (u64, u64)) -> bool {
    known == wanted || known > 0 && wanted > 0 && known.abs_diff(wanted).saturating_mul(PRECISION) < known
}

fn all_close<T>(known: &[T], wanted: &[T], are_close: fn(&T, &T) -> bool) -> bool {
    known.len() == wanted.len() && known.iter().zip(wanted).all(|(known, wanted)| are_close(known, wanted))
}

fn totals(totals: &Totals) -> [u64; 6] {
    [totals.opened, totals.active, totals.failed, totals.bytes_sent, totals.bytes_received, totals.without_bytes]
}

fn edges_are_close(known: &TopologyEdge, wanted: &TopologyEdge) -> bool {
    // Of too many edges, others may be listed.
    (&known.peer, &known.service, known.port, known.protocol)
        == (&wanted.peer, &wanted.service, wanted.port, wanted.protocol)
        && known.bytes_sent.is_some() == wanted.bytes_sent.is_some()
        && known.bytes_received.is_some() == wanted.bytes_received.is_some()
        && known.retransmits.is_some() == wanted.retransmits.is_some()
        && known.rtt_microseconds.is_some() == wanted.rtt_microseconds.is_some()
        && edge(known).into_iter().zip(edge(wanted)).all(is_close)
        && earlier(known).into_iter().zip(earlier(wanted)).all(is_close)
        && all_close(&known.pods, &wanted.pods, pods_are_close)
        && all_close(&known.peer_pods, &wanted.peer_pods, pods_are_close)
}

fn edge(edge: &TopologyEdge) -> [u64; 8] {
    [
        edge.opened,
        edge.active,
        edge.failed,
        edge.bytes_sent.unwrap_or_default(),
        edge.bytes_received.unwrap_or_default(),
        edge.without_bytes,
        edge.retransmits.unwrap_or_default(),
        edge.addresses,
    ]
}

fn earlier(edge: &TopologyEdge) -> [u64; 6] {
    let EarlierCounts { opened, failed, bytes_sent, bytes_received, without_bytes, retransmits } =
        edge.earlier.unwrap_or_default();
    [opened, failed, bytes_sent, bytes_received, without_bytes, retransmits]
}

fn pods_are_close(known: &EdgePod, wanted: &EdgePod) -> bool {
    let counts = |pod: &EdgePod| [pod.opened, pod.failed, pod.earlier_opened, pod.earlier_failed];
    (&known.pod, &known.container) == (&wanted.pod, &wanted.container)
        && counts(known).into_iter().zip(counts(wanted)).all(is_close)
}

#[cfg(test)]
mod tests {
    use crds::{Summary, TopologyPeer};

    use super::*;

    fn status(opened: u64, active: u64, bytes: u64) -> TopologyStatus {
        let edge = TopologyEdge {
            peer: TopologyPeer { kind: "Node".to_owned(), name: Some("n".to_owned()), ..TopologyPeer::default() },
            opened,
            active,
            bytes_sent: Some(bytes),
            ..serde_json::from_value(serde_json::json!({
                "peer": {"kind": ""}, "port": 80, "opened": 0, "active": 0, "failed": 0, "seen": "Both",
                "identity": "Ip", "methods": [], "direction": "Observed",
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
        other.egress[0].port = 81;
        assert!(!is_noise(&known, &other));
        other = status(1000, 10, 50_000);
        other.egress[0].pods.push(EdgePod::default());
        assert!(!is_noise(&known, &other));
    }

    /// A connection that says a few bytes now and then is written ever more rarely.
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
        assert_eq!(rest(&status(5, 0, 9), second, scan), second);
        assert_eq!(rest(&status(5, 1, 9), second, scan), Duration::from_secs(45));
        assert_eq!(rest(&status(5, 1, 9), hour, scan), hour);
    }
}
