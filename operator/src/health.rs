//! /livez, /readyz and /metrics.

use std::convert::Infallible;

use axum::{Router, body::Body, extract::State, http::StatusCode, routing::get};
use futures::stream;
use tokio::{net::TcpListener, sync::watch};

use crate::{lease::Standing, metrics::Metrics, progress::Progress};

/// Readiness: the operator works, or stands by because another one does.
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Permission to write, by the lease.
    pub standing: watch::Receiver<Standing>,
    /// Progress of the lease's holder.
    pub progress: watch::Receiver<Progress>,
}

impl Readiness {
    /// Returns the operator's state, or as an error what it waits for.
    fn state(&self) -> Result<String, String> {
        match &*self.standing.borrow() {
            Standing::Waiting(reason) => return Err(format!("waiting for the lease: {reason}")),
            Standing::Standby(reason) => return Ok(format!("standby: {reason}")),
            Standing::Holding => {}
        }
        match &*self.progress.borrow() {
            Progress::Running => Ok("ok".to_owned()),
            Progress::Blocked(reason) => Ok(format!("standby: {reason}")),
            Progress::Waiting(reason) => Err(format!("waiting: {reason}")),
            Progress::Starting => Err("waiting for the first list of ScopeProbes, NodeProbes and Nodes".to_owned()),
        }
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
    match readiness.state() {
        Ok(state) => (StatusCode::OK, state),
        Err(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, obstacle),
    }
}

async fn page(State(metrics): State<Metrics>) -> Result<([(&'static str, &'static str); 1], Body), StatusCode> {
    let pieces = metrics.encode_pieces().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let page = Body::from_stream(stream::iter(pieces.map(Ok::<_, Infallible>)));
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_the_operator_waits_for() {
        let standing = watch::Sender::new(Standing::Waiting("connection refused".to_owned()));
        let progress = watch::Sender::new(Progress::Starting);
        let readiness = Readiness { standing: standing.subscribe(), progress: progress.subscribe() };
        let obstacle = || readiness.state().unwrap_err();
        assert!(obstacle().ends_with("connection refused"), "{}", obstacle());
        standing.send_replace(Standing::Holding);
        assert!(obstacle().contains("first list"), "{}", obstacle());
        progress.send_replace(Progress::Waiting("forbidden".to_owned()));
        assert!(obstacle().ends_with("forbidden"), "{}", obstacle());
        progress.send_replace(Progress::Running);
        assert_eq!(readiness.state().as_deref(), Ok("ok"));
        standing.send_replace(Standing::Waiting("it lapsed".to_owned()));
        assert!(obstacle().contains("it lapsed"), "{}", obstacle());
    }

    #[test]
    fn operator_that_stands_by_is_ready() {
        let standing = watch::Sender::new(Standing::Standby("a holds the lease".to_owned()));
        let progress = watch::Sender::new(Progress::Starting);
        let readiness = Readiness { standing: standing.subscribe(), progress: progress.subscribe() };
        assert_eq!(readiness.state().as_deref(), Ok("standby: a holds the lease"));
        standing.send_replace(Standing::Holding);
        progress.send_replace(Progress::Blocked("b has the cluster".to_owned()));
        assert_eq!(readiness.state().as_deref(), Ok("standby: b has the cluster"));
    }
}
