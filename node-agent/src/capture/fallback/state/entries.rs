//! Entries of connection tracking, as far as they were reported. Pure.

use topology::flow::FlowKey;

use crate::capture::fallback::netlink::conntrack_message::{Carried, Direction};

/// Identity of a conntrack entry: the kernel derives the ID from the entry's memory address, so it needs the addresses.
pub(in crate::capture::fallback) type Name = (u32, Direction);

/// Connection that a conntrack entry describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) enum Current {
    /// A track, by number.
    Entry(u64),
    /// A connection that has ended and is counted except for its bytes, which the kernel reports when it drops the entry.
    /// Contains the flows of the client's and the server's side, if any.
    Counted(Option<Box<[Option<FlowKey>; 2]>>),
}

impl Current {
    pub(in crate::capture::fallback) fn counted(flows: [Option<FlowKey>; 2]) -> Self {
        Self::Counted((flows != [None; 2]).then(|| Box::new(flows)))
    }
}

/// Existing entry.
#[derive(Clone, Debug)]
pub(in crate::capture::fallback) struct KnownEntry {
    pub(in crate::capture::fallback) current: Current,
    /// Last list that contained it, if further messages are not certainly newer.
    pub(in crate::capture::fallback) listed: u32,
}

/// Bytes of a connection whose end was counted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::capture::fallback) struct LateBytes {
    /// Flows of the client's and of the server's side for which it counts.
    pub(in crate::capture::fallback) flows: [Option<FlowKey>; 2],
    pub(in crate::capture::fallback) carried: [Carried; 2],
}

/// Source of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::capture::fallback) enum MessageOrigin {
    /// Events, received as they happen.
    #[default]
    Live,
    /// A list, newer than all received events.
    Listing,
    /// Events after a list, which may be older than the list.
    Behind,
}
