//! Readings of pending attempts: what the kernel's table and the counters say at the same time.

use std::{collections::HashMap, time::Instant};

use aya::maps::MapError;
use node_agent_common::PendingAttempt;

use super::EbpfCapture;
use crate::capture::errors::{CaptureError, failed};

impl EbpfCapture {
    /// Reads the attempts that wait for an answer. To be called before the counts are read: an attempt that is gone has been
    /// counted.
    pub(super) fn read_pending(&mut self, now: Instant) -> Result<(), CaptureError> {
        let read = |error| failed("reading pending attempts", error);
        let unwatched = self.preexisting.waiting_attempts(&self.programs).map_err(read)?;
        let mut present: HashMap<u64, PendingAttempt> = HashMap::new();
        for entry in &self.programs.pending {
            let (cookie, attempt) = entry.map_err(read)?;
            present.insert(cookie, attempt);
        }
        let cookies = unwatched.iter().map(|(cookie, _)| *cookie).collect();
        for (cookie, flow) in unwatched {
            present.entry(cookie).or_insert(PendingAttempt { flow, retransmits: 0 });
        }
        for cookie in self.pending.replace(present, &cookies, now) {
            // The kernel may have removed it meanwhile.
            let _ = self.programs.pending.remove(&cookie);
        }
        Ok(())
    }

    /// Counts the pending attempts. To be called last: attempts that were answered since they were read are counted as
    /// answered only.
    pub(super) fn count_pending(&mut self, now: Instant) -> Result<(), CaptureError> {
        while self.remove_answered().map_err(|error| failed("reading pending attempts", error))? {
            self.collect(Instant::now())?;
        }
        let (folding, accounts) = (&self.folding, &self.accounts);
        let pending = self.pending.count(now, |flow| folding.row_of_pending(accounts, flow));
        self.accounts.set_pending(pending);
        Ok(())
    }

    /// Removes the attempts that do not wait any more. Returns whether there were any.
    fn remove_answered(&mut self) -> Result<bool, MapError> {
        let (programs, preexisting) = (&self.programs, &self.preexisting);
        self.pending.remove_answered(|cookie| match programs.pending.get(&cookie, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => preexisting.is_waiting(programs, cookie),
            Err(error) => Err(error),
        })
    }
}
