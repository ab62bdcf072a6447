//! The operator's command line; everything else is in the library.
#![forbid(unsafe_code)]

use clap::Parser;
use scopeprobe_operator::{runtime, settings::Cli};
use tikv_jemallocator::Jemalloc;
use tracing_subscriber::EnvFilter;

/// Takes less time and memory than glibc's allocator for the many small pieces of edges and objects.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // A log that cannot be written, as on a full disk, would otherwise end the process.
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).log_internal_errors(false);
    log.with_env_filter(filter()).init();
    runtime::main(Cli::parse()).await
}

/// Returns the filter of `RUST_LOG`. The client library logs each failed request, and a whole list if one object does not
/// decode. The operator reports both once, so the library logs only if the variable names it.
fn filter() -> EnvFilter {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    match "kube_client=off".parse() {
        Ok(quiet) if !asked.contains("kube") => filter.add_directive(quiet),
        _ => filter,
    }
}
