//! Reasons of a node's capture mode, and the words that the API shows for them.

use std::fmt;

/// Reason of a node's capture mode, or of the lack of a capture.
///
/// Agents report reasons, the operator adds those of its own choice, and NodeProbes show them. The words of
/// [`Reason::as_str`] never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The agent runs the capture that it was started for.
    Supported,
    /// The agent has not finished its first attempt yet. No report contains this reason.
    Starting,
    /// No agent of the node has reported yet.
    #[default]
    NoReportYet,
    /// The kernel lacks what the programs need.
    KernelTooOld,
    /// Programs can crash the kernel.
    KnownBadKernel,
    /// The kernel's release names no version.
    KernelUnknown,
    /// The kernel is locked down against what the programs do.
    Lockdown,
    /// The kernel has no BTF, the description of its own types.
    BtfMissing,
    /// The agent may not load or attach programs.
    CapabilityMissing,
    /// The node's cgroup root is not a directory of cgroup v2.
    CgroupV2Missing,
    /// The kernel refused a program, or the capture could not be set up.
    LoadFailed,
    /// The kernel refused to attach a program.
    AttachFailed,
    /// Everything was attached, and a connection of the agent's own was not counted.
    SelfTestFailed,
    /// A capture that ran has failed.
    CaptureFailed,
    /// `spec.mode` of the ScopeProbe asks for the mode.
    ForcedByProbe,
    /// One of `spec.modeOverrides` of the ScopeProbe asks for the mode.
    ForcedByOverride,
    /// A program of another version reported a reason that is not in this list.
    Unknown,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 17] = [
        Self::Supported,
        Self::Starting,
        Self::NoReportYet,
        Self::KernelTooOld,
        Self::KnownBadKernel,
        Self::KernelUnknown,
        Self::Lockdown,
        Self::BtfMissing,
        Self::CapabilityMissing,
        Self::CgroupV2Missing,
        Self::LoadFailed,
        Self::AttachFailed,
        Self::SelfTestFailed,
        Self::CaptureFailed,
        Self::ForcedByProbe,
        Self::ForcedByOverride,
        Self::Unknown,
    ];

    /// Returns the word that the API shows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Supported => "Supported",
            Self::Starting => "Starting",
            Self::NoReportYet => "NoReportYet",
            Self::KernelTooOld => "KernelTooOld",
            Self::KnownBadKernel => "KnownBadKernel",
            Self::KernelUnknown => "KernelUnknown",
            Self::Lockdown => "Lockdown",
            Self::BtfMissing => "BtfMissing",
            Self::CapabilityMissing => "CapabilityMissing",
            Self::CgroupV2Missing => "CgroupV2Missing",
            Self::LoadFailed => "LoadFailed",
            Self::AttachFailed => "AttachFailed",
            Self::SelfTestFailed => "SelfTestFailed",
            Self::CaptureFailed => "CaptureFailed",
            Self::ForcedByProbe => "ForcedByProbe",
            Self::ForcedByOverride => "ForcedByOverride",
            Self::Unknown => "Unknown",
        }
    }

    /// Parses a word of the API. An unknown word, for example of another version, becomes [`Reason::Unknown`].
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|reason| reason.as_str() == word).unwrap_or(Self::Unknown)
    }

    /// Returns a sentence for the reader of a status: the fact, and what to do about it.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Supported => "the agent runs the capture that it was started for; no action required",
            Self::Starting => "the agent is starting its capture; wait until its first attempt has ended",
            Self::NoReportYet => "no agent has reported from this node yet; check the node's agent pod",
            Self::KernelTooOld => "the kernel lacks what eBPF programs need; update it, or keep Fallback mode",
            Self::KnownBadKernel => "eBPF programs can crash this kernel; update it, or keep Fallback mode",
            Self::KernelUnknown => "the kernel's release names no version; no action required, as the agent tries eBPF",
            Self::Lockdown => {
                "the kernel is locked down against the programs; relax the lockdown, or keep Fallback mode"
            }
            Self::BtfMissing => {
                "the kernel does not describe its own types; use one with CONFIG_DEBUG_INFO_BTF=y, or keep Fallback mode"
            }
            Self::CapabilityMissing => {
                "the agent may not load or attach programs; compare its pod's capabilities and seccomp profile with \
                 docs/privileges.md"
            }
            Self::CgroupV2Missing => {
                "the agent found no cgroup v2 hierarchy on the node; mount one, or set --cgroup-root"
            }
            Self::LoadFailed => {
                "the agent could not load its programs or set up its capture; see the message for the step"
            }
            Self::AttachFailed => {
                "the kernel refused to attach the programs; see the message for the program or the right in the way"
            }
            Self::SelfTestFailed => {
                "the programs did not count a connection of the agent's own; run the agent below the node's cgroup root"
            }
            Self::CaptureFailed => "the capture failed while it ran; no action required, as the agent starts it again",
            Self::ForcedByProbe => "spec.mode of the ScopeProbe asks for this mode; change it there",
            Self::ForcedByOverride => "one of spec.modeOverrides of the ScopeProbe asks for this mode; change it there",
            Self::Unknown => {
                "the operator does not know the reason that the agent gives; see the message, and run both in one version"
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reason_is_read_as_it_is_written() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_word(reason.as_str()), reason);
            assert_eq!(reason.to_string(), format!("{reason:?}"), "the variant is named after its word");
        }
        let words: BTreeSet<_> = Reason::ALL.map(Reason::as_str).into();
        assert_eq!(words.len(), Reason::ALL.len(), "no reason is listed twice");
    }

    #[test]
    fn words_of_another_version_are_unknown() {
        for word in ["", "supported", "KernelTooNew", "Supported "] {
            assert_eq!(Reason::from_word(word), Reason::Unknown, "{word:?}");
        }
    }

    #[test]
    fn sentences_hold_a_fact_and_an_action() {
        for reason in Reason::ALL {
            let sentence = reason.sentence();
            assert_eq!(sentence.split("; ").count(), 2, "{sentence}");
            assert!(sentence.split_whitespace().count() <= 25 && !sentence.ends_with('.'), "{sentence}");
        }
    }
}
