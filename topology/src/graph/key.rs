//! Keys of edges in the making.

use super::names::{PeerId, ServiceId};
use crate::flow::Protocol;

/// A Service's port, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ServiceKey {
    pub service: ServiceId,
    pub port: u16,
}

/// An edge's key, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub client: PeerId,
    pub server: PeerId,
    pub service: Option<ServiceKey>,
    pub port: Option<u16>,
    pub protocol: Protocol,
}
