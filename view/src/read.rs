//! Reads objects and maps from JSON and YAML, and joins both ends of each edge by its identifier.

use std::collections::BTreeMap;

use crds::{DirectionSource, NodeProbe, PeerType, Topology, TopologyEdge, TopologyPeer, TopologyStatus};
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    inventory::{Inventory, Listed},
    map::{self, Counters, Edge, EdgePods, Map, Peer},
};

/// Error of a text that is no map.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Neither JSON nor YAML.
    #[error("neither JSON nor YAML: {0}")]
    Syntax(#[from] serde_yaml::Error),
    /// An object that is none of ours, or malformed.
    #[error("document {document}: {problem}")]
    Object {
        /// Number of the document, from 1.
        document: usize,
        /// What is wrong.
        problem: String,
    },
    /// There is no object.
    #[error("no Topology in it; expected the output of `kubectl get topologies.scopeprobe.io -A -o json`")]
    Empty,
}

/// Objects of a text.
#[derive(Default)]
struct Contents {
    topologies: Vec<Topology>,
    maps: Vec<Map>,
    inventory: Inventory,
    /// First problem with an object that is no part of the map.
    foreign: Option<(usize, String)>,
    documents: usize,
}

/// Objects of texts, all of one cluster at one time. The map of an object in each text is that of all objects in one.
#[derive(Default)]
pub struct Objects {
    joined: Joined,
    inventory: Inventory,
}

impl Objects {
    /// Adds the Topology objects, lists of them, and maps of a text: JSON, or documents of YAML.
    ///
    /// # Errors
    /// Returns an error if the text has another object, or none.
    pub fn add(&mut self, text: &str) -> Result<(), ReadError> {
        let contents = contents(text)?;
        let has_map = !contents.topologies.is_empty() || !contents.maps.is_empty();
        match contents.foreign {
            None if !has_map && !contents.inventory.nodes().is_empty() => return Err(ReadError::Empty),
            Some((document, problem)) => return Err(ReadError::Object { document, problem }),
            None => self.take_in(contents),
        }
        Ok(())
    }

    /// Adds the same, and the Services, workloads and `NodeProbes` among the objects. It leaves out other kinds.
    ///
    /// # Errors
    /// Returns an error if an object is malformed, or if there is none.
    pub fn add_with_inventory(&mut self, text: &str) -> Result<(), ReadError> {
        self.take_in(contents(text)?);
        Ok(())
    }

    /// Returns the map of the objects.
    #[must_use]
    pub fn map(self) -> Map {
        self.joined.into_map()
    }

    /// Returns the map of the objects, and the Services, workloads and `NodeProbes`.
    #[must_use]
    pub fn map_and_inventory(self) -> (Map, Inventory) {
        (self.joined.into_map(), self.inventory)
    }

    fn take_in(&mut self, contents: Contents) {
        for map in contents.maps {
            self.joined.add_map(map);
        }
        for topology in &contents.topologies {
            self.joined.add(topology);
        }
        self.inventory.append(contents.inventory);
    }
}

/// Reads the objects of one text, as [`Objects::add`].
///
/// # Errors
/// Returns an error if the text has another object, or none.
pub fn text(text: &str) -> Result<Map, ReadError> {
    let mut objects = Objects::default();
    objects.add(text)?;
    Ok(objects.map())
}

fn contents(text: &str) -> Result<Contents, ReadError> {
    let mut contents = Contents::default();
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        // Most of it is JSON, which has no aliases that grow.
        contents.add_document(value)?;
        return Ok(contents);
    }
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document)?;
        if !value.is_null() {
            contents.add_document(value)?;
        }
    }
    if contents.documents == 0 { Err(ReadError::Empty) } else { Ok(contents) }
}

/// Returns the map of these objects.
#[must_use]
pub fn objects<'t>(topologies: impl IntoIterator<Item = &'t Topology>) -> Map {
    let mut joined = Joined::default();
    for topology in topologies {
        joined.add(topology);
    }
    joined.into_map()
}

impl Contents {
    fn add_document(&mut self, value: Value) -> Result<(), ReadError> {
        self.documents += 1;
        let document = self.documents;
        self.take_in(value).map_err(|problem| ReadError::Object { document, problem })
    }

    fn take_in(&mut self, value: Value) -> Result<(), String> {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        let is_ours = api_version.starts_with("scopeprobe.io/");
        match kind.as_str() {
            "Topology" if is_ours => self.topologies.push(object(value)?),
            "Topology" => {
                self.reject(format!("it is a Topology of {}, not of scopeprobe.io", map::printable(&api_version)));
            }
            map::KIND if api_version == map::API_VERSION => self.maps.push(object(value)?),
            "List" | "TopologyList" => self.take_in_list(value)?,
            // Bundles have both.
            "NodeProbe" if is_ours => self.inventory.add_node(object::<NodeProbe>(value)?),
            "" => return Err("it has no kind; expected a Topology, a list of them, or a TopologyMap".to_owned()),
            other => {
                self.reject(format!(
                    "it is a {}; expected a Topology, a list of them, or a TopologyMap",
                    map::printable(other)
                ));
                self.list(other, value)?;
            }
        }
        Ok(())
    }

    fn take_in_list(&mut self, value: Value) -> Result<(), String> {
        let Value::Object(mut list) = value else { return Err("a list without items".to_owned()) };
        let Some(Value::Array(items)) = list.remove("items") else { return Err("a list without items".to_owned()) };
        for mut item in items {
            // Lists of the API server leave it out.
            if let Value::Object(fields) = &mut item {
                fields.entry("kind").or_insert_with(|| "Topology".into());
                fields.entry("apiVersion").or_insert_with(|| "scopeprobe.io/v1alpha1".into());
            }
            self.take_in(item)?;
        }
        Ok(())
    }

    fn reject(&mut self, problem: String) {
        self.foreign.get_or_insert((self.documents, problem));
    }

    fn list(&mut self, kind: &str, value: Value) -> Result<(), String> {
        match kind {
            "Service" => self.inventory.add(Listed::service(&object(value)?)),
            "Deployment" => self.inventory.add(Listed::deployment(&object(value)?)),
            "StatefulSet" => self.inventory.add(Listed::stateful_set(&object(value)?)),
            "DaemonSet" => self.inventory.add(Listed::daemon_set(&object(value)?)),
            _ => (),
        }
        Ok(())
    }
}

fn object<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// Edges by identifier. The object of a client decides where both ends have one: it has all that it called.
#[derive(Default)]
struct Joined {
    edges: BTreeMap<String, Vec<(bool, Edge)>>,
    caveats: Vec<String>,
}

impl Joined {
    fn add(&mut self, topology: &Topology) {
        let Some(status) = &topology.status else { return };
        let namespace = topology.metadata.namespace.clone().unwrap_or_default();
        let own = own_peer(&namespace, status);
        for edge in &status.egress {
            self.insert(true, read(edge, own.clone(), Peer::one(edge.peer.clone()), true));
        }
        for edge in &status.ingress {
            self.insert(false, read(edge, Peer::one(edge.peer.clone()), own.clone(), false));
        }
        let shows = status.conditions.iter().filter(|condition| {
            let is_true = condition.status == "True";
            (condition.type_ == "Truncated" && is_true) || (condition.type_ == "Observed" && !is_true)
        });
        self.caveats.extend(shows.map(|condition| format!("{own}: {}", map::printable(&condition.message))));
    }

    fn add_map(&mut self, map: Map) {
        for edge in map.edges {
            self.insert(true, edge);
        }
        self.caveats.extend(map.caveats.iter().map(|caveat| map::printable(caveat)));
    }

    /// Adds an edge. Its texts may be a stranger's.
    fn insert(&mut self, is_by_client: bool, edge: Edge) {
        let edge = Edge {
            id: map::printable(&edge.id),
            service: edge.service.as_deref().map(map::printable),
            via: edge.via.iter().map(|proxy| map::printable(proxy)).collect(),
            ..edge
        };
        self.edges.entry(edge.id.clone()).or_default().push((is_by_client, edge));
    }

    fn into_map(self) -> Map {
        Map::of_ends(self.edges, self.caveats)
    }
}

fn own_peer(namespace: &str, status: &TopologyStatus) -> Peer {
    Peer::one(TopologyPeer {
        type_: PeerType::Workload,
        api_version: Some(status.workload.api_version.clone()).filter(|version| !version.is_empty()),
        kind: Some(status.workload.kind.clone()),
        namespace: Some(namespace.to_owned()),
        name: Some(status.workload.name.clone()),
        ..TopologyPeer::default()
    })
}

fn read(edge: &TopologyEdge, client: Peer, server: Peer, is_by_client: bool) -> Edge {
    let service = edge.service.as_ref().map(|of| format!("{}/{}:{}", of.namespace, of.name, of.port));
    let (bytes_sent, bytes_received) =
        if is_by_client { (edge.bytes_sent, edge.bytes_received) } else { (edge.bytes_received, edge.bytes_sent) };
    let pods = EdgePods { listed: edge.pods.clone(), omitted: edge.omitted_pods };
    let (client_pods, server_pods) =
        if is_by_client { (pods, EdgePods::default()) } else { (EdgePods::default(), pods) };
    let via = edge.via.iter().map(|proxy| format!("{} ({})", Peer::one(proxy.peer.clone()), proxy.container));
    Edge {
        id: edge.id.clone(),
        client,
        server,
        service,
        port: edge.port,
        protocol: edge.protocol,
        counters: Counters {
            opened: edge.opened,
            active: edge.active,
            failed: edge.failed,
            pending: edge.pending,
            bytes_sent,
            bytes_received,
            without_bytes: edge.without_bytes,
        },
        seen: Some(edge.seen),
        identity: Some(edge.identity),
        methods: edge.methods.clone(),
        is_inferred: edge.direction == DirectionSource::Inferred,
        via: via.collect(),
        first_seen: edge.first_seen.clone(),
        last_seen: edge.last_seen.clone(),
        last_failed: edge.last_failed.clone(),
        client_pods,
        server_pods,
    }
}
