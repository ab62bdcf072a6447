//! Shares of counters.

use crate::{edge::EdgeCounters, history::Counted};

/// Shares counters out to those who have counted so much, oldest first; what is left over is the oldest one's. The sum is
/// what there was.
pub(super) fn share_out(counters: &EdgeCounters, parts: &[Counted]) -> Vec<EdgeCounters> {
    let mut left = *counters;
    let mut shares = Vec::with_capacity(parts.len());
    for (older, part) in parts.iter().enumerate().rev() {
        let (opened, failed) = (part.opened.min(left.opened), part.failed.min(left.failed));
        let is_all = (opened, failed) == (left.opened, left.failed);
        let share = if older == 0 || is_all {
            left
        } else {
            EdgeCounters {
                failed,
                // They are the newest.
                pending: left.pending,
                // What is open was opened last.
                active: left.active.min(opened),
                bytes_sent: part.bytes_sent.min(left.bytes_sent),
                bytes_received: part.bytes_received.min(left.bytes_received),
                ..left.share(opened)
            }
        };
        left = left.without(&share);
        shares.push(share);
    }
    shares.reverse();
    shares
}
