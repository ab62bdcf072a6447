//! The operator's command line; everything else is in the library.
#![forbid(unsafe_code)]

use clap::Parser;
use scopeprobe_operator::{runtime, settings::Cli};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    runtime::main(Cli::parse()).await
}
