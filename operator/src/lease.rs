//! One writer: the holder of a Lease.

use std::time::Duration;

use kube::{Client, Config};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;

use crate::settings::Settings;

/// How long one request about the lease may take: a hanging API server must not let the lease lapse unnoticed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The lease could not be read or made.
    #[error("cannot use Lease {namespace}/{name}: {source}")]
    Use {
        /// The operator's namespace.
        namespace: String,
        /// The lease's name.
        name: String,
        /// What went wrong.
        source: Box<LeaseManagerError>,
    },
    /// There is no connection for it.
    #[error("cannot make a client for the lease: {0}")]
    Client(Box<kube::Error>),
}

/// The lease, and whether this operator holds it.
pub struct Lease {
    manager: LeaseManager,
    holds: watch::Sender<bool>,
}

impl Lease {
    /// Reads the lease, or makes it. The holder's name is that of the operator's pod: a container that is started again
    /// in it goes on at once, because its predecessor is certainly gone.
    ///
    /// # Errors
    /// Where the API server refuses.
    pub async fn new(mut config: Config, settings: &Settings) -> Result<Self, LeaseError> {
        config.connect_timeout = Some(REQUEST_TIMEOUT);
        config.read_timeout = Some(REQUEST_TIMEOUT);
        config.write_timeout = Some(REQUEST_TIMEOUT);
        let client = Client::try_from(config).map_err(|error| LeaseError::Client(Box::new(error)))?;
        let manager = LeaseManagerBuilder::new(client, &settings.lease_name)
            .with_namespace(&settings.namespace)
            .with_identity(&settings.identity)
            .with_duration(settings.lease_seconds)
            // Renewed half-way, so that two failures in a row still come before its end.
            .with_grace(settings.lease_seconds / 2)
            .build()
            .await
            .map_err(|error| LeaseError::Use {
                namespace: settings.namespace.clone(),
                name: settings.lease_name.clone(),
                source: Box::new(error),
            })?;
        Ok(Self { manager, holds: watch::Sender::new(false) })
    }

    /// True while this operator may write.
    #[must_use]
    pub fn holds(&self) -> watch::Receiver<bool> {
        self.holds.subscribe()
    }

    /// Gets the lease and renews it; ends when it was lost, which leaves nothing but to stop.
    pub async fn keep(&self) {
        loop {
            match self.manager.changed().await {
                Ok(true) => {
                    tracing::info!("holding the lease");
                    self.holds.send_replace(true);
                }
                Ok(false) if *self.holds.borrow() => break,
                Ok(false) => {}
                Err(error) if *self.holds.borrow() => {
                    tracing::warn!(%error, "cannot renew the lease, trying once more");
                    let again = tokio::time::timeout(REQUEST_TIMEOUT, self.manager.changed()).await;
                    if matches!(again, Ok(Err(_) | Ok(false))) {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot read the lease, trying again");
                    tokio::time::sleep(REQUEST_TIMEOUT).await;
                }
            }
        }
        self.holds.send_replace(false);
    }

    /// Gives the lease to whoever wants it next.
    pub async fn release(&self) {
        self.holds.send_replace(false);
        if let Err(error) = self.manager.release().await {
            tracing::warn!(%error, "cannot release the lease; it ends by itself");
        }
    }
}
