//! Publishes the graph: one Topology for each workload that has edges.
//!
//! The publisher computes the whole graph after a change, and writes each object when it is due: structure immediately,
//! counters periodically. All writes share a budget, and only the leader writes.

mod adjacency;
mod budget;
mod byte_budget;
mod checkpoint;
mod desired;
mod edge_id;
#[cfg(test)]
mod extremes;
mod labels;
mod name;
mod noise;
mod object;
mod peer;
mod pod_records;
mod pod_table;
mod published;
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
use serde_json::json;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, sleep_until},
};
use topology::archive::Archive;

pub use self::writer::clear;
use self::{
    budget::Budget,
    desired::{Builder, DesiredState, Work},
    published::{PublishedObjects, Recheck},
    schedule::{Schedule, Urgency},
    writer::{Existence, Key, WriteError, Written},
};
use crate::{
    cluster::ClusterIndex, guarded_watch::watch as watch_all, metrics::Metrics, observation::TopologyOverview,
    publish_settings::PublishSettings, share_of_time::pause_after, shared_ledger::SharedLedger,
};

/// Writes to the API server per second, over a long time.
const WRITES_PER_SECOND: u32 = 20;
/// Writes at once after a quiet time.
const WRITE_BURST: u32 = 60;
/// Writes under way at a time.
const PARALLEL_WRITES: usize = 8;
/// Debounce of changes: one graph is built for all changes within this time.
const COALESCE: Duration = Duration::from_millis(50);
/// Number of graphs in a counter interval, if nothing but counters changes.
const COUNTER_GRAPHS: u32 = 6;
/// Time after a start for which published objects stay unchanged, unless all nodes have reported earlier. A graph of
/// some nodes would be worse than the published one.
const WARM_UP: Duration = Duration::from_secs(20);
/// Time to wait for the first list of everything that has a name.
const NAMES_TIMEOUT: Duration = Duration::from_secs(30);
/// Time to wait after a graph could not be made.
const RETRY: Duration = Duration::from_secs(5);
/// Interval at which expired state is removed.
const HOUSEKEEPING: Duration = Duration::from_mins(1);

/// Kind of the written objects, for the metrics.
const KIND: &str = "Topology";

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
    /// Receiver of the topology's size.
    pub overview: watch::Sender<TopologyOverview>,
    /// Time between two scans of open connections by an agent.
    pub scan_interval: Duration,
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
    budget: Budget,
    writing: FuturesUnordered<BoxFuture<'static, (Key, Result<Written, WriteError>)>>,
    started: Instant,
    scan_interval: Duration,
    /// True if all objects are to be compared with the next state, not only those that it changes.
    compares_all: bool,
    metrics: Metrics,
}

impl Publisher {
    fn new(client: Client, inputs: &PublisherInputs, settings: PublishSettings, archive: &Arc<Mutex<Archive>>) -> Self {
        let now = Instant::now();
        Self {
            client,
            settings,
            builder: Builder::new(inputs.shared_ledger.clone(), inputs.index.clone(), Arc::clone(archive)),
            desired_state: DesiredState::default(),
            published: PublishedObjects::default(),
            schedule: Schedule::new(),
            resting: HashMap::new(),
            budget: Budget::new(WRITES_PER_SECOND, WRITE_BURST, now),
            writing: FuturesUnordered::new(),
            started: now,
            scan_interval: inputs.scan_interval,
            compares_all: true,
            metrics: inputs.metrics.clone(),
        }
    }

    /// Until this process is no longer the leader, or nothing is to be published.
    async fn run(mut self, inputs: &mut PublisherInputs) {
        inputs.index.name_external_groups(self.settings.external_groups.clone());
        let mut structure = inputs.shared_ledger.subscribe_structure();
        let mut counters = inputs.shared_ledger.subscribe_counters();
        let mut index = inputs.index.subscribe();
        let mut objects = watch_all::<Topology>(&self.client).boxed();
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut build_at = Some(Instant::now());
        let mut last_build = Duration::ZERO;
        let mut built: Option<Instant> = None;
        let mut work: Option<BoxFuture<'static, Work>> = None;
        let mut warm_at = Some(self.started + WARM_UP);
        // Until then, edges may come or go.
        let mut urgent_until = Instant::now();
        loop {
            let soon = |last: Option<Instant>, took: Duration| {
                let earliest = last.map(|last| last + pause_after(took, COALESCE));
                (Instant::now() + COALESCE).max(earliest.unwrap_or_else(Instant::now))
            };
            let next_write = self.next_write();
            self.metrics.waiting.set(i64::try_from(self.schedule.len()).unwrap_or(i64::MAX));
            tokio::select! {
                event = objects.next() => match event {
                    Some(event) => match self.published.apply(event) {
                        Recheck::Nothing => {}
                        Recheck::One(key) => self.compare(&key),
                        // A state without the published edges would be less than that.
                        Recheck::All => {
                            inputs.index.note_api_versions(self.published.all().flat_map(restore::references));
                            self.restore().await;
                            self.compares_all = true;
                            build_at = Some(Instant::now());
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
                        build_at = Some(Instant::now());
                    }
                    None => return,
                },
                Ok(()) = structure.changed() => {
                    urgent_until = Instant::now() + self.builder.settle_time() + COALESCE;
                    build_at = Some(earlier(build_at, soon(built, last_build)));
                }
                Ok(()) = index.changed() => {
                    urgent_until = Instant::now() + self.builder.settle_time() + COALESCE;
                    build_at = Some(earlier(build_at, soon(built, last_build)));
                }
                Ok(()) = counters.changed() => {
                    let due = soon(built, last_build).max(self.counters_due(built));
                    build_at = Some(earlier(build_at, due));
                }
                _ = housekeeping.tick(), if work.is_none() => {
                    work = Some(self.builder.clone().forget_removed(SystemTime::now(), self.settings.retention));
                }
                () = at(build_at), if self.published.is_listed() && work.is_none() => {
                    build_at = None;
                    work = Some(self.builder.clone().build(self.settings.clone(), SystemTime::now()));
                }
                done = done(&mut work) => {
                    work = None;
                    match done {
                        Work::Cleaned => build_at = Some(earlier(build_at, soon(built, last_build))),
                        Work::Failed => build_at = Some(earlier(build_at, Instant::now() + RETRY)),
                        Work::Built { state, began } => {
                            self.metrics.graph_seconds.observe(began.elapsed().as_secs_f64());
                            self.show(*state, &inputs.overview);
                            (built, last_build) = (Some(Instant::now()), began.elapsed());
                            let settles = self.desired_state.settles_in.map(|wait| began + wait.max(COALESCE));
                            // Afterwards only connections of known edges wait.
                            let is_urgent = Instant::now() < urgent_until || !self.desired_state.is_settled;
                            let settles = settles.map(|at| if is_urgent { at } else { at.max(self.counters_due(built)) });
                            let next = [build_at, settles].into_iter().flatten().min();
                            build_at = next.map(|next| if self.compares_all { next } else { next.max(soon(built, last_build)) });
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

    /// Returns the time at which a graph is due if only counters have changed since the last one.
    fn counters_due(&self, built: Option<Instant>) -> Instant {
        built.map_or_else(Instant::now, |built| built + self.settings.counter_interval / COUNTER_GRAPHS)
    }

    /// Makes a state the wanted one, and plans the writes that lead there.
    fn show(&mut self, state: DesiredState, overview: &watch::Sender<TopologyOverview>) {
        let (was_warm, before) = (self.is_warm(), std::mem::replace(&mut self.desired_state, state));
        let published = &self.published;
        self.desired_state
            .settle_names(|key, desired| published.get(key).is_some_and(|known| published::is_owned(known, desired)));
        overview.send_if_modified(|known| {
            let changed = *known != self.desired_state.overview;
            known.clone_from(&self.desired_state.overview);
            changed
        });
        self.metrics.flows.set(i64::try_from(self.desired_state.flows).unwrap_or(i64::MAX));
        self.metrics.flows_joined.inc_by(u64::try_from(self.desired_state.joined_flows).unwrap_or(u64::MAX));
        let as_of = self.desired_state.as_of.and_then(|as_of| as_of.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.metrics.graph_timestamp.set(as_of.unwrap_or_default().as_secs_f64());
        if self.is_warm() != was_warm || std::mem::take(&mut self.compares_all) {
            return self.compare_all();
        }
        let (desired, before) = (&self.desired_state.desired, before.desired);
        let changed = desired.iter().filter(|(key, desired)| before.get(key) != Some(desired)).map(|(key, _)| key);
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
        let next = self.schedule.next()?;
        Some(self.budget.available(Instant::now()).map_or(next, |available| next.max(available)))
    }

    fn write_due(&mut self) {
        let now = Instant::now();
        while self.writing.len() < PARALLEL_WRITES && self.budget.available(now).is_none() {
            let Some(key) = self.schedule.take(now) else { return };
            let Some(write) = self.write(&key) else { continue };
            self.budget.take(now);
            self.writing.push(write);
        }
    }

    fn write(&mut self, key: &Key) -> Option<BoxFuture<'static, (Key, Result<Written, WriteError>)>> {
        let client = self.client.clone();
        let known = self.published.get(key).cloned();
        let is_malformed = self.published.is_malformed(key);
        let owned_key = key.clone();
        let future = if let Some(desired) = self.desired_state.desired.get(key) {
            let mut desired = desired.clone();
            let status = known.as_ref().and_then(|known| known.status.as_ref());
            structure::keep(&mut desired.status, status, Timestamp::now());
            let existence = match known.as_ref().filter(|known| published::is_owned(known, &desired)) {
                _ if is_malformed => Existence::Malformed,
                Some(known) => Existence::Owned(known.uid()),
                None => Existence::None,
            };
            let labels = labels::change(known.as_ref(), &desired.app).map(|labels| json!(labels));
            async move {
                let result = writer::write(&client, &owned_key, &desired, existence, labels).await;
                (owned_key, result)
            }
            .boxed()
        } else {
            let known = known?;
            async move {
                let result = writer::empty(&client, &owned_key, &known, is_malformed).await;
                (owned_key, result)
            }
            .boxed()
        };
        self.published.begin_write(key);
        Some(future)
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
        match result {
            Ok(Written::Is(topology)) => {
                self.published.upsert(*topology);
                self.schedule.written(key, now);
            }
            Ok(Written::Gone) => {
                self.published.remove(key);
                // Deleted on purpose, or by another client in between; it is then created again, but not in a loop.
                if is_wanted {
                    self.schedule.failed(key, now);
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
                self.schedule.failed(key, now);
            }
        }
        self.compare(key);
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
        let known = self.published.get(key);
        if known.is_some() && self.published.is_from_before(key) && !self.is_warm() {
            return;
        }
        let (desired, now) = (self.desired_state.desired.get(key), Instant::now());
        let difference = if self.published.is_malformed(key) {
            Some(Urgency::Structure)
        } else {
            published::difference(known, desired)
        };
        match (difference, desired) {
            (Some(Urgency::Noise), Some(desired)) => {
                let totals = &desired.status.totals;
                let resting = self.resting.entry(key.clone()).or_insert_with(|| (totals.clone(), now));
                if resting.0 != *totals {
                    *resting = (totals.clone(), now);
                }
                let rest = noise::rest(&desired.status, self.settings.counter_interval, self.scan_interval);
                self.schedule.plan_at_rest(key, resting.1, rest);
                return;
            }
            (Some(urgency), _) => self.schedule.plan(key, urgency, self.settings.counter_interval, now),
            (None, _) => {
                self.metrics.write(KIND, "skipped");
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
        async move { builder.restore(restored.edges, restored.pods, SystemTime::now()).await }.boxed()
    }

    fn is_warm(&self) -> bool {
        self.desired_state.all_nodes_reported || self.started.elapsed() >= WARM_UP
    }
}

/// News is not to wait for what was planned for a later time.
fn earlier(planned: Option<Instant>, news: Instant) -> Instant {
    planned.map_or(news, |planned| planned.min(news))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_for_later_does_not_hold_news_up() {
        let now = Instant::now();
        let (soon, late) = (now + COALESCE, now + HOUSEKEEPING);
        assert_eq!([None, Some(late), Some(now)].map(|planned| earlier(planned, soon)), [soon, soon, now]);
    }
}
