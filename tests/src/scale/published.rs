//! Watch of all Topologies: their present edges, and the times at which new edges appeared.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crds::{PeerType, Topology, TopologyEdge, TopologyPeer, TopologyStatus};
use futures::{StreamExt as _, stream::BoxStream};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::task::JoinSet;

use super::oracle::{Edge, PublishedTopologies, PublishedTopology};

/// State of the watch.
#[derive(Default)]
struct State {
    topologies: PublishedTopologies,
    /// Number of events so far.
    revision: u64,
    /// New edges that no Topology has shown, with the time at which they began.
    awaited: HashMap<Edge, Instant>,
    /// Seconds from the beginning of a new edge to its Topology.
    seconds: Vec<f64>,
}

/// Published Topologies. The watch ends when it is dropped.
pub struct Published {
    state: Arc<Mutex<State>>,
    _watch: JoinSet<()>,
}

impl Published {
    /// Begins to watch.
    #[must_use]
    pub fn watch(client: &Client) -> Self {
        let (state, mut tasks) = (Arc::<Mutex<State>>::default(), JoinSet::new());
        let api: Api<Topology> = Api::all(client.clone());
        let events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        tasks.spawn(follow(events, Arc::clone(&state)));
        Self { state, _watch: tasks }
    }

    /// Measures the time until the Topology of its client shows this edge.
    pub fn expect(&self, edge: Edge) {
        lock(&self.state).awaited.insert(edge, Instant::now());
    }

    /// Returns the times of new edges that appeared since the last call, in seconds, and the number of those that did not
    /// appear yet.
    #[must_use]
    pub fn take_new_edges(&self) -> (Vec<f64>, usize) {
        let mut state = lock(&self.state);
        let missing = state.awaited.len();
        state.awaited.clear();
        (std::mem::take(&mut state.seconds), missing)
    }

    /// Number of changes so far.
    #[must_use]
    pub fn revision(&self) -> u64 {
        lock(&self.state).revision
    }

    /// Calls a function with the present Topologies.
    pub fn with<T>(&self, look: impl FnOnce(&PublishedTopologies) -> T) -> T {
        look(&lock(&self.state).topologies)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(mut events: BoxStream<'static, Result<Event<Topology>, watcher::Error>>, state: Arc<Mutex<State>>) {
    let mut listed = None;
    while let Some(event) = events.next().await {
        lock(&state).revision += 1;
        match event {
            Ok(Event::Apply(topology)) => lock(&state).apply(topology),
            Ok(Event::Delete(topology)) => {
                lock(&state).topologies.remove(&key(&topology));
            }
            Ok(Event::Init) => listed = Some(Vec::new()),
            Ok(Event::InitApply(topology)) => listed.get_or_insert_default().push(topology),
            Ok(Event::InitDone) => {
                let mut state = lock(&state);
                state.topologies.clear();
                listed.take().into_iter().flatten().for_each(|topology| state.apply(topology));
            }
            Err(error) => eprintln!("the watch of Topologies is opened again: {error}"),
        }
    }
}

impl State {
    fn apply(&mut self, topology: Topology) {
        let key = key(&topology);
        let status = topology.status.unwrap_or_default();
        let published = published(&key.0, &status);
        if !self.awaited.is_empty() {
            let began = published.egress.iter().filter_map(|(edge, _)| self.awaited.remove(edge));
            self.seconds.extend(began.map(|began| began.elapsed().as_secs_f64()));
        }
        self.topologies.insert(key, published);
    }
}

fn key(topology: &Topology) -> (String, String) {
    (topology.namespace().unwrap_or_default(), topology.name_any())
}

fn published(namespace: &str, status: &TopologyStatus) -> PublishedTopology {
    let own = workload(namespace, &status.workload.kind, &status.workload.name);
    let edge = |client: &str, server: &str, it: &TopologyEdge| {
        let service = it.service.as_ref().map(|of| format!("{}/{}:{}", of.namespace, of.name, of.port));
        (Edge { client: client.to_owned(), server: server.to_owned(), service, port: it.port }, it.opened)
    };
    PublishedTopology {
        egress: status.egress.iter().map(|it| edge(&own, &describe(&it.peer), it)).collect(),
        ingress: status.ingress.iter().map(|it| edge(&describe(&it.peer), &own, it)).collect(),
        omitted: status.omitted.egress + status.omitted.ingress,
    }
}

/// Describes a peer: a Deployment by namespace and name, as the oracle does, and others with all that identifies them.
fn describe(peer: &TopologyPeer) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    if peer.type_ == PeerType::Workload {
        return workload(&part(&peer.namespace), &part(&peer.kind), &part(&peer.name));
    }
    let parts = [&peer.namespace, &peer.name, &peer.node, &peer.ip, &peer.uid].map(part);
    format!("{:?} {}", peer.type_, parts.join(" ").trim())
}

fn workload(namespace: &str, kind: &str, name: &str) -> String {
    let workload = format!("{namespace}/{name}");
    if kind == "Deployment" { workload } else { format!("{kind} {workload}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn edges_are_described_as_the_oracle_does() {
        let edge = |peer| {
            let service = json!({"namespace": "b", "name": "s", "port": 80});
            json!({"id": "0123456789abcdef", "peer": peer, "service": service, "port": 8080, "opened": 3, "active": 0,
                "failed": 0, "seen": "Both", "identity": "Cgroup", "methods": ["EBPF"], "direction": "Observed"})
        };
        let peer =
            json!({"type": "Workload", "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "b", "name": "y"});
        let unknown = json!({"type": "UnknownPod", "uid": "7"});
        let status = serde_json::from_value(json!({
            "workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
            "egress": [edge(peer)], "ingress": [edge(unknown)],
        }));
        let published = published("a", &status.unwrap());
        let service = Some("b/s:80".to_owned());
        let right = Edge { client: "a/x".to_owned(), server: "b/y".to_owned(), service, port: Some(8080) };
        assert_eq!(published.egress, [(right.clone(), 3)]);
        let client = "UnknownPod 7".to_owned();
        assert_eq!(published.ingress, [(Edge { client, server: "a/x".to_owned(), ..right }, 3)]);
    }
}
