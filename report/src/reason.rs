//! Converts reasons to and from the wire format.

use kernel_support::Reason;

use crate::v1alpha1 as wire;

impl From<Reason> for wire::Reason {
    /// Converts a reason. Reasons that no agent reports become unspecified.
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Supported => Self::Supported,
            Reason::KernelTooOld => Self::KernelTooOld,
            Reason::KnownBadKernel => Self::KnownBadKernel,
            Reason::Lockdown => Self::Lockdown,
            Reason::BtfMissing => Self::BtfMissing,
            Reason::CapabilityMissing => Self::CapabilityMissing,
            Reason::CgroupV2Missing => Self::CgroupV2Missing,
            Reason::LoadFailed => Self::LoadFailed,
            Reason::AttachFailed => Self::AttachFailed,
            Reason::SelfTestFailed => Self::SelfTestFailed,
            Reason::CaptureFailed => Self::CaptureFailed,
            Reason::Starting
            | Reason::NoReportYet
            | Reason::KernelUnknown
            | Reason::ForcedByProbe
            | Reason::ForcedByOverride
            | Reason::Unknown => Self::Unspecified,
        }
    }
}

impl From<wire::Reason> for Reason {
    fn from(reason: wire::Reason) -> Self {
        match reason {
            wire::Reason::Unspecified => Self::Unknown,
            wire::Reason::Supported => Self::Supported,
            wire::Reason::KernelTooOld => Self::KernelTooOld,
            wire::Reason::KnownBadKernel => Self::KnownBadKernel,
            wire::Reason::Lockdown => Self::Lockdown,
            wire::Reason::BtfMissing => Self::BtfMissing,
            wire::Reason::CapabilityMissing => Self::CapabilityMissing,
            wire::Reason::CgroupV2Missing => Self::CgroupV2Missing,
            wire::Reason::LoadFailed => Self::LoadFailed,
            wire::Reason::AttachFailed => Self::AttachFailed,
            wire::Reason::SelfTestFailed => Self::SelfTestFailed,
            wire::Reason::CaptureFailed => Self::CaptureFailed,
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Returns the wire's name of a word: `CgroupV2Missing` → `REASON_CGROUP_V2_MISSING`.
    fn wire_name(word: &str) -> String {
        word.chars().fold(String::from("REASON"), |name, letter| {
            let separator = if letter.is_ascii_uppercase() { "_" } else { "" };
            format!("{name}{separator}{}", letter.to_ascii_uppercase())
        })
    }

    #[test]
    fn reasons_survive_the_wire_under_their_name() {
        let known: Vec<_> = (1..).map_while(|number| wire::Reason::try_from(number).ok()).collect();
        assert_eq!(known.len(), 11);
        for reason in known {
            let word = Reason::from(reason);
            assert_eq!(reason.as_str_name(), wire_name(word.as_str()));
            assert_eq!(wire::Reason::from(word), reason);
        }
    }

    #[test]
    fn reason_of_a_newer_agent_is_unknown() {
        let newer =
            wire::CaptureState { reason: 4_711, message: "no moon".to_owned(), ..wire::CaptureState::default() };
        let read = wire::CaptureState::decode(newer.encode_to_vec().as_slice()).expect("it was just written");
        assert_eq!((Reason::from(read.reason()), read.message.as_str()), (Reason::Unknown, "no moon"));
    }

    #[test]
    fn reason_of_an_older_agent_is_unknown() {
        // Field 2 was a string: `Supported`.
        let older = b"\x12\x09Supported\x1a\x02ok";
        let read = wire::CaptureState::decode(older.as_slice()).expect("unknown fields are skipped");
        assert_eq!((Reason::from(read.reason()), read.message.as_str()), (Reason::Unknown, "ok"));
    }
}
