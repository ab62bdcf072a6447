//! `watch`: this machine's topology on the terminal, without a cluster.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};

use self::view::View;
use crate::{
    arguments::{CaptureArguments, duration},
    capture::{Refusal, Settings},
    capture_starters::{self, Captures},
    check::NOTHING,
    flow_store::Bounds,
    observation::{Epoch, Observation, SharedObservation},
    observer::Observer,
};

pub mod rows;
pub mod table;
pub mod view;

/// Between two pictures.
const REDRAW: Duration = Duration::from_secs(1);

/// Time for which ended flows stay visible.
const RETENTION: Duration = Duration::from_hours(1);

/// Options of `watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArguments {
    /// Show it once and end: what is open now, and with --for what happened meanwhile.
    #[arg(long)]
    once: bool,
    /// End after this time, for example 10s.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Output format; JSON is one document, without --once one a line.
    #[arg(short, long, value_enum, default_value = "table")]
    output: WatchOutput,
    #[command(flatten)]
    capture: CaptureArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WatchOutput {
    Table,
    Json,
}

/// Shows connections until it is stopped. Returns exit code 3 if nothing can be captured.
///
/// # Errors
/// If the output can't be written.
pub fn run(arguments: &WatchArguments) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?
        .block_on(show(arguments))
}

async fn show(arguments: &WatchArguments) -> anyhow::Result<ExitCode> {
    let bounds = Bounds { flows: arguments.capture.remembered_flows(), retention: RETENTION };
    let observation = SharedObservation::new(Observation::new(Epoch::default(), bounds, String::new()));
    let changed = Arc::new(Notify::new());
    let (close, closing) = watch::channel(false);
    let observer = tokio::spawn(observer(&arguments.capture, &observation, &changed).run(closing));
    while !observation.lock().capture.is_decided() {
        changed.notified().await;
    }
    let end = arguments.duration.map(|duration| Instant::now() + duration);
    if arguments.once {
        let now = Instant::now();
        until_interrupted(sleep_until(end.unwrap_or(now))).await?;
    } else if observation.lock().capture.mode.is_some() {
        until_interrupted(show_live(arguments.output, &observation, &changed, end)).await?;
    }
    close.send_replace(true);
    observer.await.context("observing failed")?;
    if observation.lock().capture.mode.is_none() {
        let capture = &observation.lock().capture;
        eprintln!("scopeprobe-agent: nothing can be captured here: {}: {}", capture.reason, capture.message);
        return Ok(ExitCode::from(NOTHING));
    }
    if arguments.once {
        print_once(arguments.output, &observation)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn observer(capture: &CaptureArguments, observation: &SharedObservation, changed: &Arc<Notify>) -> Observer {
    let (arguments, without) = (capture.clone(), capture.clone());
    let settings =
        move || -> Result<Settings, Refusal> { Ok(Settings { listing_interval: REDRAW, ..arguments.settings()? }) };
    let capture = capture.clone();
    Observer {
        captures: Captures {
            preferred: capture_starters::ebpf(settings),
            stand_in: Some(capture_starters::fallback(move || without.fallback_settings())),
        },
        observation: observation.clone(),
        changed: Arc::clone(changed),
        interval: REDRAW,
        cgroup_root: Box::new(move || Ok(capture.cgroup_root()?)),
    }
}

/// Waits, but for Ctrl-C not longer than until then.
async fn until_interrupted<T: Default>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::select! {
        done = work => Ok(done),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("can't wait for Ctrl-C")?;
            Ok(T::default())
        }
    }
}

/// A picture a second on a terminal, elsewhere one when something has changed, at most one a second.
async fn show_live(output: WatchOutput, observation: &SharedObservation, changed: &Notify, end: Option<Instant>) {
    let terminal = io::stdout().is_terminal() && output == WatchOutput::Table;
    let far = Instant::now() + Duration::from_hours(24 * 365);
    let end = end.unwrap_or(far);
    loop {
        let drawn = Instant::now();
        let view = View::of(&mut observation.lock());
        let shown = match output {
            WatchOutput::Table if terminal => redraw(&view),
            WatchOutput::Table => write(&(table::render(&view, None) + "\n")),
            WatchOutput::Json => json_line(&view),
        };
        // The reader is gone.
        if shown.is_err() {
            return;
        }
        sleep_until((drawn + REDRAW).min(end)).await;
        if !terminal && timeout_at(end, changed.notified()).await.is_err() {
            return;
        }
        if Instant::now() >= end {
            return;
        }
    }
}

fn print_once(output: WatchOutput, observation: &SharedObservation) -> anyhow::Result<()> {
    let view = View::of(&mut observation.lock());
    let text = match output {
        WatchOutput::Table => table::render(&view, None),
        WatchOutput::Json => serde_json::to_string_pretty(&view)? + "\n",
    };
    match write(&text) {
        // The reader closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("can't write to standard output"),
    }
}

/// Clears the screen and draws what fits.
fn redraw(view: &View) -> io::Result<()> {
    let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(24, |size| usize::from(size.ws_row));
    write(&format!("\x1b[H\x1b[2J{}", table::render(view, Some(rows))))
}

fn json_line(view: &View) -> io::Result<()> {
    write(&(serde_json::to_string(view)? + "\n"))
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
