//! Addresses, and where they mean one thing.

use std::net::IpAddr;

use crate::flow::Protocol;

/// Part of the cluster in which an address means one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope<'a> {
    /// All of it.
    Cluster,
    /// A node: several nodes have the address on interfaces of their own, or it is link-local.
    Node(&'a str),
    /// A network namespace of a node: loopback.
    Namespace(&'a str, u32),
}

impl Scope<'_> {
    /// Returns whether both ends are in one network namespace.
    pub(super) fn is_loopback(self) -> bool {
        matches!(self, Self::Namespace(..))
    }
}

/// An address and port that a client called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Called<'a> {
    pub(super) scope: Scope<'a>,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

impl Called<'_> {
    /// Returns the same address, port and protocol as the whole cluster knows it.
    pub(super) fn in_cluster(self) -> Self {
        Self { scope: Scope::Cluster, ..self }
    }
}
