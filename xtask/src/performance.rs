//! Measures what the agent's kernel programs cost, writes docs/performance.{json,md,svg}, or compares with what is there.

mod chart;
mod figures;
pub(crate) mod page;

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use self::figures::figures;
use crate::{
    comparison::worse,
    workspace::{self, Workspace},
};

/// Arguments of `cargo xtask performance`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Fails if a ratio is worse by more than a tenth than the committed one, and writes nothing.
    #[arg(long)]
    check: bool,
    /// Measures one kind of load alone, such as `Udp` or `UdpInTurn`, and writes nothing.
    #[arg(long, conflicts_with = "check", value_name = "LOAD")]
    only: Option<String>,
}

const JSON: &str = "docs/performance.json";
const PAGE: &str = "docs/performance.md";
const CHART: &str = "docs/performance.svg";

/// Measures, and writes or compares.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(load) = &arguments.only {
        return workspace::run(bench(workspace).env("SCOPEPROBE_BENCH_WORK", load));
    }
    let measured = measure(workspace)?;
    if arguments.check { compare(workspace, &measured) } else { write(workspace, &measured) }
}

/// Returns the command of the benchmark.
fn bench(workspace: &Workspace) -> Command {
    let mut cargo = workspace.command("cargo");
    cargo.args(["bench", "--locked", "--package", "scopeprobe-agent", "--bench", "node"]);
    cargo
}

fn measure(workspace: &Workspace) -> anyhow::Result<Value> {
    let output = workspace::output(bench(workspace).stderr(Stdio::inherit()))?;
    println!("{output}");
    let last = output.lines().last().unwrap_or_default();
    let mut measured: Value = serde_json::from_str(last).context("the benchmark's last line is no JSON")?;
    measured["machine"] = machine(workspace)?;
    Ok(measured)
}

/// The kernel's version and the number of processors: the figures hold for such machines.
pub(crate) fn machine(workspace: &Workspace) -> anyhow::Result<Value> {
    let release = workspace::output(workspace.command("uname").arg("-r"))?;
    let version: Vec<&str> = release.split(['.', '-']).take(2).collect();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(json!({"kernel": version.join("."), "processors": processors}))
}

fn write(workspace: &Workspace, measured: &Value) -> anyhow::Result<()> {
    // A measurement that lacks a figure is not written.
    figures(measured)?;
    let page = fs::read_to_string(workspace.path(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let text = serde_json::to_string_pretty(measured)?;
    for (path, content) in
        [(JSON, text + "\n"), (PAGE, page::with_figures(&page, measured)?), (CHART, chart::svg(measured)?)]
    {
        fs::write(workspace.path(path), content).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

fn compare(workspace: &Workspace, measured: &Value) -> anyhow::Result<()> {
    let text = fs::read_to_string(workspace.path(JSON)).with_context(|| format!("cannot read {JSON}"))?;
    let committed = figures(&serde_json::from_str(&text).with_context(|| format!("{JSON} is no JSON"))?)?;
    let worse = worse(&committed, &figures(measured)?);
    if worse.is_empty() {
        println!("no ratio is worse by more than a tenth than the committed one");
        return Ok(());
    }
    bail!("worse by more than a tenth than in {JSON}:\n{}", worse.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::performance::figures::sample;

    #[test]
    fn only_what_is_worse_by_more_than_a_tenth_fails() {
        let committed = figures(&sample(1000.0, 0.95)).unwrap();
        assert_eq!(worse(&committed, &figures(&sample(1090.0, 0.9)).unwrap()), Vec::<String>::new());
        assert_eq!(worse(&committed, &figures(&sample(500.0, 1.2)).unwrap()), Vec::<String>::new());
        let slow = worse(&committed, &figures(&sample(1200.0, 0.8)).unwrap());
        assert!(slow.iter().any(|line| line.contains("kernel time")) && slow.iter().any(|line| line.contains("rate")));
    }
}
