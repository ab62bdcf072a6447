//! Metrics of the operator, for Prometheus.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Instant,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::edge_metrics::{self, SeriesSnapshot};

/// Labels of a write: its reason and result.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WriteLabels {
    /// `Topology`, `NodeProbe` or `ScopeProbe`.
    pub kind: &'static str,
    /// `done`, `skipped` (nothing had changed), `gone` (the object or its namespace was deleted meanwhile) or `failed`.
    pub result: &'static str,
}

/// Labels of a loss.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct LossLabels {
    /// `opened`, `closed`, `failed`, `new_flow_notifications`, `closes_unseen`, `event_overflows` or `missed_runs`.
    pub kind: &'static str,
}

/// Labels of nodes: mode and reason.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct NodeLabels {
    /// `Ebpf`, `Fallback`, `Unsupported`, or `none` before the agent's first report.
    pub mode: &'static str,
    /// The reason in the NodeProbe.
    pub reason: String,
}

/// Label of a coverage: its window.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WindowLabels {
    /// `hour`, `day` or `total`.
    pub window: &'static str,
}

/// Labels of ScopeProbes: a condition and its status.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ConditionLabels {
    /// Type of the condition.
    pub condition: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

/// All metrics. Cheap to clone; all clones share one state.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    /// Reconciliations that began.
    pub reconciles: Counter,
    /// Reconciliations that failed.
    pub reconcile_failures: Counter,
    /// Durations of reconciliations.
    pub reconcile_seconds: Histogram,
    /// Connections that were closed before they had a stream: beyond a limit, or without a TLS handshake.
    pub refused_connections: Counter,
    /// Streams that were refused: without a valid token, for another node, or with a malformed message.
    pub refused_streams: Counter,
    /// Identities that agents reported of pods on other nodes, and that were left out.
    pub foreign_pods: Counter,
    /// Flows at addresses of other nodes.
    pub foreign_flows: Counter,
    /// Agents whose stream is open.
    pub agents_connected: Gauge,
    /// Flows that are known now.
    pub flows: Gauge,
    /// Connections of ScopeProbe itself that the map leaves out.
    pub own_connections: Gauge,
    /// Flows that were joined for graphs. Those that cannot have changed are not joined again.
    pub flows_joined: Counter,
    /// Edges of the graph.
    pub edges: Gauge,
    /// Entries of edges that did not fit into objects.
    pub omitted_edges: Gauge,
    /// Durations of making a graph and the objects that show it.
    pub graph_seconds: Histogram,
    /// Time as of which the shown graph is, in seconds since 1970-01-01 UTC.
    pub graph_timestamp: Gauge<f64, AtomicU64>,
    /// Topologies that differ from the graph and wait to be written.
    pub waiting: Gauge,
    /// True if this operator holds the lease.
    pub leader: Gauge,
    /// Maximum number of files that this process may have open.
    pub open_files_limit: Gauge,
    /// Writes to the API server.
    pub writes: Family<WriteLabels, Counter>,
    /// Losses of agents, over all nodes and epochs.
    pub losses: Family<LossLabels, Gauge>,
    /// Nodes by mode and reason.
    pub nodes: Family<NodeLabels, Gauge>,
    /// Nodes whose agent does not report.
    pub nodes_not_reporting: Gauge,
    /// Counted shares of what happened on all nodes.
    pub coverage: Family<WindowLabels, Gauge<f64, AtomicU64>>,
    /// ScopeProbes by condition and status.
    scope_probes: Family<ConditionLabels, Gauge>,
    /// Labels that `nodes` contains.
    shown: Arc<Mutex<HashSet<NodeLabels>>>,
    /// Labels that `scope_probes` contains.
    shown_conditions: Arc<Mutex<HashSet<ConditionLabels>>>,
    /// Series of the shown graph's edges; `None` where there is none, or where they are disabled.
    edge_series: Arc<Mutex<Option<Arc<SeriesSnapshot>>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::with_prefix("scopeprobe_operator"))),
            reconciles: Counter::default(),
            reconcile_failures: Counter::default(),
            reconcile_seconds: Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]),
            refused_connections: Counter::default(),
            refused_streams: Counter::default(),
            foreign_pods: Counter::default(),
            foreign_flows: Counter::default(),
            agents_connected: Gauge::default(),
            flows: Gauge::default(),
            own_connections: Gauge::default(),
            flows_joined: Counter::default(),
            edges: Gauge::default(),
            omitted_edges: Gauge::default(),
            graph_seconds: Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]),
            graph_timestamp: Gauge::default(),
            waiting: Gauge::default(),
            leader: Gauge::default(),
            open_files_limit: Gauge::default(),
            writes: Family::default(),
            losses: Family::default(),
            nodes: Family::default(),
            nodes_not_reporting: Gauge::default(),
            coverage: Family::default(),
            scope_probes: Family::default(),
            shown: Arc::default(),
            shown_conditions: Arc::default(),
            edge_series: Arc::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register(
            "refused_connections",
            "Connections to the collector that were closed before they had a stream",
            self.refused_connections.clone(),
        );
        registry.register(
            "foreign_pods",
            "Identities that agents reported of pods on other nodes, and that were left out",
            self.foreign_pods.clone(),
        );
        registry.register(
            "foreign_flows",
            "Flows that agents reported at addresses of other nodes, and that were left out",
            self.foreign_flows.clone(),
        );
        registry.register("refused_streams", "Streams that the collector refused", self.refused_streams.clone());
        registry.register("reconciles", "Reconciliations of ScopeProbes that began", self.reconciles.clone());
        registry.register(
            "reconcile_failures",
            "Reconciliations of ScopeProbes that failed",
            self.reconcile_failures.clone(),
        );
        registry.register_with_unit(
            "reconcile",
            "Duration of reconciliations of ScopeProbes",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        registry.register("agents_connected", "Agents whose stream is open", self.agents_connected.clone());
        registry.register("flows", "Flows that the topology is made of", self.flows.clone());
        registry.register(
            "own_connections",
            "Connections of ScopeProbe itself that the topology leaves out",
            self.own_connections.clone(),
        );
        registry.register(
            "flows_joined",
            "Flows that were joined for the topology, again if they may have changed",
            self.flows_joined.clone(),
        );
        registry.register("edges", "Edges of the topology", self.edges.clone());
        registry.register(
            "omitted_edges",
            "Entries of edges that did not fit into the Topologies of their workloads",
            self.omitted_edges.clone(),
        );
        registry.register_with_unit(
            "graph",
            "Duration of making the topology from all flows",
            Unit::Seconds,
            self.graph_seconds.clone(),
        );
        registry.register_with_unit(
            "graph_timestamp",
            "Time as of which the shown topology is, since 1970-01-01 UTC",
            Unit::Seconds,
            self.graph_timestamp.clone(),
        );
        registry.register(
            "topologies_waiting",
            "Topologies that have changed and wait to be written",
            self.waiting.clone(),
        );
        registry.register("leader", "1 where this operator holds the lease", self.leader.clone());
        registry.register(
            "open_files_limit",
            "Maximum number of files that this process may have open; each agent's connection is one",
            self.open_files_limit.clone(),
        );
        registry.register(
            "writes",
            "Writes of objects to the API server: done, skipped because nothing had changed, gone with its namespace, or failed",
            self.writes.clone(),
        );
        registry.register(
            "agent_losses",
            "What the agents of all nodes could not record, in all of their epochs, by kind",
            self.losses.clone(),
        );
        registry.register("nodes", "Nodes by how they are captured, and why", self.nodes.clone());
        registry.register(
            "nodes_not_reporting",
            "Nodes whose agent does not report, without those that are new",
            self.nodes_not_reporting.clone(),
        );
        registry.register(
            "coverage_ratio",
            "Counted share of what happened on all nodes, by window",
            self.coverage.clone(),
        );
        registry.register("scopeprobes", "ScopeProbes by condition and its status", self.scope_probes.clone());
    }

    /// Returns all metrics as text for Prometheus, in pieces: there may be many edges.
    ///
    /// # Errors
    /// Returns an error if a metric cannot be encoded as text.
    pub fn encode_pieces(&self) -> Result<impl Iterator<Item = String> + Send + 'static, std::fmt::Error> {
        let (mut own, mut end) = (String::new(), String::new());
        text::encode_registry(&mut own, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        text::encode_eof(&mut end)?;
        let edge_series = self.edge_series.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let edges = edge_series.into_iter().flat_map(edge_metrics::chunks);
        Ok([own].into_iter().chain(edges).chain([end]))
    }

    /// Returns all metrics as text for Prometheus.
    ///
    /// # Errors
    /// Returns an error if a metric cannot be encoded as text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        self.encode_pieces().map(Iterator::collect)
    }

    /// Replaces the series of edges.
    pub fn show_edges(&self, series: Option<Arc<SeriesSnapshot>>) {
        *self.edge_series.lock().unwrap_or_else(PoisonError::into_inner) = series;
    }

    /// Counts and times one reconciliation.
    pub async fn timed_reconcile<T>(&self, reconcile: impl Future<Output = T>) -> T {
        self.reconciles.inc();
        let begin = Instant::now();
        let result = reconcile.await;
        self.reconcile_seconds.observe(begin.elapsed().as_secs_f64());
        result
    }

    /// Counts all nodes by mode and reason. Removes combinations without a node.
    pub fn count_nodes<'a>(&self, nodes: impl Iterator<Item = (&'static str, &'a str)>) {
        let mut counts = HashMap::new();
        for (mode, reason) in nodes {
            *counts.entry(NodeLabels { mode, reason: reason.to_owned() }).or_insert(0) += 1;
        }
        replace(&self.nodes, &self.shown, counts);
    }

    /// Counts all ScopeProbes by the types and statuses of their conditions. Removes combinations without one.
    pub fn count_conditions<'a>(&self, conditions: impl Iterator<Item = (&'a str, &'a str)>) {
        let mut counts = HashMap::new();
        for (condition, status) in conditions {
            let labels = ConditionLabels { condition: condition.to_owned(), status: status.to_owned() };
            *counts.entry(labels).or_insert(0) += 1;
        }
        replace(&self.scope_probes, &self.shown_conditions, counts);
    }

    /// Counts one write.
    pub fn write(&self, kind: &'static str, result: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind, result }).inc();
    }
}

/// Sets the counts of a family, and removes its other labels.
fn replace<L: Clone + Eq + Hash>(family: &Family<L, Gauge>, shown: &Mutex<HashSet<L>>, counts: HashMap<L, i64>) {
    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    for labels in shown.iter().filter(|labels| !counts.contains_key(labels)) {
        family.remove(labels);
    }
    for (labels, count) in &counts {
        family.get_or_create(labels).set(*count);
    }
    *shown = counts.into_keys().collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users' dashboards and alerts contain these names.
    #[test]
    fn each_metric_has_its_name_and_says_what_it_is() {
        let metrics = Metrics::default();
        metrics.write("Topology", "done");
        metrics.losses.get_or_create(&LossLabels { kind: "opened" }).set(3);
        metrics.count_nodes([("Unsupported", "BtfMissing")].into_iter());
        metrics.count_nodes([("Fallback", "KernelTooOld"), ("Fallback", "KernelTooOld")].into_iter());
        metrics.coverage.get_or_create(&WindowLabels { window: "hour" }).set(0.5);
        metrics.count_conditions([("Ready", "True")].into_iter());
        metrics.show_edges(Some(Arc::default()));
        let page = metrics.encode().expect("numbers are text");
        assert!(page.ends_with("\n# EOF\n"), "{page}");
        assert!(!page.contains("BtfMissing"), "no node is so any more:\n{page}");
        for sample in [
            "scopeprobe_operator_reconciles_total 0",
            "scopeprobe_operator_reconcile_failures_total 0",
            "scopeprobe_operator_reconcile_seconds_count 0",
            "scopeprobe_operator_refused_connections_total 0",
            "scopeprobe_operator_refused_streams_total 0",
            "scopeprobe_operator_foreign_pods_total 0",
            "scopeprobe_operator_foreign_flows_total 0",
            "scopeprobe_operator_agents_connected 0",
            "scopeprobe_operator_flows 0",
            "scopeprobe_operator_own_connections 0",
            "scopeprobe_operator_flows_joined_total 0",
            "scopeprobe_operator_edges 0",
            "scopeprobe_operator_omitted_edges 0",
            "scopeprobe_operator_nodes_not_reporting 0",
            "scopeprobe_operator_graph_seconds_count 0",
            "scopeprobe_operator_graph_timestamp_seconds 0.0",
            "scopeprobe_operator_topologies_waiting 0",
            "scopeprobe_operator_leader 0",
            "scopeprobe_operator_open_files_limit 0",
            "scopeprobe_operator_writes_total{kind=\"Topology\",result=\"done\"} 1",
            "scopeprobe_operator_agent_losses{kind=\"opened\"} 3",
            "scopeprobe_operator_nodes{mode=\"Fallback\",reason=\"KernelTooOld\"} 2",
            "scopeprobe_connections_other_edges 0",
        ] {
            assert!(page.lines().any(|line| line == sample), "{sample}:\n{page}");
        }
        let described = |what: &str| {
            let lines = page.lines().filter_map(|line| line.strip_prefix(what)?.split(' ').next());
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(described("# HELP "), described("# TYPE "));
        assert_eq!(described("# HELP ").len(), 33);
        metrics.show_edges(None);
        let page = metrics.encode().expect("numbers are text");
        assert!(!page.contains("scopeprobe_connections"), "nothing is shown:\n{page}");
    }
}
