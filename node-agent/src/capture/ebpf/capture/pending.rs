//! Readings of pending attempts: what the kernel's table and the counters say at the same time.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use node_agent_common::{FlowKey, PendingAttempt};

use super::EbpfCapture;
use crate::capture::{
    ebpf::pending_attempts::{AnswerSource, AttemptState},
    errors::{CaptureError, failed},
};

/// Time between looks at an attempt that a program counts just now. Programs take microseconds.
const PAUSE: Duration = Duration::from_micros(100);

impl EbpfCapture {
    /// Reads the attempts that wait for an answer.
    pub(super) fn read_pending(&mut self, now: Instant) -> Result<(), CaptureError> {
        let unwatched = self.preexisting.waiting_attempts(&self.programs).map_err(unreadable)?;
        let mut present: HashMap<u64, PendingAttempt> = HashMap::new();
        for entry in &self.programs.pending {
            let (cookie, attempt) = entry.map_err(unreadable)?;
            present.insert(cookie, attempt);
        }
        let cookies = unwatched.iter().map(|(cookie, _)| *cookie).collect();
        for (cookie, flow) in unwatched {
            let entry = present.entry(cookie).or_insert(PendingAttempt { flow, retransmits: 0, is_answered: 0 });
            // A program that marks an attempt from before the capture does not know its flow.
            entry.flow = flow;
        }
        let stale = self.pending.update(present, &cookies, now);
        self.remove_entries(&stale);
        Ok(())
    }

    /// Counts the pending attempts. To be called last: attempts that were answered since they were read are counted as
    /// answered only.
    pub(super) fn count_pending(&mut self, now: Instant) -> Result<(), CaptureError> {
        let mut pending = std::mem::take(&mut self.pending);
        let settled = pending.settle(self);
        self.pending = pending;
        settled?;
        let (folding, accounts) = (&self.folding, &self.accounts);
        let pending = self.pending.count(now, |flow| folding.row_of_pending(accounts, flow));
        self.accounts.set_pending(pending);
        Ok(())
    }

    /// Records the slots of rows that count answers of this flow: the notification of a new row waits while another program
    /// writes an earlier one.
    fn assign_slots(&mut self, flow: &FlowKey, now: Instant) -> Result<(), MapError> {
        for key in [*flow, flow.folded()] {
            match self.programs.slot_of.get(&key, 0) {
                Ok(slot) => self.slots.assign(slot, key, now),
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AnswerSource for EbpfCapture {
    type Error = CaptureError;

    fn state(&self, cookie: u64) -> Result<AttemptState, CaptureError> {
        // Read first: the program marks the attempt before it takes the seed.
        if self.preexisting.is_waiting(&self.programs, cookie).map_err(unreadable)? {
            return Ok(AttemptState::Waiting);
        }
        match self.programs.pending.get(&cookie, 0) {
            Ok(PendingAttempt { is_answered: 0, .. }) => Ok(AttemptState::Waiting),
            Ok(_) => Ok(AttemptState::BeingCounted),
            Err(MapError::KeyNotFound) => Ok(AttemptState::Counted),
            Err(error) => Err(unreadable(error)),
        }
    }

    fn collect_answers(&mut self, flows: &[FlowKey]) -> Result<(), CaptureError> {
        let now = Instant::now();
        for flow in flows {
            self.assign_slots(flow, now).map_err(unreadable)?;
        }
        self.collect(now).map(drop)
    }

    fn pause(&mut self) {
        thread::sleep(PAUSE);
    }

    fn remove_entries(&mut self, cookies: &[u64]) {
        for cookie in cookies {
            // The kernel may have removed it meanwhile.
            let _ = self.programs.pending.remove(cookie);
        }
    }
}

fn unreadable(error: MapError) -> CaptureError {
    failed("reading pending attempts", error)
}
