//! Chooses a node's DaemonSet, and the reason. Pure.

use std::borrow::Cow;

use crds::RequestedMode;
use kernel_support::{MapMemory, Reason, UnfitKernel, Verdict};

use super::fallback_policy::NodeFallback;

/// DaemonSet of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AgentMode {
    /// Agent with the capabilities that eBPF needs.
    Ebpf,
    /// Agent with these capabilities, on a kernel that counts eBPF maps as locked memory.
    EbpfMemlock,
    /// Agent with the capabilities that reading other processes' sockets needs.
    Fallback,
}

impl AgentMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Ebpf, Self::EbpfMemlock, Self::Fallback];

    /// Returns the mode as in labels and names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::EbpfMemlock => "ebpf-memlock",
            Self::Fallback => "fallback",
        }
    }

    /// Returns the mode as a value of the agent's `--mode`.
    #[must_use]
    pub fn flag(self) -> &'static str {
        match self {
            Self::Ebpf | Self::EbpfMemlock => "ebpf",
            Self::Fallback => "fallback",
        }
    }
}

/// Source of a requested mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// `spec.mode`.
    Probe,
    /// One of `spec.modeOverrides`.
    Override,
}

/// Reason for the mode in which a node's agent is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeCause {
    /// The kernel is recent enough.
    Supported,
    /// The kernel is too old, or eBPF would crash it.
    UnfitKernel(UnfitKernel),
    /// The kernel's release names no version; the agent tries eBPF.
    KernelUnknown,
    /// The ScopeProbe requests this mode.
    Forced(Asker),
    /// An agent failed to use eBPF, with its reason.
    EbpfFailed(Reason),
}

impl ModeCause {
    /// Returns the reason in the API.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Supported => Reason::Supported,
            Self::UnfitKernel(unfit) => unfit.reason(),
            Self::KernelUnknown => Reason::KernelUnknown,
            Self::Forced(Asker::Probe) => Reason::ForcedByProbe,
            Self::Forced(Asker::Override) => Reason::ForcedByOverride,
            Self::EbpfFailed(reason) => *reason,
        }
    }

    /// Returns a human-readable explanation; `None` if none is needed.
    #[must_use]
    pub fn message(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Supported | Self::KernelUnknown => return None,
            Self::UnfitKernel(unfit) => format!("{unfit}; using Fallback mode").into(),
            Self::Forced(_) => self.reason().sentence().into(),
            Self::EbpfFailed(reason) => {
                format!("eBPF was tried on this node and cannot be used ({reason}): see status.fallback").into()
            }
        })
    }
}

/// Returns the choice for a node. An agent's request for the Fallback mode is granted unless a mode was requested.
#[must_use]
pub fn choose(
    requested: RequestedMode,
    asker: Asker,
    kernel: &str,
    fallback: Option<&NodeFallback>,
) -> (AgentMode, ModeCause) {
    if requested == RequestedMode::Fallback {
        return (AgentMode::Fallback, ModeCause::Forced(asker));
    }
    let verdict = Verdict::of(kernel);
    let with_ebpf = match &verdict {
        // eBPF would crash this kernel, so the requested mode does not matter.
        Verdict::Unfit(unfit @ UnfitKernel::KnownBad { .. }) => {
            return (AgentMode::Fallback, ModeCause::UnfitKernel(unfit.clone()));
        }
        Verdict::Fit(MapMemory::Locked) | Verdict::Unfit(UnfitKernel::TooOld { .. }) => AgentMode::EbpfMemlock,
        Verdict::Fit(MapMemory::Cgroup) | Verdict::Unknown(_) => AgentMode::Ebpf,
    };
    if requested == RequestedMode::Ebpf {
        return (with_ebpf, ModeCause::Forced(asker));
    }
    match (verdict, fallback.filter(|fallback| !fallback.retrying)) {
        (Verdict::Unfit(unfit), _) => (AgentMode::Fallback, ModeCause::UnfitKernel(unfit)),
        (_, Some(fallback)) => (AgentMode::Fallback, ModeCause::EbpfFailed(fallback.reason)),
        (Verdict::Unknown(_), None) => (with_ebpf, ModeCause::KernelUnknown),
        (Verdict::Fit(_), None) => (with_ebpf, ModeCause::Supported),
    }
}

#[cfg(test)]
mod tests {
    use RequestedMode::{Auto, Ebpf, Fallback};
    use jiff::Timestamp;
    use kernel_support::examples::{EXAMPLES, Expected};

    use super::*;

    const PANICS: &str = "4.4.0-121-generic";

    fn chosen(requested: RequestedMode, kernel: &str, fallback: Option<&NodeFallback>) -> (AgentMode, Reason) {
        let (mode, cause) = choose(requested, Asker::Probe, kernel, fallback);
        (mode, cause.reason())
    }

    fn is(mode: AgentMode, reason: Reason) -> (AgentMode, Reason) {
        (mode, reason)
    }

    #[test]
    fn choice_follows_kernel_unless_a_mode_is_requested() {
        for (kernel, by_itself, with_ebpf) in [
            ("6.1.0", is(AgentMode::Ebpf, Reason::Supported), AgentMode::Ebpf),
            ("5.10.0", is(AgentMode::EbpfMemlock, Reason::Supported), AgentMode::EbpfMemlock),
            ("4.19.0", is(AgentMode::Fallback, Reason::KernelTooOld), AgentMode::EbpfMemlock),
            ("custom", is(AgentMode::Ebpf, Reason::KernelUnknown), AgentMode::Ebpf),
        ] {
            assert_eq!(chosen(Auto, kernel, None), by_itself, "{kernel}");
            assert_eq!(chosen(Ebpf, kernel, None), is(with_ebpf, Reason::ForcedByProbe), "{kernel}");
            assert_eq!(chosen(Fallback, kernel, None), is(AgentMode::Fallback, Reason::ForcedByProbe), "{kernel}");
        }
    }

    #[test]
    fn releases_of_many_distributions_choose_agents() {
        for (release, expected) in EXAMPLES {
            let expected = match expected {
                Expected::Capable => is(AgentMode::Ebpf, Reason::Supported),
                Expected::CapableWithLockedMemory => is(AgentMode::EbpfMemlock, Reason::Supported),
                Expected::TooOld => is(AgentMode::Fallback, Reason::KernelTooOld),
                Expected::KnownBad => is(AgentMode::Fallback, Reason::KnownBadKernel),
                Expected::Unknown => is(AgentMode::Ebpf, Reason::KernelUnknown),
            };
            assert_eq!(chosen(Auto, release, None), expected, "{release:?}");
        }
    }

    #[test]
    fn choice_never_uses_ebpf_on_a_kernel_that_panics() {
        for (requested, reason) in
            [(Auto, Reason::KnownBadKernel), (Ebpf, Reason::KnownBadKernel), (Fallback, Reason::ForcedByProbe)]
        {
            assert_eq!(chosen(requested, PANICS, None), is(AgentMode::Fallback, reason));
        }
        let (_, cause) = choose(Auto, Asker::Probe, PANICS, None);
        assert!(cause.message().is_some_and(|message| message.contains("update the kernel")), "{cause:?}");
    }

    #[test]
    fn choice_follows_agents_request_unless_a_mode_is_requested() {
        let fallback = |retrying| NodeFallback {
            reason: Reason::BtfMissing,
            message: String::new(),
            kernel: "6.1.0".to_owned(),
            boot_id: String::new(),
            image: String::new(),
            since: Timestamp::UNIX_EPOCH,
            attempts: 1,
            retry_at: Timestamp::UNIX_EPOCH,
            retrying,
        };
        let (waiting, retrying) = (fallback(false), fallback(true));
        assert_eq!(chosen(Auto, "6.1.0", Some(&waiting)), is(AgentMode::Fallback, Reason::BtfMissing));
        assert_eq!(chosen(Auto, "6.1.0", Some(&retrying)), is(AgentMode::Ebpf, Reason::Supported));
        assert_eq!(chosen(Ebpf, "6.1.0", Some(&waiting)), is(AgentMode::Ebpf, Reason::ForcedByProbe));
    }

    #[test]
    fn who_has_forced_it_is_told() {
        let (_, cause) = choose(Ebpf, Asker::Override, "6.1.0", None);
        assert_eq!(cause.reason(), Reason::ForcedByOverride);
        assert!(cause.message().is_some_and(|message| message.contains("spec.modeOverrides")));
    }
}
