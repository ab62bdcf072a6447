//! Notifications of changes of the cluster's state.

use tokio::sync::watch;

/// Senders of notifications.
#[derive(Debug, Default)]
pub struct ClusterChanges {
    all: watch::Sender<()>,
    requests: watch::Sender<()>,
}

impl ClusterChanges {
    /// Notifies receivers of a change that no assignment depends on.
    pub fn mark(&self) {
        self.all.send_replace(());
    }

    /// Notifies receivers of a change on which assignments depend.
    pub fn mark_requests(&self) {
        self.mark();
        self.requests.send_replace(());
    }

    /// Returns a receiver that is notified of each change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.all.subscribe()
    }

    /// Returns a receiver that is notified of each change on which assignments depend.
    #[must_use]
    pub fn subscribe_requests(&self) -> watch::Receiver<()> {
        self.requests.subscribe()
    }
}
