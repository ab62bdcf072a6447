//! Current assignments of nodes, from ScopeProbes, Nodes and the nodes on which eBPF failed.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use crds::NodeProbe;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    assignment::{Assignments, ProbeFacts, assign},
    fallback_policy::NodeFallback,
};
use crate::cluster::ClusterState;

/// The cluster's state, and the nodes on which eBPF failed.
pub struct Assigner {
    cluster: Arc<ClusterState>,
    fallbacks: RwLock<BTreeMap<String, NodeFallback>>,
    fallbacks_changed: watch::Sender<()>,
}

impl Assigner {
    /// Restores the nodes on which eBPF failed from the NodeProbes that an earlier operator wrote.
    #[must_use]
    pub fn new(cluster: Arc<ClusterState>) -> Self {
        let fallbacks = RwLock::new(restored_fallbacks(&cluster.node_probes(), Timestamp::now()));
        Self { cluster, fallbacks, fallbacks_changed: watch::Sender::new(()) }
    }

    /// Returns the cluster's state.
    #[must_use]
    pub fn cluster(&self) -> &ClusterState {
        &self.cluster
    }

    /// Returns the current assignment of nodes to ScopeProbes.
    #[must_use]
    pub fn assignments(&self) -> Assignments {
        let probes: Vec<_> = self.cluster.probes().iter().map(ProbeFacts::of).collect();
        let held = self.cluster.held_nodes();
        let nodes: Vec<_> = self.cluster.nodes().into_values().filter(|node| !held.contains(&node.name)).collect();
        assign(&probes, &nodes, &self.fallbacks())
    }

    /// Returns the nodes on which eBPF failed.
    #[must_use]
    pub fn fallbacks(&self) -> BTreeMap<String, NodeFallback> {
        self.fallbacks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the nodes on which eBPF failed.
    pub fn set_fallbacks(&self, fallbacks: BTreeMap<String, NodeFallback>) {
        let mut current = self.fallbacks.write().unwrap_or_else(PoisonError::into_inner);
        if *current != fallbacks {
            *current = fallbacks;
            drop(current);
            self.fallbacks_changed.send_replace(());
        }
    }

    /// Returns a receiver that is notified when the nodes on which eBPF failed change.
    #[must_use]
    pub fn subscribe_fallbacks(&self) -> watch::Receiver<()> {
        self.fallbacks_changed.subscribe()
    }
}

/// Returns the fallbacks that an earlier operator wrote.
fn restored_fallbacks(node_probes: &BTreeMap<String, NodeProbe>, now: Timestamp) -> BTreeMap<String, NodeFallback> {
    let written =
        node_probes.iter().filter_map(|(name, probe)| Some((name, probe.status.as_ref()?.fallback.as_ref()?)));
    written.filter_map(|(name, written)| Some((name.clone(), NodeFallback::restore(written, now)?))).collect()
}
