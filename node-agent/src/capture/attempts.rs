//! Attempts to connect that were under way when the capture began, and that no agent has seen begin: they carry no callback
//! flags. One that succeeds gets them then; the failure of one is seen by what sees the end of old connections.

use std::collections::{HashMap, HashSet};

use node_agent_common::FlowKey;

use super::{
    CaptureError,
    accounts::Accounts,
    existing::remove_seed,
    kernel::Kernel,
    listing::{Attempt, Listing},
};

/// Those that are under way, by cookie, with the flow of their client.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    under_way: HashMap<u64, FlowKey>,
    unwatched: u64,
}

impl Attempts {
    /// Those of the first listing. Where changes of state are followed, all failures are seen.
    pub(super) fn of(kernel: &Kernel, listing: &Listing) -> Self {
        let is_old = |(_, attempt): &(&u64, &Attempt)| !kernel.follows() && !attempt.has_callbacks;
        let under_way =
            listing.attempts.iter().filter(is_old).map(|(cookie, attempt)| (*cookie, attempt.flow)).collect();
        Self { under_way, unwatched: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Attempts that did not fit into the kernel's table: what came of them is not known.
    pub(super) fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Has the kernel count their failures.
    pub(super) fn enter(&mut self, kernel: &mut Kernel) {
        let before = self.under_way.len();
        self.under_way.retain(|cookie, flow| kernel.seeds.insert(cookie, *flow, 0).is_ok());
        self.unwatched += (before - self.under_way.len()) as u64;
    }

    /// Leaves out what is not under way any more: it was established, and `noted` where that was during the first look;
    /// or its failure was counted, or missed.
    pub(super) fn look(
        &mut self,
        kernel: &mut Kernel,
        accounts: &mut Accounts,
        listing: &Listing,
        noted: &HashSet<u64>,
    ) -> Result<(), CaptureError> {
        let is_old = |cookie: &u64| listing.attempts.get(cookie).is_some_and(|attempt| !attempt.has_callbacks);
        let over: Vec<_> = self.under_way.extract_if(|cookie, _| !is_old(cookie)).collect();
        for (cookie, flow) in over {
            let is_counted = remove_seed(kernel, cookie)? || noted.contains(&cookie);
            // Another program may have enabled its callbacks meanwhile.
            if !is_counted && !listing.attempts.contains_key(&cookie) {
                accounts.add_unseen_failure(flow);
            }
        }
        Ok(())
    }
}
