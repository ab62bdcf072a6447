//! Publishes the graph: one Topology for each workload that has edges.
//!
//! The publisher computes the whole graph after a change, and writes each object when it is due: structure immediately,
//! counters periodically. All writes share a budget, and only the leader writes.

mod adjacency;
mod byte_budget;
mod checkpoint;
mod desired;
mod edge_id;
mod events;
#[cfg(test)]
mod extremes;
mod graph_schedule;
mod labels;
mod leg_owners;
mod leg_table;
mod name;
mod noise;
mod object;
mod own_traffic;
mod packed;
mod peer;
mod pod_records;
mod pod_table;
mod published;
mod rendered;
mod restore;
mod schedule;
mod shown_edge;
mod structure;
mod summary;
mod writer;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use crds::{Topology, Totals};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, pending},
    stream::FuturesUnordered,
};
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, sleep_until},
};
use topology::{archive::Archive, graph::Pace};

use self::{
    desired::{Builder, DesiredState, Work},
    graph_schedule::{COALESCE, GraphSchedule},
    published::{PublishedObjects, Recheck},
    schedule::{Schedule, Urgency},
    writer::{Desired, Existence, Key, WriteError, Written},
};
pub use self::{own_traffic::OwnWorkloads, writer::clear};
use crate::{
    api_budget::{Answer, ApiBudget, Reason},
    api_problems::ApiProblems,
    cluster::ClusterIndex,
    event_recorder::EventRecorder,
    guarded_watch::watch_with,
    metrics::Metrics,
    observation::TopologyOverview,
    publish_settings::PublishSettings,
    settings::EdgeMetricsSettings,
    shared_ledger::SharedLedger,
};

/// Writes under way at a time.
const PARALLEL_WRITES: usize = 8;
/// Maximum delay of a due write, apart from what the budget of requests delays.
const WRITE_DELAY: Duration = Duration::from_secs(10);
/// Step of the maximum age of counters, in seconds.
const AGE_STEP: u64 = 15;
/// Number of turns of counts in a counter interval, in a small cluster.
const TURNS_PER_INTERVAL: u32 = 6;
/// Number of graphs in the time in which counts take turns, if nothing but these changes.
const GRAPHS_PER_TURN: u32 = 4;
/// Time after a start for which published objects stay unchanged, unless all nodes have reported earlier. A graph of
/// some nodes would be worse than the published one.
const WARM_UP: Duration = Duration::from_secs(20);
/// Time to wait for the first list of everything that has a name.
const NAMES_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval at which expired state is removed.
const HOUSEKEEPING: Duration = Duration::from_mins(1);

/// Kind of the written objects, for the metrics.
const KIND: &str = "Topology";
/// Operations whose failures are shown.
const WATCH: &str = "watch Topologies";
const WRITE: &str = "write Topology";

/// Inputs of the publisher.
pub struct PublisherInputs {
    /// True if this process may write.
    pub leader: watch::Receiver<bool>,
    /// Settings; `None` without a ScopeProbe, which publishes nothing.
    pub settings: watch::Receiver<Option<PublishSettings>>,
    /// The flows.
    pub shared_ledger: SharedLedger,
    /// Index of the cluster's objects.
    pub index: ClusterIndex,
    /// ScopeProbe's own workloads.
    pub own: OwnWorkloads,
    /// Receiver of the topology's size.
    pub overview: watch::Sender<TopologyOverview>,
    /// Settings of the metrics of edges.
    pub edge_metrics: EdgeMetricsSettings,
    /// Time between two scans of open connections by an agent.
    pub scan_interval: Duration,
    /// Budget of requests.
    pub budget: ApiBudget,
    /// Requests that fail.
    pub problems: ApiProblems,
    /// Recorder of events.
    pub events: EventRecorder,
    /// Metrics.
    pub metrics: Metrics,
}

/// Publishes until it is dropped.
pub async fn run(client: Client, mut inputs: PublisherInputs) {
    let mut complete = inputs.index.complete();
    if tokio::time::timeout(NAMES_TIMEOUT, complete.wait_for(|complete| *complete)).await.is_err() {
        tracing::warn!("not all objects could be listed; publishing with the names that are known");
    }
    // As the account, for as long as the process lives.
    let archive = Arc::default();
    loop {
        // Only an end of the other side makes an error, and then the process ends as well.
        if inputs.leader.wait_for(|leader| *leader).await.is_err() {
            return;
        }
        let Ok(settings) = inputs.settings.wait_for(Option::is_some).await.map(|settings| settings.clone()) else {
            return;
        };
        if let Some(settings) = settings {
            Publisher::new(client.clone(), &inputs, settings, &archive).run(&mut inputs).await;
            inputs.metrics.show_edges(None);
        }
    }
}

struct Publisher {
    client: Client,
    settings: PublishSettings,
    builder: Builder,
    desired_state: DesiredState,
    published: PublishedObjects,
    schedule: Schedule<Key>,
    /// Of objects that differ by noise: their sums, and since when they have been so.
    resting: HashMap<Key, (Totals, Instant)>,
    budget: ApiBudget,
    writing: FuturesUnordered<BoxFuture<'static, (Key, Result<Written, WriteError>)>>,
    started: Instant,
    scan_interval: Duration,
    /// True if all objects are to be compared with the next state, not only those that it changes.
    compares_all: bool,
    problems: ApiProblems,
    events: EventRecorder,
    metrics: Metrics,
}

impl Publisher {
    fn new(client: Client, inputs: &PublisherInputs, settings: PublishSettings, archive: &Arc<Mutex<Archive>>) -> Self {
        let now = Instant::now();
        Self {
            client,
            settings,
            builder: Builder::new(
                inputs.shared_ledger.clone(),
                inputs.index.clone(),
                Arc::clone(archive),
                inputs.own.clone(),
                inputs.edge_metrics,
            ),
            desired_state: DesiredState::default(),
            published: PublishedObjects::default(),
            schedule: Schedule::new(),
            resting: HashMap::new(),
            budget: inputs.budget.clone(),
            writing: FuturesUnordered::new(),
            started: now,
            scan_interval: inputs.scan_interval,
            compares_all: true,
            problems: inputs.problems.clone(),
            events: inputs.events.clone(),
            metrics: inputs.metrics.clone(),
        }
    }

    /// Until this process is no longer the leader, or nothing is to be published.
    async fn run(mut self, inputs: &mut PublisherInputs) {
        inputs.index.name_external_groups(self.settings.external_groups.clone());
        let mut structure = inputs.shared_ledger.subscribe_structure();
        let mut counters = inputs.shared_ledger.subscribe_counters();
        let mut index = inputs.index.subscribe();
        // An earlier publisher may have ended while something failed.
        self.problems.forget(WATCH);
        self.problems.forget(WRITE);
        let problems = self.problems.clone();
        let note = move |words: Option<&str>| match words {
            Some(words) => problems.failed(WATCH, "", words, Instant::now()),
            None => problems.succeeded(WATCH, ""),
        };
        let mut objects = watch_with::<Topology>(&self.client, Box::new(note)).boxed();
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut graphs = GraphSchedule::new(Instant::now());
        let mut work: Option<BoxFuture<'static, Work>> = None;
        let mut warm_at = Some(self.started + WARM_UP);
        loop {
            let next_write = self.next_write();
            self.metrics.waiting.set(i64::try_from(self.schedule.len()).unwrap_or(i64::MAX));
            tokio::select! {
                event = objects.next() => match event {
                    Some(event) => match self.published.apply(event) {
                        Recheck::Nothing => {}
                        Recheck::One(key) => self.compare(&key),
                        // A state without the published edges would be less than that.
                        Recheck::All => {
                            for topology in self.published.all() {
                                inputs.index.note_api_versions(restore::references(&topology));
                            }
                            self.restore().await;
                            self.compares_all = true;
                            graphs.plan_at_once(Instant::now());
                        }
                    },
                    None => return,
                },
                Some((key, result)) = self.writing.next(), if !self.writing.is_empty() => self.conclude(&key, result),
                _ = inputs.leader.changed() => if !*inputs.leader.borrow_and_update() { return },
                _ = inputs.settings.changed() => match inputs.settings.borrow_and_update().clone() {
                    Some(settings) => {
                        if settings.external_groups != self.settings.external_groups {
                            inputs.index.name_external_groups(settings.external_groups.clone());
                        }
                        self.settings = settings;
                        self.compares_all = true;
                        graphs.plan_at_once(Instant::now());
                    }
                    None => return,
                },
                Ok(()) = structure.changed() => graphs.plan_for_structure(Instant::now()),
                Ok(()) = index.changed() => graphs.plan_for_structure(Instant::now()),
                Ok(()) = counters.changed() => graphs.plan_for_counts(Instant::now(), self.pace_of_counts().pause),
                _ = housekeeping.tick(), if work.is_none() => {
                    work = Some(self.builder.clone().forget_removed(SystemTime::now(), self.settings.retention));
                }
                () = at(graphs.next()), if self.published.is_listed() && work.is_none() => {
                    graphs.begin();
                    let (settings, pace) = (self.settings.clone(), self.pace_of_counts());
                    work = Some(self.builder.clone().build(settings, pace, self.started.elapsed(), SystemTime::now()));
                }
                done = done(&mut work) => {
                    work = None;
                    match done {
                        Work::Cleaned => graphs.plan_for_structure(Instant::now()),
                        Work::Failed => graphs.fail(Instant::now()),
                        Work::Built { state, began } => {
                            self.metrics.graph_seconds.observe(began.elapsed().as_secs_f64());
                            self.show(*state, &inputs.overview);
                            let settles = self.desired_state.settles_in.map(|wait| began + wait.max(COALESCE));
                            graphs.finish(began, Instant::now(), settles);
                        }
                    }
                }
                () = at(warm_at) => {
                    warm_at = None;
                    self.compare_all();
                }
                () = at(next_write) => self.write_due(),
            }
        }
    }

    /// Returns the pace of counts: a turn takes half of the time in which all objects can be written, because more often would
    /// not be seen.
    fn pace_of_counts(&self) -> Pace {
        let least = self.settings.counter_interval / TURNS_PER_INTERVAL;
        let interval = least.max(self.budget.time_for(self.desired_state.desired.len()) / 2);
        Pace { interval, pause: least.max(interval / GRAPHS_PER_TURN) }
    }

    /// Returns the maximum age of counters in written objects, in seconds. It is rounded up, so that it rarely changes.
    fn max_counter_age_seconds(&self) -> u64 {
        let writing = self.budget.time_for(self.desired_state.desired.len()).max(self.settings.counter_interval);
        let Pace { interval, pause } = self.pace_of_counts();
        let joining = self.builder.settle_time() + interval + pause;
        (joining + writing + WRITE_DELAY).as_secs().next_multiple_of(AGE_STEP)
    }

    /// Makes a state the wanted one, and plans the writes that lead there.
    fn show(&mut self, state: DesiredState, overview: &watch::Sender<TopologyOverview>) {
        let (was_warm, before) = (self.is_warm(), std::mem::replace(&mut self.desired_state, state));
        let published = &self.published;
        self.desired_state
            .settle_names(|key, desired| published.get(key).is_some_and(|known| published::is_owned(&known, desired)));
        self.desired_state.overview.totals.max_counter_age_seconds = self.max_counter_age_seconds();
        overview.send_if_modified(|known| {
            let changed = *known != self.desired_state.overview;
            known.clone_from(&self.desired_state.overview);
            changed
        });
        self.metrics.own_connections.set(i64::try_from(self.desired_state.own_connections).unwrap_or(i64::MAX));
        self.metrics.flows.set(i64::try_from(self.desired_state.flows).unwrap_or(i64::MAX));
        self.metrics.flows_joined.inc_by(u64::try_from(self.desired_state.joined_flows).unwrap_or(u64::MAX));
        self.metrics.show_edges(self.desired_state.edge_series.clone());
        let as_of = self.desired_state.as_of.and_then(|as_of| as_of.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.metrics.graph_timestamp.set(as_of.unwrap_or_default().as_secs_f64());
        if self.is_warm() != was_warm || std::mem::take(&mut self.compares_all) {
            return self.compare_all();
        }
        let (desired, before) = (&self.desired_state.desired, before.desired);
        let is_same =
            |key: &Key, desired: &Arc<Desired>| before.get(key).is_some_and(|before| Arc::ptr_eq(before, desired));
        let changed = desired.iter().filter(|(key, desired)| !is_same(key, desired)).map(|(key, _)| key);
        let gone = before.keys().filter(|key| !desired.contains_key(key));
        let keys: Vec<Key> = changed.chain(gone).cloned().collect();
        for key in keys {
            self.compare(&key);
        }
    }

    fn next_write(&self) -> Option<Instant> {
        if !self.published.is_listed() || self.writing.len() >= PARALLEL_WRITES {
            return None;
        }
        let now = Instant::now();
        let allowed = |(reason, due): (Reason, Option<Instant>)| {
            due.map(|due| self.budget.available(reason, now).map_or(due, |available| due.max(available)))
        };
        [Reason::Structure, Reason::Counts].into_iter().zip(self.schedule.next()).filter_map(allowed).min()
    }

    fn write_due(&mut self) {
        let now = Instant::now();
        while self.writing.len() < PARALLEL_WRITES {
            let kinds = [(Reason::Structure, Urgency::Structure), (Reason::Counts, Urgency::Counters)];
            let due = kinds.into_iter().find_map(|(reason, urgency)| {
                let is_allowed = self.budget.available(reason, now).is_none();
                is_allowed.then(|| self.schedule.take(urgency, now)).flatten().map(|key| (key, reason))
            });
            let Some((key, reason)) = due else { return };
            let Some(write) = self.write(&key, reason) else { continue };
            self.writing.push(write);
        }
    }

    fn write(&mut self, key: &Key, reason: Reason) -> Option<BoxFuture<'static, (Key, Result<Written, WriteError>)>> {
        let client = self.client.clone();
        let known = self.published.get(key);
        let is_malformed = self.published.is_malformed(key);
        let owned_key = key.clone();
        let mut news = Vec::new();
        let (write, requests): (BoxFuture<'static, Result<Written, WriteError>>, u32) = if let Some(desired) =
            self.desired_state.desired.get(key)
        {
            let (desired, mut status) = (Arc::clone(desired), desired.status.unpack()?);
            let known_status = known.as_ref().and_then(|known| known.status.as_ref());
            structure::keep(&mut status, known_status, Timestamp::now());
            news = events::of_change(known_status, &status);
            let existence = match known.as_ref().filter(|known| published::is_owned(known, &desired)) {
                _ if is_malformed => Existence::Malformed,
                Some(known) => Existence::Owned { uid: known.uid(), has_labels: !labels::differ(known, &desired.app) },
                None => Existence::None,
            };
            let events = u32::try_from(news.len()).unwrap_or(u32::MAX);
            let (key, requests) = (key.clone(), existence.requests().saturating_add(events));
            let write = async move {
                let labels = labels::wanted(known.as_ref(), &desired.app);
                writer::write(&client, &key, &desired, &status, existence, &labels).await
            };
            (write.boxed(), requests)
        } else {
            let (known, key) = (known?, key.clone());
            (async move { writer::empty(&client, &key, &known, is_malformed).await }.boxed(), 1)
        };
        let (budget, began, recorder) = (self.budget.clone(), Instant::now(), self.events.clone());
        budget.take(reason, requests, began);
        let noted = async move {
            let result = write.await;
            if let Ok(Written::Is(topology)) = &result {
                events::record(&recorder, topology, &news).await;
            }
            let answer = match &result {
                Err(error) if error.is_overload() => Answer::TooMany,
                _ => Answer::After(began.elapsed() / requests),
            };
            budget.note(answer, Instant::now());
            (owned_key, result)
        };
        self.published.begin_write(key);
        Some(noted.boxed())
    }

    fn conclude(&mut self, key: &Key, result: Result<Written, WriteError>) {
        let now = Instant::now();
        self.published.end_write(key);
        let is_wanted = self.desired_state.desired.contains_key(key);
        let outcome = match &result {
            Ok(Written::Gone) if is_wanted => "gone",
            Ok(_) => "done",
            Err(_) => "failed",
        };
        self.metrics.write(KIND, outcome);
        match &result {
            Ok(_) => self.forget_problem(key),
            Err(error) => self.problems.failed(WRITE, &key.to_string(), &error.to_string(), now),
        }
        match result {
            Ok(Written::Is(topology)) => {
                self.published.upsert(*topology);
                self.schedule.written(key, now);
            }
            Ok(Written::Gone) => {
                self.published.remove(key);
                // Deleted on purpose, or by another client in between; it is then created again, but not in a loop.
                if is_wanted {
                    self.schedule.failed(key, false, now);
                } else {
                    self.schedule.forget(key);
                }
            }
            Err(error) => {
                if self.schedule.failures(key) == 0 {
                    tracing::warn!(namespace = key.namespace, name = key.name, %error, "cannot write a Topology; trying again");
                } else {
                    tracing::debug!(namespace = key.namespace, name = key.name, %error, "still cannot write a Topology");
                }
                self.schedule.failed(key, error.is_of_server(), now);
            }
        }
        self.compare(key);
    }

    /// Records that an object is not refused any more.
    fn forget_problem(&self, key: &Key) {
        if self.schedule.failures(key) > 0 {
            self.problems.succeeded(WRITE, &key.to_string());
        }
    }

    fn compare_all(&mut self) {
        let gone = self.published.keys().filter(|key| !self.desired_state.desired.contains_key(key));
        let keys: Vec<Key> = self.desired_state.desired.keys().chain(gone).cloned().collect();
        for key in keys {
            self.compare(&key);
        }
    }

    /// Plans a write of the object if it is not what it should be.
    fn compare(&mut self, key: &Key) {
        if !self.published.is_listed() || self.published.is_being_written(key) {
            return;
        }
        if self.published.is_from_before(key) && !self.is_warm() {
            return;
        }
        let known = self.published.get(key);
        let (desired, now) = (self.desired_state.desired.get(key), Instant::now());
        let difference = if self.published.is_malformed(key) {
            Some(Urgency::Structure)
        } else {
            published::difference(known.as_ref(), desired.map(Arc::as_ref))
        };
        match (difference, desired) {
            (Some(Urgency::Noise), Some(desired)) => {
                let totals = &desired.totals;
                let resting = self.resting.entry(key.clone()).or_insert_with(|| (totals.clone(), now));
                if resting.0 != *totals {
                    *resting = (totals.clone(), now);
                }
                let rest = noise::rest(totals, self.settings.counter_interval, self.scan_interval);
                self.schedule.plan_at_rest(key, resting.1, rest);
                return;
            }
            (Some(urgency), _) => self.schedule.plan(key, urgency, self.settings.counter_interval, now),
            (None, _) => {
                self.metrics.write(KIND, "skipped");
                self.forget_problem(key);
                self.schedule.cancel(key);
            }
        }
        self.resting.remove(key);
    }

    /// Restores what an earlier operator has published.
    fn restore(&self) -> BoxFuture<'static, ()> {
        let restored = restore::read(self.published.all());
        for (namespace, name, error) in &restored.errors {
            tracing::warn!(namespace, name, %error, "cannot restore all of a Topology");
        }
        if restored.contested_pods > 0 {
            let pods = restored.contested_pods;
            tracing::warn!(pods, "Topologies disagree on the workload of deleted pods; these pods stay unknown");
        }
        let builder = self.builder.clone();
        async move { builder.restore(restored, SystemTime::now()).await }.boxed()
    }

    fn is_warm(&self) -> bool {
        self.desired_state.all_nodes_reported || self.started.elapsed() >= WARM_UP
    }
}

/// Done when the work is, if there is any.
async fn done(work: &mut Option<BoxFuture<'static, Work>>) -> Work {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

/// Done at that time, if there is one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}
