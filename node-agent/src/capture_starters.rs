//! Starts captures. Returns the reason if one cannot be started.

use std::sync::Arc;

use crate::capture::{self, Capture, FallbackSettings, Reason, Refusal, Settings};

/// Reason for which no capture runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refused {
    /// Reason of the failure.
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

/// Returns a starter of the eBPF capture. It reads the settings again at each start, because a missing part may appear.
pub fn ebpf(settings: impl Fn() -> Result<Settings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || Ok(Box::new(capture::start_ebpf(&settings()?)?)))
}

/// Returns a starter of the capture without eBPF, for the time in which the one by eBPF is missing. It refuses to start if
/// it attributes sockets less precisely than eBPF: one connection would then count twice, under two names.
pub fn stand_in(settings: impl Fn() -> Result<FallbackSettings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || {
        let capture = capture::start_fallback(&settings()?)?;
        if capture.knows_cgroups() {
            return Ok(Box::new(capture));
        }
        Err(Refused {
            reason: Reason::CapabilityMissing,
            message:
                "cannot attribute sockets to cgroups: the agent lacks SYS_ADMIN or SYS_PTRACE, or the kernel does not \
                      report a socket's cgroup"
                    .into(),
        })
    })
}

/// Returns a starter of the capture without eBPF.
pub fn fallback(settings: impl Fn() -> Result<FallbackSettings, Refusal> + Send + Sync + 'static) -> Starter {
    Arc::new(move || Ok(Box::new(capture::start_fallback(&settings()?)?)))
}
