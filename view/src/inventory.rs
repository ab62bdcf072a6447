//! Objects of the cluster besides the map: Services, workloads, and the state of the nodes' agents.

use crds::NodeProbe;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment, StatefulSet},
        core::v1::Service,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// Objects that were read besides the map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    listed: Vec<Listed>,
    nodes: Vec<NodeProbe>,
    /// Namespace of the objects; `None` if those of all were read.
    namespace: Option<String>,
}

/// A Service or a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Property that matters for its callers.
    pub property: Option<Property>,
}

/// Property of an object that matters for its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// A Service without an address: its clients call pods.
    Headless,
    /// A Service that is a DNS alias: its clients call the address of another name.
    ExternalName,
    /// A Service with clients outside of the cluster: they call nodes or a load balancer, and edges may not name it.
    Exposed,
    /// A workload that has no pods, because none are wanted.
    ScaledToZero,
}

impl Inventory {
    /// Adds a Service or a workload.
    pub fn add(&mut self, listed: Listed) {
        self.listed.push(listed);
    }

    /// Adds the state of a node's agent.
    pub fn add_node(&mut self, node: NodeProbe) {
        self.nodes.push(node);
    }

    /// Adds what another inventory has.
    pub fn append(&mut self, mut other: Self) {
        self.listed.append(&mut other.listed);
        self.nodes.append(&mut other.nodes);
    }

    /// Returns the same with Services and workloads of one namespace.
    #[must_use]
    pub fn of_namespace(mut self, namespace: &str) -> Self {
        self.listed.retain(|listed| listed.namespace == namespace);
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Returns whether objects of this namespace were read.
    #[must_use]
    pub fn is_of(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace)
    }

    /// Returns Services and workloads in order, each once.
    #[must_use]
    pub fn listed(&self) -> Vec<&Listed> {
        let mut listed: Vec<&Listed> = self.listed.iter().collect();
        listed.sort();
        listed.dedup();
        listed
    }

    /// Returns the states of agents in the order of their nodes' names.
    #[must_use]
    pub fn nodes(&self) -> Vec<&NodeProbe> {
        let mut nodes: Vec<&NodeProbe> = self.nodes.iter().collect();
        nodes.sort_by_key(|node| node.metadata.name.as_deref());
        nodes
    }
}

impl Listed {
    /// Returns the entry of a Service.
    #[must_use]
    pub fn service(service: &Service) -> Self {
        let spec = service.spec.as_ref();
        let is_headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
        let type_ = spec.and_then(|spec| spec.type_.as_deref());
        let has_external_ips =
            spec.and_then(|spec| spec.external_ips.as_ref()).is_some_and(|addresses| !addresses.is_empty());
        let property = match type_ {
            Some("ExternalName") => Some(Property::ExternalName),
            _ if is_headless => Some(Property::Headless),
            Some("LoadBalancer" | "NodePort") => Some(Property::Exposed),
            _ => has_external_ips.then_some(Property::Exposed),
        };
        Self::new("Service", &service.metadata, property)
    }

    /// Returns the entry of a Deployment.
    #[must_use]
    pub fn deployment(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
        Self::new("Deployment", &deployment.metadata, scaled(replicas))
    }

    /// Returns the entry of a StatefulSet.
    #[must_use]
    pub fn stateful_set(set: &StatefulSet) -> Self {
        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
        Self::new("StatefulSet", &set.metadata, scaled(replicas))
    }

    /// Returns the entry of a DaemonSet.
    #[must_use]
    pub fn daemon_set(set: &DaemonSet) -> Self {
        Self::new("DaemonSet", &set.metadata, None)
    }

    fn new(kind: &'static str, metadata: &ObjectMeta, property: Option<Property>) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self { kind, namespace: text(&metadata.namespace), name: text(&metadata.name), property }
    }
}

fn scaled(replicas: Option<i32>) -> Option<Property> {
    (replicas == Some(0)).then_some(Property::ScaledToZero)
}
