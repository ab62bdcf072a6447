//! The agent's own HTTP endpoints: `/livez`, `/readyz` and `/metrics`.

use std::io;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        counter::{ConstCounter, Counter},
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::Registry,
};
use tokio::net::TcpListener;

use crate::{capture::Mode, observation::SharedObservation};

/// Metrics of the reports.
#[derive(Clone, Debug, Default)]
pub struct ReportMetrics {
    sent: Counter,
    disconnects: Counter,
    connected: Gauge,
}

impl ReportMetrics {
    /// Records an opened stream.
    pub fn connected(&self) {
        self.connected.set(1);
    }

    /// Records that a stream ended, or that an attempt to open one failed.
    pub fn disconnected(&self) {
        self.connected.set(0);
        self.disconnects.inc();
    }

    /// Returns whether a stream is open, and how many ended or could not be opened.
    #[must_use]
    pub fn connections(&self) -> (bool, u64) {
        (self.connected.get() != 0, self.disconnects.get())
    }

    /// Records an acknowledged message.
    pub fn sent(&self) {
        self.sent.inc();
    }
}

/// Collector that reads the observation at each request, so that no counter is kept twice.
#[derive(Debug)]
struct ObservationCollector(SharedObservation);

/// Serves the endpoints on a listener.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener, observation: SharedObservation, report: &ReportMetrics) -> io::Result<()> {
    axum::serve(listener, router(observation, report)).await
}

fn router(observation: SharedObservation, report: &ReportMetrics) -> Router {
    let registry = std::sync::Arc::new(registry(observation.clone(), report));
    let metrics = get(move || async move {
        let mut body = String::new();
        text::encode(&mut body, &registry).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        Ok::<_, StatusCode>(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], body))
    });
    Router::new()
        // Everything runs on one thread: an answer proves that it is not blocked.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", metrics)
        .with_state(observation)
}

/// Returns ready once a capture has started or failed. The agent is ready, too, if it reports that no capture can run.
async fn readyz(State(observation): State<SharedObservation>) -> (StatusCode, String) {
    let observation = observation.lock();
    let state = &observation.capture;
    let status = if state.is_decided() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{}: {}\n", state.reason, state.message))
}

fn registry(observation: SharedObservation, report: &ReportMetrics) -> Registry {
    let mut registry = Registry::with_prefix("scopeprobe_agent");
    registry.register("reports_sent", "Messages that the operator has acknowledged", report.sent.clone());
    registry.register(
        "report_disconnects",
        "Report streams that ended and attempts that failed",
        report.disconnects.clone(),
    );
    registry.register("report_connected", "Whether a report stream is open", report.connected.clone());
    registry.register_collector(Box::new(ObservationCollector(observation)));
    registry
}

impl Collector for ObservationCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let observation = self.0.lock();
        let capture = &observation.capture;
        let mode = match capture.mode {
            Some(Mode::Ebpf) => "Ebpf",
            Some(Mode::Fallback) => "Fallback",
            None => "Unsupported",
        };
        let labels = [
            ("mode", mode.to_owned()),
            ("reason", capture.reason.to_string()),
            ("attach", capture.attach.to_owned()),
            ("kernel", capture.kernel.clone()),
        ];
        let mut add = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        add("capture", "How this node is captured", &Info::new(labels))?;
        add(
            "connections_seen",
            "Connections opened and attempts failed since the capture began",
            &ConstCounter::new(capture.seen),
        )?;
        let losses = capture.losses;
        for (name, help, count) in [
            ("lost_opened", "Connections opened while the flow table was full", losses.opened),
            ("lost_closed", "Connections closed while the flow table was full", losses.closed),
            ("lost_failed", "Attempts failed while the flow table was full", losses.failed),
            (
                "late_new_flow_notifications",
                "New flows that were reported with the next read instead of at once",
                losses.new_flow_notifications,
            ),
            ("closes_unseen", "Connections from before the capture whose end was not seen", losses.closes_unseen),
            ("flows_evicted", "Flows that left because there were too many", observation.flows.evicted()),
            ("flows_unreported", "Of these, flows that could not be reported before", capture.unreported_flows),
            (
                "connections_unreported",
                "Of lost_opened and lost_failed, at most as many as these flows had counted unreported",
                observation.flows.evicted_unreported().opened + observation.flows.evicted_unreported().failed,
            ),
            ("flows_unnamed", "Flows for whose peers' names there was no room", observation.flows.unnamed()),
        ] {
            add(name, help, &ConstCounter::new(count))?;
        }
        let (live, dead) = observation.attribution.as_ref().map_or((0, 0), crate::attribution::Attribution::len);
        for (name, help, count) in [
            ("flows", "Flows remembered now", observation.flows.len()),
            ("cgroups", "Control groups below the node's root", live),
            ("dead_cgroups", "Control groups that are gone and still remembered", dead),
        ] {
            add(name, help, &ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)))?;
        }
        Ok(())
    }
}
