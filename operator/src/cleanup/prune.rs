//! Removes the objects of an uninstalled operator that the garbage collector does not remove. Does nothing while an
//! operator is installed in any namespace.

use std::time::Duration;

use crds::{NodeProbe, PROBE_LABEL};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    coordination::v1::Lease,
    core::v1::Node,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectList},
    core::PartialObjectMeta,
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{
    cluster_claim,
    operator_deployment::OPERATOR_APP,
    publisher,
    rollout::{
        apply::{self, ApplyError, is_not_found},
        build::AGENT_APP,
    },
};

/// Pause between two lists of the agents' DaemonSets.
const POLL: Duration = Duration::from_secs(1);
/// Time that the garbage collector has to remove the agents' DaemonSets.
const GARBAGE_COLLECTION: Duration = Duration::from_mins(2);

/// Outcome of the clean-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pruned {
    /// All node labels, NodeProbes and Topologies.
    Everything,
    /// Nothing, since operators are installed.
    Nothing {
        /// Their Deployments.
        operators: Vec<String>,
    },
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] ApplyError),
    /// Agents still run.
    #[error(
        "no operator is installed, but the garbage collector left DaemonSets of agents: {}; delete them, then the labels \
         of their nodes",
        .0.join(", ")
    )]
    AgentsLeft(Vec<String>),
}

/// Removes node labels, NodeProbes, Topologies and the cluster's Lease, unless an operator is installed.
///
/// # Errors
/// The first request that failed, and agents that the garbage collector does not remove.
pub async fn run(client: &Client) -> Result<Pruned, PruneError> {
    let operators = staying(deployments(client).await?);
    if !operators.is_empty() {
        return Ok(Pruned::Nothing { operators });
    }
    wait_for_agents_to_go(client).await?;
    everything(client).await?;
    Ok(Pruned::Everything)
}

async fn deployments(client: &Client) -> Result<Vec<PartialObjectMeta<Deployment>>, ApplyError> {
    let operators = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR_APP}"));
    all(Api::<Deployment>::all(client.clone()).list_metadata(&operators).await, "Deployments")
}

/// Those that are not being deleted, by namespace and name.
fn staying<K: Resource<DynamicType = ()>>(objects: Vec<PartialObjectMeta<K>>) -> Vec<String> {
    let staying = objects.into_iter().filter(|object| object.meta().deletion_timestamp.is_none());
    staying.map(|object| format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())).collect()
}

async fn wait_for_agents_to_go(client: &Client) -> Result<(), PruneError> {
    let agents = ListParams::default().labels(&format!("app.kubernetes.io/name={AGENT_APP}"));
    let give_up = Instant::now() + GARBAGE_COLLECTION;
    loop {
        let listed = Api::<DaemonSet>::all(client.clone()).list_metadata(&agents).await;
        let left = staying(all(listed, "DaemonSets")?);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= give_up {
            return Err(PruneError::AgentsLeft(left));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn everything(client: &Client) -> Result<(), ApplyError> {
    let labelled = ListParams::default().labels(PROBE_LABEL);
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&labelled).await;
    for node in all(nodes, "Nodes")? {
        apply::unlabel_node(client, &node.name_any()).await?;
    }
    let node_probes = Api::<NodeProbe>::all(client.clone()).list_metadata(&ListParams::default()).await;
    for node_probe in all(node_probes, "NodeProbes")? {
        apply::delete_node_probe(client, &node_probe.name_any()).await?;
    }
    match publisher::clear(client).await {
        Ok(()) => {}
        Err(source) if is_not_found(&source) => {}
        Err(source) => return Err(ApplyError::new("clear", "Topologies", source)),
    }
    let leases = Api::<PartialObjectMeta<Lease>>::namespaced(client.clone(), cluster_claim::NAMESPACE);
    match leases.delete(cluster_claim::NAME, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("delete Lease", cluster_claim::NAME, source)),
    }
}

/// The listed objects; none where the kind itself is gone.
fn all<K>(
    list: kube::Result<ObjectList<PartialObjectMeta<K>>>,
    what: &str,
) -> Result<Vec<PartialObjectMeta<K>>, ApplyError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned,
{
    match list {
        Ok(list) => Ok(list.items),
        Err(source) if is_not_found(&source) => Ok(Vec::new()),
        Err(source) => Err(ApplyError::new("list", what, source)),
    }
}
