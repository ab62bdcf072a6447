//! The wire format between agent and operator, and nothing else. `proto/report.proto` is its documentation.
#![forbid(unsafe_code)]

pub mod codec;
mod reason;

use std::net::IpAddr;

/// Messages, client and server of `scopeprobe.report.v1alpha1`.
#[allow(missing_docs, clippy::pedantic, reason = "generated; the .proto file documents it")]
pub mod v1alpha1 {
    tonic::include_proto!("scopeprobe.report.v1alpha1");
}

/// The most flows that one message may hold.
pub const MAX_FLOWS_PER_MESSAGE: usize = 1000;

/// The most identities that one message may hold.
pub const MAX_IDENTITIES_PER_MESSAGE: usize = 4 * MAX_FLOWS_PER_MESSAGE;

/// The longest name of a host process, in bytes.
pub const MAX_HOST_PROCESS_NAME_BYTES: usize = 253;

/// The most addresses that a node may name as its own.
pub const MAX_NODE_ADDRESSES: usize = 256;

/// The most networks of its own that a cluster may name.
pub const MAX_OWN_NETWORKS: usize = 256;

/// The most names that a flow may have for its remote address.
pub const MAX_REMOTE_NAMES: usize = 4;

/// The longest of these names, in bytes: the longest that DNS allows (RFC 1035, 2.3.4), as text.
pub const MAX_REMOTE_NAME_BYTES: usize = 253;

/// The most NAT peers that one flow may have.
pub const MAX_NAT_PEERS: usize = 16;

/// Returns an address as messages have it: 4 or 16 bytes, in network order.
#[must_use]
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The longest `CaptureState.message`, in bytes.
pub const MAX_CAPTURE_MESSAGE_BYTES: usize = 1024;
