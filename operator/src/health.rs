//! /livez, /readyz and /metrics.

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};

use crate::metrics::Metrics;

/// Whether this operator takes reports in: it holds the lease and knows the cluster.
pub type Ready = watch::Receiver<bool>;

/// Serves until `shutdown`.
///
/// # Errors
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    ready: Ready,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(ready, metrics)).with_graceful_shutdown(shutdown).await
}

fn router(ready: Ready, metrics: Metrics) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz).with_state(ready))
        .route("/metrics", get(page).with_state(metrics))
}

async fn readyz(State(ready): State<Ready>) -> (StatusCode, &'static str) {
    if *ready.borrow() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not holding the lease, or the cluster has not been listed yet")
    }
}

async fn page(State(metrics): State<Metrics>) -> Result<([(&'static str, &'static str); 1], String), StatusCode> {
    let page = metrics.encode().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], page))
}
