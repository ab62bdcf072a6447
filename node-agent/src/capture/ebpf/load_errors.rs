//! Translates the kernel's errors into messages.

use std::{error::Error, io};

use crate::capture::errors::Refusal;
use kernel_support::Reason;

/// Returns the error of a failed load. A missing permission means that the detected capabilities did not suffice.
pub(super) fn load_refusal(attempted: &str, error: &(dyn Error + 'static)) -> Refusal {
    if is_permission(error) {
        return Refusal {
            reason: Reason::CapabilityMissing,
            message: format!(
                "{attempted}: {}; allow the agent BPF, PERFMON and NET_ADMIN in the initial user namespace, and check \
                 for a seccomp profile or security module that forbids bpf()",
                describe(error)
            ),
        };
    }
    Refusal { reason: Reason::LoadFailed, message: format!("{attempted}: {}", describe(error)) }
}

pub(super) fn incomplete(what: &str) -> Refusal {
    Refusal {
        reason: Reason::LoadFailed,
        message: format!("the compiled programs lack {what}: this agent was built from mixed sources"),
    }
}

pub(super) fn is_permission(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The error with its causes; of a verifier's log, its verdict.
pub(super) fn describe(error: &dyn Error) -> String {
    const MOST: usize = 400;
    let mut parts: Vec<String> = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let more = verdict(&error.to_string());
        if !more.is_empty() && !parts.iter().any(|part| part.contains(&more)) {
            parts.push(more);
        }
        cause = error.source();
    }
    let text = parts.join(": ");
    let end = text.floor_char_boundary(MOST);
    if end == text.len() { text } else { format!("{}…", &text[..end]) }
}

/// A verifier's log is long, and its last words but for the statistics are what matters.
fn verdict(text: &str) -> String {
    const STATISTICS: [&str; 5] =
        ["processed ", "verification time ", "stack depth ", "max_states_per_insn", "mark_read"];
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let (Some(first), true) = (lines.first(), lines.len() > 3) else { return lines.join("; ") };
    let last = lines.iter().rev().find(|line| !STATISTICS.iter().any(|statistic| line.starts_with(statistic)));
    let first = first.split_once("Verifier output:").map_or(*first, |(before, _)| before.trim());
    last.map_or_else(|| first.to_owned(), |last| format!("{first} {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the BPF_PROG_LOAD syscall returned Invalid argument (os error 22). Verifier output: {log}")]
    struct Rejected {
        log: &'static str,
    }

    #[test]
    fn a_verifiers_verdict_is_found_in_its_log() {
        let log = "0: R1=ctx() R10=fp0\n0: (79) r6 = *(u64 *)(r1 +0)\n1: (85) call unknown#162\ninvalid func \
                   unknown#162\nverification time 320 usec\nstack depth 0\nprocessed 7 insns (limit 1000000)\n\n";
        let text = describe(&Rejected { log });
        assert_eq!(text, "the BPF_PROG_LOAD syscall returned Invalid argument (os error 22). invalid func unknown#162");
    }

    #[test]
    fn an_ordinary_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("attaching")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::from_raw_os_error(1));
        assert_eq!(describe(&error), "attaching: Operation not permitted (os error 1)");
        assert!(is_permission(&error));
        assert!(!is_permission(&Outer(io::Error::from_raw_os_error(22))));
    }
}
