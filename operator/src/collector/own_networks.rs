//! The cluster's own networks, for agents that fold external flows.

use std::{sync::Arc, time::Duration};

use report::{MAX_OWN_NETWORKS, octets, v1alpha1 as wire};
use tokio::sync::watch;
use topology::directory::OwnNetworks;

use crate::cluster::ClusterIndex;

/// Minimum time between two computations.
const INTERVAL: Duration = Duration::from_secs(5);

/// The cluster's own networks; `None` until all objects were listed once.
pub type KnownNetworks = Option<Arc<OwnNetworks>>;

/// Computes the networks whenever objects of the cluster change.
pub async fn keep_own_networks(index: ClusterIndex, known: watch::Sender<KnownNetworks>) {
    let mut changed = index.subscribe();
    if index.complete().wait_for(|complete| *complete).await.is_err() {
        return;
    }
    loop {
        let networks = index.read().directory().own_networks(MAX_OWN_NETWORKS);
        if networks.omitted > 0 {
            tracing::warn!(omitted = networks.omitted, "the cluster has more public networks than agents can store");
        }
        known.send_if_modified(|known| {
            let is_news = known.as_deref() != Some(&networks);
            *known = Some(Arc::new(networks));
            is_news
        });
        tokio::time::sleep(INTERVAL).await;
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Networks that one stream has not received yet.
pub(super) struct Unsent {
    known: watch::Receiver<KnownNetworks>,
}

impl Unsent {
    pub(super) fn new(mut known: watch::Receiver<KnownNetworks>) -> Self {
        known.mark_changed();
        Self { known }
    }

    /// Returns the networks, if they are news.
    pub(super) fn take(&mut self) -> Option<wire::OwnNetworks> {
        // An error means that they will not change any more.
        if !self.known.has_changed().unwrap_or(false) {
            return None;
        }
        let known = self.known.borrow_and_update();
        let OwnNetworks { networks, omitted } = &**known.as_ref()?;
        let network = |network: &topology::entity::Network| wire::Network {
            ip: octets(network.address),
            prefix: network.prefix.into(),
        };
        Some(wire::OwnNetworks { networks: networks.iter().map(network).collect(), omitted: *omitted as u64 })
    }
}

#[cfg(test)]
mod tests {
    use topology::entity::Network;

    use super::*;

    #[test]
    fn each_stream_receives_networks_once_and_after_a_change() {
        let (sender, receiver) = watch::channel(None);
        let mut unsent = Unsent::new(receiver.clone());
        assert_eq!(unsent.take(), None, "they are not known yet");
        let networks = vec![Network::parse("203.0.113.0/24").unwrap(), Network::parse("2001:db8::/32").unwrap()];
        sender.send_replace(Some(Arc::new(OwnNetworks { networks, omitted: 3 })));
        let taken = unsent.take().unwrap();
        let prefixes: Vec<_> = taken.networks.iter().map(|network| (network.ip.len(), network.prefix)).collect();
        assert_eq!((prefixes, taken.omitted), (vec![(4, 24), (16, 32)], 3));
        assert_eq!(unsent.take(), None);
        assert_eq!(Unsent::new(receiver).take(), Some(taken), "another stream");
    }
}
