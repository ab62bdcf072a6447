//! Removes objects and labels of deleted ScopeProbes. There are no finalizers: the garbage collector compares the
//! existing objects with the desired ones. It also finds those of a ScopeProbe that was deleted while no operator ran.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crds::{MODE_LABEL, PROBE_LABEL};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client, ResourceExt};

use crate::{
    observation::Observations,
    publisher,
    rollout::{
        apply::{self, ApplyError},
        assigner::Assigner,
        build::AGENT_APP,
    },
};

/// Delay to collect more changes, or after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Dependencies of the garbage collector.
#[derive(Clone)]
pub struct GarbageCollector {
    /// The API server.
    pub client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// ScopeProbes, Nodes and NodeProbes, and the assignments.
    pub assigner: Arc<Assigner>,
    /// Reports of agents.
    pub observations: Observations,
    /// Interval of a run without a change.
    pub interval: Duration,
}

impl GarbageCollector {
    /// Runs after every change, without end.
    pub async fn run(self) {
        let mut changes = self.assigner.cluster().subscribe();
        let (mut swept_for, mut is_failing) = (None, false);
        loop {
            if let Err(error) = self.once(&mut swept_for).await {
                if std::mem::replace(&mut is_failing, true) {
                    tracing::debug!(%error, "clean-up still fails");
                } else {
                    tracing::warn!(%error, "clean-up failed; trying again");
                }
            } else {
                is_failing = false;
                let _ = tokio::time::timeout(self.interval, changes.changed()).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// `swept_for`: the ScopeProbes whose DaemonSets alone are left.
    async fn once(&self, swept_for: &mut Option<BTreeSet<String>>) -> Result<(), ApplyError> {
        let Self { client, assigner, observations, .. } = self;
        let cluster = assigner.cluster();
        // A ScopeProbe that does not decode asks for something, though it is not known for what.
        let malformed = cluster.malformed_probes();
        let well_formed = cluster.probes().iter().map(ResourceExt::name_any).collect();
        let probes: BTreeSet<String> = &malformed | &well_formed;
        if swept_for.as_ref() != Some(&probes) {
            self.delete_daemon_sets_of_others(&probes).await?;
            *swept_for = Some(probes);
        }
        let mut wanted: BTreeSet<String> = assigner.assignments().nodes.into_keys().collect();
        wanted.extend(cluster.held_nodes());
        let nodes = cluster.nodes();
        // An object that cannot be removed keeps no other one.
        let mut failed = None;
        for node in nodes.values().filter(|node| !wanted.contains(&node.name)) {
            if [MODE_LABEL, PROBE_LABEL].iter().any(|label| node.labels.contains_key(*label)) {
                tracing::info!(node = node.name, "no ScopeProbe selects it any more");
                failed = failed.or(apply::unlabel_node(client, &node.name).await.err());
            }
        }
        for name in cluster.node_probes().into_keys().filter(|name| !wanted.contains(name)) {
            failed = failed.or(apply::delete_node_probe(client, &name).await.err());
        }
        if cluster.probes().is_empty() && cluster.malformed_probes().is_empty() {
            let cleared = publisher::clear(client).await;
            failed = failed.or(cleared.err().map(|source| ApplyError::new("clear", "Topologies", source)));
        }
        for name in observations.all().into_keys().filter(|name| !wanted.contains(name)) {
            observations.forget(&name);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Deletes the DaemonSets of deleted ScopeProbes. Kubernetes does not: the operator's Deployment owns them.
    async fn delete_daemon_sets_of_others(&self, probes: &BTreeSet<String>) -> Result<(), ApplyError> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut selector = format!("app.kubernetes.io/name={AGENT_APP},{PROBE_LABEL}");
        if !probes.is_empty() {
            let names = probes.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            selector = format!("{selector},{PROBE_LABEL} notin ({names})");
        }
        apply::delete_daemon_sets(&api, &self.namespace, &selector).await
    }
}
