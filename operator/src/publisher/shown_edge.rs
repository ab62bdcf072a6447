//! Edges as the API writes them: an edge of the graph as one of its ends sees it.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use crds::{CaptureMethod, DirectionSource, EdgePod, EdgeProxy, ServiceReference, TopologyEdge};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use topology::{
    activity,
    edge::{Edge, EdgeCounters, Endpoint, Identity, Peer, Proxy},
    rtt::RttBucket,
};

use super::{edge_id::EdgeId, peer};
use crate::cluster::Index;

/// Maximum number of containers that an edge lists.
const MAX_CONTAINERS: usize = 10;
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;

/// Direction in which an object's workload takes part in an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The workload is the client.
    Egress,
    /// The workload is the server.
    Ingress,
}

impl Direction {
    fn own(self, edge: &Edge) -> &[Endpoint] {
        match self {
            Self::Egress => &edge.clients,
            Self::Ingress => &edge.servers,
        }
    }

    fn peer(self, edge: &Edge) -> (&Peer, Identity) {
        match self {
            Self::Egress => (&edge.key.server, edge.server_identity),
            Self::Ingress => (&edge.key.client, edge.client_identity),
        }
    }

    /// Bytes sent and received by the workload.
    fn bytes(self, counters: &EdgeCounters) -> (u64, u64) {
        match self {
            Self::Egress => (counters.bytes_sent, counters.bytes_received),
            Self::Ingress => (counters.bytes_received, counters.bytes_sent),
        }
    }
}

/// Returns an edge as the end of this direction sees it `now`, with at most `max_pods` of that end's pods.
pub(super) fn shown(
    edge: &Edge,
    direction: Direction,
    index: &Index,
    max_pods: usize,
    now: SystemTime,
) -> TopologyEdge {
    let (peer, identity) = direction.peer(edge);
    let own = direction.own(edge);
    let (pods, omitted_pods) = pods(own, max_pods);
    let (bytes_sent, bytes_received) = direction.bytes(&edge.counters);
    let service = edge.key.service.as_ref().map(|of| ServiceReference {
        namespace: of.service.namespace.clone(),
        name: of.service.name.clone(),
        port: of.port,
        port_name: index.port_name(of, edge.key.protocol).map(str::to_owned),
    });
    let times = edge.times;
    TopologyEdge {
        id: EdgeId::of(&edge.key).to_string(),
        peer: peer::written(peer, |workload| index.api_version_of(workload)),
        service,
        port: edge.key.port,
        protocol: edge.key.protocol.into(),
        containers: containers(own),
        pods,
        omitted_pods,
        opened: edge.counters.opened,
        active: edge.counters.active,
        failed: edge.counters.failed,
        pending: edge.counters.pending,
        last_failed: times.and_then(|times| times.last_failed).and_then(to_minute),
        bytes_sent: known(bytes_sent, &edge.counters),
        bytes_received: known(bytes_received, &edge.counters),
        without_bytes: edge.counters.without_bytes,
        retransmits: edge.knows_retransmits.then_some(edge.counters.retransmits),
        rtt_microseconds: edge.rtt.map(RttBucket::below),
        first_seen: times.and_then(|times| rounded_down(times.first_seen, 1)),
        last_seen: times.and_then(|times| rounded_down(times.last_seen.at(now), HOUR)),
        seen: edge.seen.into(),
        identity: identity.into(),
        methods: CaptureMethod::of(edge.methods),
        direction: direction_source(&edge.counters),
        dns_names: edge.dns_names.clone(),
        addresses: edge.addresses,
        via: edge.via.iter().map(|proxy| shown_proxy(proxy, index)).collect(),
        transport_security: None,
    }
}

fn shown_proxy(proxy: &Proxy, index: &Index) -> EdgeProxy {
    EdgeProxy {
        side: proxy.side.into(),
        peer: peer::written(&proxy.peer, |workload| index.api_version_of(workload)),
        container: proxy.container.clone(),
    }
}

/// Returns a time without its seconds.
pub(super) fn to_minute(time: SystemTime) -> Option<Time> {
    rounded_down(time, MINUTE)
}

/// Returns a time rounded down to a multiple of so many seconds; `None` where the API cannot write it.
fn rounded_down(time: SystemTime, seconds: i64) -> Option<Time> {
    let since_epoch = i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
    Timestamp::from_second(since_epoch / seconds * seconds).ok().map(Time)
}

/// Absent where nothing is known of any connection's payload.
fn known(bytes: u64, counters: &EdgeCounters) -> Option<u64> {
    let nothing = bytes == 0 && counters.opened > 0 && counters.without_bytes >= counters.opened;
    (!nothing).then_some(bytes)
}

/// One connection whose direction was observed is enough to know the edge's.
fn direction_source(counters: &EdgeCounters) -> DirectionSource {
    let all = counters.opened.saturating_add(counters.failed);
    if all > 0 && counters.inferred >= all { DirectionSource::Inferred } else { DirectionSource::Observed }
}

fn containers(endpoints: &[Endpoint]) -> Vec<String> {
    let names: BTreeSet<&String> = endpoints.iter().map(|end| &end.container).filter(|name| !name.is_empty()).collect();
    names.into_iter().take(MAX_CONTAINERS).cloned().collect()
}

/// Returns pods by name, the busiest where not all fit, and how many are not listed.
fn pods(endpoints: &[Endpoint], max_pods: usize) -> (Vec<EdgePod>, u64) {
    let mut pods: Vec<EdgePod> = endpoints
        .iter()
        .filter(|end| !end.pod.is_empty())
        .map(|end| EdgePod {
            pod: end.pod.clone(),
            container: end.container.clone(),
            opened: end.opened,
            failed: end.failed,
        })
        .collect();
    let omitted = pods.len().saturating_sub(max_pods);
    if omitted > 0 {
        pods.sort_by(|a, b| {
            let busy = |pod: &EdgePod| Reverse(activity::class(pod.opened.saturating_add(pod.failed)));
            (busy(a), &a.pod, &a.container).cmp(&(busy(b), &b.pod, &b.container))
        });
        pods.truncate(max_pods);
    }
    // Not by counters, which would shuffle the list with every connection.
    pods.sort_by(|a, b| (&a.pod, &a.container).cmp(&(&b.pod, &b.container)));
    (pods, omitted as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LISTED: usize = 5;

    fn endpoints(opened: &[u64]) -> Vec<Endpoint> {
        let end = |(number, opened): (usize, &u64)| Endpoint {
            pod: format!("pod-{number:02}"),
            container: "main".to_owned(),
            opened: *opened,
            failed: 0,
        };
        opened.iter().enumerate().map(end).collect()
    }

    fn names(opened: &[u64]) -> Vec<String> {
        pods(&endpoints(opened), LISTED).0.into_iter().map(|pod| pod.pod).collect()
    }

    #[test]
    fn counters_do_not_change_the_order_of_pods() {
        assert_eq!(names(&[1, 2, 3]), names(&[3, 2, 1]));
        assert_eq!(names(&[1, 2, 3]), ["pod-00", "pod-01", "pod-02"]);
    }

    #[test]
    fn the_busiest_pods_are_listed_where_not_all_fit() {
        let mut opened = [5; LISTED + 2];
        (opened[1], opened[4]) = (1, 2);
        let listed = names(&opened);
        assert_eq!(pods(&endpoints(&opened), LISTED).1, 2);
        assert!(listed.is_sorted() && listed.len() == LISTED, "{listed:?}");
        assert!(!listed.contains(&"pod-01".to_owned()) && !listed.contains(&"pod-04".to_owned()), "{listed:?}");
        assert_eq!(pods(&endpoints(&opened), 0), (Vec::new(), 7));
    }

    #[test]
    fn times_are_rounded_down_to_what_is_written() {
        let time = UNIX_EPOCH + Duration::from_millis(1_000_000_123_456);
        let seconds = [1, MINUTE, HOUR].map(|unit| rounded_down(time, unit).expect("a time").0.as_second());
        assert_eq!(seconds, [1_000_000_123, 1_000_000_080, 999_997_200]);
        assert_eq!(rounded_down(UNIX_EPOCH - Duration::from_secs(1), 1), None);
    }
}
