//! Interface of a capture to the rest of the agent, and what one reading returns.

use std::{os::fd::BorrowedFd, time::Instant};

use topology::{
    entity::Network,
    flow::{FlowCounters, FlowKey},
    nat_peer::NatPeer,
};

use super::{description::Description, errors::CaptureError};
use crate::names::Answer;

/// Source of flows. It needs no async runtime: [`Capture::read`] blocks for some milliseconds at most.
pub trait Capture: Send {
    /// Returns the method of this capture and its limitations.
    fn description(&self) -> &Description;

    /// Returns the flows whose counters have changed since the last call, with their counters since the capture began.
    /// These are absolute values that never decrease, except `open_bytes_*`. Drains [`Capture::new_flow_notifications`].
    ///
    /// # Errors
    /// Returns an error if the kernel refuses to return counters. The next call may succeed and then returns all changes.
    fn read(&mut self) -> Result<Reading, CaptureError>;

    /// Returns a descriptor that becomes readable on a new flow; `None` if this capture has no such notification.
    fn new_flow_notifications(&self) -> Option<BorrowedFd<'_>>;

    /// Drops those of these flows that have no open connection and have not changed since the last reading. Returns the
    /// dropped flows. Their counters restart at zero if they return.
    fn forget(&mut self, keys: &[FlowKey]) -> Vec<FlowKey>;

    /// Sets the cluster's own networks beside private ones. Flows with addresses in them are never folded. A capture that
    /// does not fold ignores them.
    fn set_own_networks(&mut self, _networks: &[Network]) {}
}

/// Result of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Flows that have changed since the last reading, each once.
    pub flows: Vec<(FlowKey, FlowCounters)>,
    /// NAT peers of these flows that conntrack reported, with all counts since the capture began.
    pub nat_peers: Vec<(FlowKey, Vec<(NatPeer, u64)>)>,
    /// DNS responses since the last reading, with the cgroup of the receiving socket. Responses that led to a flow's
    /// remote address come with this reading or before it.
    pub answers: Vec<(u64, Answer)>,
    /// Losses since the capture began.
    pub losses: Losses,
    /// Folding since the capture began.
    pub folded: Folded,
    /// Opened connections and failed attempts of all flows since the capture began, dropped flows included.
    pub seen: u64,
    /// Time up to which all events are in this reading or an earlier one; `None` if only the present is known.
    pub complete_until: Option<Instant>,
    /// True if more flows have changed than one reading holds: the caller reads again at once.
    pub is_partial: bool,
}

/// Maximum number of flows of one [`Reading`], so that a burst of new flows takes little memory.
pub(super) const MAX_FLOWS_PER_READING: usize = 8192;

/// Flows that have changed.
pub(super) struct Changes {
    pub(super) flows: Vec<(FlowKey, FlowCounters)>,
    /// True if further flows have changed.
    pub(super) are_partial: bool,
}

/// Folding of flows with external remote addresses into rows without one, while the flow table is nearly full. Nothing is
/// lost by it: folded rows count exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// True if flows are folded now, or folded rows have open connections.
    pub is_active: bool,
    /// Connections, conversations and failed attempts that folded rows have counted.
    pub connections: u64,
}

/// Exact numbers of events that could not be stored, since the capture began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Connections that opened while the flow table was full. With a tracepoint, also connections and attempts that
    /// namespaces counted beyond [`Losses::missed_runs`] and other known losses.
    pub opened: u64,
    /// Connections that closed while the flow table was full: their bytes are missing.
    pub closed: u64,
    /// Failed attempts while the flow table was full.
    pub failed: u64,
    /// Notifications of new flows that did not fit into the ring buffer; the next reading contained these flows.
    pub new_flow_notifications: u64,
    /// Preexisting connections whose end was not observed: their last bytes are missing.
    pub closes_unseen: u64,
    /// Overflows of the queue of conntrack events; the open entries were listed again after each.
    pub event_overflows: u64,
    /// Runs of a tracepoint's program that the kernel skipped: at most as many openings, ends or failures are missing.
    pub missed_runs: u64,
}
