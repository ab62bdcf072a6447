//! Keys of flows, as the kernel writes them and as the rest of the agent knows them. Pure.

use std::net::{IpAddr, Ipv6Addr};

use node_agent_common::{FlowKey, Protocol, Role};
use topology::flow;

/// Returns the key as the rest of the agent knows it. `None` for a key that none of our programs has written, and for
/// addresses of different families, since the operator refuses a message with such a flow as a whole.
pub(super) fn public_key(key: &FlowKey) -> Option<flow::FlowKey> {
    let (local, remote) = (address(key.local()), address(key.remote()));
    (local.is_ipv4() == remote.is_ipv4()).then_some(())?;
    Some(flow::FlowKey {
        cgroup_id: key.cgroup(),
        netns: key.netns(),
        role: match key.role()? {
            Role::Client => flow::Role::Client,
            Role::Server => flow::Role::Server,
        },
        local,
        remote,
        port: key.port(),
        protocol: match key.protocol() {
            Protocol::Tcp => flow::Protocol::Tcp,
            Protocol::Udp => flow::Protocol::Udp,
        },
    })
}

/// Returns the kernel's key of a flow.
pub(super) fn kernel_key(key: &flow::FlowKey) -> FlowKey {
    let role = match key.role {
        flow::Role::Client => Role::Client,
        flow::Role::Server => Role::Server,
    };
    let tcp = FlowKey::new(key.cgroup_id, key.netns, role, key.port, octets(key.local), octets(key.remote));
    match key.protocol {
        flow::Protocol::Tcp => tcp,
        flow::Protocol::Udp => tcp.over_udp(),
    }
}

pub(super) fn address(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

pub(super) fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_way_out_and_back() {
        let (tcp, udp) = (flow::Protocol::Tcp, flow::Protocol::Udp);
        let ends = [
            ("10.0.0.1", "10.0.0.2", tcp),
            ("10.0.0.1", "10.0.0.2", udp),
            ("::1", "fd00::2", tcp),
            ("::1", "::1", udp),
        ];
        for (local, remote, protocol) in ends {
            let outside = flow::FlowKey {
                cgroup_id: 5,
                netns: 6,
                role: flow::Role::Client,
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
                port: 443,
                protocol,
            };
            assert_eq!(public_key(&kernel_key(&outside)), Some(outside));
        }
    }

    #[test]
    fn addresses_of_two_families_are_no_flows() {
        let mapped = octets("10.0.0.1".parse().unwrap());
        let key = |local, remote| FlowKey::new(1, 1, Role::Client, 53, local, remote).over_udp();
        let v6 = octets("fd00::1".parse().unwrap());
        assert!(public_key(&key(mapped, mapped)).is_some() && public_key(&key(v6, v6)).is_some());
        assert!(public_key(&key(v6, mapped)).is_none() && public_key(&key(mapped, v6)).is_none());
    }
}
