//! Removes all that an operator has made: what the chart does before it goes.

use std::time::Duration;

use crds::{NodeProbe, PROBE_LABEL};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    coordination::v1::Lease,
    core::v1::Node,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectList, Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::json;

use super::{
    apply::{self, ApplyError, is_not_found},
    build::AGENT_APP,
    sweep::delete_node_probe,
};
use crate::{publisher, settings::CleanupSettings};

/// How often the lease is looked at while an operator stops.
const POLL: Duration = Duration::from_millis(500);

/// Stops the operator, if told which Deployment it is, and removes what it has made.
///
/// # Errors
/// The first request that failed.
pub async fn run(client: &Client, settings: &CleanupSettings) -> Result<(), ApplyError> {
    if let Some(deployment) = &settings.stop_deployment {
        stop(client, &settings.namespace, deployment).await?;
    }
    if let Some(lease) = &settings.lease_name {
        delete_free_lease(client, &settings.namespace, lease).await?;
    }
    everything(client, &settings.namespace).await
}

async fn stop(client: &Client, namespace: &str, name: &str) -> Result<(), ApplyError> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
    match api.patch_scale(name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("scale to 0 Deployment", format!("{namespace}/{name}"), source)),
    }
}

/// Waits until nobody holds the lease, which an operator gives back when it stops and loses when it was killed.
async fn delete_free_lease(client: &Client, namespace: &str, name: &str) -> Result<(), ApplyError> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let object = format!("{namespace}/{name}");
    loop {
        match api.get_opt(name).await.map_err(|source| ApplyError::new("read Lease", &object, source))? {
            None => return Ok(()),
            Some(lease) if !is_held(&lease, Timestamp::now()) => break,
            Some(_) => tokio::time::sleep(POLL).await,
        }
    }
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("delete Lease", object, source)),
    }
}

fn is_held(lease: &Lease, now: Timestamp) -> bool {
    let Some(spec) = &lease.spec else { return false };
    let held = spec.holder_identity.as_ref().is_some_and(|holder| !holder.is_empty());
    let end = spec.renew_time.as_ref().zip(spec.lease_duration_seconds);
    held && end.is_some_and(|(renewed, seconds)| now.as_second() <= renewed.0.as_second() + i64::from(seconds))
}

async fn everything(client: &Client, namespace: &str) -> Result<(), ApplyError> {
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let agents = format!("app.kubernetes.io/name={AGENT_APP}");
    apply::delete_daemon_sets(&daemon_sets, namespace, &agents).await?;

    let labelled = ListParams::default().labels(PROBE_LABEL);
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&labelled).await;
    for node in names(nodes, "Nodes")? {
        apply::unlabel_node(client, &node).await?;
    }
    let node_probes = Api::<NodeProbe>::all(client.clone()).list_metadata(&ListParams::default()).await;
    for name in names(node_probes, "NodeProbes")? {
        delete_node_probe(client, &name).await?;
    }
    match publisher::clear(client).await {
        Ok(()) => Ok(()),
        Err(source) if is_not_found(&source) => Ok(()),
        Err(source) => Err(ApplyError::new("clear", "Topologies", source)),
    }
}

/// The names; none where the kind itself is gone.
fn names<K>(list: kube::Result<ObjectList<PartialObjectMeta<K>>>, what: &str) -> Result<Vec<String>, ApplyError>
where
    K: Resource<DynamicType = ()> + Clone,
{
    match list {
        Ok(list) => Ok(list.iter().map(ResourceExt::name_any).collect()),
        Err(source) if is_not_found(&source) => Ok(Vec::new()),
        Err(source) => Err(ApplyError::new("list", what, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_free_when_it_was_given_back_or_has_ended() {
        let lease = |spec| serde_json::from_value::<Lease>(json!({ "spec": spec })).unwrap();
        let held = lease(json!({
            "holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 15
        }));
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        assert!(is_held(&held, at("2026-01-01T00:00:10Z")));
        assert!(!is_held(&held, at("2026-01-01T00:00:16Z")));
        assert!(!is_held(&lease(json!({"holderIdentity": ""})), at("2026-01-01T00:00:00Z")));
        assert!(!is_held(&Lease::default(), at("2026-01-01T00:00:00Z")));
    }
}
