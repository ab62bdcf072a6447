//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod logging;
pub mod run;

/// Shows and reports the connections of this machine, by container and process.
#[derive(Debug, Parser)]
#[command(name = "scopeprobe-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: logging::Logging,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this machine can do and which mode the agent would use: exit code 0 for eBPF, 3 for the fallback, 4
    /// where neither is possible.
    Check(crate::check::CheckArguments),
    /// Show this machine's connections on the terminal.
    Watch(crate::watch::WatchArguments),
    /// Report this node's connections to an operator.
    Run(run::RunArguments),
}

/// Parses the command line and executes the command.
///
/// # Errors
/// Returns a human-readable error if the command failed.
pub fn main() -> anyhow::Result<ExitCode> {
    crate::malloc::keep_small();
    let cli = Cli::parse();
    match cli.command {
        Command::Check(arguments) => crate::check::run(&arguments),
        Command::Watch(arguments) => crate::watch::run(&arguments),
        Command::Run(arguments) => {
            cli.logging.start()?;
            run::run(&arguments)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_each_flag_has_a_variable() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let flags = sub.get_arguments().filter(|flag| !["help", "version"].contains(&flag.get_id().as_str()));
            for flag in flags.filter(|_| sub.get_name() == "run") {
                let variable = flag.get_env().unwrap_or_default().to_string_lossy();
                assert!(variable.starts_with("SCOPEPROBE_") || variable == "NODE_NAME", "{}", flag.get_id());
            }
        }
    }
}
