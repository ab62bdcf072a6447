//! Removes what belongs to no ScopeProbe any more. There are no finalizers: this looks at what is there and at what
//! should be, so that a ScopeProbe that was deleted while no operator ran leaves nothing behind either.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crds::{MODE_LABEL, NodeProbe, PROBE_LABEL};
use kube::{Api, Client, ResourceExt, api::DeleteParams};

use super::apply::{self, ApplyError, is_not_found};
use crate::{cluster_state::ClusterState, observation::Observations};

/// How often it looks, though nothing seems to have changed.
const INTERVAL: Duration = Duration::from_secs(300);
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
    for name in observations.all().into_keys().filter(|name| !assigned.contains(name)) {
        observations.forget(&name);
    }
    Ok(())
}

async fn delete_node_probe(client: &Client, name: &str) -> Result<(), ApplyError> {
    match Api::<NodeProbe>::all(client.clone()).delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("delete NodeProbe", name, source)),
    }
}

/// Removes all that an operator has made: what `cleanup` does before the chart goes.
///
/// # Errors
/// The first request that failed.
pub async fn everything(client: &Client, namespace: &str) -> Result<(), ApplyError> {
    use crds::Topology;
    use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
    use kube::api::ListParams;

    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let ours = format!("app.kubernetes.io/name={}", super::build::AGENT_APP);
    apply::delete_daemon_sets(&daemon_sets, namespace, &ours, |_| true).await?;

    let labelled = ListParams::default().labels(PROBE_LABEL);
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&labelled).await;
    for node in nodes.map_err(|source| ApplyError::new("list", "Nodes", source))? {
        apply::unlabel_node(client, &node.name_any()).await?;
    }
    let node_probes = Api::<NodeProbe>::all(client.clone()).list_metadata(&ListParams::default()).await;
    for name in names(node_probes, "NodeProbes")? {
        delete_node_probe(client, &name.1).await?;
    }
    let topologies = Api::<Topology>::all(client.clone()).list_metadata(&ListParams::default()).await;
    for (topology_namespace, name) in names(topologies, "Topologies")? {
        let api: Api<Topology> = Api::namespaced(client.clone(), &topology_namespace);
        match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(source) if is_not_found(&source) => {}
            Err(source) => {
                return Err(ApplyError::new("delete Topology", format!("{topology_namespace}/{name}"), source));
            }
        }
    }
    Ok(())
}

/// Namespaces and names; none where the kind itself is gone.
fn names<K>(
    list: kube::Result<kube::api::ObjectList<kube::core::PartialObjectMeta<K>>>,
    what: &str,
) -> Result<Vec<(String, String)>, ApplyError>
where
    K: kube::Resource<DynamicType = ()> + Clone,
{
    match list {
        Ok(list) => Ok(list.iter().map(|it| (it.namespace().unwrap_or_default(), it.name_any())).collect()),
        Err(source) if is_not_found(&source) => Ok(Vec::new()),
        Err(source) => Err(ApplyError::new("list", what, source)),
    }
}
