//! `kubectl scopeprobe ui`: a page on loopback that shows the map while it changes, with the rights of the user.

mod assets;
mod feed;
mod guard;
mod server;

use std::{
    io::{self, Write as _},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::{net::TcpListener, signal};

use crate::source::Source;

/// Options of `ui`.
#[derive(Debug, Args)]
pub struct Options {
    /// Port on 127.0.0.1. 0 is any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Open the page in the browser.
    #[arg(long)]
    open: bool,
}

/// Serves the page until Ctrl-C.
///
/// # Errors
/// Returns an error if the objects cannot be read, or if the port is in use.
pub async fn serve(source: Source, options: Options) -> Result<()> {
    let feed = feed::start(&source).await?;
    let listener = TcpListener::bind(("127.0.0.1", options.port))
        .await
        .with_context(|| format!("cannot listen on 127.0.0.1:{}; --port 0 takes a free port", options.port))?;
    let token = guard::Token::random()?;
    let address = format!("http://{}/{}/", listener.local_addr()?, token.as_str());
    let mut output = io::stdout();
    writeln!(output, "{address}")?;
    output.flush()?;
    eprintln!("The address contains the key to the page: keep it to yourself. Ctrl-C ends.");
    if options.open
        && let Err(error) = open(&address)
    {
        eprintln!("cannot open a browser: {error}");
    }
    let server = server::Server::new(token, feed, source.arguments());
    tokio::select! {
        result = server.serve(listener) => result.context("the server failed"),
        interrupted = signal::ctrl_c() => interrupted.context("cannot wait for Ctrl-C"),
    }
}

fn open(address: &str) -> io::Result<()> {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    Command::new(program).arg(address).spawn().map(drop)
}
