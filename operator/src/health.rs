//! /livez, /readyz and /metrics.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};

use crate::{lease::Standing, metrics::Metrics};

/// Readiness: the operator accepts reports once it holds the lease and has listed the cluster.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// True if it holds the lease.
    pub standing: watch::Receiver<Standing>,
    /// True if all of its parts run.
    pub runs: watch::Receiver<bool>,
}

impl Readiness {
    /// Returns what the operator waits for, if anything.
    fn obstacle(&self) -> Option<String> {
        if let Standing::Waiting(reason) = &*self.standing.borrow() {
            return Some(format!("waiting for the lease: {reason}"));
        }
        let waits = !*self.runs.borrow();
        waits.then(|| "waiting for the first list of ScopeProbes, NodeProbes and Nodes".to_owned())
    }
}

/// Serves until `shutdown`.
///
/// # Errors
/// Returns an error if the listener fails.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(readiness, metrics)).with_graceful_shutdown(shutdown).await
}

fn router(readiness: Readiness, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(page).with_state(metrics))
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.obstacle() {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle),
    }
}

async fn page(State(metrics): State<Metrics>) -> Result<([(&'static str, &'static str); 1], String), StatusCode> {
    let page = metrics.encode().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_the_operator_waits_for() {
        let standing = watch::Sender::new(Standing::Waiting("connection refused".to_owned()));
        let runs = watch::Sender::new(false);
        let readiness = Readiness { standing: standing.subscribe(), runs: runs.subscribe() };
        let obstacle = || readiness.obstacle().unwrap_or_default();
        assert!(obstacle().ends_with("connection refused"), "{}", obstacle());
        standing.send_replace(Standing::Holding);
        assert!(obstacle().contains("first list"), "{}", obstacle());
        runs.send_replace(true);
        assert_eq!(readiness.obstacle(), None);
        standing.send_replace(Standing::Waiting("it lapsed".to_owned()));
        assert!(obstacle().contains("it lapsed"), "{}", obstacle());
    }
}
