//! Explains the mode of a node: by the agent's report, or by the operator's reason for starting that agent. Pure.

use crds::{Mode, NodeProbeStatus};
use kernel_support::Reason;

use super::conditions::truncated;
use crate::{
    observation::NodeObservation,
    rollout::{
        assignment::Assignment,
        mode::{AgentMode, ModeCause},
    },
};

/// Reason of a mode, with a human-readable explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The reason.
    pub reason: Reason,
    /// Human-readable explanation of `reason`.
    pub message: String,
}

/// Returns the explanation for a node.
#[must_use]
pub fn explain(
    observation: &NodeObservation,
    assignment: &Assignment,
    previous: Option<&NodeProbeStatus>,
) -> Explanation {
    let Some(mode) = observation.mode else {
        return Explanation { reason: Reason::NoReportYet, message: observation.message.clone() };
    };
    let given = assignment.mode == AgentMode::Fallback;
    match (mode, observation.reason) {
        // An agent in Fallback mode reports only that it was started so; the operator has the reason.
        (Mode::Fallback, Reason::ForcedByProbe | Reason::Supported) if given => by_operator(observation, assignment),
        // Such an agent is about to be replaced: until then, its earlier explanation stays.
        (Mode::Fallback, Reason::ForcedByProbe | Reason::Supported) => {
            let same = previous.filter(|previous| previous.mode == Some(mode));
            same.map_or_else(
                || by_agent(observation),
                |previous| Explanation {
                    reason: Reason::from_word(&previous.reason),
                    message: previous.message.clone(),
                },
            )
        }
        (Mode::Ebpf, Reason::Supported) if !given && matches!(assignment.cause, ModeCause::Forced(_)) => {
            by_operator(observation, assignment)
        }
        _ => by_agent(observation),
    }
}

fn by_agent(observation: &NodeObservation) -> Explanation {
    Explanation { reason: observation.reason, message: observation.message.clone() }
}

fn by_operator(observation: &NodeObservation, assignment: &Assignment) -> Explanation {
    let cause = &assignment.cause;
    let parts = [cause.message().unwrap_or_default(), observation.message.as_str().into()];
    let parts: Vec<_> = parts.iter().map(AsRef::as_ref).filter(|part: &&str| !part.is_empty()).collect();
    Explanation { reason: cause.reason(), message: truncated(parts.join("; ")) }
}

#[cfg(test)]
mod tests {
    use crds::RequestedMode;

    use super::*;
    use crate::rollout::mode::{Asker, choose};

    fn said(mode: Mode, reason: Reason) -> NodeObservation {
        NodeObservation { mode: Some(mode), reason, message: "as found".to_owned(), ..NodeObservation::default() }
    }

    fn given(mode: AgentMode, cause: ModeCause) -> Assignment {
        Assignment { probe: "p".to_owned(), requested: RequestedMode::Auto, mode, cause }
    }

    fn reason(observation: &NodeObservation, assignment: &Assignment) -> Reason {
        explain(observation, assignment, None).reason
    }

    fn unfit(kernel: &str) -> ModeCause {
        choose(RequestedMode::Auto, Asker::Probe, kernel, None).1
    }

    #[test]
    fn the_operator_says_why_it_has_given_the_fallback() {
        let told = said(Mode::Fallback, Reason::ForcedByProbe);
        for (cause, expected) in [
            (unfit("4.19.0"), Reason::KernelTooOld),
            (unfit("4.4.0-121-generic"), Reason::KnownBadKernel),
            (ModeCause::Forced(Asker::Probe), Reason::ForcedByProbe),
            (ModeCause::Forced(Asker::Override), Reason::ForcedByOverride),
            (ModeCause::EbpfFailed(Reason::BtfMissing), Reason::BtfMissing),
        ] {
            assert_eq!(reason(&told, &given(AgentMode::Fallback, cause)), expected);
        }
        let old = explain(&told, &given(AgentMode::Fallback, unfit("4.19.0")), None);
        let message =
            "kernel 4.19.0 lacks BPF ring buffers (needs Linux 5.8, or RHEL 8.4); using Fallback mode; as found";
        assert_eq!(old.message, message);
    }

    #[test]
    fn what_an_agent_has_found_stays_its_word() {
        let lost = said(Mode::Unsupported, Reason::CapabilityMissing);
        let ebpf = given(AgentMode::Ebpf, ModeCause::Supported);
        let fallback = given(AgentMode::Fallback, unfit("4.19.0"));
        assert_eq!(reason(&lost, &ebpf), Reason::CapabilityMissing);
        assert_eq!(reason(&lost, &fallback), Reason::CapabilityMissing);
        assert_eq!(reason(&said(Mode::Fallback, Reason::CaptureFailed), &ebpf), Reason::CaptureFailed);
        assert_eq!(explain(&lost, &ebpf, None).message, "as found");
    }

    #[test]
    fn reason_of_a_newer_agent_is_shown_with_its_message() {
        let newer = said(Mode::Unsupported, Reason::Unknown);
        let explanation = explain(&newer, &given(AgentMode::Ebpf, ModeCause::Supported), None);
        assert_eq!((explanation.reason.as_str(), explanation.message.as_str()), ("Unknown", "as found"));
    }

    #[test]
    fn ebpf_that_was_asked_for_says_who_did() {
        let seen = said(Mode::Ebpf, Reason::Supported);
        let forced = |mode| given(mode, ModeCause::Forced(Asker::Override));
        assert_eq!(reason(&seen, &forced(AgentMode::EbpfMemlock)), Reason::ForcedByOverride);
        assert_eq!(reason(&seen, &given(AgentMode::Ebpf, ModeCause::KernelUnknown)), Reason::Supported);
        // The agent of before, where the fallback is asked for now.
        assert_eq!(reason(&seen, &forced(AgentMode::Fallback)), Reason::Supported);
    }

    #[test]
    fn while_the_fallback_waits_to_be_replaced_its_reason_stays() {
        let told = said(Mode::Fallback, Reason::ForcedByProbe);
        let before = NodeProbeStatus {
            mode: Some(Mode::Fallback),
            reason: "BtfMissing".to_owned(),
            ..NodeProbeStatus::default()
        };
        let ebpf = given(AgentMode::Ebpf, ModeCause::Supported);
        assert_eq!(explain(&told, &ebpf, Some(&before)).reason, Reason::BtfMissing);
        assert_eq!(explain(&told, &ebpf, None).reason, Reason::ForcedByProbe);
    }
}
