//! Backends that a client's flow to a Service may have reached.

use std::{net::IpAddr, time::SystemTime};

use super::{key::ServiceKey, names::PeerId};
use crate::hash::HashMap;

/// Possible targets of a Service's port.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    pub(super) service: ServiceKey,
    /// Backends, with the pods that they are or were, if known.
    pub(super) backends: HashMap<(IpAddr, u16), Vec<Option<&'a str>>>,
    /// The one workload and port, if there is only one.
    pub(super) only: Option<(PeerId, u16)>,
    /// True if all backends are on nodes that report.
    pub(super) observed: bool,
    /// Latest time by which all of their agents had reported, if noted.
    pub(super) heard: Option<SystemTime>,
}
