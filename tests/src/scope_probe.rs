//! The one ScopeProbe of the tests, and what comes of it.

use crds::{Mode, NodeProbe, ScopeProbe};
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};

use crate::{Cluster, Error, Result, chart, eventually, manifest};

/// Its name.
pub const NAME: &str = "tests";

impl Cluster {
    /// Applies a ScopeProbe with this `spec` (JSON or YAML in flow style). Waits until an agent on every node reports
    /// by eBPF since this call, so that agents of an earlier `spec` are gone.
    ///
    /// # Errors
    /// Returns an error if that does not happen.
    pub async fn probe(&self, spec: &str) -> Result<()> {
        self.probe_as(spec, |_| Mode::Ebpf).await
    }

    /// Applies a ScopeProbe with this `spec`, without waiting for agents.
    ///
    /// # Errors
    /// The API server's.
    pub async fn apply_probe(&self, spec: &str) -> Result<()> {
        manifest::apply(&self.client, "", &yaml(spec)).await.map(|_| ())
    }

    /// As [`Cluster::probe`], where each node's agent is to report from this mode.
    ///
    /// # Errors
    /// Returns an error if that does not happen.
    pub async fn probe_as(&self, spec: &str, mode: impl Fn(&str) -> Mode) -> Result<()> {
        self.apply_probe(spec).await?;
        self.ready_probe_as(mode).await
    }

    /// As [`Cluster::probe`], where only these nodes are to have an agent, and these are to report from this mode.
    ///
    /// # Errors
    /// Returns an error if that does not happen.
    pub async fn probe_some(&self, spec: &str, nodes: &[&str], mode: Mode) -> Result<()> {
        self.apply_probe(spec).await?;
        self.ready_probe_on(nodes.len(), |_| mode).await?;
        eventually("the agents of other nodes to be gone", async || {
            let agents = self.agents().await.map_err(|error| error.to_string())?;
            let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            let others: Vec<String> = agents.iter().map(node).filter(|node| !nodes.contains(&node.as_str())).collect();
            if others.is_empty() { Ok(()) } else { Err(format!("agents on {others:?}")) }
        })
        .await
    }

    /// Waits until the ScopeProbe is ready in its current generation and every node's agent reports from eBPF.
    ///
    /// # Errors
    /// Returns an error if that does not happen.
    pub async fn ready_probe(&self) -> Result<()> {
        self.ready_probe_as(|_| Mode::Ebpf).await
    }

    async fn ready_probe_as(&self, mode: impl Fn(&str) -> Mode) -> Result<()> {
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await
            .map_err(Error::api("list nodes"))?
            .items
            .len();
        self.ready_probe_on(nodes, mode).await
    }

    async fn ready_probe_on(&self, nodes: usize, mode: impl Fn(&str) -> Mode) -> Result<()> {
        let probes: Api<ScopeProbe> = Api::all(self.client.clone());
        eventually("the ScopeProbe to be ready", async || {
            let probe = probes.get(NAME).await.map_err(|error| error.to_string())?;
            let status = probe.status.clone().unwrap_or_default();
            let ready =
                status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
            if ready && status.observed_generation == probe.metadata.generation {
                return Ok(());
            }
            Err(format!("{status:?}"))
        })
        .await?;
        eventually("every node's agent to report from its mode", async || {
            let probes = self.node_probes().await.map_err(|error| error.to_string())?;
            let states: Vec<_> = probes
                .iter()
                .map(|probe| (probe.name_any(), probe.status.clone().unwrap_or_default()))
                .map(|(name, status)| (name, status.mode, status.reason, status.message))
                .collect();
            let good = states.iter().filter(|state| state.1 == Some(mode(&state.0))).count();
            if good == nodes && states.len() == nodes { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .await
    }

    /// One of the ScopeProbe's conditions.
    ///
    /// # Errors
    /// The API server's, and where it has no such condition.
    pub async fn probe_condition(&self, type_: &str) -> Result<Condition> {
        let probes: Api<ScopeProbe> = Api::all(self.client.clone());
        let probe = probes.get(NAME).await.map_err(Error::api("get the ScopeProbe"))?;
        let mut conditions = probe.status.unwrap_or_default().conditions.into_iter();
        conditions
            .find(|condition| condition.type_ == type_)
            .ok_or_else(|| Error::Unexpected(format!("the ScopeProbe has no condition {type_}")))
    }

    /// All NodeProbes.
    ///
    /// # Errors
    /// The API server's.
    pub async fn node_probes(&self) -> Result<Vec<NodeProbe>> {
        let api: Api<NodeProbe> = Api::all(self.client.clone());
        Ok(api.list(&ListParams::default()).await.map_err(Error::api("list NodeProbes"))?.items)
    }

    /// Deletes the ScopeProbe and waits until no agent runs and no NodeProbe is left.
    ///
    /// # Errors
    /// Returns an error if they remain.
    pub async fn unprobe(&self) -> Result<()> {
        let probes: Api<ScopeProbe> = Api::all(self.client.clone());
        match probes.delete(NAME, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api("delete the ScopeProbe")(error)),
        }
        eventually("agents and NodeProbes to go", async || {
            let agents = self.agents().await.map_err(|error| error.to_string())?;
            let nodes = self.node_probes().await.map_err(|error| error.to_string())?;
            if agents.is_empty() && nodes.is_empty() {
                return Ok(());
            }
            Err(format!("{} agents, {} NodeProbes", agents.len(), nodes.len()))
        })
        .await
    }

    /// The agents' pods.
    ///
    /// # Errors
    /// The API server's.
    pub async fn agents(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), chart::NAMESPACE);
        let ours = ListParams::default().labels(crds::PROBE_LABEL);
        Ok(pods.list(&ours).await.map_err(Error::api("list agents"))?.items)
    }
}

fn yaml(spec: &str) -> String {
    format!("{{apiVersion: scopeprobe.io/v1alpha1, kind: ScopeProbe, metadata: {{name: {NAME}}}, spec: {spec}}}")
}
