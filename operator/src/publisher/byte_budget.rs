//! Limit on the size of an object: the busiest edges that fit into it.
//!
//! Sizes are upper bounds that do not depend on counters, so that an object does not gain and lose edges as these grow.

use crds::{
    EdgePod, EdgeProxy, MAX_CHECKPOINT, PodSelector, ServiceReference, TopologyEdge, TopologyPeer, WorkloadRef,
};

/// Maximum size of an object in JSON, in bytes.
pub(super) const MAX_OBJECT: usize = 256 * 1024;
/// Size of the operator's part of `metadata`, and of all in `status` that is neither an edge nor below.
const FRAME: usize = 12 * 1024;
/// Step in which the size of a checkpoint counts.
const CHECKPOINT_STEP: usize = 4 * 1024;
/// Bound of an edge's size without its texts and lists: names of fields, numbers and times.
const EDGE: usize = 1024;
/// Bound of a pod's entry without its texts.
const POD: usize = 96;
/// Bound of a proxy's entry without its texts.
const PROXY: usize = 192;
/// Bound of a list's punctuation and name.
const LIST: usize = 24;

/// Returns the bytes that are left for edges in an object of this workload with this checkpoint.
pub(super) fn for_edges(workload: &WorkloadRef, checkpoint: Option<&str>) -> usize {
    // In steps, so that one pod more does not displace an edge.
    let checkpoint = checkpoint.map_or(0, str::len).next_multiple_of(CHECKPOINT_STEP).min(MAX_CHECKPOINT);
    MAX_OBJECT.saturating_sub(FRAME + checkpoint + bound_of_workload(workload))
}

/// Of two lists of edges, each ranked by importance, returns how many of each fit: the first ones. Each list has half of
/// the bytes, and what the other does not need.
pub(super) fn fitting(egress: &[usize], ingress: &[usize], bytes: usize) -> (usize, usize) {
    let half = bytes / 2;
    let (first_out, used_out) = prefix(egress, half);
    let (first_in, used_in) = prefix(ingress, bytes - half);
    let left = bytes - used_out - used_in;
    let (more_out, used_more) = prefix(&egress[first_out..], left);
    let (more_in, _) = prefix(&ingress[first_in..], left - used_more);
    (first_out + more_out, first_in + more_in)
}

/// Number of the first sizes whose sum is at most `bytes`, and their sum.
fn prefix(sizes: &[usize], bytes: usize) -> (usize, usize) {
    let mut used = 0;
    let fits = |size: &&usize| {
        let sum = used + **size;
        if sum <= bytes {
            used = sum;
        }
        sum <= bytes
    };
    let count = sizes.iter().take_while(fits).count();
    (count, used)
}

/// Returns an upper bound of an edge's size in JSON.
pub(super) fn bound(edge: &TopologyEdge) -> usize {
    let texts = |list: &[String]| list.iter().map(|text| text_bound(text) + 1).sum::<usize>() + LIST;
    let pods = edge.pods.iter().map(|EdgePod { pod, container, .. }| POD + text_bound(pod) + text_bound(container));
    let service = edge.service.as_ref().map_or(0, |ServiceReference { namespace, name, port_name, .. }| {
        text_bound(namespace) + text_bound(name) + optional(port_name.as_ref())
    });
    let proxies = edge
        .via
        .iter()
        .map(|EdgeProxy { side: _, peer, container }| PROXY + bound_of_peer(peer) + text_bound(container));
    let lists = texts(&edge.containers) + texts(&edge.dns_names) + pods.sum::<usize>() + proxies.sum::<usize>();
    EDGE + bound_of_peer(&edge.peer) + service + lists
}

fn bound_of_peer(peer: &TopologyPeer) -> usize {
    let TopologyPeer { type_: _, api_version, kind, namespace, name, node, ip, uid, cluster } = peer;
    [api_version, kind, namespace, name, node, ip, uid, cluster].into_iter().map(|text| optional(text.as_ref())).sum()
}

fn bound_of_workload(workload: &WorkloadRef) -> usize {
    let WorkloadRef {
        api_version,
        kind,
        name,
        app,
        version,
        component,
        part_of,
        pod_selector,
        service_accounts,
        host_network: _,
    } = workload;
    let labels = [app, version, component, part_of].into_iter().map(|text| optional(text.as_ref()));
    let accounts = service_accounts.iter().map(|name| text_bound(name) + 1);
    let names = text_bound(api_version) + text_bound(kind) + text_bound(name);
    names + labels.sum::<usize>() + accounts.sum::<usize>() + pod_selector.as_ref().map_or(0, bound_of_selector)
}

/// Each label of a selector stands in the object twice: also as a field of the operator's, by name.
fn bound_of_selector(selector: &PodSelector) -> usize {
    let labels = selector.match_labels.iter().map(|(key, value)| 2 * text_bound(key) + text_bound(value) + 16);
    let expressions = selector.match_expressions.iter().map(|requirement| {
        let values = requirement.values.iter().flatten().map(|value| text_bound(value) + 1);
        POD + text_bound(&requirement.key) + text_bound(&requirement.operator) + values.sum::<usize>()
    });
    labels.sum::<usize>() + expressions.sum::<usize>() + 2 * LIST
}

fn optional(text: Option<&String>) -> usize {
    text.map_or(0, |text| text_bound(text))
}

/// Bound of a text's size in JSON, quotes included. The API server escapes more than JSON asks for.
fn text_bound(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        0..b' ' | b'"' | b'\\' | b'<' | b'>' | b'&' => 6,
        0x80.. => 2,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 2
}

#[cfg(test)]
mod tests {
    use crds::{
        CaptureMethod, DirectionSource, EdgeSide, IdentitySource, OmittedEdges, PeerType, SeenEnds, Summary,
        TopologyStatus, Totals, TransportProtocol,
    };
    use k8s_openapi::{
        apimachinery::pkg::apis::meta::v1::{Condition, LabelSelectorRequirement, Time},
        jiff::Timestamp,
    };
    use proptest::prelude::*;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![3 => "[a-z0-9.-]{0,60}", 1 => any::<String>()]
    }

    /// As long as a time gets.
    fn time() -> Option<Time> {
        Timestamp::from_second(253_402_000_000).ok().map(Time)
    }

    prop_compose! {
        fn peer()(texts in prop::collection::vec(prop::option::of(text()), 8)) -> TopologyPeer {
            let mut texts = texts.into_iter();
            let mut next = || texts.next().flatten();
            TopologyPeer {
                type_: PeerType::OtherExternal,
                api_version: next(),
                kind: next(),
                namespace: next(),
                name: next(),
                node: next(),
                ip: next(),
                uid: next(),
                cluster: next(),
            }
        }
    }

    prop_compose! {
        fn edge()(
            peer in peer(),
            service in prop::option::of((text(), text(), prop::option::of(text()))),
            containers in prop::collection::vec(text(), 0..10),
            dns_names in prop::collection::vec(text(), 0..4),
            pods in prop::collection::vec((text(), text()), 0..10),
            via in prop::collection::vec((peer(), text()), 0..4),
        ) -> TopologyEdge {
            let most = u64::MAX;
            TopologyEdge {
                id: "0123456789abcdef".to_owned(),
                peer,
                service: service.map(|(namespace, name, port_name)| {
                    ServiceReference { namespace, name, port: u16::MAX, port_name }
                }),
                port: Some(u16::MAX),
                protocol: TransportProtocol::Tcp,
                containers,
                pods: pods
                    .into_iter()
                    .map(|(pod, container)| EdgePod { pod, container, opened: most, failed: most })
                    .collect(),
                omitted_pods: most,
                opened: most,
                active: most,
                failed: most,
                pending: most,
                last_failed: time(),
                bytes_sent: Some(most),
                bytes_received: Some(most),
                without_bytes: most,
                retransmits: Some(most),
                rtt_microseconds: Some(u32::MAX),
                first_seen: time(),
                last_seen: time(),
                seen: SeenEnds::Client,
                identity: IdentitySource::Conntrack,
                methods: vec![
                    CaptureMethod::Ebpf,
                    CaptureMethod::SockDiag,
                    CaptureMethod::Procfs,
                    CaptureMethod::Conntrack,
                ],
                direction: DirectionSource::Observed,
                dns_names,
                addresses: most,
                via: via
                    .into_iter()
                    .map(|(peer, container)| EdgeProxy { side: EdgeSide::Client, peer, container })
                    .collect(),
                transport_security: None,
            }
        }
    }

    prop_compose! {
        fn workload()(
            texts in prop::collection::vec(text(), 7),
            labels in prop::collection::btree_map(text(), text(), 0..20),
            accounts in prop::collection::vec(text(), 0..10),
            requirements in prop::collection::vec((text(), prop::collection::vec(text(), 0..10)), 0..5),
        ) -> WorkloadRef {
            let text = |index: usize| texts[index].clone();
            let match_expressions = requirements
                .into_iter()
                .map(|(key, values)| LabelSelectorRequirement {
                    key,
                    operator: "DoesNotExist".to_owned(),
                    values: Some(values),
                })
                .collect();
            WorkloadRef {
                api_version: text(0),
                kind: text(1),
                name: text(2),
                app: Some(text(3)),
                version: Some(text(4)),
                component: Some(text(5)),
                part_of: Some(text(6)),
                pod_selector: Some(PodSelector { match_labels: labels, match_expressions }),
                service_accounts: accounts,
                host_network: true,
            }
        }
    }

    fn length<T: serde::Serialize>(value: &T) -> usize {
        serde_json::to_string(value).expect("it is JSON").len()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn edge_is_never_larger_than_its_bound(edge in edge()) {
            prop_assert!(length(&edge) < bound(&edge), "{} {}", length(&edge), bound(&edge));
        }

        /// The metadata that the operator writes has a third of what is set aside for the frame.
        #[test]
        fn frame_is_never_larger_than_its_bound(workload in workload()) {
            let message = "x".repeat(1024);
            let condition = || Condition {
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
                message: message.clone(),
                observed_generation: None,
                reason: "x".repeat(64),
                status: "Unknown".to_owned(),
                type_: "x".repeat(64),
            };
            let totals = Totals {
                egress: u64::MAX,
                ingress: u64::MAX,
                opened: u64::MAX,
                active: u64::MAX,
                failed: u64::MAX,
                pending: u64::MAX,
                last_failed: time(),
                bytes_sent: u64::MAX,
                bytes_received: u64::MAX,
                without_bytes: u64::MAX,
                retransmits: Some(u64::MAX),
            };
            let bound = MAX_OBJECT - for_edges(&workload, None);
            let status = TopologyStatus {
                workload,
                summary: Summary { from: "…".repeat(256), to: "…".repeat(256) },
                totals,
                omitted: OmittedEdges { egress: u64::MAX, ingress: u64::MAX },
                conditions: vec![condition(), condition()],
                checkpoint: Some(String::new()),
                ..TopologyStatus::default()
            };
            prop_assert!(length(&status) < bound - FRAME / 3, "{} {bound}", length(&status));
        }

        #[test]
        fn what_fits_is_within_the_limit_and_no_more_fits(
            egress in prop::collection::vec(1..100_usize, 0..40),
            ingress in prop::collection::vec(1..100_usize, 0..40),
            bytes in 0..3000_usize,
        ) {
            let (out, into) = fitting(&egress, &ingress, bytes);
            let used: usize = egress[..out].iter().chain(&ingress[..into]).sum();
            prop_assert!(used <= bytes);
            for next in [egress.get(out), ingress.get(into)].into_iter().flatten() {
                prop_assert!(used + next > bytes);
            }
        }
    }

    #[test]
    fn neither_direction_takes_the_others_half() {
        let many = [10; 100];
        assert_eq!(fitting(&many, &many, 200), (10, 10));
        assert_eq!(fitting(&many, &many[..3], 200), (17, 3));
        assert_eq!(fitting(&many[..3], &many, 200), (3, 17));
        assert_eq!(fitting(&[], &[], 200), (0, 0));
    }
}
