//! Facts about Linux kernels that the operator and the agent share. Pure: no I/O, no clock.
//!
//! The operator reads a node's kernel release and chooses the DaemonSet that the node starts with. The agent reads the
//! release of its own kernel and then tries. Both ask [`Verdict::of`], so that they agree on every release.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "examples"))]
pub mod examples;
mod feature;
mod known_bad;
mod reason;
mod release;
mod verdict;

pub use feature::KernelFeature;
pub use known_bad::KernelBug;
pub use reason::Reason;
pub use release::{ParseReleaseError, Release};
pub use verdict::{MapMemory, UnfitKernel, Verdict};
