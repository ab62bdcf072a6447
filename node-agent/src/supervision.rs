//! Starts a capture, and says why not.

use std::sync::Arc;

use crate::capture::{self, Capture, FallbackSettings, Reason, Refusal, Settings};

/// Why no capture runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refused {
    /// The word for it.
    pub reason: Reason,
    /// What was attempted, on what, what came of it, what to do.
    pub message: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason, message: refusal.message }
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
    pub stand_in: Option<Starter>,
}

/// Starts the eBPF capture. The settings are found anew each time: what is missing may come.
pub fn ebpf(settings: impl Fn() -> Result<Settings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || Ok(Box::new(capture::start_ebpf(&settings()?)?)))
}

/// Starts the capture without eBPF for the time that the one by eBPF is missing: only where it knows as well as that one
/// whose each socket is. Else one connection would count twice, under two names.
pub fn stand_in(settings: impl Fn() -> Result<FallbackSettings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || {
        let capture = capture::start_fallback(&settings()?)?;
        if capture.knows_cgroups() {
            return Ok(Box::new(capture));
        }
        Err(Refused {
            reason: Reason::CapabilityMissing,
            message:
                "with the rights of this agent (no SYS_ADMIN or no SYS_PTRACE) or this kernel it is not known whose \
                      sockets are"
                    .into(),
        })
    })
}

/// Starts the capture without eBPF.
pub fn fallback(settings: impl Fn() -> Result<FallbackSettings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || Ok(Box::new(capture::start_fallback(&settings()?)?)))
}
