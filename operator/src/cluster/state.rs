//! State of ScopeProbes, Nodes and NodeProbes, kept up to date by watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    hash::Hash,
    pin::pin,
    sync::Arc,
};

use crds::{NodeProbe, PROBE_LABEL, ScopeProbe};
use futures::StreamExt;
use kube::{
    Client, Resource, ResourceExt,
    runtime::{reflector, watcher::Event},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    changes::ClusterChanges,
    nodes::{NodeFacts, NodeSteps, Nodes},
};
use crate::{guarded::Guarded, guarded_watch::watch as watch_all};

/// A reflector's store of objects of which some may be malformed.
type GuardedStore<K> = reflector::Store<Guarded<K>>;

/// ScopeProbes, Nodes and NodeProbes, as last received from the API server.
pub struct ClusterState {
    probes: GuardedStore<ScopeProbe>,
    nodes: Arc<Nodes>,
    node_probes: GuardedStore<NodeProbe>,
    changes: Arc<ClusterChanges>,
}

/// The cluster's state, and what the index needs of the same watches.
pub struct WatchedCluster {
    /// ScopeProbes, Nodes and NodeProbes.
    pub state: Arc<ClusterState>,
    /// Changes of the Nodes' addresses.
    pub node_steps: NodeSteps,
}

impl ClusterState {
    /// Starts the watches, and waits until everything has been listed once. The watches end with the process.
    ///
    /// # Errors
    /// Returns an error if a watch ended before its first list, which happens on shutdown only.
    pub async fn watch(client: &Client) -> Result<WatchedCluster, reflector::store::WriterDropped> {
        let (probes, probe_writer) = reflector::store();
        let (node_probes, node_probe_writer) = reflector::store();
        let changes = Arc::<ClusterChanges>::default();
        let (nodes, node_steps) = Nodes::watch(client, Arc::clone(&changes));
        let state = Arc::new(Self { probes, nodes, node_probes, changes: Arc::clone(&changes) });
        let (probes_changed, mut requests) = (Arc::clone(&changes), ProbeRequests::default());
        tokio::spawn(reflect::<ScopeProbe>(client.clone(), probe_writer, move |event| {
            if requests.change(event) { probes_changed.mark_requests() } else { probes_changed.mark() }
        }));
        tokio::spawn(reflect::<NodeProbe>(client.clone(), node_probe_writer, move |_| changes.mark()));
        state.probes.wait_until_ready().await?;
        state.node_probes.wait_until_ready().await?;
        state.nodes.wait_until_listed().await;
        Ok(WatchedCluster { state, node_steps })
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
        self.nodes.all()
    }

    /// Returns whether a Node has this name.
    #[must_use]
    pub fn has_node(&self, name: &str) -> bool {
        self.nodes.contains(name)
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
        self.changes.subscribe()
    }

    /// Returns a receiver that is notified of the same changes except those of NodeProbes, which request nothing.
    #[must_use]
    pub fn subscribe_requests(&self) -> watch::Receiver<()> {
        self.changes.subscribe_requests()
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

/// Keeps a store up to date with a watch.
async fn reflect<K>(
    client: Client,
    mut writer: reflector::store::Writer<Guarded<K>>,
    mut mark_changed: impl FnMut(&Event<Guarded<K>>) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    <K as Resource>::DynamicType: Eq + Hash + Default,
{
    let mut stream = pin!(watch_all::<K>(&client));
    while let Some(event) = stream.next().await {
        // They are not used, and are the larger part of an object.
        let event = event.modify(|object| object.meta_mut().managed_fields = None);
        writer.apply_watcher_event(&event);
        mark_changed(&event);
    }
}

/// Version of the request that a ScopeProbe makes: a status is none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ProbeRequest {
    uid: Option<String>,
    generation: Option<i64>,
    is_deleted: bool,
    is_malformed: bool,
}

/// Requests of all ScopeProbes, by name.
#[derive(Debug, Default)]
struct ProbeRequests {
    known: BTreeMap<String, ProbeRequest>,
    /// Those of the list in progress.
    listed: BTreeMap<String, ProbeRequest>,
}

impl ProbeRequests {
    /// Records an event. Returns whether it changes a request.
    fn change(&mut self, event: &Event<Guarded<ScopeProbe>>) -> bool {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(probe) => drop(self.listed.insert(probe.name_any(), request(probe))),
            Event::InitDone => {
                let before = std::mem::replace(&mut self.known, std::mem::take(&mut self.listed));
                return before != self.known;
            }
            Event::Apply(probe) => {
                let request = request(probe);
                return self.known.insert(probe.name_any(), request.clone()) != Some(request);
            }
            Event::Delete(probe) => return self.known.remove(&probe.name_any()).is_some(),
        }
        false
    }
}

fn request(probe: &Guarded<ScopeProbe>) -> ProbeRequest {
    let metadata = probe.meta();
    ProbeRequest {
        uid: metadata.uid.clone(),
        generation: metadata.generation,
        is_deleted: metadata.deletion_timestamp.is_some(),
        is_malformed: probe.0.is_err(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn written_status_is_no_new_request() {
        let probe = |generation: i64, coverage: &str| -> Guarded<ScopeProbe> {
            let metadata = json!({"name": "a", "uid": "1", "generation": generation, "resourceVersion": coverage});
            let probe = json!({"metadata": metadata, "spec": {}});
            Guarded(Ok(serde_json::from_value(probe).unwrap()))
        };
        let mut requests = ProbeRequests::default();
        let list = |requests: &mut ProbeRequests, probes: Vec<Guarded<ScopeProbe>>| {
            let all = probes.into_iter().map(Event::InitApply).collect::<Vec<_>>();
            let events = [Event::Init].into_iter().chain(all).chain([Event::InitDone]);
            events.map(|event| requests.change(&event)).collect::<Vec<_>>()
        };
        assert_eq!(list(&mut requests, vec![probe(1, "1")]), [false, false, true]);
        assert!(!requests.change(&Event::Apply(probe(1, "2"))));
        assert_eq!(list(&mut requests, vec![probe(1, "3")]), [false; 3]);
        assert!(requests.change(&Event::Apply(probe(2, "4"))));
        let mut deleted = probe(2, "5");
        deleted.meta_mut().deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(requests.change(&Event::Apply(deleted.clone())));
        assert!(requests.change(&Event::Delete(deleted)));
        assert!(requests.change(&Event::Apply(probe(2, "6"))));
        assert_eq!(list(&mut requests, Vec::new()), [false, true], "it was deleted while the watch failed");
    }
}
