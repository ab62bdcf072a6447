//! Writes statuses that differ from the published ones: changes of structure at once, growing numbers at intervals.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crds::{Mode, NodeProbe, NodeProbeStatus, PROBE_LABEL, ScopeProbe, ScopeProbeStatus};
use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use super::{
    conditions::is_true,
    coverage::{CoverageFacts, GRACE, assess},
    events::{Events, changed_readiness, is_mode_change},
    figures, node_probe,
    repair::{self, MalformedProbes},
    scope_probe::{self, NodeState},
    written_statuses::{Due, ECHO, WrittenStatuses},
};
use crate::{
    api_budget::{ApiBudget, Reason},
    api_problems::ApiProblems,
    cluster::NodeFacts,
    metrics::Metrics,
    observation::{NodeObservation, Observations, TopologyOverview},
    publish_settings::PublishSettings,
    rollout::{
        FIELD_MANAGER,
        apply::{ApplyError, is_not_found},
        assigner::Assigner,
        assignment::Assignments,
        outcome::Outcomes,
        validate::ValidProbe,
    },
    share_of_time::pause_after,
};

/// Delay to collect further changes before a write.
const PAUSE: Duration = Duration::from_millis(300);
/// Maximum number of objects per turn that are written for their numbers alone, those that waited longest first: 3 objects a
/// second.
const NUMBERS_PER_TURN: usize = 1;
/// Time after a start, or after the lease was taken again, in which a silent agent keeps its published status: all agents
/// reconnect then, after pauses of up to 10 s.
const WARM_UP: Duration = Duration::from_secs(20);
/// Operation whose failures are shown.
const WRITE_NODE_PROBE: &str = "write NodeProbe";
/// Time after which numbers that have doubled are written, such as the first ones of a node.
const SOON: Duration = Duration::from_secs(2);
/// Maximum delay of the writes of due Topology objects, without failures.
const PUBLISHING: Duration = Duration::from_secs(5);
/// Writes of NodeProbes under way at a time.
const PARALLEL_WRITES: usize = 4;
/// Time limit of a write. One without an answer delays the others for no longer than that.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Dependencies of the writer.
#[derive(Clone)]
pub struct Writer {
    /// The API server.
    pub client: Client,
    /// ScopeProbes, Nodes and NodeProbes, and the assignments.
    pub assigner: Arc<Assigner>,
    /// Reports of agents.
    pub observations: Observations,
    /// Results of rollouts.
    pub outcomes: Outcomes,
    /// The size of the topology.
    pub overview: watch::Receiver<TopologyOverview>,
    /// Sender of the oldest ScopeProbe's settings to the publisher.
    pub publish: watch::Sender<Option<PublishSettings>>,
    /// Receiver of changes of modes and of readiness.
    pub events: Events,
    /// Budget of requests.
    pub budget: ApiBudget,
    /// Requests that fail.
    pub problems: ApiProblems,
    /// Metrics.
    pub metrics: Metrics,
}

/// Write of a NodeProbe.
struct NodeProbeWrite<'a> {
    node: &'a NodeFacts,
    status: &'a NodeProbeStatus,
    previous: Option<NodeProbeStatus>,
    there: Option<&'a NodeProbe>,
    /// The object does not decode.
    is_malformed: bool,
}

impl Writer {
    /// Runs after every change, without end.
    pub async fn run(mut self) {
        let warm_at = Instant::now() + WARM_UP;
        let mut node_probes = WrittenStatuses::default();
        let mut scope_probes = WrittenStatuses::default();
        let mut malformed = MalformedProbes::default();
        let mut cluster = self.assigner.cluster().subscribe();
        let mut fallbacks = self.assigner.subscribe_fallbacks();
        let mut reports = self.observations.subscribe();
        let mut outcomes = self.outcomes.subscribe();
        self.problems.forget(WRITE_NODE_PROBE);
        loop {
            let began = Instant::now();
            let is_warm = began >= warm_at;
            self.turn(&mut node_probes, &mut scope_probes, is_warm).await;
            malformed.mend(&self.client, &self.assigner.cluster().malformed_probe_versions(), now()).await;
            tokio::time::sleep(pause_after(began.elapsed(), PAUSE)).await;
            // Numbers that wait for their turn need a turn.
            let _ = tokio::time::timeout(Duration::from_secs(1), async {
                tokio::select! {
                    _ = cluster.changed() => {}
                    _ = fallbacks.changed() => {}
                    _ = reports.changed() => {}
                    _ = outcomes.changed() => {}
                    _ = self.overview.changed() => {}
                }
            })
            .await;
        }
    }

    async fn turn(
        &mut self,
        node_probes: &mut WrittenStatuses<NodeProbeStatus>,
        scope_probes: &mut WrittenStatuses<ScopeProbeStatus>,
        is_warm: bool,
    ) {
        let now = now();
        let probes = self.assigner.cluster().probes();
        self.notify_publisher(&probes);
        let assignments = self.assigner.assignments();
        let nodes = self.node_probes(&probes, &assignments, node_probes, (now, is_warm)).await;
        let connected = self.observations.all().values().filter(|node| node.connected).count();
        figures::count(&self.metrics, &nodes, &self.overview.borrow().totals, connected);
        for gone in node_probes.retain(|name| nodes.contains_key(name)) {
            self.problems.succeeded(WRITE_NODE_PROBE, &gone);
        }
        scope_probes.retain(|name| probes.iter().any(|probe| probe.name_any() == name));
        self.outcomes.retain(|name| probes.iter().any(|probe| probe.name_any() == name));
        let mut conditions = Vec::new();
        for probe in &probes {
            conditions.extend(self.scope_probe(probe, &assignments, &nodes, scope_probes, now).await);
        }
        figures::count_conditions(&self.metrics, &conditions);
    }

    fn notify_publisher(&self, probes: &[ScopeProbe]) {
        let age = |probe: &&ScopeProbe| (probe.creation_timestamp(), probe.name_any());
        let Ok(oldest) = probes.iter().min_by_key(age).map(ValidProbe::try_from).transpose() else {
            // The earlier settings stay in effect. The ScopeProbe's status reports the error.
            return;
        };
        let settings = oldest.map(|probe| probe.publish);
        if settings.is_none() && !self.assigner.cluster().malformed_probes().is_empty() {
            // The earlier settings stay in effect.
            return;
        }
        self.publish.send_if_modified(|current| {
            let changed = *current != settings;
            *current = settings;
            changed
        });
    }

    /// Writes NodeProbes. Returns the desired states of all of them, written or not.
    async fn node_probes(
        &self,
        probes: &[ScopeProbe],
        assignments: &Assignments,
        written: &mut WrittenStatuses<NodeProbeStatus>,
        (now, is_warm): (Timestamp, bool),
    ) -> BTreeMap<String, NodeState> {
        let there = self.assigner.cluster().node_probes();
        let malformed = self.assigner.cluster().malformed_node_probes();
        let mut observations = self.observations.all();
        let nodes = self.assigner.cluster().nodes();
        let fallbacks = self.assigner.fallbacks();
        let by_name: BTreeMap<_, _> = probes.iter().map(|probe| (probe.name_any(), probe)).collect();
        let max_counter_age = Duration::from_secs(self.overview.borrow().totals.max_counter_age_seconds);
        let mut by_node = BTreeMap::new();
        let (mut writes, mut numbers) = (Vec::new(), Vec::new());
        for (name, assignment) in &assignments.nodes {
            let (Some(node), Some(probe)) = (nodes.get(name), by_name.get(&assignment.probe)) else { continue };
            if !there.contains_key(name) && !written.statuses.contains_key(name) {
                self.forget_earlier_agent(name, &mut observations);
            }
            let existing = there.get(name).and_then(|it| it.status.as_ref());
            let previous = written.statuses.get(name).map(|(status, _)| status).or(existing).cloned();
            let observation = observations.get(name).map(Arc::as_ref);
            let interval: Duration = probe.spec.topology.counter_interval.into();
            let created = there.get(name).and_then(ResourceExt::creation_timestamp).map(|time| unix_ms(time.0));
            let published = (interval + PUBLISHING).max(max_counter_age);
            let settled = unix_ms(now).saturating_sub(millis(published));
            let coverage = assess(&CoverageFacts { observation, created, settled, now: unix_ms(now) });
            let inputs = node_probe::NodeProbeInputs {
                assignment,
                node_kernel: &node.kernel,
                fallback: fallbacks.get(name),
                observation,
                coverage: &coverage,
                previous: previous.as_ref(),
            };
            let mut status = node_probe::desired(&inputs, now);
            if !is_warm && let Some(earlier) = previous.as_ref().filter(|it| falls_silent(it, &status)) {
                status = earlier.clone();
            }
            let has_doubled =
                previous.as_ref().is_some_and(|it| status.seen > it.seen && status.seen >= it.seen.saturating_mul(2));
            let interval = if has_doubled { interval.min(SOON) } else { interval };
            match written.due(name, &status, existing, interval, node_probe::differs_in_structure) {
                due if malformed.contains(name) => {
                    // The watch may not have returned the repaired object yet.
                    let is_repaired = written.statuses.get(name).is_some_and(|(_, at)| at.elapsed() < ECHO);
                    if !is_repaired && due != Due::Later {
                        writes.push((name.clone(), previous, true));
                    }
                }
                Due::Now => {
                    self.budget.take(Reason::Structure, 1, Instant::now());
                    writes.push((name.clone(), previous, false));
                }
                Due::Numbers(waited) => numbers.push((waited, name.clone())),
                Due::Later => {}
                Due::No => {
                    // A write whose answer was lost may have been applied.
                    if written.succeed(name) {
                        self.problems.succeeded(WRITE_NODE_PROBE, name);
                    }
                    self.metrics.write("NodeProbe", "skipped");
                }
            }
            let is_new = created.is_none_or(|created| unix_ms(now).saturating_sub(created) < GRACE);
            by_node.insert(name.clone(), NodeState { status, shares: coverage.shares, is_new });
        }
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        let may_write = |_: &(Duration, String)| self.budget.try_take(Reason::NodeCounts, Instant::now());
        let numbers = numbers.into_iter().take(NUMBERS_PER_TURN).take_while(may_write);
        writes.extend(numbers.map(|(_, name)| {
            let same = by_node.get(&name).map(|node: &NodeState| node.status.clone());
            (name, same, false)
        }));
        let writes = writes.into_iter().filter_map(|(name, previous, is_malformed)| {
            let (node, NodeState { status, .. }) = (nodes.get(&name)?, by_node.get(&name)?);
            let there = there.get(&name).filter(|_| !is_malformed);
            let write = NodeProbeWrite { node, status, previous, there, is_malformed };
            Some(self.write_node_probe(write).boxed())
        });
        let writes: Vec<_> = writes.collect();
        let mut writes = stream::iter(writes).buffer_unordered(PARALLEL_WRITES);
        while let Some((name, result)) = writes.next().await {
            match result {
                Ok(status) => written.note(name, status.clone()),
                Err(error) => written.fail(name, &error),
            }
        }
        drop(writes);
        by_node
    }

    /// Forgets what the agent of a deleted ScopeProbe has reported, before the node gets another NodeProbe: the time between
    /// the two is not one in which the new one's agent observed nothing.
    fn forget_earlier_agent(&self, name: &str, observations: &mut BTreeMap<String, Arc<NodeObservation>>) {
        if observations.get(name).is_some_and(|it| !it.connected) {
            self.observations.forget(name);
            observations.remove(name);
        }
    }

    /// Writes a NodeProbe. Returns its name, and its status or the error.
    async fn write_node_probe<'a>(
        &self,
        write: NodeProbeWrite<'a>,
    ) -> (&'a str, Result<&'a NodeProbeStatus, ApplyError>) {
        let NodeProbeWrite { node, status, previous, there, is_malformed } = write;
        let name = node.name.as_str();
        let applied = within("NodeProbe", name, async {
            if is_malformed {
                repair::node_probe(&self.client, name).await?;
            }
            self.apply_node_probe(node, status, there).await
        });
        match applied.await {
            Ok(node_probe) => {
                self.metrics.write("NodeProbe", "done");
                self.problems.succeeded(WRITE_NODE_PROBE, name);
                if is_mode_change(previous.as_ref(), status) {
                    self.events.mode_changed(&node_probe, status).await;
                }
                (name, Ok(status))
            }
            Err(error) => {
                self.metrics.write("NodeProbe", "failed");
                self.problems.failed(WRITE_NODE_PROBE, name, &error.source.to_string(), Instant::now());
                (name, Err(error))
            }
        }
    }

    async fn apply_node_probe(
        &self,
        node: &NodeFacts,
        status: &NodeProbeStatus,
        there: Option<&NodeProbe>,
    ) -> Result<NodeProbe, ApplyError> {
        let labelled = there.is_some_and(|it| it.labels().get(PROBE_LABEL) == Some(&status.probe));
        let api: Api<NodeProbe> = Api::all(self.client.clone());
        if !labelled {
            let object = json!({
                "apiVersion": NodeProbe::api_version(&()),
                "kind": NodeProbe::kind(&()),
                "metadata": {
                    "name": node.name,
                    "labels": {PROBE_LABEL: status.probe},
                    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}],
                },
                "spec": {},
            });
            api.patch(&node.name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object))
                .await
                .map_err(|source| ApplyError::new("apply NodeProbe", &node.name, source))?;
        }
        apply_status(&api, &node.name, status).await
    }

    /// Returns the nodes without a capture that get, or are about to get, an agent of Fallback mode.
    fn moving(&self, nodes: &BTreeMap<String, NodeState>, assignments: &Assignments) -> BTreeSet<String> {
        let asks =
            |name: &str| self.observations.get(name).is_some_and(|it| it.asks_for_fallback_since_unix_ms.is_some());
        let moves = |name: &str| assignments.nodes.get(name).is_some_and(|it| it.is_up_to_agent() && asks(name));
        let blind = nodes.iter().filter(|(_, node)| node.status.mode == Some(Mode::Unsupported));
        blind.map(|(name, _)| name).filter(|name| moves(name)).cloned().collect()
    }

    /// Writes the status of a ScopeProbe. Returns its conditions, written or not.
    async fn scope_probe(
        &self,
        probe: &ScopeProbe,
        assignments: &Assignments,
        nodes: &BTreeMap<String, NodeState>,
        written: &mut WrittenStatuses<ScopeProbeStatus>,
        now: Timestamp,
    ) -> Vec<Condition> {
        let name = probe.name_any();
        let own = nodes.iter().filter(|(_, node)| node.status.probe == name);
        let nodes: BTreeMap<_, _> = own.map(|(name, node)| (name.clone(), node.clone())).collect();
        let moving = self.moving(&nodes, assignments);
        // Conditions continue from the last write, which the watch may not have returned yet.
        let mut probe = probe.clone();
        if let Some((status, at)) = written.statuses.get(&name)
            && at.elapsed() < ECHO
        {
            probe.status = Some(status.clone());
        }
        let overview = self.overview.borrow().clone();
        let outcome = self.outcomes.get(&name);
        let inputs = scope_probe::ScopeProbeInputs {
            probe: &probe,
            outcome: outcome.as_ref(),
            nodes: &nodes,
            moving: &moving,
            taken: assignments.taken.get(&name),
            overview: &overview,
            problems: &self.problems.lasting(Instant::now()),
        };
        let status = scope_probe::desired(&inputs, now);
        let conditions = status.conditions.clone();
        let interval = probe.spec.topology.counter_interval.into();
        let due = written.due(&name, &status, probe.status.as_ref(), interval, scope_probe::differs_in_structure);
        if matches!(due, Due::No | Due::Later) {
            self.metrics.write("ScopeProbe", "skipped");
            return conditions;
        }
        let api: Api<ScopeProbe> = Api::all(self.client.clone());
        match within("ScopeProbe", &name, apply_status(&api, &name, &status)).await {
            Ok(_) => {
                self.metrics.write("ScopeProbe", "done");
                if let Some(ready) = changed_readiness(probe.status.as_ref(), &status) {
                    self.events.readiness_changed(&probe, ready).await;
                }
                written.note(&name, status);
            }
            Err(error) if is_not_found(&error.source) => {}
            Err(error) => {
                self.metrics.write("ScopeProbe", "failed");
                written.fail(&name, &error);
            }
        }
        conditions
    }
}

/// Returns whether an agent reported before and does not any more, on a node that still belongs to the same ScopeProbe.
fn falls_silent(before: &NodeProbeStatus, after: &NodeProbeStatus) -> bool {
    let reports = |status: &NodeProbeStatus| is_true(&status.conditions, "Reporting");
    before.probe == after.probe && reports(before) && !reports(after)
}

/// Returns the present time in the API's resolution. A finer one would always differ from the published time.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
}

fn unix_ms(time: Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or_default()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Aborts a write that has no answer.
async fn within<T>(
    kind: &str,
    name: &str,
    write: impl Future<Output = Result<T, ApplyError>>,
) -> Result<T, ApplyError> {
    tokio::time::timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(|_| {
        let error = format!("the API server did not answer within {} s", WRITE_TIMEOUT.as_secs());
        Err(ApplyError::new("write status of", format!("{kind} {name}"), kube::Error::Service(error.into())))
    })
}

async fn apply_status<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> Result<K, ApplyError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let object = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "status": status,
    });
    api.patch_status(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object))
        .await
        .map_err(|source| ApplyError::new("apply status of", format!("{} {name}", K::kind(&())), source))
}
