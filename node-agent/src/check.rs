//! `check`: what this machine can do and which mode the agent would use.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    arguments::CaptureArguments,
    capture::{self, Attach, Finding, Reason},
};

/// The exit code where only the fallback is possible.
pub const FALLBACK_ONLY: u8 = 3;
/// The exit code where nothing is.
pub const NOTHING: u8 = 4;

/// Options of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArguments {
    /// Output format.
    #[arg(short, long, value_enum, default_value = "text")]
    output: CheckOutput,
    #[command(flatten)]
    capture: CaptureArguments,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CheckOutput {
    Text,
    Json,
}

/// Output of the checks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict<'a> {
    mode: &'static str,
    reason: &'static str,
    /// Attach type that the agent would use; absent if none works.
    #[serde(skip_serializing_if = "Option::is_none")]
    attach: Option<&'static str>,
    findings: Vec<CheckLine<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckLine<'a> {
    /// The way to attach that it is about; absent where all need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    attach: Option<&'static str>,
    what: &'a str,
    ok: bool,
    /// True if this attach type, or eBPF as a whole, requires it.
    required: bool,
    detail: &'a str,
}

/// Checks and prints.
///
/// # Errors
/// If the result can't be printed.
pub fn run(arguments: &CheckArguments) -> anyhow::Result<ExitCode> {
    let ebpf = capture::probe(&arguments.capture.settings_to_probe());
    let fallback = capture::probe_fallback(&arguments.capture.fallback_settings_to_probe());
    let verdict = verdict(&ebpf, &fallback);
    let mut out = io::stdout().lock();
    match arguments.output {
        CheckOutput::Text => out.write_all(text(&verdict).as_bytes())?,
        CheckOutput::Json => writeln!(out, "{}", serde_json::to_string_pretty(&verdict)?)?,
    }
    Ok(match verdict.mode {
        "Ebpf" => ExitCode::SUCCESS,
        "Fallback" => ExitCode::from(FALLBACK_ONLY),
        _ => ExitCode::from(NOTHING),
    })
}

/// The first way to attach of which nothing is missing is the agent's choice; without any, the fallback.
fn verdict<'a>(findings: &'a [Finding], fallback: &'a [Finding]) -> Verdict<'a> {
    let refusals = || findings.iter().filter(|finding| !finding.ok);
    let reason_of = |attach: Option<Attach>| {
        refusals().filter(|finding| finding.attach == attach).find_map(|finding| finding.refusal)
    };
    let tried = Attach::ALL.into_iter().filter(|attach| findings.iter().any(|found| found.attach == Some(*attach)));
    let common = reason_of(None);
    let attach = tried.clone().find(|attach| common.is_none() && reason_of(Some(*attach)).is_none());
    let reason = common.or_else(|| tried.clone().find_map(|attach| reason_of(Some(attach))));
    let line = |finding: &'a Finding, of: Option<&'static str>| CheckLine {
        attach: of,
        what: finding.what,
        ok: finding.ok,
        required: finding.ok || finding.refusal.is_some(),
        detail: &finding.detail,
    };
    let ebpf = findings.iter().map(|finding| line(finding, finding.attach.map(Attach::as_str)));
    let lines = ebpf.chain(fallback.iter().map(|finding| line(finding, Some("Fallback")))).collect();
    match (attach, reason) {
        (Some(attach), _) => {
            Verdict { mode: "Ebpf", reason: Reason::Supported.as_str(), attach: Some(attach.as_str()), findings: lines }
        }
        (None, reason) => {
            let reason = reason.unwrap_or(Reason::LoadFailed).as_str();
            let can_fall_back = !fallback.is_empty() && fallback.iter().all(|finding| finding.refusal.is_none());
            let mode = if can_fall_back { "Fallback" } else { "Unsupported" };
            Verdict { mode, reason, attach: None, findings: lines }
        }
    }
}

fn text(verdict: &Verdict<'_>) -> String {
    use std::fmt::Write as _;
    let name = |line: &CheckLine<'_>| match line.attach {
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
    let attach = verdict.attach.map(|attach| format!(" by {attach}")).unwrap_or_default();
    let _ = writeln!(text, "mode: {}{attach} ({})", verdict.mode, verdict.reason);
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
        let verdict = verdict(&fine, &[]);
        assert_eq!((verdict.mode, verdict.reason, verdict.attach), ("Ebpf", "Supported", Some("SockOps")));
        let text = text(&verdict);
        assert_eq!(text.lines().last(), Some("mode: Ebpf by SockOps (Supported)"));
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
        assert_eq!((verdict(&second, &[]).mode, verdict(&second, &[]).attach), ("Ebpf", Some("TpBtf")));
    }

    #[test]
    fn what_is_missing_decides() {
        let none =
            [finding(None, "BTF", false, Some(Reason::BtfMissing)), finding(Some(Attach::SockOps), "load", true, None)];
        let of =
            |ebpf: &[Finding], fallback: &[Finding]| (verdict(ebpf, fallback).mode, verdict(ebpf, fallback).reason);
        assert_eq!(of(&none, &[]), ("Unsupported", "BtfMissing"), "all need it");
        let limited = [finding(None, "conntrack", false, None)];
        assert_eq!(of(&none, &limited), ("Fallback", "BtfMissing"));
        let impossible = [finding(None, "/proc", false, Some(Reason::LoadFailed))];
        assert_eq!(of(&none, &impossible), ("Unsupported", "BtfMissing"));
        let each = [
            finding(Some(Attach::SockOps), "load", false, Some(Reason::CapabilityMissing)),
            finding(Some(Attach::TpBtf), "load", false, Some(Reason::LoadFailed)),
        ];
        assert_eq!(of(&each, &[]), ("Unsupported", "CapabilityMissing"), "the first's");
    }
}
