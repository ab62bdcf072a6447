//! `check`: what this machine can do and which mode the agent would use.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    capture::{self, Finding},
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
    findings: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    what: &'a str,
    ok: bool,
    /// Whether eBPF mode can do without it.
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

fn verdict(findings: &[Finding]) -> Verdict<'_> {
    let refusal = findings.iter().filter(|finding| !finding.ok).find_map(|finding| finding.refusal);
    let lines = findings
        .iter()
        .map(|finding| Line {
            what: finding.what,
            ok: finding.ok,
            required: finding.ok || finding.refusal.is_some(),
            detail: &finding.detail,
        })
        .collect();
    match refusal {
        None => Verdict { mode: "Ebpf", reason: "Supported", findings: lines },
        Some(reason) => Verdict { mode: "Unsupported", reason: reason.as_str(), findings: lines },
    }
}

fn text(verdict: &Verdict<'_>) -> String {
    use std::fmt::Write as _;
    let width = verdict.findings.iter().map(|line| line.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for line in &verdict.findings {
        let mark = match (line.ok, line.required) {
            (true, _) => "ok     ",
            (false, false) => "limited",
            (false, true) => "missing",
        };
        // Writing to a string doesn't fail.
        let _ = writeln!(text, "{mark}  {:width$}  {}", line.what, line.detail);
    }
    let _ = writeln!(text, "mode: {} ({})", verdict.mode, verdict.reason);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Reason;

    fn finding(what: &'static str, ok: bool, refusal: Option<Reason>) -> Finding {
        Finding { what, ok, detail: "detail".into(), refusal }
    }

    #[test]
    fn what_is_missing_decides() {
        let fine = [finding("BTF", true, None), finding("old sockets", false, None)];
        assert_eq!((verdict(&fine).mode, verdict(&fine).reason), ("Ebpf", "Supported"));
        let text = text(&verdict(&fine));
        assert_eq!(text.lines().last(), Some("mode: Ebpf (Supported)"));
        assert!(text.contains("limited  old sockets  detail"), "{text}");

        let missing =
            [finding("BTF", false, Some(Reason::BtfMissing)), finding("load", false, Some(Reason::LoadFailed))];
        let verdict = verdict(&missing);
        assert_eq!((verdict.mode, verdict.reason), ("Unsupported", "BtfMissing"), "the first one is the reason");
    }
}
