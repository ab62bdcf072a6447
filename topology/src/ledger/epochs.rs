//! Epochs of one node: the one that reports, and those that have ended.

use std::collections::VecDeque;

use super::{Epoch, LateEpoch};

/// Number of ended epochs that are remembered in order to recognise their late messages.
const REMEMBERED: usize = 64;

/// An epoch and its origin: the epoch in which its counters began, itself unless it continues an earlier one.
#[derive(Clone, Copy, Debug)]
struct KnownEpoch {
    epoch: Epoch,
    origin: Epoch,
    has_flows: bool,
}

/// The epochs of one node.
#[derive(Clone, Debug)]
pub(super) struct Epochs {
    current: KnownEpoch,
    /// True if an earlier epoch of the same origin has reported here, and others in between.
    is_resumed: bool,
    ended: VecDeque<KnownEpoch>,
}

impl Epochs {
    pub(super) fn new(epoch: Epoch, origin: Epoch) -> Self {
        let current = KnownEpoch { epoch, origin, has_flows: false };
        Self { current, is_resumed: false, ended: VecDeque::new() }
    }

    pub(super) fn is_current(&self, epoch: Epoch) -> bool {
        self.current.epoch == epoch
    }

    /// Returns the origin of the current epoch.
    pub(super) fn origin(&self) -> Epoch {
        self.current.origin
    }

    /// Returns the origin of the current epoch if its counters continue those of a replaced epoch.
    pub(super) fn resumed(&self) -> Option<Epoch> {
        self.is_resumed.then_some(self.current.origin)
    }

    /// Notes that the current epoch has reported a flow.
    pub(super) fn note_flow(&mut self) {
        self.current.has_flows = true;
    }

    /// Makes another epoch the current one.
    ///
    /// # Errors
    /// If it has ended.
    pub(super) fn enter(&mut self, epoch: Epoch, origin: Epoch) -> Result<(), LateEpoch> {
        if self.ended.iter().any(|ended| ended.epoch == epoch) {
            return Err(LateEpoch);
        }
        if origin != self.current.origin {
            self.is_resumed = self.ended.iter().any(|ended| ended.origin == origin);
        }
        if self.ended.len() == REMEMBERED {
            // Of an epoch without flows, a late message can count nothing twice.
            let expendable = self.ended.iter().position(|ended| !ended.has_flows).unwrap_or_default();
            self.ended.remove(expendable);
        }
        self.ended.push_back(self.current);
        self.current = KnownEpoch { epoch, origin, has_flows: false };
        Ok(())
    }
}
