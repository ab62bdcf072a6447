//! All Nodes, kept up to date by one watch: facts for assignments, and addresses for the index.

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node as Object;
use kube::{Client, ResourceExt, runtime::watcher::Event};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use topology::entity::{Network, Node};

use super::{
    changes::ClusterChanges,
    steps::{Step, step},
};
use crate::{guarded::Guarded, guarded_watch};

/// Properties of a Node that assignments and labels depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its operating system; empty while unknown.
    pub os: String,
    /// Its kernel's release.
    pub kernel: String,
    /// ID of its current boot.
    pub boot_id: String,
}

/// Facts of all Nodes.
pub struct Nodes {
    facts: RwLock<BTreeMap<String, NodeFacts>>,
    listed: watch::Sender<bool>,
    changes: Arc<ClusterChanges>,
}

/// Changes of the addresses of all Nodes, for the index.
pub struct NodeSteps(mpsc::UnboundedReceiver<Step<Node>>);

impl NodeSteps {
    pub(super) fn into_stream(self) -> impl Stream<Item = Step<Node>> + Send + 'static {
        UnboundedReceiverStream::new(self.0)
    }
}

impl Nodes {
    /// Starts the watch, which ends with the process. Its consumers are independent: a graph in progress delays the index,
    /// but not the facts.
    #[must_use]
    pub fn watch(client: &Client, changes: Arc<ClusterChanges>) -> (Arc<Self>, NodeSteps) {
        let nodes = Arc::new(Self { facts: RwLock::default(), listed: watch::Sender::new(false), changes });
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(follow(client.clone(), Arc::clone(&nodes), sender));
        (nodes, NodeSteps(receiver))
    }

    /// Waits until all Nodes have been listed once.
    pub async fn wait_until_listed(&self) {
        // The sender is a field, so that it lives as long as this.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Returns the facts of all Nodes, by name.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, NodeFacts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether a Node has this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Applies an event. `listing` has the facts of the list in progress.
    fn apply(&self, event: &Event<Guarded<Object>>, listing: &mut BTreeMap<String, NodeFacts>) {
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = match event {
            Event::Apply(node) => {
                let node = guarded_facts(node, &facts);
                facts.insert(node.name.clone(), node.clone()) != Some(node)
            }
            Event::Delete(node) => facts.remove(&node.name_any()).is_some(),
            Event::Init => {
                listing.clear();
                false
            }
            Event::InitApply(node) => {
                let node = guarded_facts(node, &facts);
                listing.insert(node.name.clone(), node);
                false
            }
            Event::InitDone => {
                *facts = std::mem::take(listing);
                self.listed.send_replace(true);
                true
            }
        };
        drop(facts);
        if is_news {
            self.changes.mark_requests();
        }
    }
}

async fn follow(client: Client, nodes: Arc<Nodes>, sender: mpsc::UnboundedSender<Step<Node>>) {
    let mut events = pin!(guarded_watch::watch::<Object>(&client));
    let mut listing = BTreeMap::new();
    while let Some(event) = events.next().await {
        nodes.apply(&event, &mut listing);
        if let Some(step) = step(event, addresses) {
            // Without an index, only the facts are needed.
            let _ = sender.send(step);
        }
    }
}

fn node_facts(node: &Object) -> NodeFacts {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    let os = info.map(|info| info.operating_system.clone()).filter(|os| !os.is_empty());
    NodeFacts {
        name: node.name_any(),
        uid: node.uid().unwrap_or_default(),
        labels: node.labels().clone(),
        os: os.or_else(|| node.labels().get("kubernetes.io/os").cloned()).unwrap_or_default(),
        kernel: info.map(|info| info.kernel_version.clone()).unwrap_or_default(),
        boot_id: info.map(|info| info.boot_id.clone()).unwrap_or_default(),
    }
}

/// Returns the facts of a node. For one that does not decode, returns the last known facts.
fn guarded_facts(node: &Guarded<Object>, known: &BTreeMap<String, NodeFacts>) -> NodeFacts {
    let malformed = match &node.0 {
        Ok(node) => return node_facts(node),
        Err(malformed) => malformed,
    };
    let rest = node_facts(&malformed.clone().into_rest().unwrap_or_default());
    match known.get(&rest.name).filter(|known| known.uid == rest.uid) {
        Some(known) => NodeFacts { labels: rest.labels, ..known.clone() },
        None => rest,
    }
}

/// Returns the name, addresses and pod networks of a node.
fn addresses(object: Object) -> Option<Node> {
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let networks = object.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
    Some(Node {
        name: object.metadata.name?,
        ips: addresses.iter().filter_map(|address| address.address.parse().ok()).collect(),
        pod_networks: networks.iter().filter_map(|network| Network::parse(network)).collect(),
    })
}
