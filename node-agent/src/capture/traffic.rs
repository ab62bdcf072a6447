//! Traffic of connections, as one end counts it.

/// Payload in both directions, and the segments that this end had to send again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Retransmitted segments; 0 if the payload comes from conntrack, which does not count them.
    pub(super) retransmits: u64,
}

impl Traffic {
    /// With other connections.
    pub(super) fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// Without what is part of it; 0 at least.
    pub(super) fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    /// The greater of each.
    pub(super) fn max(self, other: Self) -> Self {
        self.with(other, Ord::max)
    }

    fn with(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            sent: join(self.sent, other.sent),
            received: join(self.received, other.received),
            retransmits: join(self.retransmits, other.retransmits),
        }
    }
}
