//! The collector's port over the operator's standing: closed while another operator may take over.
//!
//! An operator that is cut off from the API server loses its lease, and does not learn whether another one has taken it. Its
//! agents would keep their open streams and report to it without end. It therefore ends them and closes the port: the
//! agents reach the other operator through the Service. If the API server is gone for all, there is no other one. The
//! operator then opens the port again, so that no agent that ends meanwhile takes its last counters with it.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tokio::{net::TcpListener, sync::watch, time::sleep};

use super::{CollectorInputs, serve};
use crate::{listen::bind, settings::Settings};

/// The collector's port.
pub struct CollectorPort {
    /// Its address.
    pub address: SocketAddr,
    /// Inputs of the collector.
    pub inputs: CollectorInputs,
    /// True while the operator holds the lease.
    pub holds: watch::Receiver<bool>,
    /// Time after the lease has lapsed in which another operator takes over, and the agents come to it.
    pub handover: Duration,
}

impl CollectorPort {
    /// Prepares the port of these settings. `holds` is true while the operator holds the lease.
    #[must_use]
    pub fn new(settings: &Settings, inputs: CollectorInputs, holds: watch::Receiver<bool>) -> Self {
        let handover = Duration::from_secs(settings.lease_seconds);
        Self { address: settings.collector_listen, inputs, holds, handover }
    }

    /// Serves until `stopping` becomes true. `listener` is the bound port.
    ///
    /// # Errors
    /// Returns an error if the port cannot be bound again, or fails as a whole.
    pub async fn serve(self, mut listener: TcpListener, stopping: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Self { address, inputs, holds, handover } = self;
        loop {
            let (lapse, stop) = (lapsed(holds.clone()), becomes(true, stopping.clone()));
            let end = async move {
                tokio::select! {
                    () = lapse => {}
                    () = stop => {}
                }
            };
            serve(listener, inputs.clone(), end).await.context("cannot take reports in")?;
            if *stopping.borrow() {
                return Ok(());
            }
            tracing::warn!(
                ?handover,
                "closed the collector's port, as another operator may take over; opening it when the lease is held again, \
                 or after this time"
            );
            tokio::select! {
                () = becomes(true, stopping.clone()) => return Ok(()),
                () = becomes(true, holds.clone()) => {}
                () = sleep(handover) => {}
            }
            listener = bind(address, "--collector-listen").await?;
            tracing::info!("opened the collector's port");
        }
    }
}

/// Returns when the lease lapses that is held now, or will be held.
async fn lapsed(holds: watch::Receiver<bool>) {
    becomes(true, holds.clone()).await;
    becomes(false, holds).await;
}

/// Returns when the value is as wanted, or its sender is gone, which is the end as well.
async fn becomes(wanted: bool, mut value: watch::Receiver<bool>) {
    let _ = value.wait_for(|value| *value == wanted).await;
}
