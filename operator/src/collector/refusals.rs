//! Refused connections and streams: each is counted, and the first ones of a minute are logged.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::metrics::Metrics;

/// Time for which the number of log lines is bounded.
const PERIOD: Duration = Duration::from_mins(1);
/// Maximum number of log lines in that time: a stranger must not fill the log.
const MAX_LINES: u32 = 20;

/// Counts and logs refusals. Clones share their state.
#[derive(Clone, Debug)]
pub(super) struct Refusals {
    metrics: Metrics,
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    omitted: u64,
}

impl Refusals {
    pub fn new(metrics: Metrics) -> Self {
        let lines = Lines { since: Instant::now(), written: 0, omitted: 0 };
        Self { metrics, lines: Arc::new(Mutex::new(lines)) }
    }

    /// Records a connection that was closed before it had a stream.
    pub fn connection(&self, peer: SocketAddr, reason: &dyn Display) {
        self.metrics.refused_connections.inc();
        self.log(&|| tracing::warn!(%peer, %reason, "refused a connection"));
    }

    /// Records a stream that was refused.
    pub fn stream(&self, reason: &dyn Display) {
        self.metrics.refused_streams.inc();
        self.log(&|| tracing::warn!(%reason, "refused an agent's stream"));
    }

    fn log(&self, write: &dyn Fn()) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.since.elapsed() >= PERIOD {
            if lines.omitted > 0 {
                tracing::warn!(omitted = lines.omitted, "more refusals in the last minutes were not logged");
            }
            *lines = Lines { since: Instant::now(), written: 0, omitted: 0 };
        }
        if lines.written < MAX_LINES {
            lines.written += 1;
            write();
        } else {
            lines.omitted += 1;
        }
    }
}
