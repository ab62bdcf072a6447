//! Netlink: its framing, its sockets, and the messages of `sock_diag` and conntrack.

pub(super) mod codec;
pub(super) mod conntrack;
pub(super) mod conntrack_message;
pub(super) mod sock_diag;
pub(super) mod socket;
