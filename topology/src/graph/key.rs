//! Keys of edges in the making.

use super::endpoints::PeerId;
use crate::{entity::ServiceRef, flow::Protocol};

/// A Service's port, by reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ServiceKey<'a> {
    pub service: &'a ServiceRef,
    pub port: u16,
}

/// An edge's key, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key<'a> {
    pub client: PeerId,
    pub server: PeerId,
    pub service: Option<ServiceKey<'a>>,
    pub port: Option<u16>,
    pub protocol: Protocol,
}
