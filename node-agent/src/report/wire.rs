//! From the agent's types to the wire's.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use report::{MAX_CAPTURE_MESSAGE_BYTES, MAX_HOST_PROCESS_NAME_BYTES, MAX_OWN_NETWORKS, octets, v1alpha1 as wire};
use topology::{
    entity::{CgroupOwner, Network},
    flow::{FlowCounters, FlowKey, Protocol, Role},
    nat_peer::NatPeer,
    plural::counted,
    sighting::Ages,
    with_flow_counts,
};

use crate::{
    attribution::Attributed,
    capture::{Losses, Mode},
    observation::CaptureState,
};

/// The state of the capture as of `now`; its message is cut to what the wire allows. Everything up to `complete_until` has
/// been reported.
#[must_use]
pub fn capture_state(state: &CaptureState, complete_until: Option<Instant>, now: Instant) -> wire::CaptureState {
    let mode = match state.mode {
        Some(Mode::Ebpf) => wire::Mode::Ebpf,
        Some(Mode::Fallback) => wire::Mode::Fallback,
        None => wire::Mode::Unsupported,
    };
    wire::CaptureState {
        mode: mode.into(),
        reason: wire::Reason::from(state.reason).into(),
        message: cut(&message(state), MAX_CAPTURE_MESSAGE_BYTES).to_owned(),
        attach: state.attach.to_owned(),
        kernel: state.kernel.clone(),
        attached_unix_ms: state.attached_at.map_or(0, unix_ms),
        attached_age_ms: state.attached_instant.map_or(0, |attached| millis(now.saturating_duration_since(attached))),
        losses: Some(losses(&state.losses)),
        seen: state.seen,
        folded: state.folded.connections,
        is_folding: state.folded.is_active,
        // 0 is no age.
        complete_age_ms: complete_until.map_or(0, |until| millis(now.saturating_duration_since(until)).max(1)),
        observes_udp: state.observes_udp,
        asks_for: if state.asks_for_fallback { wire::Mode::Fallback } else { wire::Mode::Unspecified }.into(),
    }
}

/// Longest path of a cgroup that is reported. A thousand of them fit into a message together with their flows.
const MAX_PATH_BYTES: usize = 1024;

/// Returns the identity of a cgroup. Cuts a name or a path that is longer than the operator accepts.
#[must_use]
pub fn identity(cgroup_id: u64, attributed: &Attributed) -> wire::Identity {
    let owner = match attributed.owner.clone() {
        CgroupOwner::PodContainer { pod_uid, container_id } => {
            wire::identity::Owner::PodContainer(wire::PodContainer { pod_uid, container_id })
        }
        CgroupOwner::HostProcess { name } => {
            let name = cut(&name, MAX_HOST_PROCESS_NAME_BYTES).to_owned();
            wire::identity::Owner::HostProcess(wire::HostProcess { name })
        }
    };
    let cgroup_path = cut(&attributed.path, MAX_PATH_BYTES).to_owned();
    wire::Identity { cgroup_id, cgroup_path, owner: Some(owner) }
}

/// A flow, its counters, and how long ago they came to be.
#[must_use]
pub fn flow(
    key: &FlowKey,
    counters: &FlowCounters,
    remote_names: &[Arc<str>],
    ages: Ages,
    nat_peers: &[(NatPeer, u64)],
) -> wire::Flow {
    let role = match key.role {
        Role::Client => wire::Role::Client,
        Role::Server => wire::Role::Server,
    };
    wire::Flow {
        cgroup_id: key.cgroup_id,
        netns: key.netns,
        role: role.into(),
        local_ip: octets(key.local),
        remote_ip: octets(key.remote),
        port: key.port.into(),
        protocol: match key.protocol {
            Protocol::Tcp => wire::Protocol::Tcp,
            Protocol::Udp => wire::Protocol::Udp,
        }
        .into(),
        remote_names: remote_names.iter().map(ToString::to_string).collect(),
        nat_peers: nat_peers.iter().map(nat_peer).collect(),
        run: counters.run,
        first_seen_age_ms: millis(ages.first()),
        news_age_ms: millis(ages.news()),
        changed_age_ms: millis(ages.changed()),
        counters: Some(wire_counters(counters)),
    }
}

fn wire_counters(counters: &FlowCounters) -> wire::Counters {
    macro_rules! encode {
        ({ $($growing:ident)* } { $($open:ident)* } $parts:tt) => {
            wire::Counters {
                $($growing: counters.$growing,)*
                $($open: counters.$open,)*
                methods: counters.methods.bits(),
                retransmits: counters.retransmits,
                rtt: counters.rtt.counts().to_vec(),
            }
        };
    }
    with_flow_counts!(encode)
}

fn nat_peer((end, opened): &(NatPeer, u64)) -> wire::NatPeer {
    wire::NatPeer { ip: octets(end.ip), port: end.port.into(), opened: *opened }
}

fn message(state: &CaptureState) -> Cow<'_, str> {
    match state.unreported_flows {
        0 => Cow::Borrowed(&state.message),
        // First, so that it is never what is cut off.
        evicted_unreported => Cow::Owned(format!(
            "{} left the agent's memory before they could be reported: at most what is counted as lost of \
             their connections is missing (raise maxFlows); {}",
            counted(evicted_unreported, "flow"),
            state.message
        )),
    }
}

fn losses(losses: &Losses) -> wire::Losses {
    wire::Losses {
        opened: losses.opened,
        closed: losses.closed,
        failed: losses.failed,
        new_flow_notifications: losses.new_flow_notifications,
        closes_unseen: losses.closes_unseen,
        event_overflows: losses.event_overflows,
        missed_runs: losses.missed_runs,
    }
}

// The kernel's table holds all networks of a reply.
const _: () = assert!(MAX_OWN_NETWORKS <= node_agent_common::folding::NETWORKS as usize);

/// Returns the cluster's own networks of a reply, without those that are no networks.
pub(super) fn own_networks(reply: &wire::OwnNetworks) -> Arc<[Network]> {
    let network = |network: &wire::Network| {
        let ip = match network.ip.as_slice() {
            [a, b, c, d] => IpAddr::from([*a, *b, *c, *d]),
            longer => IpAddr::from(<[u8; 16]>::try_from(longer).ok()?),
        };
        Network::new(ip, u8::try_from(network.prefix).ok()?)
    };
    reply.networks.iter().filter_map(network).collect()
}

/// A time as the report writes it.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("aüb", 2), "a");
        assert_eq!(cut("aüb", 3), "aü");
        assert_eq!(cut("aüb", 99), "aüb");
    }

    #[test]
    fn names_and_paths_of_any_cgroup_are_short_enough_for_the_operator() {
        // A process may make cgroups of its own, with names as long as the kernel allows.
        let (name, path) = ("ü".repeat(200), format!("/{}", "ü".repeat(2000)));
        let attributed = Attributed { path, owner: CgroupOwner::HostProcess { name } };
        let identity = identity(1, &attributed);
        let Some(wire::identity::Owner::HostProcess(process)) = identity.owner else { panic!("{:?}", identity.owner) };
        assert_eq!(process.name, "ü".repeat(126));
        assert_eq!(identity.cgroup_path.len(), MAX_PATH_BYTES - 1);
    }

    #[test]
    fn networks_of_a_reply_are_read_as_far_as_they_are_networks() {
        let network = |ip: &[u8], prefix| wire::Network { ip: ip.to_vec(), prefix };
        let reply = wire::OwnNetworks {
            networks: vec![network(&[203, 0, 113, 1], 24), network(&[1, 2, 3], 8), network(&[10; 16], 129)],
            omitted: 0,
        };
        assert_eq!(*own_networks(&reply), [Network::parse("203.0.113.1/24").unwrap()]);
    }

    #[test]
    fn addresses_are_4_or_16_bytes() {
        assert_eq!(octets("10.0.0.1".parse().unwrap()), [10, 0, 0, 1]);
        assert_eq!(octets("::1".parse().unwrap()).len(), 16);
    }
}
