//! Ends that a tracepoint has missed: sockets that the kernel's programs still follow and that are gone.
//!
//! Entries are checked only if runs were skipped, and no more are taken for ended than runs were skipped. A socket may
//! also belong to no process for a while: before it is accepted, or while it sends remaining data.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use node_agent_common::TrackedSocket;

use super::{accounts::KernelAccounts, folding::Folding, listing::Listing, programs::Programs, seeds::was_taken};
use crate::capture::errors::{CaptureError, failed};

/// Unlisted for so long, it is taken for gone.
const PATIENCE: Duration = Duration::from_mins(1);

/// Unlisted sockets by address, with the time since they are tracked and missing.
#[derive(Debug, Default)]
pub(super) struct TrackedSockets {
    absent: HashMap<u64, (u64, Instant)>,
    /// Runs skipped when nothing was missing.
    settled_at: u64,
    ended: u64,
}

impl TrackedSockets {
    /// Compares the tracked sockets with the open sockets.
    pub(super) fn scan(
        &mut self,
        programs: &mut Programs,
        accounts: &mut KernelAccounts,
        folding: &Folding,
        listing: &Listing,
    ) -> Result<(), CaptureError> {
        let missed = programs.missed_runs().map_err(|error| failed("asking how many runs were skipped", error))?;
        let counted = programs.counts_misses();
        if counted && missed == self.settled_at && self.absent.is_empty() {
            return Ok(());
        }
        let most = if counted { missed } else { u64::MAX };
        let mut sockets = Vec::new();
        for entry in &programs.tracked_sockets {
            sockets.push(entry.map_err(|error| failed("reading which sockets are tracked", error))?);
        }
        let is_present = |address| listing.is_present(address);
        for (address, socket) in self.find_gone(sockets, is_present, most, Instant::now()) {
            let taken = was_taken(programs.tracked_sockets.remove(&address))
                .map_err(|error| failed("letting go of a socket whose end was missed", error))?;
            if !taken && socket.established == 1 {
                accounts.add_unseen_close_of_unknown_bytes(folding.row_of(accounts, &socket.flow));
            }
        }
        self.settled_at = missed;
        Ok(())
    }

    /// Those that have been missing for long, of all that are tracked; never more than `most` in all.
    fn find_gone(
        &mut self,
        sockets: Vec<(u64, TrackedSocket)>,
        is_present: impl Fn(u64) -> bool,
        most: u64,
        now: Instant,
    ) -> Vec<(u64, TrackedSocket)> {
        let before = std::mem::take(&mut self.absent);
        let mut gone = Vec::new();
        for (address, socket) in sockets {
            if is_present(address) {
                continue;
            }
            let since = before.get(&address).filter(|(since, _)| *since == socket.since).map_or(now, |(_, at)| *at);
            if now.saturating_duration_since(since) < PATIENCE || self.ended >= most {
                self.absent.insert(address, (socket.since, since));
            } else {
                self.ended += 1;
                gone.push((address, socket));
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use node_agent_common::FlowKey;

    use super::*;

    fn socket(address: u64, since: u64) -> (u64, TrackedSocket) {
        (address, TrackedSocket { flow: FlowKey::NONE, since, client_port: 1, established: 1, reserved: 0 })
    }

    fn gone(tracked: &mut TrackedSockets, sockets: &[(u64, TrackedSocket)], most: u64, now: Instant) -> Vec<u64> {
        let found = tracked.find_gone(sockets.to_vec(), |address| address == 1, most, now);
        found.into_iter().map(|(address, _)| address).collect()
    }

    #[test]
    fn a_socket_is_gone_when_it_has_been_missing_for_long() {
        let (mut tracked, start) = (TrackedSockets::default(), Instant::now());
        let sockets = [socket(1, 10), socket(2, 20)];
        assert_eq!(gone(&mut tracked, &sockets, 9, start), Vec::<u64>::new());
        assert_eq!(gone(&mut tracked, &sockets, 9, start + PATIENCE / 2), Vec::<u64>::new());
        assert_eq!(gone(&mut tracked, &sockets, 9, start + PATIENCE), [2]);
    }

    #[test]
    fn another_socket_in_the_same_place_is_another_one() {
        let (mut tracked, start) = (TrackedSockets::default(), Instant::now());
        assert_eq!(gone(&mut tracked, &[socket(2, 20)], 9, start), Vec::<u64>::new());
        assert_eq!(gone(&mut tracked, &[socket(2, 21)], 9, start + PATIENCE), Vec::<u64>::new());
        assert_eq!(gone(&mut tracked, &[socket(2, 21)], 9, start + 2 * PATIENCE), [2]);
    }

    #[test]
    fn no_more_are_gone_than_runs_were_skipped() {
        let (mut tracked, start) = (TrackedSockets::default(), Instant::now());
        let sockets = [socket(2, 20), socket(3, 30), socket(4, 40)];
        assert_eq!(gone(&mut tracked, &sockets, 2, start), Vec::<u64>::new());
        assert_eq!(gone(&mut tracked, &sockets, 2, start + PATIENCE), [2, 3]);
        assert_eq!(gone(&mut tracked, &sockets[2..], 2, start + PATIENCE), Vec::<u64>::new());
        assert_eq!(gone(&mut tracked, &sockets[2..], 3, start + PATIENCE), [4]);
    }
}
