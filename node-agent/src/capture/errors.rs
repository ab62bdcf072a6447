//! Errors of a capture: at its start, and at a reading.

use kernel_support::Reason;

/// Error of a capture that could not be started.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// The word for it.
    pub reason: Reason,
    /// Failed step, its object, its error, and how to fix it.
    pub message: String,
}

/// Error of a reading.
#[derive(Debug, thiserror::Error)]
#[error("{attempted}: {source}")]
pub struct CaptureError {
    /// Failed step and its object.
    pub attempted: String,
    /// Cause of the failure.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Returns the error of an operation that failed.
pub(in crate::capture) fn failed(
    attempted: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> CaptureError {
    CaptureError { attempted: String::from(attempted), source: Box::new(source) }
}
