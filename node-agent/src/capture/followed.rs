//! Ends that a tracepoint has missed: sockets that the kernel's programs still follow and that are gone.
//!
//! Looked for only where runs were skipped, and no more are taken for ended than runs were: a socket may also be in no
//! process's hands for a while, before it is accepted or while it sends what is left.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    CaptureError,
    accounts::Accounts,
    existing::{failed, was_taken},
    kernel::Kernel,
    listing::Listing,
};

/// Unlisted for so long, it is taken for gone.
const PATIENCE: Duration = Duration::from_mins(1);

/// What was not listed, by address: since when it is followed, and since when it is missing.
#[derive(Debug, Default)]
pub(super) struct Followed {
    absent: HashMap<u64, (u64, Instant)>,
    /// Runs skipped when nothing was missing.
    settled_at: u64,
    ended: u64,
}

impl Followed {
    /// Compares what is followed with what is there.
    pub(super) fn look(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        listing: &Listing,
    ) -> Result<(), CaptureError> {
        let missed = kernel.missed_runs().map_err(|error| failed("asking how many runs were skipped", error))?;
        let counted = kernel.counts_misses();
        if counted && missed == self.settled_at && self.absent.is_empty() {
            return Ok(());
        }
        let most = if counted { missed } else { u64::MAX };
        let now = Instant::now();
        let before = std::mem::take(&mut self.absent);
        let mut gone = Vec::new();
        for entry in &kernel.followed {
            let (address, socket) = entry.map_err(|error| failed("reading which sockets are followed", error))?;
            if listing.is_present(address) {
                continue;
            }
            let since = before.get(&address).filter(|(since, _)| *since == socket.since).map_or(now, |(_, at)| *at);
            if now.saturating_duration_since(since) < PATIENCE || self.ended + gone.len() as u64 >= most {
                self.absent.insert(address, (socket.since, since));
            } else {
                gone.push((address, socket));
            }
        }
        for (address, socket) in gone {
            let taken = was_taken(kernel.followed.remove(&address))
                .map_err(|error| failed("letting go of a socket whose end was missed", error))?;
            if !taken && socket.established == 1 {
                accounts.add_unseen_close_of_unknown_bytes(socket.flow);
                self.ended += 1;
            }
        }
        self.settled_at = missed;
        Ok(())
    }
}
