//! Settings of the metrics of edges.

use clap::{Args, ValueEnum, value_parser};

/// Detail of the metrics of edges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum EdgeMetricsLevel {
    /// No metrics of edges. YAML reads the word `Off` as a boolean.
    #[value(name = "None")]
    Off,
    /// One series for each pair of namespaces and each protocol.
    #[default]
    Namespace,
    /// One series for each edge.
    Workload,
}

/// Settings of the metrics of edges.
#[derive(Clone, Copy, Debug, Args)]
pub struct EdgeMetricsSettings {
    /// Detail of the metrics of edges.
    #[arg(long = "edge-metrics", env = "SCOPEPROBE_EDGE_METRICS", default_value = "Namespace")]
    pub level: EdgeMetricsLevel,
    /// Maximum number of series for each metric of edges. One further series has the sums of all others.
    #[arg(long = "edge-metrics-max-series", env = "SCOPEPROBE_EDGE_METRICS_MAX_SERIES", default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=100_000))]
    pub max_series: u32,
}
