//! Observations of each node's agent, and a summary of the published topology: inputs of NodeProbe and ScopeProbe.

mod epochs;
mod left_out;
mod node;
mod replaced;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use crds::{NamespaceEdge, TopologyTotals};
use tokio::sync::watch;

pub(crate) use self::node::may_miss_uncounted;
pub use self::{
    epochs::ResumedEpoch,
    left_out::{LeftOut, LeftOutReason},
    node::NodeObservation,
    replaced::{EarlierObservation, ReplacedObservation},
};

/// All nodes that have ever reported to this operator, by name. Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct Observations {
    nodes: Arc<RwLock<BTreeMap<String, Arc<NodeObservation>>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Default for Observations {
    fn default() -> Self {
        Self { nodes: Arc::default(), changed: Arc::new(watch::Sender::new(())) }
    }
}

impl Observations {
    /// Changes the observation of a node. Notifies receivers if `change` made a difference.
    pub fn update(&self, node: &str, change: impl FnOnce(&mut NodeObservation)) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let observation = nodes.entry(node.to_owned()).or_default();
        let before = Arc::clone(observation);
        change(Arc::make_mut(observation));
        if *observation != before {
            drop(nodes);
            self.changed.send_replace(());
        }
    }

    /// Returns the observation of one node.
    #[must_use]
    pub fn get(&self, node: &str) -> Option<Arc<NodeObservation>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    /// Returns the observations of all nodes.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Arc<NodeObservation>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes a node that no longer exists.
    pub fn forget(&self, node: &str) {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// Returns a receiver that is notified of each change of a node.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// Size of the published topology.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologyOverview {
    /// Workloads and edges.
    pub totals: TopologyTotals,
    /// Pairs of namespaces with edges, most edges first, at most 50.
    pub namespaces: Vec<NamespaceEdge>,
    /// Number of pairs that are missing in `namespaces`.
    pub omitted_namespaces: u64,
}
