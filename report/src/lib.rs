//! The wire format between agent and operator, and nothing else. `proto/report.proto` is its documentation.
#![forbid(unsafe_code)]

/// Messages, client and server of `scopeprobe.report.v1alpha1`.
#[allow(missing_docs, clippy::pedantic, reason = "generated; the .proto file documents it")]
pub mod v1alpha1 {
    tonic::include_proto!("scopeprobe.report.v1alpha1");
}

/// The most flows that one message may hold.
pub const MAX_FLOWS_PER_MESSAGE: usize = 1000;

/// The most addresses that a node may name as its own.
pub const MAX_NODE_ADDRESSES: usize = 256;

/// The longest `CaptureState.message`, in bytes.
pub const MAX_CAPTURE_MESSAGE_BYTES: usize = 1024;
