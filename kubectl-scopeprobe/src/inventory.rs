//! Reads Services, workloads and the state of the nodes' agents from a cluster, as far as the rights suffice.

use std::fmt::Debug;

use crds::NodeProbe;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use view::inventory::{Inventory, Listed};

use crate::source::{Scope, list};

/// Returns what could be read, and a sentence for each kind that could not.
pub async fn read(scope: &Scope) -> (Inventory, Vec<String>) {
    let (mut inventory, mut missing) = (Inventory::default(), Vec::new());
    let listed = [
        listed(scope, "services", Listed::service).await,
        listed(scope, "deployments.apps", Listed::deployment).await,
        listed(scope, "statefulsets.apps", Listed::stateful_set).await,
        listed(scope, "daemonsets.apps", Listed::daemon_set).await,
    ];
    for listed in listed {
        match listed {
            Ok(listed) => listed.into_iter().for_each(|listed| inventory.add(listed)),
            Err(problem) => missing.push(problem),
        }
    }
    match list(&Api::<NodeProbe>::all(scope.client.clone()), None).await {
        Ok(nodes) => nodes.into_iter().for_each(|node| inventory.add_node(node)),
        Err(error) => missing.push(problem("nodeprobes.scopeprobe.io", "of the cluster", &error)),
    }
    (inventory, missing)
}

async fn listed<K>(scope: &Scope, resource: &str, entry: fn(&K) -> Listed) -> Result<Vec<Listed>, String>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let objects = list(&scope.api::<K>(), None).await;
    let objects = objects.map_err(|error| problem(resource, &scope.place(), &error))?;
    Ok(objects.iter().map(entry).collect())
}

fn problem(resource: &str, place: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            format!("you may not list {resource} {place}: they are not among what was read")
        }
        other => format!("{resource} {place} could not be read: {other}"),
    }
}
