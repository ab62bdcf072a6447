//! Ending the project's own processes as a crash does, and waiting until the kubelet has started them again; and
//! signals that break an agent's capture while the agent lives.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};

use crate::{Cluster, Error, Result, chart, eventually};

/// Sends a signal to every process of a node that runs the program of this path, which is that of its container.
const SIGNAL: &str = r#"
sent=
for process in /proc/[0-9]*; do
  read -r -d '' program 2> /dev/null < "$process/cmdline" || continue
  [ "$program" != "$1" ] || { kill "-$2" "${process#/proc/}"; sent=yes; }
done
[ -n "$sent" ] || { echo "no process runs $1" >&2; exit 1; }
"#;

/// Fault of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// It fails for good and has to be started again.
    Kill,
    /// For five seconds it is not read.
    Starve,
    /// Its next start is refused.
    RefuseNext,
}

impl Cluster {
    /// Ends the operator with SIGKILL, wherever it runs, and waits until its container runs again and is ready.
    ///
    /// # Errors
    /// Returns an error if it does not run, or does not restart.
    pub async fn crash_operator(&self) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), chart::NAMESPACE);
        let all = pods.list(&ListParams::default()).await.map_err(Error::api("list the operator's pods"))?;
        let operators = all.items.into_iter().filter(|pod| !pod.labels().contains_key(crds::PROBE_LABEL));
        let mut running = operators.filter(|pod| restarts(pod).is_some());
        let operator = running.next().ok_or_else(|| Error::Unexpected("no operator runs".to_owned()))?;
        self.crash(&operator, "/scopeprobe-operator").await
    }

    /// Ends a node's agent with SIGKILL and waits until its container runs again and is ready.
    ///
    /// # Errors
    /// Returns an error if it does not run, or does not restart.
    pub async fn crash_agent(&self, node: &str) -> Result<()> {
        let agents = self.agents().await?;
        let agent = agents.iter().find(|pod| node_of(pod) == node);
        let agent = agent.ok_or_else(|| Error::Unexpected(format!("no agent runs on {node}")))?;
        self.crash(agent, "/scopeprobe-agent").await
    }

    /// Ends the agents of these nodes with SIGKILL, and deletes their pods, so that new ones start without the kubelet's
    /// delay after crashes. Does not wait for them: see [`Self::agents_ready`].
    ///
    /// # Errors
    /// Returns an error if none runs on one of the nodes, or a pod cannot be deleted.
    pub async fn kill_agents(&self, nodes: &[&str]) -> Result<()> {
        let agents = self.agents().await?;
        for node in nodes {
            self.signal(node, "/scopeprobe-agent", "KILL").await?;
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), chart::NAMESPACE);
        for agent in agents.iter().filter(|agent| nodes.contains(&node_of(agent))) {
            let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            pods.delete(&agent.name_any(), &at_once).await.map_err(Error::api("delete an agent's pod"))?;
        }
        Ok(())
    }

    /// Waits until an agent runs on each of these nodes and is ready.
    ///
    /// # Errors
    /// Returns an error if that does not happen.
    pub async fn agents_ready(&self, nodes: &[&str]) -> Result<()> {
        eventually("agents to be ready", async || {
            let agents = self.agents().await.map_err(|error| error.to_string())?;
            let is_ready_on = |node: &&str| agents.iter().any(|agent| node_of(agent) == *node && is_ready(agent));
            if nodes.iter().all(is_ready_on) { Ok(()) } else { Err(format!("{} agents", agents.len())) }
        })
        .await
    }

    /// Returns the number of restarts of a node's agent.
    ///
    /// # Errors
    /// Returns an error if no agent runs there.
    pub async fn agent_restarts(&self, node: &str) -> Result<i32> {
        let agents = self.agents().await?;
        let agent = agents.iter().find(|pod| node_of(pod) == node);
        agent.and_then(restarts).ok_or_else(|| Error::Unexpected(format!("no agent runs on {node}")))
    }

    /// Breaks the capture of a node's agent, which has to obey signals (`agent.debugSignals` of the chart).
    ///
    /// # Errors
    /// Returns an error if no agent runs there.
    pub async fn break_capture(&self, node: &str, how: Sabotage) -> Result<()> {
        let signal = match how {
            Sabotage::Kill => "USR1",
            Sabotage::Starve => "USR2",
            // SIGRTMIN+1, as the C library numbers it.
            Sabotage::RefuseNext => "35",
        };
        self.signal(node, "/scopeprobe-agent", signal).await
    }

    async fn signal(&self, node: &str, program: &str, signal: &str) -> Result<()> {
        self.script(&["on", node, "bash", "-c", SIGNAL, "signal", program, signal]).await?;
        Ok(())
    }

    async fn crash(&self, pod: &Pod, program: &str) -> Result<()> {
        let (node, name) = (node_of(pod), pod.name_any());
        let before = restarts(pod);
        self.signal(node, program, "KILL").await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), chart::NAMESPACE);
        eventually(&format!("{name} to be started again"), async || {
            let pod = pods.get(&name).await.map_err(|error| error.to_string())?;
            if restarts(&pod) > before && is_ready(&pod) { Ok(()) } else { Err(format!("{:?}", pod.status)) }
        })
        .await
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Returns the number of restarts; `None` if the container has not started.
fn restarts(pod: &Pod) -> Option<i32> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.first().map(|container| container.restart_count)
}

fn is_ready(pod: &Pod) -> bool {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    !containers.is_empty() && containers.iter().all(|container| container.ready)
}
