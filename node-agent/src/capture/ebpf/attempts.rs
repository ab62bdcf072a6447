//! Attempts that were in progress when the capture began, and whose beginning no agent observed: they carry no callback
//! flags. A successful one gets them then. A failure is detected like the end of an old connection.

use std::collections::{HashMap, HashSet};

use aya::maps::MapError;
use aya_obj::generated::BPF_NOEXIST;
use node_agent_common::{FlowKey, PendingAttempt};

use super::{
    accounts::KernelAccounts,
    listing::{Attempt, Listing},
    programs::Programs,
    seeds::remove_seed,
};
use crate::capture::errors::CaptureError;

/// Maximum number of attempts that are looked up at each reading.
const MAX_WAITING: usize = 1024;

/// Attempts in progress, by cookie, with the flow of their client.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    under_way: HashMap<u64, FlowKey>,
    /// Attempts that were entered as pending ones since the last listing.
    entered: HashSet<u64>,
    unwatched: u64,
}

impl Attempts {
    /// Returns the attempts of the first listing; none if sockets are tracked, because all failures are then observed.
    pub(super) fn of(programs: &Programs, listing: &Listing) -> Self {
        let is_old = |(_, attempt): &(&u64, &Attempt)| !programs.follows() && !attempt.has_callbacks;
        let under_way =
            listing.attempts.iter().filter(is_old).map(|(cookie, attempt)| (*cookie, attempt.flow)).collect();
        Self { under_way, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Returns the number of attempts that did not fit into the kernel's table: their results are unknown.
    pub(super) fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Returns the attempts that wait for their answer: the kernel program takes the seed of one that is answered.
    pub(super) fn waiting(&self, programs: &Programs) -> Result<Vec<(u64, FlowKey)>, MapError> {
        let mut waiting = Vec::new();
        for (cookie, flow) in self.under_way.iter().take(MAX_WAITING) {
            if has_seed(programs, *cookie)? {
                waiting.push((*cookie, *flow));
            }
        }
        Ok(waiting)
    }

    /// Returns whether this attempt waits for its answer.
    pub(super) fn is_waiting(&self, programs: &Programs, cookie: u64) -> Result<bool, MapError> {
        Ok(self.under_way.contains_key(&cookie) && has_seed(programs, cookie)?)
    }

    /// Enters seeds, so that the kernel program counts their failures.
    pub(super) fn enter(&mut self, programs: &mut Programs) {
        let before = self.under_way.len();
        self.under_way.retain(|cookie, flow| programs.seeds.insert(cookie, *flow, 0).is_ok());
        self.unwatched += (before - self.under_way.len()) as u64;
    }

    /// Enters the attempts of which an earlier agent has seen the SYN, and that wait for their answer: the kernel would call
    /// the program at their next retransmission only, which may come a minute later. One that was answered after it was
    /// listed stays until the next listing, which comes before it counts as pending.
    pub(super) fn enter_pending(&mut self, programs: &mut Programs, listing: &Listing) {
        if programs.follows() {
            return;
        }
        for (cookie, attempt) in listing.attempts.iter().filter(|(_, it)| it.has_callbacks && it.is_retransmitted) {
            let entry = PendingAttempt { flow: attempt.flow, retransmits: 0, is_answered: 0 };
            if programs.pending.insert(cookie, entry, u64::from(BPF_NOEXIST)).is_ok() {
                self.entered.insert(*cookie);
            }
        }
    }

    /// Removes attempts that are no longer in progress. They were established (and `noted` during the first listings), or
    /// their failure was counted or missed.
    pub(super) fn scan(
        &mut self,
        programs: &mut Programs,
        accounts: &mut KernelAccounts,
        listing: &Listing,
        noted: &HashSet<u64>,
    ) -> Result<(), CaptureError> {
        for cookie in self.entered.drain().filter(|cookie| !listing.attempts.contains_key(cookie)) {
            // The kernel program may have removed it.
            let _ = programs.pending.remove(&cookie);
        }
        let is_old = |cookie: &u64| listing.attempts.get(cookie).is_some_and(|attempt| !attempt.has_callbacks);
        let over: Vec<_> = self.under_way.extract_if(|cookie, _| !is_old(cookie)).collect();
        for (cookie, flow) in over {
            let is_counted = remove_seed(programs, cookie)? || noted.contains(&cookie);
            // Another program may have enabled its callbacks meanwhile.
            if !is_counted && !listing.attempts.contains_key(&cookie) {
                accounts.add_unseen_failure(flow);
            }
        }
        Ok(())
    }
}

fn has_seed(programs: &Programs, cookie: u64) -> Result<bool, MapError> {
    match programs.seeds.get(&cookie, 0) {
        Ok(_) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(error) => Err(error),
    }
}
