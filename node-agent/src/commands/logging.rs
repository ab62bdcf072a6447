//! Logging to standard error.

use std::io;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Options of logging.
#[derive(Clone, Debug, Args)]
pub struct Logging {
    /// As text or as one JSON object a line.
    #[arg(long, global = true, env = "SCOPEPROBE_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: Format,
    /// Log level: error, warn, info, debug or trace, also by module (directives of tracing-subscriber).
    #[arg(long, global = true, env = "SCOPEPROBE_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Logging {
    /// Begins to log.
    ///
    /// # Errors
    /// If the filter isn't one, or if this process logs already.
    pub fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log).with_context(|| format!("--log {:?}", self.log))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        // A log that cannot be written, as on a full disk, would otherwise end the process.
        let builder = builder.log_internal_errors(false);
        let started = match self.log_format {
            Format::Text => builder.try_init(),
            Format::Json => builder.json().try_init(),
        };
        started.map_err(|error| anyhow::anyhow!("can't begin to log: {error}"))
    }
}
