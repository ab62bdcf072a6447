//! State of ScopeProbes, Nodes and NodeProbes, kept up to date by watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    hash::Hash,
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
};

use crds::{NodeProbe, PROBE_LABEL, ScopeProbe};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Client, Resource, ResourceExt,
    runtime::{reflector, watcher::Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{guarded::Guarded, guarded_watch::watch as watch_all};

/// A reflector's store of objects of which some may be malformed.
type GuardedStore<K> = reflector::Store<Guarded<K>>;

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

/// ScopeProbes, Nodes and NodeProbes, as last received from the API server.
pub struct ClusterState {
    probes: GuardedStore<ScopeProbe>,
    nodes: RwLock<BTreeMap<String, NodeFacts>>,
    node_probes: GuardedStore<NodeProbe>,
    changed: watch::Sender<()>,
    requests_changed: watch::Sender<()>,
}

impl ClusterState {
    /// Starts the watches, and waits until everything has been listed once. The watches end with the process.
    ///
    /// # Errors
    /// Returns an error if a watch ended before its first list, which happens on shutdown only.
    pub async fn watch(client: &Client) -> Result<Arc<Self>, reflector::store::WriterDropped> {
        let (probes, probe_writer) = reflector::store();
        let (node_probes, node_probe_writer) = reflector::store();
        let state = Arc::new(Self {
            probes,
            nodes: RwLock::default(),
            node_probes,
            changed: watch::Sender::new(()),
            requests_changed: watch::Sender::new(()),
        });
        let listed = watch::Sender::new(false);
        tokio::spawn(reflect::<ScopeProbe>(client.clone(), probe_writer, Arc::clone(&state), true));
        tokio::spawn(reflect::<NodeProbe>(client.clone(), node_probe_writer, Arc::clone(&state), false));
        let mut nodes_listed = listed.subscribe();
        tokio::spawn(watch_nodes(client.clone(), Arc::clone(&state), listed));
        state.probes.wait_until_ready().await?;
        state.node_probes.wait_until_ready().await?;
        // The sender lives as long as the watch, which never ends by itself.
        let _ = nodes_listed.wait_for(|listed| *listed).await;
        Ok(state)
    }

    /// Returns all well-formed ScopeProbes that are not being deleted.
    #[must_use]
    pub fn probes(&self) -> Vec<ScopeProbe> {
        let valid = self.probes.state().into_iter().filter_map(|probe| probe.0.as_ref().ok().cloned());
        valid.filter(|probe| probe.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Returns the names of ScopeProbes that do not decode. The operator leaves their objects unchanged until they decode.
    #[must_use]
    pub fn malformed_probes(&self) -> BTreeSet<String> {
        self.malformed_probe_versions().into_keys().collect()
    }

    /// Returns the ScopeProbes that do not decode, with the version of each.
    #[must_use]
    pub fn malformed_probe_versions(&self) -> BTreeMap<String, Option<String>> {
        malformed(&self.probes)
    }

    /// Returns the nodes with agents of a malformed ScopeProbe. They keep their agents until it decodes again.
    #[must_use]
    pub fn held_nodes(&self) -> BTreeSet<String> {
        let malformed = self.malformed_probes();
        let held = self.nodes().into_values().filter(|node| is_held(node, &malformed));
        held.map(|node| node.name).collect()
    }

    /// Returns the names of NodeProbes that do not decode and must be rewritten.
    #[must_use]
    pub fn malformed_node_probes(&self) -> BTreeSet<String> {
        malformed(&self.node_probes).into_keys().collect()
    }

    /// Returns all Nodes.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<String, NodeFacts> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns all NodeProbes, by name. A malformed one contains the fields that decode; its status will be rewritten.
    #[must_use]
    pub fn node_probes(&self) -> BTreeMap<String, NodeProbe> {
        let probes = self.node_probes.state().into_iter().filter_map(|probe| match &probe.0 {
            Ok(probe) => Some(probe.clone()),
            Err(malformed) => malformed.clone().into_rest(),
        });
        probes.map(|probe| (probe.name_any(), probe)).collect()
    }

    /// Returns a receiver that is notified of each relevant change. Irrelevant changes of Nodes are left out.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns a receiver that is notified of the same changes except those of NodeProbes, which request nothing.
    #[must_use]
    pub fn subscribe_requests(&self) -> watch::Receiver<()> {
        self.requests_changed.subscribe()
    }

    fn mark_changed(&self, are_requests: bool) {
        self.changed.send_replace(());
        if are_requests {
            self.requests_changed.send_replace(());
        }
    }
}

fn is_held(node: &NodeFacts, malformed: &BTreeSet<String>) -> bool {
    node.labels.get(PROBE_LABEL).is_some_and(|probe| malformed.contains(probe))
}

fn malformed<K>(store: &GuardedStore<K>) -> BTreeMap<String, Option<String>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let all = store.state().into_iter();
    let malformed = all.filter(|object| object.0.is_err() && object.meta().deletion_timestamp.is_none());
    malformed.map(|object| (object.name_any(), object.resource_version())).collect()
}

fn node_facts(node: &Node) -> NodeFacts {
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
fn guarded_facts(node: &Guarded<Node>, known: &BTreeMap<String, NodeFacts>) -> NodeFacts {
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

/// Keeps a store up to date with a watch. `are_requests`: whether assignments of nodes depend on these objects.
async fn reflect<K>(
    client: Client,
    mut writer: reflector::store::Writer<Guarded<K>>,
    state: Arc<ClusterState>,
    are_requests: bool,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    <K as Resource>::DynamicType: Eq + Hash + Default,
{
    let mut stream = pin!(watch_all::<K>(&client));
    while let Some(event) = stream.next().await {
        writer.apply_watcher_event(&event);
        state.mark_changed(are_requests);
    }
}

async fn watch_nodes(client: Client, state: Arc<ClusterState>, listed: watch::Sender<bool>) {
    let mut stream = pin!(watch_all::<Node>(&client));
    let mut fresh = BTreeMap::new();
    while let Some(event) = stream.next().await {
        let mut nodes = state.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let changed = match event {
            Event::Apply(node) => {
                let facts = guarded_facts(&node, &nodes);
                nodes.insert(facts.name.clone(), facts.clone()) != Some(facts)
            }
            Event::Delete(node) => nodes.remove(&node.name_any()).is_some(),
            Event::Init => {
                fresh.clear();
                false
            }
            Event::InitApply(node) => {
                let facts = guarded_facts(&node, &nodes);
                fresh.insert(facts.name.clone(), facts);
                false
            }
            Event::InitDone => {
                *nodes = std::mem::take(&mut fresh);
                listed.send_replace(true);
                true
            }
        };
        drop(nodes);
        if changed {
            state.mark_changed(true);
        }
    }
}
