//! Validates a message and converts it to a report. An error names the invalid field and the violated rule.

mod field;
mod flow;

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use crds::{Folding, Losses, Mode};
use kernel_support::Reason;
use report::{
    MAX_CAPTURE_MESSAGE_BYTES, MAX_FLOWS_PER_MESSAGE, MAX_HOST_PROCESS_NAME_BYTES, MAX_IDENTITIES_PER_MESSAGE,
    MAX_NODE_ADDRESSES,
    v1alpha1::{self as wire, identity},
};
use topology::{entity::CgroupOwner, ledger::Epoch, plural::counted};

use self::field::{at_most, countable, decode_ip, invalid};
use self::flow::decode_flow;
pub(super) use self::{field::Invalid, flow::Flow};

/// Maximum length of an object's name in Kubernetes, in bytes.
const MAX_NAME_BYTES: usize = 253;
/// Maximum length of a path in Linux, in bytes.
const MAX_PATH_BYTES: usize = 4096;
/// Latest time that the API can represent, in milliseconds since 1970-01-01 UTC: the end of the year 9999.
const MAX_UNIX_MS: u64 = 253_402_300_799_999;

/// Validated message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub node: String,
    pub epoch: Epoch,
    /// The epoch in which the counters began.
    pub origin: Epoch,
    pub sequence: u64,
    pub begins_snapshot: bool,
    pub ends_snapshot: bool,
    pub capture: Capture,
    pub identities: Vec<(u64, CgroupOwner)>,
    pub flows: Vec<Flow>,
    pub node_addresses: Vec<IpAddr>,
    /// Time of sending by the node's clock, if it was reported.
    pub sent: Option<SystemTime>,
}

/// Capture method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Capture {
    pub mode: Mode,
    pub reason: Reason,
    pub message: String,
    pub attach: String,
    pub kernel: String,
    /// Time from the attach to the message.
    pub attached_age: Duration,
    /// Age of the latest reading that has been reported completely; `None` if it was not reported.
    pub complete_age: Option<Duration>,
    /// True if the capture observes UDP.
    pub observes_udp: bool,
    pub losses: Losses,
    pub seen: u64,
    /// Folding of this epoch.
    pub folding: Folding,
    /// True if the requested capture is impossible on this node, so that the agent asks for the rights of Fallback mode.
    pub asks_for_fallback: bool,
}

pub(super) fn decode(message: wire::AgentReport) -> Result<Report, Invalid> {
    if message.node.is_empty() {
        return Err(invalid("node", "is empty; it has to be the Kubernetes node's name"));
    }
    at_most("node", &message.node, MAX_NAME_BYTES)?;
    let epoch = decode_epoch("epoch", &message.epoch)?;
    let origin =
        if message.origin_epoch.is_empty() { epoch } else { decode_epoch("origin_epoch", &message.origin_epoch)? };
    if message.flows.len() > MAX_FLOWS_PER_MESSAGE {
        return Err(invalid("flows", format!("are {}; at most {MAX_FLOWS_PER_MESSAGE}", message.flows.len())));
    }
    if message.identities.len() > MAX_IDENTITIES_PER_MESSAGE {
        let problem = format!("are {}; at most {MAX_IDENTITIES_PER_MESSAGE}", message.identities.len());
        return Err(invalid("identities", problem));
    }
    let capture = message.capture.ok_or_else(|| invalid("capture", "is missing"))?;
    let identities = message.identities.into_iter().enumerate();
    let flows = message.flows.into_iter().enumerate();
    Ok(Report {
        node: message.node,
        epoch,
        origin,
        sequence: message.sequence,
        begins_snapshot: message.begins_snapshot,
        ends_snapshot: message.ends_snapshot,
        capture: decode_capture(capture, message.sent_unix_ms)?,
        identities: identities.map(|(index, identity)| decode_identity(index, identity)).collect::<Result<_, _>>()?,
        flows: flows.map(|(index, flow)| decode_flow(index, flow)).collect::<Result<_, _>>()?,
        node_addresses: decode_node_addresses(&message.node_addresses)?,
        sent: decode_sent(message.sent_unix_ms)?,
    })
}

fn decode_epoch(field: &str, bytes: &[u8]) -> Result<Epoch, Invalid> {
    let epoch = bytes.try_into();
    epoch.map(Epoch).map_err(|_| invalid(field, format!("has {}; it has to have 16", counted(bytes.len(), "byte"))))
}

fn decode_capture(capture: wire::CaptureState, sent_unix_ms: u64) -> Result<Capture, Invalid> {
    let mode = match wire::Mode::try_from(capture.mode) {
        Ok(wire::Mode::Ebpf) => Mode::Ebpf,
        Ok(wire::Mode::Fallback) => Mode::Fallback,
        Ok(wire::Mode::Unsupported) => Mode::Unsupported,
        Ok(wire::Mode::Unspecified) | Err(_) => {
            return Err(invalid("capture.mode", format!("{} is no known mode", capture.mode)));
        }
    };
    at_most("capture.message", &capture.message, MAX_CAPTURE_MESSAGE_BYTES)?;
    at_most("capture.attach", &capture.attach, 64)?;
    at_most("capture.kernel", &capture.kernel, 128)?;
    let losses = capture.losses.unwrap_or_default();
    let counts = [
        ("capture.attached_unix_ms", capture.attached_unix_ms),
        ("capture.attached_age_ms", capture.attached_age_ms),
        ("capture.complete_age_ms", capture.complete_age_ms),
        ("capture.seen", capture.seen),
        ("capture.folded", capture.folded),
        ("capture.losses.opened", losses.opened),
        ("capture.losses.closed", losses.closed),
        ("capture.losses.failed", losses.failed),
        ("capture.losses.new_flow_notifications", losses.new_flow_notifications),
        ("capture.losses.closes_unseen", losses.closes_unseen),
        ("capture.losses.event_overflows", losses.event_overflows),
        ("capture.losses.missed_runs", losses.missed_runs),
    ];
    for (field, count) in counts {
        countable(field, count)?;
    }
    let attached_age = attached_age(&capture, sent_unix_ms);
    Ok(Capture {
        mode,
        reason: Reason::from(capture.reason()),
        message: capture.message,
        attach: capture.attach,
        kernel: capture.kernel,
        attached_age,
        complete_age: (capture.complete_age_ms > 0).then(|| Duration::from_millis(capture.complete_age_ms)),
        observes_udp: capture.observes_udp,
        losses: Losses {
            opened: losses.opened,
            closed: losses.closed,
            failed: losses.failed,
            new_flow_notifications: losses.new_flow_notifications,
            closes_unseen: losses.closes_unseen,
            event_overflows: losses.event_overflows,
            missed_runs: losses.missed_runs,
        },
        seen: capture.seen,
        folding: Folding { is_active: capture.is_folding, connections: capture.folded },
        asks_for_fallback: match wire::Mode::try_from(capture.asks_for) {
            Ok(wire::Mode::Unspecified) => false,
            Ok(wire::Mode::Fallback) => true,
            _ => return Err(invalid("capture.asks_for", format!("{} is nothing to ask for", capture.asks_for))),
        },
    })
}

/// Returns the age of the attach. An earlier version of the agent does not report it: it is then computed by the node's
/// clock.
fn attached_age(capture: &wire::CaptureState, sent_unix_ms: u64) -> Duration {
    let by_clock = match capture.attached_unix_ms {
        0 => 0,
        attached => sent_unix_ms.saturating_sub(attached),
    };
    Duration::from_millis(if capture.attached_age_ms > 0 { capture.attached_age_ms } else { by_clock })
}

fn decode_identity(index: usize, identity: wire::Identity) -> Result<(u64, CgroupOwner), Invalid> {
    let field = |name: &str| format!("identities[{index}].{name}");
    at_most(field("cgroup_path"), &identity.cgroup_path, MAX_PATH_BYTES)?;
    let owner = match identity.owner {
        Some(identity::Owner::PodContainer(pod)) => {
            if pod.pod_uid.is_empty() {
                return Err(invalid(field("pod_container.pod_uid"), "is empty"));
            }
            at_most(field("pod_container.pod_uid"), &pod.pod_uid, MAX_NAME_BYTES)?;
            at_most(field("pod_container.container_id"), &pod.container_id, MAX_NAME_BYTES)?;
            CgroupOwner::PodContainer { pod_uid: pod.pod_uid, container_id: pod.container_id }
        }
        Some(identity::Owner::HostProcess(process)) => {
            at_most(field("host_process.name"), &process.name, MAX_HOST_PROCESS_NAME_BYTES)?;
            CgroupOwner::HostProcess { name: process.name }
        }
        None => return Err(invalid(field("owner"), "is missing, or of a kind that this operator does not know")),
    };
    Ok((identity.cgroup_id, owner))
}

fn decode_sent(unix_ms: u64) -> Result<Option<SystemTime>, Invalid> {
    if unix_ms > MAX_UNIX_MS {
        return Err(invalid("sent_unix_ms", format!("{unix_ms} is beyond the year 9999")));
    }
    Ok((unix_ms > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms)))
}

fn decode_node_addresses(addresses: &[Vec<u8>]) -> Result<Vec<IpAddr>, Invalid> {
    if addresses.len() > MAX_NODE_ADDRESSES {
        return Err(invalid("node_addresses", format!("are {}; at most {MAX_NODE_ADDRESSES}", addresses.len())));
    }
    let addresses = addresses.iter().enumerate();
    addresses
        .map(|(index, bytes)| decode_ip(bytes).map_err(|problem| invalid(format!("node_addresses[{index}]"), problem)))
        .collect()
}

#[cfg(test)]
mod tests {
    use topology::{
        flow::{FlowCounters, FlowKey, Protocol, Role},
        nat_peer::NatPeer,
        rtt::RttHistogram,
        sighting::Ages,
    };

    use super::*;

    fn message() -> wire::AgentReport {
        wire::AgentReport {
            node: "node-1".to_owned(),
            epoch: vec![7; 16],
            sequence: 1,
            begins_snapshot: true,
            ends_snapshot: true,
            capture: Some(wire::CaptureState {
                mode: wire::Mode::Ebpf.into(),
                reason: wire::Reason::Supported.into(),
                ..wire::CaptureState::default()
            }),
            identities: vec![wire::Identity {
                cgroup_id: 5,
                cgroup_path: "/kubepods/pod1/c".to_owned(),
                owner: Some(identity::Owner::HostProcess(wire::HostProcess { name: "sshd".to_owned() })),
            }],
            flows: vec![wire::Flow {
                cgroup_id: 5,
                netns: 9,
                role: wire::Role::Server.into(),
                local_ip: vec![10, 0, 0, 1],
                remote_ip: vec![10, 0, 0, 2],
                port: 22,
                counters: Some(wire::Counters {
                    opened: 3,
                    closed: 1,
                    retransmits: Some(0),
                    rtt: vec![0, 2, 1],
                    ..wire::Counters::default()
                }),
                run: 2,
                protocol: wire::Protocol::Udp.into(),
                remote_names: vec!["example.com".to_owned()],
                nat_peers: vec![wire::NatPeer { ip: vec![10, 0, 0, 7], port: 0, opened: 2 }],
                first_seen_age_ms: 9_000,
                news_age_ms: 2_000,
                changed_age_ms: 500,
            }],
            node_addresses: vec![vec![10, 0, 0, 9]],
            origin_epoch: Vec::new(),
            sent_unix_ms: 1_700_000_000_000,
        }
    }

    #[test]
    fn a_good_message_is_taken_as_it_is() {
        let report = decode(message()).expect("the message is good");
        let key = FlowKey {
            cgroup_id: 5,
            netns: 9,
            role: Role::Server,
            local: "10.0.0.1".parse().expect("an address"),
            remote: "10.0.0.2".parse().expect("an address"),
            port: 22,
            protocol: Protocol::Udp,
        };
        let counters = FlowCounters {
            run: 2,
            opened: 3,
            closed: 1,
            retransmits: Some(0),
            rtt: RttHistogram::from_counts(&[0, 2, 1]).expect("three buckets"),
            ..FlowCounters::default()
        };
        let [first, news, changed] = [9_000, 2_000, 500].map(Duration::from_millis);
        let (ages, remote_names) = (Ages::of(first, news, changed), vec!["example.com".to_owned()]);
        let nat_peers = vec![(NatPeer { ip: "10.0.0.7".parse().expect("an address"), port: 0 }, 2)];
        assert_eq!(report.flows, [Flow { key, counters, ages, remote_names, nat_peers }]);
        assert_eq!(report.sent, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        assert_eq!(report.identities, [(5, CgroupOwner::HostProcess { name: "sshd".to_owned() })]);
        assert_eq!((report.capture.mode, report.capture.reason), (Mode::Ebpf, Reason::Supported));
    }

    #[test]
    fn folded_row_is_a_flow_with_unspecified_remote_address() {
        let mut message = message();
        message.flows[0].remote_ip = vec![0; 4];
        let capture = message.capture.as_mut().expect("it is there");
        (capture.folded, capture.is_folding) = (3, true);
        let report = decode(message).expect("the message is good");
        assert!(report.flows[0].key.is_folded());
        assert_eq!(report.capture.folding, Folding { is_active: true, connections: 3 });
    }

    #[test]
    fn attach_is_told_by_age_or_else_by_the_clock() {
        let age = |age_ms, unix_ms, sent_ms| {
            let mut message = message();
            let capture = message.capture.as_mut().expect("it is there");
            (capture.attached_age_ms, capture.attached_unix_ms) = (age_ms, unix_ms);
            message.sent_unix_ms = sent_ms;
            decode(message).expect("the message is good").capture.attached_age.as_millis()
        };
        assert_eq!(age(700, 5_000, 9_000), 700, "the clock may have been set meanwhile");
        assert_eq!((age(0, 5_000, 9_000), age(0, 5_000, 0), age(0, 0, 9_000)), (4_000, 0, 0));
    }

    #[test]
    fn each_fault_is_named_with_its_field() {
        type Fault = fn(&mut wire::AgentReport);
        fn counters(message: &mut wire::AgentReport) -> &mut wire::Counters {
            message.flows[0].counters.as_mut().expect("the message has counters")
        }
        let faults: [(&str, Fault); 38] = [
            ("node", |message| message.node.clear()),
            ("node", |message| message.node = "x".repeat(254)),
            ("epoch", |message| message.epoch.truncate(15)),
            ("origin_epoch", |message| message.origin_epoch = vec![7; 17]),
            ("capture", |message| message.capture = None),
            ("capture.mode", |message| message.capture.as_mut().expect("it is there").mode = 0),
            ("capture.mode", |message| message.capture.as_mut().expect("it is there").mode = 77),
            ("capture.message", |message| message.capture.as_mut().expect("it is there").message = "x".repeat(1025)),
            ("capture.attached_age_ms", |message| {
                message.capture.as_mut().expect("it is there").attached_age_ms = u64::MAX;
            }),
            ("node_addresses", |message| message.node_addresses = vec![vec![10, 0, 0, 9]; 257]),
            ("node_addresses[0]", |message| message.node_addresses[0].clear()),
            ("flows", |message| message.flows = vec![message.flows[0].clone(); 1001]),
            ("identities[0].owner", |message| message.identities[0].owner = None),
            ("flows[0].role", |message| message.flows[0].role = 0),
            ("flows[0].local_ip", |message| message.flows[0].local_ip = vec![1, 2, 3]),
            ("flows[0].remote_ip", |message| message.flows[0].remote_ip = vec![0x20; 16]),
            ("flows[0].port", |message| message.flows[0].port = 65_536),
            ("flows[0].counters", |message| message.flows[0].counters = None),
            ("flows[0].counters.opened", |message| counters(message).opened = u64::MAX),
            ("flows[0].protocol", |message| message.flows[0].protocol = 2),
            ("flows[0].remote_names", |message| message.flows[0].remote_names = vec!["a".to_owned(); 5]),
            ("flows[0].remote_names[0]", |message| message.flows[0].remote_names = vec!["a".repeat(254)]),
            ("flows[0].remote_names[0]", |message| message.flows[0].remote_names = vec![String::new()]),
            ("flows[0].remote_names[1]", |message| message.flows[0].remote_names.push("a b".to_owned())),
            ("flows[0].counters.open_bytes_sent", |message| counters(message).open_bytes_sent = 1),
            ("flows[0].counters.pending_ended", |message| counters(message).pending_ended = 1),
            ("flows[0].counters.retransmits", |message| counters(message).retransmits = Some(u64::MAX)),
            ("flows[0].counters.open_retransmits", |message| counters(message).open_retransmits = 1),
            ("flows[0].counters.preexisting_retransmits", |message| counters(message).preexisting_retransmits = 1),
            ("flows[0].counters.rtt", |message| counters(message).rtt = vec![0; 15]),
            ("flows[0].nat_peers", |message| message.flows[0].nat_peers = vec![wire::NatPeer::default(); 17]),
            ("flows[0].nat_peers[0].ip", |message| message.flows[0].nat_peers[0].ip.clear()),
            ("flows[0].nat_peers[0].port", |message| message.flows[0].nat_peers[0].port = 80),
            ("flows[0].nat_peers[0].opened", |message| message.flows[0].nat_peers[0].opened = u64::MAX),
            ("flows[0].first_seen_age_ms", |message| message.flows[0].first_seen_age_ms = u64::MAX),
            ("flows[0].news_age_ms", |message| message.flows[0].news_age_ms = 9_001),
            ("flows[0].changed_age_ms", |message| message.flows[0].changed_age_ms = 2_001),
            ("sent_unix_ms", |message| message.sent_unix_ms = u64::MAX),
        ];
        for (field, fault) in faults {
            let mut broken = message();
            fault(&mut broken);
            let problem = decode(broken).expect_err(field);
            assert_eq!(problem.field, field, "{problem}");
        }
    }

    #[test]
    fn reason_of_a_newer_agent_is_unknown_and_keeps_its_message() {
        for number in [99, i32::MAX, -1] {
            let mut newer = message();
            let capture = newer.capture.as_mut().expect("it is there");
            (capture.reason, capture.message) = (number, "no moon tonight".to_owned());
            let capture = decode(newer).expect("nothing is wrong with it").capture;
            assert_eq!((capture.reason, capture.message.as_str()), (Reason::Unknown, "no moon tonight"));
        }
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        let mut mapped = message();
        mapped.flows[0].local_ip = [vec![0; 10], vec![0xff, 0xff], vec![10, 0, 0, 1]].concat();
        let report = decode(mapped).expect("the message is good");
        assert_eq!(report.flows[0].key.local, "10.0.0.1".parse::<IpAddr>().expect("an address"));
    }
}
