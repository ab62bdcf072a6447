//! Waits until the kernel has something to be read.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Waits until a file becomes readable; never returns without a file.
#[derive(Debug)]
pub struct Readiness(Option<AsyncFd<OwnedFd>>);

impl Readiness {
    /// Returns the readiness of this file, through a descriptor of its own. If the runtime can't wait for it, logs that;
    /// readings then happen only at their interval.
    #[must_use]
    pub fn of(file: Option<BorrowedFd<'_>>) -> Self {
        let registered = file.map(register).transpose();
        Self(registered.unwrap_or_else(|error| {
            tracing::warn!(%error, "can't be woken up early; the report interval has to do");
            None
        }))
    }

    /// Waits until the file is readable. The caller must read everything: the same data does not wake it again.
    pub async fn ready(&self) {
        let Some(file) = &self.0 else { return std::future::pending().await };
        match file.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The runtime is shutting down.
            Err(_) => std::future::pending().await,
        }
    }
}

fn register(file: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let own = file.try_clone_to_owned()?;
    // SAFETY: an `OwnedFd` is open, always gives the same number, and is closed only when the `AsyncFd` that owns it
    // is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?)
}
