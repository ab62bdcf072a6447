//! State that the worker thread and the rest of the agent share.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use nix::sys::eventfd::EventFd;

use super::state::connections::Connections;

/// State shared between the thread and its owner.
pub(super) struct SharedState {
    pub(super) state: Mutex<FallbackState>,
    pub(super) stop: AtomicBool,
    pub(super) new_flow_notifications: EventFd,
}

/// Latest state of the capture.
pub(super) struct FallbackState {
    pub(super) connections: Connections,
    pub(super) overflows: u64,
    /// Namespaces with sockets whose processes were not searched, because the CPU budget was exhausted.
    pub(super) unattributed: HashSet<u32>,
    pub(super) passes: u64,
    /// Time up to which everything that scans can show is known since the latest pass, and since the one before. Conntrack
    /// events in between are settled by a later scan.
    pub(super) passed_from: [Option<Instant>; 2],
    pub(super) last_pass: Duration,
    pub(super) cost: Duration,
    pub(super) used: Duration,
}

impl SharedState {
    pub(super) fn lock(&self) -> MutexGuard<'_, FallbackState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn announce(&self) {
        // A write fails only if the counter is at its maximum: the reader is then notified already.
        let _ = self.new_flow_notifications.write(1);
    }
}

impl FallbackState {
    pub(super) fn passed(&mut self, known_until: Instant, cost: Duration, used: Duration) {
        self.passes += 1;
        self.passed_from = [Some(known_until), self.passed_from[0]];
        (self.last_pass, self.cost, self.used) = (known_until.elapsed(), cost, used);
    }

    pub(super) fn unattributed(&mut self, netns: u32, is: bool) {
        if is {
            self.unattributed.insert(netns);
        } else {
            self.unattributed.remove(&netns);
        }
    }
}
