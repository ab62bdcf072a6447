//! Servers that a client's flow may have reached behind the address that it called.

use std::{collections::BTreeSet, net::IpAddr, time::SystemTime};

use super::{address::Called, key::ServiceKey, names::PeerId};
use crate::{entity::Backend, hash::HashMap};

/// Possible targets of an address and port that was called.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    pub(super) called: Called<'a>,
    /// The Service's port; `None` if a host port was called, or the server itself.
    pub(super) service: Option<ServiceKey>,
    /// Backends, with the pods that they are or were, if known.
    pub(super) backends: HashMap<(IpAddr, u16), Vec<Option<&'a str>>>,
    /// The one workload and port, if there is only one.
    pub(super) only: Option<(PeerId, u16)>,
    /// True if all backends are on nodes that report.
    pub(super) observed: bool,
    /// Latest time by which all of their agents had reported, if noted.
    pub(super) heard: Option<SystemTime>,
}

/// A server that may have been reached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    /// UID of its pod, if known.
    pub(super) pod: Option<&'a str>,
}

/// Redirection of ports to a proxy in a pod's network.
#[derive(Debug, Default)]
pub(super) struct Redirection {
    /// Ports at which the proxy accepts connections.
    pub(super) ports: BTreeSet<u16>,
    /// Ports that are not redirected: others than the pod itself are connected with servers there.
    pub(super) listened: BTreeSet<u16>,
}

impl<'a> From<&'a Backend> for Target<'a> {
    fn from(backend: &'a Backend) -> Self {
        Self { ip: backend.ip, port: backend.port, pod: backend.pod_uid.as_deref() }
    }
}

impl<'a> Candidates<'a> {
    /// Returns the address and port of a backend. What was called itself means the same as it did to the client.
    pub(super) fn at(&self, ip: IpAddr, port: u16) -> Called<'a> {
        let is_itself = self.service.is_none() && (ip, port) == (self.called.ip, self.called.port);
        if is_itself { self.called } else { Called { ip, port, ..self.called.in_cluster() } }
    }

    /// Returns whether there is one address at which a server can have answered, without a Service.
    pub(super) fn is_one_server(&self) -> bool {
        self.service.is_none() && self.backends.len() == 1
    }
}
