//! Measures the operator with many simulated nodes, writes docs/scale.{json,svg} and a section of docs/performance.md, or
//! compares with what is there.

mod chart;
mod figures;
mod table;

use std::{fs, process::Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use self::figures::figures;
use crate::{
    comparison::worse,
    performance::{machine, page::with_section},
    workspace::{self, Workspace},
};

/// Arguments of `cargo xtask scale`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Number of simulated nodes, from 10 to 5000.
    #[arg(long, default_value_t = 100)]
    nodes: u32,
    /// Upper bound of the length of a phase, in seconds.
    #[arg(long, default_value_t = 180)]
    seconds: u32,
    /// Fails if a ratio is worse by more than a tenth than the committed one, and writes nothing. The size is then the
    /// committed one.
    #[arg(long, conflicts_with_all = ["nodes", "seconds"])]
    check: bool,
    /// Prints the figures and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

const JSON: &str = "docs/scale.json";
const PAGE: &str = "docs/performance.md";
const CHART: &str = "docs/scale.svg";
/// Comments around the section of the page.
const SECTION: (&str, &str) = ("<!-- scale: written by `make bench-scale` -->\n", "<!-- end of scale -->");

/// Measures, and writes or compares.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.check {
        return check(workspace);
    }
    let measured = measure(workspace, arguments.nodes.into(), arguments.seconds.into())?;
    if !arguments.dry_run {
        write(workspace, &measured.figures)?;
    }
    measured.require_right_map()
}

/// Figures of a run.
struct Measurement {
    figures: Value,
    /// True if each published edge and count was the expected one.
    is_map_right: bool,
}

fn measure(workspace: &Workspace, nodes: u64, seconds: u64) -> anyhow::Result<Measurement> {
    // One after the other: the operator has the features of libraries with which it is shipped.
    for (package, program) in [("scopeprobe-operator", "scopeprobe-operator"), ("scopeprobe-tests", "bench-scale")] {
        let arguments = ["build", "--locked", "--release", "--package", package, "--bin", program];
        workspace::run(workspace.command("cargo").args(arguments))?;
    }
    let folder = workspace.programs(&workspace.host()?, "release");
    let mut bench = workspace.command(&folder.join("bench-scale").to_string_lossy());
    bench.arg("--operator").arg(folder.join("scopeprobe-operator"));
    bench.args(["--nodes", &nodes.to_string(), "--seconds", &seconds.to_string()]).stderr(Stdio::inherit());
    let output = bench.output().context("cannot run bench-scale")?;
    let output_text = String::from_utf8_lossy(&output.stdout);
    println!("{output_text}");
    let last = output_text.trim_end().lines().last().unwrap_or_default();
    let mut figures: Value = serde_json::from_str(last)
        .with_context(|| format!("bench-scale has printed no figures ({}); its output is above", output.status))?;
    figures["machine"] = machine(workspace)?;
    Ok(Measurement { figures, is_map_right: output.status.success() })
}

impl Measurement {
    /// Returns an error if the map was wrong. The table has the numbers of wrong edges.
    fn require_right_map(&self) -> anyhow::Result<()> {
        ensure!(self.is_map_right, "the operator did not publish the expected map; the edges are named above");
        Ok(())
    }
}

fn write(workspace: &Workspace, measured: &Value) -> anyhow::Result<()> {
    // A measurement that lacks a figure is not written.
    figures(measured)?;
    let page = fs::read_to_string(workspace.path(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let text = serde_json::to_string_pretty(measured)?;
    let section = table::markdown(measured)?;
    for (path, content) in
        [(JSON, text + "\n"), (PAGE, with_section(&page, SECTION, &section)?), (CHART, chart::svg(measured)?)]
    {
        fs::write(workspace.path(path), content).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

fn check(workspace: &Workspace) -> anyhow::Result<()> {
    let text = fs::read_to_string(workspace.path(JSON));
    let text = text.with_context(|| format!("cannot read {JSON}, which `make bench-scale` writes"))?;
    let committed: Value = serde_json::from_str(&text).with_context(|| format!("{JSON} is no JSON"))?;
    let number = |value: &Value| value.as_u64().with_context(|| format!("{JSON} lacks its size"));
    let (nodes, seconds) = (number(&committed["size"]["nodes"])?, number(&committed["seconds"])?);
    let measured = measure(workspace, nodes, seconds)?;
    measured.require_right_map()?;
    let worse = worse(&figures(&committed)?, &figures(&measured.figures)?);
    if worse.is_empty() {
        println!("no ratio is worse by more than a tenth than the committed one");
        return Ok(());
    }
    bail!("worse by more than a tenth than in {JSON}:\n{}", worse.join("\n"))
}
