//! Starts a capture, and says why not.

use std::sync::Arc;

use topology::flow::FlowKey;

use crate::capture::{self, Capture, FallbackSettings, Refusal, Settings};

/// Why no capture runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refused {
    /// As a word of the API.
    pub reason: &'static str,
    /// What was attempted, on what, what came of it, what to do.
    pub message: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason.as_str(), message: refusal.message }
    }
}

/// How a capture is started, again and again if need be. May block for a second.
pub type Starter = Arc<dyn Fn() -> Result<Box<dyn Capture>, Refused> + Send + Sync>;

impl From<Refused> for capture::CaptureError {
    fn from(refused: Refused) -> Self {
        Self { attempted: "entering a new epoch".into(), source: Box::new(refused) }
    }
}

/// The captures of an agent.
pub struct Captures {
    /// What it is to do. Tried for ever.
    pub preferred: Starter,
    /// What sees what it can meanwhile, with the rights that are there.
    pub stand_in: Option<StandIn>,
}

/// How a stand-in is started, with the flows that the capture before has known and the number of their connections that
/// are open.
pub type StandIn = Arc<dyn Fn(Vec<(FlowKey, u64)>) -> Result<Box<dyn Capture>, Refused> + Send + Sync>;

/// Starts the eBPF capture. The settings are found anew each time: what is missing may come.
pub fn ebpf(settings: impl Fn() -> Result<Settings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || Ok(Box::new(capture::start_ebpf(&settings()?)?)))
}

/// Starts the capture without eBPF for the time that another one is missing.
pub fn stand_in(settings: impl Fn() -> Result<FallbackSettings, Refusal> + Send + Sync + 'static) -> StandIn {
    Arc::new(move |earlier| Ok(Box::new(capture::start_fallback(&FallbackSettings { earlier, ..settings()? })?)))
}

/// Starts the capture without eBPF.
pub fn fallback(settings: impl Fn() -> Result<FallbackSettings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || Ok(Box::new(capture::start_fallback(&settings()?)?)))
}
