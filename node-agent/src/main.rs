//! The node agent's program. What it does is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match scopeprobe_agent::commands::main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("scopeprobe-agent: {error:#}");
            ExitCode::from(2)
        }
    }
}
