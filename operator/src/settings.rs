//! Settings from the command line and the environment.

mod bounded;
mod collector;
mod edge_metrics;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;

use self::bounded::between;
pub use self::{
    collector::{CollectorSettings, Limits},
    edge_metrics::{EdgeMetricsLevel, EdgeMetricsSettings},
};

/// Maximum time between two attempts to use eBPF on a node, without jitter.
pub const LONGEST_RETRY: SignedDuration = SignedDuration::from_hours(24);

/// Audience of the agents' tokens for the collector. Tokens for other purposes are refused there, and these elsewhere.
pub const COLLECTOR_AUDIENCE: &str = "scopeprobe-collector";

/// Rolls ScopeProbe's agents out, collects what they see and writes it as Kubernetes objects.
#[derive(Debug, Parser)]
#[command(name = "scopeprobe-operator", version)]
pub struct Cli {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the operator until it is stopped.
    Run(Box<Settings>),
    /// Prints the manifests of the kinds.
    Crds,
    /// Asks an operator whether it is ready, and fails if it is not.
    Ready {
        /// Host name or address of the operator's HTTP port.
        #[arg(long)]
        host: String,
        /// The operator's HTTP port.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Removes the node labels, NodeProbes, Topologies and the Lease that an operator left behind, once none is installed any more.
    Prune,
}

/// Settings of `run`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// The operator's own namespace: the agents' pods and the lease live here.
    #[arg(long, env = "SCOPEPROBE_NAMESPACE")]
    pub namespace: String,
    /// This operator's name among several: the name of its pod.
    #[arg(long, env = "SCOPEPROBE_IDENTITY")]
    pub identity: String,
    /// The UID of this operator's pod, which owns the EndpointSlices of the collector's Service.
    #[arg(long, env = "SCOPEPROBE_POD_UID")]
    pub pod_uid: Option<String>,
    /// The addresses of this operator's pod, separated by commas. While it works, it enters them into the collector's
    /// Service.
    #[arg(long, env = "SCOPEPROBE_POD_IPS", value_delimiter = ',')]
    pub pod_ips: Vec<IpAddr>,
    /// The operator's own Deployment. The garbage collector removes the agents' DaemonSets and the lease with it.
    #[arg(long, env = "SCOPEPROBE_DEPLOYMENT")]
    pub deployment: Option<String>,
    /// The lease of which the holder alone writes.
    #[arg(long, env = "SCOPEPROBE_LEASE_NAME", default_value = "scopeprobe-operator")]
    pub lease_name: String,
    /// Duration of the lease after its holder's last renewal, in seconds. The holder stops writing after two thirds of it.
    #[arg(long, env = "SCOPEPROBE_LEASE_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(5..=300))]
    pub lease_seconds: u64,
    /// Address that accepts agents' reports.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_LISTEN", default_value = "[::]:9463")]
    pub collector_listen: SocketAddr,
    /// Address that serves /livez, /readyz and /metrics.
    #[arg(long, env = "SCOPEPROBE_HTTP_LISTEN", default_value = "[::]:8080")]
    pub http_listen: SocketAddr,
    /// Time between two comparisons of everything with its desired state, without any change.
    #[arg(long, env = "SCOPEPROBE_RESYNC_INTERVAL", default_value = "5m", value_parser = resync)]
    pub resync_interval: SignedDuration,
    /// Settings of the collector's port.
    #[command(flatten)]
    pub collector: CollectorSettings,
    /// Settings of the metrics of edges.
    #[command(flatten)]
    pub edge_metrics: EdgeMetricsSettings,
    /// Settings of agents.
    #[command(flatten)]
    pub agents: AgentSettings,
}

/// Settings of agents, apart from those of each ScopeProbe.
#[derive(Clone, Debug, Args)]
pub struct AgentSettings {
    /// The Service, in the operator's namespace, whose cluster IP agents dial.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_SERVICE", default_value = "scopeprobe-collector")]
    pub collector_service: String,
    /// URL that agents connect to instead of the Service's, for example `https://192.0.2.1:9463`.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_URL")]
    pub collector_url: Option<String>,
    /// Accept reports from anyone, without TLS and identity; for tests.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_PLAINTEXT", hide = true, value_parser = clap::builder::BoolishValueParser::new())]
    pub collector_plaintext: bool,
    /// The agents' image.
    #[arg(long, env = "SCOPEPROBE_AGENT_IMAGE", default_value = concat!("localhost/scopeprobe/agent:", env!("CARGO_PKG_VERSION")))]
    pub agent_image: String,
    /// Pull policy of the agents' image.
    #[arg(long, env = "SCOPEPROBE_AGENT_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub agent_pull_policy: String,
    /// Secrets with which the agents' image is pulled, separated by commas.
    #[arg(long, env = "SCOPEPROBE_AGENT_PULL_SECRETS", value_delimiter = ',')]
    pub agent_pull_secrets: Vec<String>,
    /// The agents' ServiceAccount. It needs no permission.
    #[arg(long, env = "SCOPEPROBE_AGENT_SERVICE_ACCOUNT", default_value = "scopeprobe-agent")]
    pub agent_service_account: String,
    /// Time for which a node whose agent cannot use eBPF stays in Fallback mode before eBPF is retried. Each failed
    /// attempt doubles it, up to a day; a jitter of up to a quarter spreads the nodes.
    #[arg(long, env = "SCOPEPROBE_EBPF_RETRY", default_value = "1h", value_parser = retry)]
    pub ebpf_retry: SignedDuration,
    /// Time between two scans of open connections by an agent, which read their bytes.
    #[arg(long, env = "SCOPEPROBE_AGENT_SCAN_INTERVAL", default_value = "30s", value_parser = scan)]
    pub agent_scan_interval: SignedDuration,
    /// Let signals break the agents' captures on purpose; for tests.
    #[arg(long, env = "SCOPEPROBE_AGENT_DEBUG_SIGNALS", hide = true)]
    pub agent_debug_signals: bool,
}

/// Reads a duration between a minute and a day.
fn retry(text: &str) -> Result<SignedDuration, String> {
    between(text, SignedDuration::from_mins(1), LONGEST_RETRY, "1m and 24h")
}

impl Settings {
    /// [`Settings::resync_interval`], which is bounded above zero.
    #[must_use]
    pub fn resync(&self) -> Duration {
        self.resync_interval.unsigned_abs()
    }
}

/// Reads a duration between 10 seconds and an hour.
fn resync(text: &str) -> Result<SignedDuration, String> {
    between(text, SignedDuration::from_secs(10), SignedDuration::from_hours(1), "10s and 1h")
}

/// Reads a duration between a second and five minutes.
fn scan(text: &str) -> Result<SignedDuration, String> {
    between(text, SignedDuration::from_secs(1), SignedDuration::from_mins(5), "1s and 5m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_between_a_minute_and_a_day() {
        assert_eq!(retry("1h"), Ok(SignedDuration::from_hours(1)));
        assert_eq!(retry("1m"), Ok(SignedDuration::from_mins(1)));
        assert_eq!(retry("24h"), Ok(SignedDuration::from_hours(24)));
        for wrong in ["59s", "25h", "-1h", "", "soon", "10"] {
            assert!(retry(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn intervals_are_bounded() {
        assert_eq!(resync("5m"), Ok(SignedDuration::from_mins(5)));
        assert_eq!(scan("30s"), Ok(SignedDuration::from_secs(30)));
        for wrong in ["9s", "61m", "-10s", ""] {
            assert!(resync(wrong).is_err(), "{wrong}");
        }
        for wrong in ["999ms", "301s", "-1s", ""] {
            assert!(scan(wrong).is_err(), "{wrong}");
        }
    }
}
