//! Inputs of the collector.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::{access::Access, own_networks::KnownNetworks};
use crate::{
    cluster::ClusterIndex, metrics::Metrics, observation::Observations, settings::Limits, shared_ledger::SharedLedger,
};

/// Maximum time without a message from an agent. Agents send a heartbeat every 10 s.
pub const SILENCE: Duration = Duration::from_secs(25);

/// Inputs of the collector.
#[derive(Clone)]
pub struct CollectorInputs {
    /// Receives the reports.
    pub shared_ledger: SharedLedger,
    /// Receives the agents' states.
    pub observations: Observations,
    /// Sent to each agent.
    pub own_networks: watch::Receiver<KnownNetworks>,
    /// Pods, by which reports of other nodes' pods are recognized.
    pub index: ClusterIndex,
    /// Returns whether a Node has this name.
    pub is_node: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Callers that may report.
    pub access: Access,
    /// TLS; `None` for plain text.
    pub tls: Option<TlsAcceptor>,
    /// Limits of the port.
    pub limits: Limits,
    /// Maximum time without a message of an agent.
    pub silence: Duration,
    /// Counts refusals.
    pub metrics: Metrics,
}

impl CollectorInputs {
    /// Returns inputs for tests: anyone may report in plain text, for nodes of any name.
    #[must_use]
    pub fn open(shared_ledger: SharedLedger, observations: Observations) -> Self {
        Self {
            shared_ledger,
            observations,
            own_networks: watch::channel(None).1,
            index: ClusterIndex::default(),
            is_node: Arc::new(|_| true),
            access: Access::Anyone,
            tls: None,
            limits: Limits::default(),
            silence: SILENCE,
            metrics: Metrics::default(),
        }
    }
}
