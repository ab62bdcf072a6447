//! Removes what belongs to no ScopeProbe any more. There are no finalizers: this looks at what is there and at what
//! should be, so that a ScopeProbe that was deleted while no operator ran leaves nothing behind either.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crds::{MODE_LABEL, NodeProbe, PROBE_LABEL};
use kube::{Api, Client, api::DeleteParams};

use super::apply::{self, ApplyError, is_not_found};
use crate::{cluster_state::ClusterState, observation::Observations, publisher};

/// How often it looks, though nothing seems to have changed.
const INTERVAL: Duration = Duration::from_mins(5);
/// How long it waits for more changes, or after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks after every change, for ever.
pub async fn run(client: Client, cluster: Arc<ClusterState>, observations: Observations) {
    let mut changes = cluster.subscribe();
    loop {
        if let Err(error) = once(&client, &cluster, &observations).await {
            tracing::warn!(%error, "clean-up failed, trying again");
        } else {
            let _ = tokio::time::timeout(INTERVAL, changes.changed()).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(client: &Client, cluster: &ClusterState, observations: &Observations) -> Result<(), ApplyError> {
    let assigned: BTreeSet<String> = cluster.assignments().nodes.into_keys().collect();
    let nodes = cluster.nodes();
    for node in nodes.values().filter(|node| !assigned.contains(&node.name)) {
        if [MODE_LABEL, PROBE_LABEL].iter().any(|label| node.labels.contains_key(*label)) {
            tracing::info!(node = node.name, "no ScopeProbe selects it any more");
            apply::unlabel_node(client, &node.name).await?;
        }
    }
    for name in cluster.node_probes().into_keys().filter(|name| !assigned.contains(name)) {
        delete_node_probe(client, &name).await?;
    }
    if cluster.probes().is_empty() {
        publisher::clear(client).await.map_err(|source| ApplyError::new("clear", "Topologies", source))?;
    }
    for name in observations.all().into_keys().filter(|name| !assigned.contains(name)) {
        observations.forget(&name);
    }
    Ok(())
}

/// Deletes a NodeProbe, if it is there.
///
/// # Errors
/// Where the API server refused.
pub async fn delete_node_probe(client: &Client, name: &str) -> Result<(), ApplyError> {
    match Api::<NodeProbe>::all(client.clone()).delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("delete NodeProbe", name, source)),
    }
}
