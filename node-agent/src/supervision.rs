//! Starts a capture, and says why not.

use std::sync::Arc;

use crate::capture::{self, Capture, FallbackSettings, Reason, Refusal, Settings};

/// Why no capture runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refused {
    /// The word for it.
    pub reason: Reason,
    /// Failed step, its object, its error, and how to fix it.
    pub message: String,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason, message: refusal.message }
    }
}

/// Starts a capture; may be called repeatedly, and may block for a second.
pub type Starter = Arc<dyn Fn() -> Result<Box<dyn Capture>, Refused> + Send + Sync>;

impl From<Refused> for capture::CaptureError {
    fn from(refused: Refused) -> Self {
        Self { attempted: "entering a new epoch".into(), source: Box::new(refused) }
    }
}

/// The captures of an agent.
pub struct Captures {
    /// Preferred capture, retried without limit.
    pub preferred: Starter,
    /// Capture that replaces it meanwhile, with the available rights.
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
