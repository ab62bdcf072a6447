//! Peers as the API writes them, and back.

use crds::{PeerType, TopologyPeer};
use topology::{
    edge::Peer,
    entity::{ServiceRef, Workload},
};

/// Returns a peer as the API writes it. `api_version` names a workload's API version.
pub(super) fn written(peer: &Peer, api_version: impl FnOnce(&Workload) -> String) -> TopologyPeer {
    let of = |type_: PeerType| TopologyPeer { type_, ..TopologyPeer::default() };
    let named = |type_: PeerType, name: &str| TopologyPeer { name: Some(name.to_owned()), ..of(type_) };
    let at = |type_: PeerType, ip: std::net::IpAddr| TopologyPeer { ip: Some(ip.to_string()), ..of(type_) };
    match peer {
        Peer::Workload(workload) => TopologyPeer {
            api_version: Some(api_version(workload)),
            kind: Some(workload.kind.clone()),
            namespace: Some(workload.namespace.clone()),
            ..named(PeerType::Workload, &workload.name)
        },
        Peer::Service(service) => {
            TopologyPeer { namespace: Some(service.namespace.clone()), ..named(PeerType::Service, &service.name) }
        }
        Peer::Node { node } => named(PeerType::Node, node),
        Peer::HostProcess { node, name } => {
            TopologyPeer { node: Some(node.clone()), ..named(PeerType::HostProcess, name) }
        }
        Peer::ApiServer => of(PeerType::ApiServer),
        Peer::ExternalGroup { name } => named(PeerType::ExternalGroup, name),
        Peer::ExternalName { name } => named(PeerType::DnsName, name),
        Peer::External { ip } => at(PeerType::Ip, *ip),
        Peer::BehindNode { node } => TopologyPeer { node: Some(node.clone()), ..of(PeerType::External) },
        Peer::OtherExternal => of(PeerType::OtherExternal),
        Peer::UnknownPod { uid } => TopologyPeer { uid: Some(uid.clone()), ..of(PeerType::UnknownPod) },
        Peer::SomePod { ip } => at(PeerType::UnknownPod, *ip),
    }
}

/// Reads a peer; `None` where a field that its type needs is missing or malformed.
pub(super) fn read(peer: &TopologyPeer) -> Option<Peer> {
    let name = || peer.name.clone();
    let ip = || peer.ip.as_deref()?.parse().ok();
    Some(match peer.type_ {
        PeerType::Workload => Peer::Workload(Workload {
            namespace: peer.namespace.clone()?,
            kind: peer.kind.clone()?,
            name: name()?,
            group: group(peer.api_version.as_deref()?).to_owned(),
        }),
        PeerType::Service => Peer::Service(ServiceRef { namespace: peer.namespace.clone()?, name: name()? }),
        PeerType::Node => Peer::Node { node: name()? },
        PeerType::HostProcess => Peer::HostProcess { node: peer.node.clone()?, name: name()? },
        PeerType::ApiServer => Peer::ApiServer,
        PeerType::ExternalGroup => Peer::ExternalGroup { name: name()? },
        PeerType::DnsName => Peer::ExternalName { name: name()? },
        PeerType::Ip => Peer::External { ip: ip()? },
        PeerType::External => Peer::BehindNode { node: peer.node.clone()? },
        PeerType::OtherExternal => Peer::OtherExternal,
        PeerType::UnknownPod => match &peer.uid {
            Some(uid) => Peer::UnknownPod { uid: uid.clone() },
            None => Peer::SomePod { ip: ip()? },
        },
    })
}

/// Returns the API group of `group/version`; empty for the core group.
pub(super) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}
