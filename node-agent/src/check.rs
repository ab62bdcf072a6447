//! `check`: what this machine can do and which mode the agent would use.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    capture::{self, Attach, Finding, Reason},
    commands::CaptureArguments,
};

/// The exit code where eBPF isn't possible.
pub const NO_EBPF: u8 = 3;

/// What to check.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    capture: CaptureArguments,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What was found, as it is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict<'a> {
    mode: &'static str,
    reason: &'static str,
    /// How the agent would attach; absent where it would not.
    #[serde(skip_serializing_if = "Option::is_none")]
    attach: Option<&'static str>,
    findings: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    /// The way to attach that it is about; absent where all need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    attach: Option<&'static str>,
    what: &'a str,
    ok: bool,
    /// Whether this way to attach, or eBPF as a whole, can't do without it.
    required: bool,
    detail: &'a str,
}

/// Checks and prints.
///
/// # Errors
/// If the result can't be printed.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let findings = capture::probe(&arguments.capture.settings_to_probe());
    let verdict = verdict(&findings);
    let mut out = io::stdout().lock();
    match arguments.output {
        Output::Text => out.write_all(text(&verdict).as_bytes())?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&verdict)?)?,
    }
    Ok(if verdict.mode == "Ebpf" { ExitCode::SUCCESS } else { ExitCode::from(NO_EBPF) })
}

/// The first way to attach of which nothing is missing is the agent's choice.
fn verdict(findings: &[Finding]) -> Verdict<'_> {
    let refusals = || findings.iter().filter(|finding| !finding.ok);
    let reason_of = |attach: Option<Attach>| {
        refusals().filter(|finding| finding.attach == attach).find_map(|finding| finding.refusal)
    };
    let tried = Attach::ALL.into_iter().filter(|attach| findings.iter().any(|found| found.attach == Some(*attach)));
    let common = reason_of(None);
    let attach = tried.clone().find(|attach| common.is_none() && reason_of(Some(*attach)).is_none());
    let reason = common.or_else(|| tried.clone().find_map(|attach| reason_of(Some(attach))));
    let lines = findings
        .iter()
        .map(|finding| Line {
            attach: finding.attach.map(Attach::as_str),
            what: finding.what,
            ok: finding.ok,
            required: finding.ok || finding.refusal.is_some(),
            detail: &finding.detail,
        })
        .collect();
    match (attach, reason) {
        (Some(attach), _) => {
            Verdict { mode: "Ebpf", reason: "Supported", attach: Some(attach.as_str()), findings: lines }
        }
        // The fallback's findings and verdict belong here.
        (None, reason) => {
            let reason = reason.unwrap_or(Reason::LoadFailed).as_str();
            Verdict { mode: "Unsupported", reason, attach: None, findings: lines }
        }
    }
}

fn text(verdict: &Verdict<'_>) -> String {
    use std::fmt::Write as _;
    let name = |line: &Line<'_>| match line.attach {
        Some(attach) => format!("{attach}: {}", line.what),
        None => String::from(line.what),
    };
    let width = verdict.findings.iter().map(|line| name(line).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in &verdict.findings {
        let mark = match (line.ok, line.required) {
            (true, _) => "ok     ",
            (false, false) => "limited",
            (false, true) => "missing",
        };
        // Writing to a string doesn't fail.
        let _ = writeln!(text, "{mark}  {:width$}  {}", name(line), line.detail);
    }
    let attach = verdict.attach.map(|attach| format!(", attached by {attach}")).unwrap_or_default();
    let _ = writeln!(text, "mode: {} ({}){attach}", verdict.mode, verdict.reason);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(attach: Option<Attach>, what: &'static str, ok: bool, refusal: Option<Reason>) -> Finding {
        Finding { attach, what, ok, detail: "detail".into(), refusal }
    }

    #[test]
    fn the_first_way_that_works_is_the_choice() {
        let fine = [
            finding(None, "BTF", true, None),
            finding(Some(Attach::SockOps), "load", true, None),
            finding(Some(Attach::SockOps), "old sockets", false, None),
            finding(Some(Attach::Tracepoint), "load", false, Some(Reason::AttachFailed)),
        ];
        let verdict = verdict(&fine);
        assert_eq!((verdict.mode, verdict.reason, verdict.attach), ("Ebpf", "Supported", Some("SockOps")));
        let text = text(&verdict);
        assert_eq!(text.lines().last(), Some("mode: Ebpf (Supported), attached by SockOps"));
        assert!(text.contains("limited  SockOps: old sockets  detail"), "{text}");
        assert!(text.contains("missing  Tracepoint: load      detail"), "{text}");
    }

    #[test]
    fn another_way_does_where_the_first_does_not() {
        let second = [
            finding(Some(Attach::SockOps), "load", true, None),
            finding(Some(Attach::SockOps), "attach", false, Some(Reason::AttachFailed)),
            finding(Some(Attach::TpBtf), "load", true, None),
        ];
        assert_eq!((verdict(&second).mode, verdict(&second).attach), ("Ebpf", Some("TpBtf")));
    }

    #[test]
    fn what_is_missing_decides() {
        let none =
            [finding(None, "BTF", false, Some(Reason::BtfMissing)), finding(Some(Attach::SockOps), "load", true, None)];
        assert_eq!((verdict(&none).mode, verdict(&none).reason), ("Unsupported", "BtfMissing"), "all need it");
        let each = [
            finding(Some(Attach::SockOps), "load", false, Some(Reason::CapabilityMissing)),
            finding(Some(Attach::TpBtf), "load", false, Some(Reason::LoadFailed)),
        ];
        assert_eq!((verdict(&each).mode, verdict(&each).reason), ("Unsupported", "CapabilityMissing"), "the first's");
    }
}
