//! The ledger as the tasks of the operator share it. The collector applies reports. The publisher reads it, and evicts
//! expired flows.

use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use topology::ledger::Ledger;

/// Account of all agents' flows. Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct SharedLedger {
    ledger: Arc<Mutex<Ledger>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for SharedLedger {
    fn default() -> Self {
        Self { ledger: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }
}

impl SharedLedger {
    /// Returns the ledger. Its lock is to be held for a moment only: agents wait for it. A graph is built from a
    /// [`snapshot`](Ledger::snapshot).
    #[must_use]
    pub fn ledger(&self) -> &Mutex<Ledger> {
        &self.ledger
    }

    /// Notifies receivers that a flow has changed.
    pub fn mark_changed(&self) {
        self.changed.send_replace(());
    }

    /// Returns a receiver that is notified of each change of a flow.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
