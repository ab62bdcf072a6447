//! Entries of connection tracking, as far as they are known. Pure.

use topology::flow::FlowKey;

use super::conntrack_message::{Carried, Direction};

/// An entry of conntrack's: the kernel makes its number of where the entry is stored, so it needs the addresses.
pub(super) type Name = (u32, Direction);

/// Connection that a conntrack entry describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Current {
    /// A track, by number.
    Track(u64),
    /// A connection that has ended and is counted, but for its bytes, which the kernel tells when it drops the entry: for
    /// the flows of the client's and the server's side, if for any.
    Counted(Option<Box<[Option<FlowKey>; 2]>>),
}

impl Current {
    pub(super) fn counted(flows: [Option<FlowKey>; 2]) -> Self {
        Self::Counted((flows != [None; 2]).then(|| Box::new(flows)))
    }
}

/// An entry that exists.
#[derive(Clone, Debug)]
pub(super) struct KnownEntry {
    pub(super) current: Current,
    /// The list that has shown it last, if what is heard is not certainly newer.
    pub(super) listed: u32,
}

/// The bytes of a connection whose end was counted long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LateBytes {
    /// Those of the client's and of the server's side that it counts for.
    pub(super) flows: [Option<FlowKey>; 2],
    pub(super) carried: [Carried; 2],
}

/// Source of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// They are heard as things happen.
    #[default]
    Live,
    /// They are of a list, and newer than all that was heard.
    Listing,
    /// They are heard again, and may be older than the list.
    Behind,
}
