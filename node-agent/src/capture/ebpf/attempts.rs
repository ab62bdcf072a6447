//! Attempts that were in progress when the capture began, and whose beginning no agent observed: they carry no callback
//! flags. A successful one gets them then. A failure is detected like the end of an old connection.

use std::collections::{HashMap, HashSet};

use node_agent_common::FlowKey;

use super::{
    accounts::KernelAccounts,
    listing::{Attempt, Listing},
    programs::Programs,
    seeds::remove_seed,
};
use crate::capture::errors::CaptureError;

/// Attempts in progress, by cookie, with the flow of their client.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    under_way: HashMap<u64, FlowKey>,
    unwatched: u64,
}

impl Attempts {
    /// Returns the attempts of the first listing; none if sockets are tracked, because all failures are then observed.
    pub(super) fn of(programs: &Programs, listing: &Listing) -> Self {
        let is_old = |(_, attempt): &(&u64, &Attempt)| !programs.follows() && !attempt.has_callbacks;
        let under_way =
            listing.attempts.iter().filter(is_old).map(|(cookie, attempt)| (*cookie, attempt.flow)).collect();
        Self { under_way, unwatched: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Returns the number of attempts that did not fit into the kernel's table: their results are unknown.
    pub(super) fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Enters seeds, so that the kernel program counts their failures.
    pub(super) fn enter(&mut self, programs: &mut Programs) {
        let before = self.under_way.len();
        self.under_way.retain(|cookie, flow| programs.seeds.insert(cookie, *flow, 0).is_ok());
        self.unwatched += (before - self.under_way.len()) as u64;
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
