//! Settings of the collector's port.

use std::time::Duration;

use clap::{Args, value_parser};
use jiff::SignedDuration;

use super::bounded::between;

/// Settings of the collector's port.
#[derive(Clone, Debug, Args)]
pub struct CollectorSettings {
    /// Secret, in the operator's namespace, with the certificate (tls.crt), its key (tls.key) and its CA (ca.crt), as
    /// cert-manager writes it. It has to name the Service: SERVICE.NAMESPACE.svc. If absent, the operator makes its own
    /// certificates.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_TLS_SECRET")]
    pub collector_tls_secret: Option<String>,
    /// Lifetime of the certificates that the operator makes. The next one is made after two thirds of it.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_CERTIFICATE_LIFETIME", default_value = "2160h", value_parser = lifetime)]
    pub collector_certificate_lifetime: SignedDuration,
    /// Limits of the collector's port.
    #[command(flatten)]
    pub limits: Limits,
}

/// Limits of the collector's port. What is beyond them is refused.
#[derive(Clone, Debug, Args)]
pub struct Limits {
    /// Maximum number of connections at the collector's port.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_MAX_CONNECTIONS", default_value_t = 8192, value_parser = value_parser!(u32).range(16..=65_536))]
    pub collector_max_connections: u32,
    /// Maximum number of these that have not sent a valid first message. Of more, the one that has waited longest is closed.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_MAX_WAITING_CONNECTIONS", default_value_t = 512, value_parser = value_parser!(u32).range(8..=65_536))]
    pub collector_max_waiting_connections: u32,
    /// Maximum number of connections from one address.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 32, value_parser = value_parser!(u32).range(1..=65_536))]
    pub collector_max_connections_per_address: u32,
    /// Time limit of a TLS handshake.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_HANDSHAKE_TIMEOUT", default_value = "5s", value_parser = timeout)]
    pub collector_handshake_timeout: SignedDuration,
    /// Time limit for each message from its first to its last byte, and from the handshake to the end of the first one.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_MESSAGE_TIMEOUT", default_value = "10s", value_parser = timeout)]
    pub collector_message_timeout: SignedDuration,
    /// Maximum size of all messages that are received and applied at a time, in bytes. Further ones wait.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_MAX_BYTES", default_value_t = 64 << 20, value_parser = value_parser!(u32).range(4 << 20..=1 << 30))]
    pub collector_max_bytes: u32,
    /// Maximum number of flows of one node.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_MAX_FLOWS_PER_NODE", default_value_t = 65_536, value_parser = value_parser!(u32).range(1..))]
    pub collector_max_flows_per_node: u32,
    /// Maximum number of flows of all nodes. Each node has an equal part of half of it for itself. If absent, as many as the
    /// memory limit carries.
    #[arg(long, env = "SCOPEPROBE_COLLECTOR_MAX_FLOWS", value_parser = value_parser!(u32).range(1..))]
    pub collector_max_flows: Option<u32>,
    /// Memory limit of the operator's container, in bytes. Decides on the number of flows.
    #[arg(long, env = "SCOPEPROBE_MEMORY_LIMIT", default_value_t = 512 << 20, value_parser = value_parser!(u64).range(1..))]
    pub memory_limit: u64,
}

/// Memory that the operator takes without any flow or message, in bytes.
const BASE_MEMORY: u64 = 32 << 20;
/// Memory for each allowed flow, in bytes: 6 KiB were measured after a restart, while all agents come back
/// (docs/performance.md), and there may be half as many more flows while nodes come and go.
const MEMORY_PER_FLOW: u64 = 9 << 10;
/// Number of flows that is allowed in any memory.
const LEAST_FLOWS: u32 = 1024;

impl Limits {
    /// Returns the maximum number of flows of all nodes.
    #[must_use]
    pub fn max_flows(&self) -> u32 {
        self.collector_max_flows.unwrap_or_else(|| {
            let others = BASE_MEMORY + u64::from(self.collector_max_bytes);
            let carried = self.memory_limit.saturating_sub(others) / MEMORY_PER_FLOW;
            u32::try_from(carried).unwrap_or(u32::MAX).max(LEAST_FLOWS)
        })
    }

    /// Returns the time limit of a TLS handshake.
    #[must_use]
    pub fn handshake_timeout(&self) -> Duration {
        self.collector_handshake_timeout.unsigned_abs()
    }

    /// Returns the time limit of a message.
    #[must_use]
    pub fn message_timeout(&self) -> Duration {
        self.collector_message_timeout.unsigned_abs()
    }
}

impl Default for Limits {
    /// Returns the defaults of the command line.
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Defaults {
            #[command(flatten)]
            limits: Limits,
        }
        <Defaults as clap::Parser>::parse_from(["defaults"]).limits
    }
}

/// Reads a duration between 10 seconds and ten years.
fn lifetime(text: &str) -> Result<SignedDuration, String> {
    between(text, SignedDuration::from_secs(10), SignedDuration::from_hours(87_600), "10s and 87600h")
}

/// Reads a duration between 100 milliseconds and a minute.
fn timeout(text: &str) -> Result<SignedDuration, String> {
    between(text, SignedDuration::from_millis(100), SignedDuration::from_mins(1), "100ms and 1m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_limit_decides_on_the_number_of_flows() {
        let flows = |memory_limit| Limits { memory_limit, ..Limits::default() }.max_flows();
        assert_eq!(flows(512 << 20), 47_331);
        assert_eq!([flows(2 << 30), flows(4 << 30)], [222_094, 455_111]);
        assert_eq!([flows(1), flows(u64::MAX)], [LEAST_FLOWS, u32::MAX]);
        assert_eq!(Limits { collector_max_flows: Some(7), ..Limits::default() }.max_flows(), 7);
    }
}
