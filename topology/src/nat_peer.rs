//! NAT peers of connections whose addresses were rewritten, from their node's conntrack.

use std::{collections::BTreeMap, net::IpAddr};

use crate::count;

/// Maximum number of NAT peers of one flow; further ones are not stored.
pub const MAX_NAT_PEERS: usize = 16;

/// NAT peer: the other end of connections, which this end observes under another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NatPeer {
    /// The server's own address, or the client's.
    pub ip: IpAddr,
    /// The port at which the server listens; 0 for a client.
    pub port: u16,
}

/// NAT peers of one flow, with their numbers of connections.
///
/// Counts only grow. A connection that was open when an epoch ended counts again in the next one, so the sum can exceed
/// the flow's connections. The sum is less if not all connections were tracked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatPeers {
    /// Connections in earlier epochs and in this one.
    counts: BTreeMap<NatPeer, (u64, u64)>,
}

impl NatPeers {
    /// Merges an agent's report, which may be older than the stored counts. Returns whether anything changed. Of more
    /// than [`MAX_NAT_PEERS`], the first ones stay.
    pub fn take_in(&mut self, told: &[(NatPeer, u64)]) -> bool {
        let mut is_news = false;
        for (end, count) in told {
            if self.counts.len() >= MAX_NAT_PEERS && !self.counts.contains_key(end) {
                continue;
            }
            let (_, current) = self.counts.entry(*end).or_default();
            let count = count::bounded(*count);
            is_news |= count > *current;
            *current = count.max(*current);
        }
        is_news
    }

    /// Returns whether both have the same ends. Their numbers of connections may differ.
    #[must_use]
    pub fn have_same_ends(&self, other: &Self) -> bool {
        self.counts.keys().eq(other.counts.keys())
    }

    /// Begins an epoch in which the agent's counts start at zero.
    pub fn begin_anew(&mut self) {
        for (before, current) in self.counts.values_mut() {
            *before = count::add(*before, std::mem::take(current));
        }
    }

    /// Continues from `earlier`, because the agent's counts do. The stored counts do not exceed the ones that the agent
    /// will report.
    pub fn resume(&mut self, earlier: &Self) {
        for (end, (before, current)) in &mut self.counts {
            let all = before.saturating_add(*current);
            *before = earlier.counts.get(end).map_or(0, |(before, _)| *before);
            *current = all.saturating_sub(*before);
        }
    }

    /// Returns the NAT peers with their numbers of connections, by address.
    pub fn iter(&self) -> impl Iterator<Item = (NatPeer, u64)> + '_ {
        self.counts.iter().map(|(end, (before, current))| (*end, count::add(*before, *current)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(last: u8) -> NatPeer {
        NatPeer { ip: IpAddr::from([10, 0, 0, last]), port: 80 }
    }

    #[test]
    fn counts_grow_over_epochs_and_repeating_changes_nothing() {
        let mut ends = NatPeers::default();
        assert!(ends.take_in(&[(end(1), 3), (end(2), 1)]));
        assert!(!ends.take_in(&[(end(1), 2), (end(2), 1)]), "an older report");
        ends.begin_anew();
        assert!(ends.take_in(&[(end(1), 1)]));
        assert_eq!(ends.iter().collect::<Vec<_>>(), [(end(1), 4), (end(2), 1)]);
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let mut ends = NatPeers::default();
        let many: Vec<(NatPeer, u64)> = (0..40).map(|last| (end(last), 1)).collect();
        ends.take_in(&many);
        assert_eq!(ends.iter().count(), MAX_NAT_PEERS);
        assert!(ends.take_in(&[(end(0), 2)]) && !ends.take_in(&[(end(39), 2)]));
    }
}
