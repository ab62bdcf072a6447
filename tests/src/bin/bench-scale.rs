//! Measures the operator with many simulated nodes. Prints a table, then the figures as JSON in the last line. Fails if the
//! published map is not the expected one.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Parser;
use scopeprobe_tests::scale::{self, Plan, phases::Phase};
use tokio::signal::unix::{SignalKind, signal};

/// Measures the operator with many simulated nodes.
#[derive(Parser)]
struct Arguments {
    /// The operator's program.
    #[arg(long)]
    operator: PathBuf,
    /// Number of nodes, from 10 to 5000.
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Upper bound of the length of a phase, in seconds; the longest has 180.
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Number of backends that each client of a Service reaches, from 1 to 5.
    #[arg(long, default_value_t = 1)]
    backends: usize,
    /// `spec` of the ScopeProbe.
    #[arg(long, default_value = "{}")]
    probe: String,
    /// Phases, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Phase::ALL)]
    phases: Vec<Phase>,
    /// Time to wait for an expected state after a phase, in seconds.
    #[arg(long, default_value_t = 300)]
    patience: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { operator, nodes, seconds, backends, probe, phases, patience } = Arguments::parse();
    let patience = Duration::from_secs(patience);
    let plan = Plan { operator, nodes, seconds, backends, probe, phases, patience };
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    // A signal drops the run, which ends the programs that it has started.
    let figures = tokio::select! {
        figures = scale::run(&plan) => figures?,
        _ = terminate.recv() => bail!("stopped by a signal"),
        _ = tokio::signal::ctrl_c() => bail!("stopped by a signal"),
    };
    let faults = figures.faults();
    println!("{}", figures.table());
    println!("{}", serde_json::to_string(&figures).context("figures are not JSON")?);
    if faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("the published map is not the expected one:\n{}", faults.join("\n"));
    Ok(ExitCode::FAILURE)
}
