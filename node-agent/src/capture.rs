//! Captures the connections of this node: counters by flow, which the kernel or a scan provides.
//!
//! [`Capture`] is the interface to the rest of the agent. [`EbpfCapture`] counts in the kernel: see `ebpf`.
//! [`FallbackCapture`] works without eBPF: see `fallback`. `proc` reads the node's processes, cgroups and counters, for
//! both.

mod attach;
mod cgroup_root;
mod description;
mod ebpf;
mod errors;
mod fallback;
mod proc;
mod reading;
mod settings;
mod traffic;

pub use attach::Attach;
pub use cgroup_root::find_cgroup_root;
pub use description::{Degradation, Description, Feature, Finding, Mode};
pub use ebpf::{EbpfCapture, probe, start_ebpf};
pub use errors::{CaptureError, Refusal};
pub use fallback::{FallbackCapture, FallbackSettings, Passes, probe_fallback, start_fallback};
pub use kernel_support::Reason;
pub use reading::{Capture, Folded, Losses, Reading};
pub use settings::Settings;
