//! Numbers of what connects flows: see [`super::partition`].

/// Number of an anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AnchorId(pub(super) u32);
