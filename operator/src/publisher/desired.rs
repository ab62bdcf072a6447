//! Computes the desired state from the graph: the objects that the operator wants to exist.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::{FutureExt as _, future::BoxFuture};
use topology::{
    archive::Archive,
    graph::{Graph, Options, Pace},
    ledger::Ledger,
};

use super::{
    WARM_UP, adjacency,
    object::Limits,
    own_traffic::{LeftOut, OwnWorkloads},
    rendered::{RenderedObjects, Surroundings},
    restore::Restored,
    writer::{Desired, Key},
};
use crate::{
    cluster::{ClusterIndex, Index},
    edge_metrics::{SeriesBook, SeriesSnapshot},
    observation::TopologyOverview,
    publish_settings::PublishSettings,
    settings::EdgeMetricsSettings,
    shared_ledger::SharedLedger,
};

/// Time for which a conversation with one reported end waits for the other end's report.
const SETTLE: Duration = Duration::from_secs(2);
/// Time after a start from which series of edges count, also without the reports of some nodes.
const LATEST_BASIS: Duration = Duration::from_mins(1);

/// Everything that is to be published at one moment.
#[derive(Debug, Default)]
pub(super) struct DesiredState {
    /// The objects of all workloads that exist, have edges and are in a selected namespace.
    pub desired: HashMap<Key, Arc<Desired>>,
    /// Objects that would have the same name, of the same kind in several API groups.
    pub contested: HashMap<Key, Vec<Arc<Desired>>>,
    pub overview: TopologyOverview,
    /// Series of the edges; `None` where they are disabled.
    pub edge_series: Option<Arc<SeriesSnapshot>>,
    /// Connections of ScopeProbe itself that the map leaves out.
    pub own_connections: u64,
    /// Number of flows from which it was computed.
    pub flows: usize,
    /// Number of those that were joined for it.
    pub joined_flows: usize,
    /// Time as of which it is; `None` before the first one.
    pub as_of: Option<SystemTime>,
    /// Time after which it changes without new input.
    pub settles_in: Option<Duration>,
    /// True if all nodes' flows are known.
    pub all_nodes_reported: bool,
}

/// Outcome of the work of a [`Builder`].
pub(super) enum Work {
    /// A state, and when its making began.
    Built { state: Box<DesiredState>, began: Instant },
    /// Expired state is removed.
    Cleaned,
    /// No state could be made: what was wanted before still is.
    Failed,
}

/// Computes desired states, away from the threads that answer. Does one thing at a time.
#[derive(Clone)]
pub(super) struct Builder {
    shared_ledger: SharedLedger,
    index: ClusterIndex,
    archive: Arc<Mutex<Archive>>,
    rendered: Arc<Mutex<RenderedObjects>>,
    own: Arc<OwnWorkloads>,
    series: Option<Arc<Mutex<SeriesBook>>>,
}

impl Builder {
    pub(super) fn new(
        shared_ledger: SharedLedger,
        index: ClusterIndex,
        archive: Arc<Mutex<Archive>>,
        own: OwnWorkloads,
        edge_metrics: EdgeMetricsSettings,
    ) -> Self {
        let series = SeriesBook::new(edge_metrics).map(|book| Arc::new(Mutex::new(book)));
        Self { shared_ledger, index, archive, rendered: Arc::default(), own: Arc::new(own), series }
    }

    /// Restores what an earlier operator published. Only the first call of a process has an effect.
    pub(super) async fn restore(&self, Restored { edges, pods, legs, .. }: Restored, now: SystemTime) {
        self.index.restore_pods(pods, now);
        let restore = move |_: &SharedLedger, _: &Index, archive: &mut Archive| {
            if archive.restore(edges, now) {
                archive.restore_legs(&legs);
            }
        };
        self.away(restore).await;
    }

    /// Computes the present state. `running`: time since the publisher's start.
    pub(super) fn build(
        self,
        settings: PublishSettings,
        pace: Pace,
        running: Duration,
        now: SystemTime,
    ) -> BoxFuture<'static, Work> {
        let began = Instant::now();
        let built = move |state| Work::Built { state: Box::new(state), began };
        async move { self.desired_state(&settings, pace, running, now).await.map_or(Work::Failed, built) }.boxed()
    }

    /// Returns the time for which a conversation with one reported end waits for the other one.
    pub(super) fn settle_time(&self) -> Duration {
        // The other end's counters may come as much later.
        SETTLE + self.shared_ledger.counter_interval()
    }

    async fn desired_state(
        &self,
        settings: &PublishSettings,
        pace: Pace,
        running: Duration,
        now: SystemTime,
    ) -> Option<DesiredState> {
        let settle = self.settle_time();
        let options = Options { now, settle, retention: settings.retention, max_external: settings.max_external };
        let limits = Limits { edges: settings.max_edges, pods: settings.max_pods };
        let namespaces = settings.namespaces.clone();
        let all_named = *self.index.complete().borrow();
        let rendered = Arc::clone(&self.rendered);
        let series = self.series.clone();
        let own = Some(Arc::clone(&self.own)).filter(|_| !settings.include_self);
        self.away(move |shared_ledger, index, archive| {
            let began = Instant::now();
            let ledger = shared_ledger.ledger().blocking_lock().snapshot();
            if all_named && all_nodes_reported(&ledger, index) {
                archive.settle_in_time(&ledger, index.directory(), &options);
            }
            archive.set_pace(pace);
            let mut graph = archive.build_shown(&ledger, index.directory(), &options);
            let left_out = own.map(|own| own.leave_out(&mut graph.edges, index)).unwrap_or_default();
            let joined_in = began.elapsed();
            let around = Surroundings { index, ledger: &ledger, limits, namespaces: &namespaces, now };
            let mut rendered = rendered.lock().unwrap_or_else(PoisonError::into_inner);
            let mut state = desired_state(&graph, left_out, archive, &mut rendered, around);
            // Until then, published edges and those that wait for their other end are not compared with the reports.
            let is_settled = archive.is_settled() && (state.all_nodes_reported || running >= WARM_UP);
            let is_complete = is_settled || running >= LATEST_BASIS;
            state.edge_series = series.map(|book| edge_series(&book, &graph, around, is_complete));
            let (flows, joined) = (state.flows, state.joined_flows);
            tracing::debug!(flows, joined, ?joined_in, took = ?began.elapsed(), "made the graph");
            state
        })
        .await
    }

    /// Evicts the flows of expired edges, and later the names of their ends.
    pub(super) fn forget_removed(self, now: SystemTime, retention: Duration) -> BoxFuture<'static, Work> {
        async move {
            self.clean(now, retention).await;
            Work::Cleaned
        }
        .boxed()
    }

    async fn clean(&self, now: SystemTime, retention: Duration) {
        let retired = self
            .away(move |shared_ledger, index, archive| {
                let directory = index.directory();
                let lock = || shared_ledger.ledger().blocking_lock();
                let (nodes, observed): (Vec<String>, _) = {
                    let ledger = lock();
                    (ledger.nodes().map(str::to_owned).collect(), ledger.observed_times())
                };
                for node in &nodes {
                    lock().condense(node, |flow, one, next| {
                        directory.are_one(flow.remote, one, next, now) && observed.are_one(node, flow, one, next)
                    });
                }
                let retirement = lock().take_retirable(now, retention)?;
                archive.keep_retired(&retirement, directory, now, retention);
                Some(retirement.flows)
            })
            .await
            .flatten();
        tracing::debug!(?retired, "forgot flows that are over");
        self.index.forget_removed(now, retention * 2);
    }

    /// Runs work on a thread for blocking tasks, with the archive locked and the present index. The work must not hold the
    /// ledger's lock for longer than a moment, because agents wait for it. Returns `None` if it panicked, after logging that.
    async fn away<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SharedLedger, &Index, &mut Archive) -> T + Send + 'static,
    ) -> Option<T> {
        let (shared_ledger, index, archive) =
            (self.shared_ledger.clone(), self.index.clone(), Arc::clone(&self.archive));
        tokio::task::spawn_blocking(move || {
            let mut archive = archive.lock().unwrap_or_else(PoisonError::into_inner);
            index.set_clocks(&shared_ledger.ledger().blocking_lock());
            work(&shared_ledger, &index.read(), &mut archive)
        })
        .await
        .inspect_err(|error| tracing::error!(%error, "making the graph failed"))
        .ok()
    }
}

fn desired_state(
    graph: &Graph,
    left_out: LeftOut,
    archive: &Archive,
    rendered: &mut RenderedObjects,
    around: Surroundings<'_>,
) -> DesiredState {
    let Surroundings { index, ledger, now, .. } = around;
    let workloads = adjacency::by_workload(graph);
    let mut overview = adjacency::overview(graph, &workloads);
    overview.totals.own_edges = left_out.edges;
    let mut names = ObjectNames::with_capacity(workloads.len());
    for desired in rendered.follow(graph, &workloads, around) {
        overview.totals.omitted_edges += desired.omitted.egress + desired.omitted.ingress;
        names.add(desired);
    }
    DesiredState {
        desired: names.desired,
        contested: names.contested,
        overview,
        edge_series: None,
        own_connections: left_out.connections,
        flows: ledger.flow_count(),
        joined_flows: archive.joined_flows(),
        as_of: Some(now),
        settles_in: graph.settles_at.map(|at| at.duration_since(now).unwrap_or_default()),
        all_nodes_reported: all_nodes_reported(ledger, index),
    }
}

/// Returns the series of all edges that belong to an object.
fn edge_series(
    book: &Mutex<SeriesBook>,
    graph: &Graph,
    around: Surroundings<'_>,
    is_complete: bool,
) -> Arc<SeriesSnapshot> {
    let edges = graph.edges.iter().filter(|edge| around.has_object(edge));
    Arc::new(book.lock().unwrap_or_else(PoisonError::into_inner).follow(edges, around.now, is_complete))
}

/// Objects by name, and those whose name is not decided.
struct ObjectNames {
    desired: HashMap<Key, Arc<Desired>>,
    contested: HashMap<Key, Vec<Arc<Desired>>>,
}

impl ObjectNames {
    fn with_capacity(capacity: usize) -> Self {
        Self { desired: HashMap::with_capacity(capacity), contested: HashMap::new() }
    }

    fn add(&mut self, desired: Arc<Desired>) {
        let key = Key::of(&desired.workload);
        if let Some(contested) = self.contested.get_mut(&key) {
            contested.push(desired);
        } else if let Some(other) = self.desired.remove(&key) {
            self.contested.insert(key, vec![other, desired]);
        } else {
            self.desired.insert(key, desired);
        }
    }
}

impl DesiredState {
    /// Decides who gets a contested name: the workload whose object has it already, else the one of the first group in
    /// alphabetical order. The others have their group in the name.
    pub(super) fn settle_names(&mut self, is_owned: impl Fn(&Key, &Desired) -> bool) {
        for (key, mut contested) in self.contested.drain() {
            contested.sort_by(|one, other| one.workload.group.cmp(&other.workload.group));
            let winner = contested.iter().position(|desired| is_owned(&key, desired)).unwrap_or(0);
            let winner = contested.swap_remove(winner);
            self.desired.extend(contested.into_iter().map(|desired| (Key::with_group(&desired.workload), desired)));
            self.desired.insert(key, winner);
        }
    }
}

fn all_nodes_reported(ledger: &Ledger, index: &Index) -> bool {
    let mut nodes = index.directory().nodes().peekable();
    nodes.peek().is_some() && nodes.all(|node| ledger.is_complete(&node.name))
}

#[cfg(test)]
mod tests {
    use crds::TopologySettings;
    use topology::{archive::Published, counts::Earlier, edge::EdgeCounters, entity::Node, ledger::Epoch};

    use super::*;
    use crate::{edge_metrics::tests::edge, settings::EdgeMetricsLevel};

    const NONE: [u64; 0] = [];

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn settings() -> PublishSettings {
        PublishSettings::try_from(&TopologySettings::default()).expect("the defaults are valid")
    }

    /// A builder on a cluster of one node, with a published edge of 5 connections.
    async fn restarted() -> Builder {
        let index = ClusterIndex::default();
        index.add_nodes([Node { name: "node-1".to_owned(), ips: Vec::new(), pod_networks: Vec::new() }]);
        index.mark_complete();
        let edge_metrics = EdgeMetricsSettings { level: EdgeMetricsLevel::Workload, max_series: 10 };
        let (ledger, own) = (SharedLedger::default(), OwnWorkloads::default());
        let builder = Builder::new(ledger, index, Arc::default(), own, edge_metrics);
        let counters = EdgeCounters { opened: 5, ..EdgeCounters::default() };
        let edge = Arc::unwrap_or_clone(edge(0, counters));
        let edges = vec![Published { edge, earlier: Earlier::default() }];
        builder.restore(Restored { edges, ..Restored::default() }, at(0)).await;
        builder
    }

    /// Returns the number of connections in each series.
    async fn series(builder: &Builder, running: u64) -> Vec<u64> {
        let running_for = Duration::from_secs(running);
        let work = builder.clone().build(settings(), Pace::default(), running_for, at(running)).await;
        let Work::Built { state, .. } = work else { panic!("no state after {running} s") };
        let series = state.edge_series.expect("series are on");
        series.series.iter().map(|series| series.counts.opened).collect()
    }

    #[tokio::test]
    async fn series_begin_when_published_edges_are_compared_with_reports() {
        let builder = restarted().await;
        assert_eq!(series(&builder, 25).await, NONE, "the node has not reported");
        {
            let mut ledger = builder.shared_ledger.ledger().lock().await;
            let epoch = Epoch([1; 16]);
            ledger.begin_snapshot("node-1", epoch).expect("there is one epoch");
            ledger.end_snapshot("node-1", epoch, at(30)).expect("there is one epoch");
        }
        assert_eq!(series(&builder, 30).await, NONE, "connections may wait for their other end");
        assert_eq!(series(&builder, 35).await, [0]);
    }

    #[tokio::test]
    async fn series_begin_without_some_nodes_after_a_minute() {
        let builder = restarted().await;
        assert_eq!(series(&builder, 59).await, NONE);
        assert_eq!(series(&builder, 60).await, [0]);
    }
}
