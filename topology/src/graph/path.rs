//! Paths from clients to their servers.

use std::rc::Rc;

use super::{candidates::Candidates, observed::ClientFlow};

/// Path from a client to its servers, most certain first: that leaves less to guess.
#[derive(Clone, Debug)]
pub(super) enum Path<'a> {
    /// Both ends see the same addresses, of which one has had several owners.
    AddressReuse,
    /// Both ends see the same addresses.
    Direct,
    /// Through a Service that leads to one workload at one port.
    ToOne(Rc<Candidates<'a>>),
    /// Through a Service that leads to several.
    ToMany(Rc<Candidates<'a>>),
}

impl Path<'_> {
    /// Returns the place in the order of passes.
    pub(super) fn rank(&self) -> usize {
        match self {
            Self::AddressReuse | Self::Direct => 0,
            Self::ToOne(_) => 1,
            Self::ToMany(_) => 2,
        }
    }
}

/// A client's flow with the servers' flows that may be its other end, best first.
#[derive(Debug)]
pub(super) struct Call<'s, 'a> {
    pub(super) client_flow: &'s ClientFlow<'a>,
    pub(super) path: Path<'a>,
    pub(super) server_flows: Vec<usize>,
}
