//! Reconciles ScopeProbes: every change of one of them, of a node or of a DaemonSet comes by here.

use std::{sync::Arc, time::Duration};

use crds::{PROBE_LABEL, ScopeProbe};
use futures::{Stream, StreamExt, future, stream};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api, Client, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        controller::{Action, Config, Controller},
        reflector::ObjectRef,
        watcher,
    },
};
use tokio::sync::watch;
use tracing::Instrument;

use super::{
    apply::{self, ApplyError, Labelled},
    apply_cache::ApplyCache,
    assigner::Assigner,
    assignment::Assignments,
    build::{self, AGENT_APP, AgentTemplate},
    dereference::{self, DereferenceError},
    obstacles::Obstacles,
    outcome::{Outcome, Outcomes, Problem},
    validate::{self, NoNodes, ValidProbe},
};
use crate::{
    cluster::NodeFacts, guarded::Guarded, guarded_watch::backoff, invalid_field::InvalidField, metrics::Metrics,
    operator_deployment, settings::AgentSettings,
};

/// Changes that come together are handled together.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Nodes that are labelled at a time.
const PARALLEL_LABELS: usize = 8;

/// Dependencies of the controller.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Client of the watches, without a time limit for answers.
    pub watching: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// The operator's own Deployment, with which the agents go.
    pub deployment: Option<String>,
    /// Settings of agents.
    pub agents: AgentSettings,
    /// ScopeProbes, Nodes and their assignments.
    pub assigner: Arc<Assigner>,
    /// DaemonSets that were applied.
    pub apply_cache: ApplyCache,
    /// Obstacles that keep agents from running.
    pub obstacles: Obstacles,
    /// Receiver of each rollout's result.
    pub outcomes: Outcomes,
    /// Interval of a full reconciliation without a change.
    pub resync: Duration,
    /// Metrics.
    pub metrics: Metrics,
}

/// Why a rollout failed.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// Something it needs isn't there.
    #[error(transparent)]
    Dereference(#[from] DereferenceError),
    /// The ScopeProbe has no node.
    #[error(transparent)]
    NoNodes(#[from] NoNodes),
    /// A value of the ScopeProbe is invalid.
    #[error(transparent)]
    InvalidSpec(#[from] InvalidField),
    /// Something could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl RolloutError {
    fn problem(&self) -> Problem {
        let (reason, permanent) = match self {
            Self::Dereference(error) => (error.reason(), false),
            Self::NoNodes(reason) => (reason.reason(), true),
            Self::InvalidSpec(_) => ("InvalidSpec", true),
            Self::Apply(_) => ("ApplyFailed", false),
        };
        Problem { reason, message: self.to_string(), permanent }
    }
}

/// Runs until `shutdown`, then finishes what it has begun.
pub async fn run(context: Arc<Context>, shutdown: impl Future<Output = ()> + Send + Sync + 'static) {
    let agents = watcher::Config::default().labels(&format!("app.kubernetes.io/name={AGENT_APP}"));
    let daemon_sets: Api<PartialObjectMeta<DaemonSet>> = Api::namespaced(context.watching.clone(), &context.namespace);
    Controller::new(Api::<Guarded<ScopeProbe>>::all(context.watching.clone()), watcher::Config::default())
        .watches(daemon_sets, agents, |daemon_set| scope_probe_of(&daemon_set))
        .reconcile_all_on(changes(&context.assigner))
        .trigger_backoff(backoff())
        .with_config(Config::default().concurrency(4).debounce(DEBOUNCE))
        .graceful_shutdown_on(shutdown)
        .run(reconcile, retry, context)
        .for_each(|_| future::ready(()))
        .await;
}

/// Finds the ScopeProbe by label: it is not the DaemonSet's owner.
fn scope_probe_of(daemon_set: &PartialObjectMeta<DaemonSet>) -> Option<ObjectRef<Guarded<ScopeProbe>>> {
    daemon_set.labels().get(PROBE_LABEL).map(|name| ObjectRef::new(name))
}

/// Yields after each change of ScopeProbes, Nodes, and nodes on which eBPF failed.
fn changes(assigner: &Assigner) -> impl Stream<Item = ()> + Send + use<> {
    let of = |receiver: watch::Receiver<()>| {
        stream::unfold(receiver, async |mut changes| changes.changed().await.ok().map(|()| ((), changes)))
    };
    stream::select(of(assigner.cluster().subscribe_requests()), of(assigner.subscribe_fallbacks()))
}

async fn reconcile(probe: Arc<Guarded<ScopeProbe>>, context: Arc<Context>) -> Result<Action, RolloutError> {
    let Ok(probe) = &probe.0 else {
        // Said in the log by the watch; there is nothing to do until it is changed.
        return Ok(Action::await_change());
    };
    if probe.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let name = probe.name_any();
    let span = tracing::info_span!("reconcile", probe = name);
    let result = context.metrics.timed_reconcile(roll_out(probe, &name, &context)).instrument(span).await;
    let generation = probe.metadata.generation.unwrap_or_default();
    let earlier = context.outcomes.get(&name);
    let outcome = match &result {
        Ok(state) => Outcome { generation, ..state.clone() },
        Err(error) => {
            let known = earlier.clone().unwrap_or_default();
            Outcome { generation, problem: Some(error.problem()), ..known }
        }
    };
    context.outcomes.set(&name, outcome.after(earlier.as_ref(), Timestamp::now()));
    match result {
        Ok(outcome) if !outcome.progress.complete() => Ok(Action::requeue(context.obstacles.pause(&name))),
        // Waits for a change of nodes or ScopeProbes; trying again would change nothing.
        Err(RolloutError::NoNodes(_) | RolloutError::InvalidSpec(_)) | Ok(_) => Ok(Action::requeue(context.resync)),
        Err(error) => Err(error),
    }
}

/// Returns the progress of the agents, and what keeps them from running.
async fn roll_out(probe: &ScopeProbe, name: &str, context: &Context) -> Result<Outcome, RolloutError> {
    let assignments = context.assigner.assignments();
    let modes = match validate::modes(name, &assignments) {
        Ok(modes) => modes,
        Err(no_nodes) => {
            apply::daemon_sets(&context.client, &context.namespace, name, &[], &context.apply_cache).await?;
            return Err(no_nodes.into());
        }
    };
    // An invalid `spec` leaves the agents as they are.
    let probe = ValidProbe::try_from(probe)?;
    let Context { client, namespace, agents, .. } = context;
    let owner = operator_deployment::owner(client, namespace, context.deployment.as_deref())
        .await
        .map_err(DereferenceError::from)?;
    let collector_url = dereference::collector_url(client, namespace, agents).await?;
    let template = AgentTemplate { namespace, collector_url: &collector_url, owner: owner.as_ref(), settings: agents };
    let prepared: Vec<_> = modes.into_iter().map(|mode| build::daemon_set(&probe, mode, &template)).collect();
    let applied = apply::daemon_sets(client, namespace, name, &prepared, &context.apply_cache).await?;
    let taken_labels = label_nodes(name, &assignments, context).await?;
    let progress = apply::progress(&applied);
    let obstacle = if progress.complete() {
        context.obstacles.clear(name);
        None
    } else {
        context.obstacles.find(client, namespace, name, &applied).await
    };
    Ok(Outcome { progress, obstacle, taken_labels, ..Outcome::default() })
}

/// Labels the nodes of a ScopeProbe. A node that cannot be labelled delays no other one. Returns the nodes whose labels
/// another field manager holds, with its name; they keep their agents.
async fn label_nodes(probe: &str, assignments: &Assignments, context: &Context) -> Result<Vec<String>, ApplyError> {
    let nodes = context.assigner.cluster().nodes();
    let due = assignments.of(probe).filter_map(|(name, assignment)| {
        let (node, wanted) = (nodes.get(name)?, build::node_labels(probe, assignment.mode));
        (!has_labels(node, &wanted)).then_some((node, wanted, assignment))
    });
    let client = &context.client;
    let labelling = due.map(|(node, wanted, assignment)| async move {
        tracing::info!(node = node.name, mode = assignment.mode.as_str(), cause = ?assignment.cause, "assigning");
        (node, apply::label_node(client, node, &wanted).await)
    });
    let mut labelled = stream::iter(labelling.collect::<Vec<_>>()).buffer_unordered(PARALLEL_LABELS);
    let (mut taken, mut failed) = (Vec::new(), None);
    while let Some((node, result)) = labelled.next().await {
        match result {
            Ok(Labelled::Taken(by)) => {
                tracing::warn!(node = node.name, by, "another field manager has set labels that choose its agent");
                taken.push(format!("{}: {by}", node.name));
            }
            Ok(Labelled::Done | Labelled::Gone) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    taken.sort_unstable();
    failed.map_or(Ok(taken), Err)
}

fn has_labels(node: &NodeFacts, wanted: &std::collections::BTreeMap<String, String>) -> bool {
    apply::ours(&node.labels) == *wanted
}

#[expect(clippy::needless_pass_by_value, reason = "the controller passes them so")]
/// Between 5 s and 10 s, so that ScopeProbes that failed together don't stay together.
fn retry(probe: Arc<Guarded<ScopeProbe>>, error: &RolloutError, context: Arc<Context>) -> Action {
    context.metrics.reconcile_failures.inc();
    let name = probe.name_any();
    tracing::warn!(probe = name, %error, "rollout failed, trying again");
    let spread = name.bytes().map(u64::from).sum::<u64>() % 5_000;
    Action::requeue(Duration::from_millis(5_000 + spread))
}
