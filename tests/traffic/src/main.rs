//! The traffic program's command line.
#![forbid(unsafe_code)]

use std::{env, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use jiff::SignedDuration;
use traffic::{
    control, demo,
    program::{Program, raise_descriptor_limit},
    protocol::Answer,
};

/// Makes TCP connections on command, and counts its own actions.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Wait for commands at a unix socket.
    Run {
        /// The socket's path.
        #[arg(long, default_value = control::SOCKET)]
        control: PathBuf,
    },
    /// Hand commands (JSON) to a program that runs, one after the other, and print an answer's line for each.
    Ctl {
        /// The socket's path.
        #[arg(long, default_value = control::SOCKET)]
        control: PathBuf,
        /// Such as '"report"' or '{"connect": {"target": "10.0.0.1:80", "count": 100}}'.
        #[arg(required = true)]
        commands: Vec<String>,
    },
    /// Echo at addresses, and call others meanwhile.
    Serve {
        /// Such as [::]:8080.
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
        #[command(flatten)]
        calls: Calls,
    },
    /// Call others again and again.
    Call {
        #[command(flatten)]
        calls: Calls,
    },
    /// Call others and end: with success if all calls were answered.
    Once {
        /// ADDRESS:PORT, or SERVICE:PORT of this namespace.
        #[arg(long, required = true)]
        target: Vec<String>,
        /// Connections to each.
        #[arg(long, default_value_t = 1)]
        count: u64,
    },
}

#[derive(Args)]
struct Calls {
    /// ADDRESS:PORT, or SERVICE:PORT of this namespace; a connection for each call.
    #[arg(long)]
    target: Vec<String>,
    /// The same, with all calls on one connection that stays open.
    #[arg(long)]
    keep: Vec<String>,
    /// Interval between calls.
    #[arg(long, default_value = "200ms")]
    every: SignedDuration,
}

fn main() -> anyhow::Result<ExitCode> {
    raise_descriptor_limit().context("cannot raise the limit of open files")?;
    let program = Arc::new(Program::default());
    match Arguments::parse().command {
        Subcommands::Run { control } => {
            control::serve(&control, &program)
                .with_context(|| format!("cannot wait for commands at {}", control.display()))?;
        }
        Subcommands::Ctl { control, commands } => return ctl(&control, &commands),
        Subcommands::Serve { listen, calls } => {
            for address in listen {
                demo::listen(&program, address).map_err(anyhow::Error::msg)?;
            }
            call(&program, &calls)?;
        }
        Subcommands::Call { calls } => {
            if calls.target.is_empty() && calls.keep.is_empty() {
                bail!("no target: give --target or --keep");
            }
            call(&program, &calls)?;
        }
        Subcommands::Once { target, count } => return once(&program, &target, count),
    }
    Ok(ExitCode::SUCCESS)
}

fn ctl(control: &std::path::Path, commands: &[String]) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for command in commands {
        let answer = control::ask(control, command)
            .with_context(|| format!("cannot reach the program at {}; does `traffic run` run?", control.display()))?;
        print!("{answer}");
        if let Answer::Error(_) = serde_json::from_str(&answer)? {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    demo::resolve(target, |name| env::var(name).ok()).map_err(anyhow::Error::msg)
}

fn call(program: &Arc<Program>, calls: &Calls) -> anyhow::Result<()> {
    let every = Duration::try_from(calls.every).context("--every is negative")?;
    for (targets, keep) in [(&calls.target, false), (&calls.keep, true)] {
        for target in targets {
            demo::call_again_and_again(program, resolve(target)?, every, keep)?;
        }
    }
    loop {
        thread::park();
    }
}

fn once(program: &Arc<Program>, targets: &[String], count: u64) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for target in targets {
        let outcome = demo::call_once(program, resolve(target)?, count);
        println!("{}", serde_json::to_string(&outcome)?);
        if outcome.first_error.is_some() {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
