//! Tasks of this repository that build or judge more than cargo does: `cargo xtask --help`.
#![forbid(unsafe_code)]

mod comparison;
mod ebpf_object;
#[path = "../../node-agent/ebpf_sources.rs"]
mod ebpf_sources;
mod generated;
mod images;
mod kernel_report;
mod performance;
mod platform;
mod scale;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

use crate::workspace::Workspace;

/// Tasks of this repository that build or judge more than cargo does.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
enum Task {
    /// Rebuilds the committed eBPF object, and the note beside it that names its sources and toolchain.
    EbpfObject(ebpf_object::Arguments),
    /// Writes the manifests of the custom resources and docs/api.md, after a change in crds/.
    Crds,
    /// Writes every generated file: those of `crds`, and what follows from operator/src/rollout/privileges.rs.
    Generated,
    /// Builds programs and writes them as image archives, without a container engine.
    Images(images::Arguments),
    /// Runs cargo for a platform, which may be another than this machine's: `cargo xtask cargo --platform linux/arm64 test …`.
    Cargo(platform::Arguments),
    /// Measures the cost of the kernel programs and writes docs/performance.*, or compares with them.
    Performance(performance::Arguments),
    /// Measures the operator with many simulated nodes and writes docs/scale.* and a table of docs/performance.md, or
    /// compares with them.
    Scale(scale::Arguments),
    /// Prints the test results of kernel guests as tables; fails if a guest failed.
    KernelReport(kernel_report::Arguments),
}

fn main() -> anyhow::Result<ExitCode> {
    let task = Task::parse();
    let workspace = Workspace::find()?;
    match task {
        Task::EbpfObject(arguments) => ebpf_object::run(&workspace, &arguments)?,
        Task::Crds => generated::write_crds(&workspace)?,
        Task::Generated => generated::write_all(&workspace)?,
        Task::Images(arguments) => images::run(&workspace, &arguments)?,
        Task::Cargo(arguments) => platform::run(&workspace, &arguments)?,
        Task::Performance(arguments) => performance::run(&workspace, &arguments)?,
        Task::Scale(arguments) => scale::run(&workspace, &arguments)?,
        Task::KernelReport(arguments) => return kernel_report::run(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}
