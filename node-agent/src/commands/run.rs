//! `run`: captures, reports and serves the endpoints until it is stopped.

use std::{io, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    arguments::{CaptureArguments, duration},
    capture::Settings,
    capture_starters::{self, Captures},
    endpoints::{self, ReportMetrics},
    epoch, fault_injection,
    flow_store::Bounds,
    observation::{Observation, SharedObservation},
    observer::Observer,
    report::{
        operator_url::{self, TlsOptions},
        stream::{Patience, Reporter},
    },
};

/// Time limit of the last reading and of the last report after SIGTERM, each.
const CLOSING_TIME: Duration = Duration::from_secs(3);

/// Options of reporting.
#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// The Kubernetes node's name.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// The operator's address: https://<ip>:<port>.
    #[arg(long, env = "SCOPEPROBE_OPERATOR", value_name = "URL")]
    operator: String,
    /// Certificates of the CAs by which the operator is verified, in PEM. Read again for each connection.
    #[arg(long, env = "SCOPEPROBE_OPERATOR_CA", value_name = "FILE")]
    operator_ca: Option<PathBuf>,
    /// Name in the operator's certificate [default: the host of --operator].
    #[arg(long, env = "SCOPEPROBE_OPERATOR_NAME", value_name = "NAME")]
    operator_name: Option<String>,
    /// Token by which the operator knows the agent. Read again for each connection.
    #[arg(long, env = "SCOPEPROBE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Report without encryption and identity, to an http:// address.
    #[arg(long, env = "SCOPEPROBE_INSECURE_PLAINTEXT")]
    insecure_plaintext: bool,
    /// Capture mode.
    #[arg(long, env = "SCOPEPROBE_MODE", value_enum, default_value = "ebpf")]
    mode: ModeArgument,
    /// The longest time from a change to its report. New flows are reported at once.
    #[arg(long, env = "SCOPEPROBE_REPORT_INTERVAL", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    report_interval: Duration,
    /// Time between two scans of open connections, which read their bytes.
    #[arg(long, env = "SCOPEPROBE_SCAN_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    scan_interval: Duration,
    /// Time for which idle flows of a removed container are kept.
    #[arg(long, env = "SCOPEPROBE_RETENTION", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    retention: Duration,
    /// Address that serves /livez, /readyz and /metrics.
    #[arg(long, env = "SCOPEPROBE_HTTP_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:9464")]
    http_listen: SocketAddr,
    /// Break the capture on purpose when told so by signals (SIGUSR1 kills, SIGUSR2 starves, SIGRTMIN+1 refuses).
    #[arg(long, env = "SCOPEPROBE_DEBUG_SIGNALS", hide = true)]
    debug_signals: bool,
    #[command(flatten)]
    capture: CaptureArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    /// Counted in the kernel.
    Ebpf,
    /// Without eBPF.
    Fallback,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If the arguments don't make sense or the endpoints can't be served. Never because of the capture or the operator.
pub fn run(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    // One thread is enough, and its memory is one thread's.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?
        .block_on(serve(arguments))
}

async fn serve(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let tls = TlsOptions {
        ca: arguments.operator_ca.clone(),
        name: arguments.operator_name.clone(),
        token: arguments.token_file.clone(),
    };
    let operator = operator_url::parse(&arguments.operator, tls, arguments.insecure_plaintext)?;
    let listener = TcpListener::bind(arguments.http_listen)
        .await
        .with_context(|| format!("can't listen at {} (--http-listen)", arguments.http_listen))?;
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;

    let bounds = Bounds { flows: arguments.capture.remembered_flows(), retention: arguments.retention };
    let first_epoch = epoch::draw().context("can't draw random bytes for the epoch")?;
    let observation = SharedObservation::new(Observation::new(first_epoch, bounds, kernel()));
    let changed = Arc::new(Notify::new());
    let metrics = ReportMetrics::default();
    let (close_observer, observer_closing) = watch::channel(false);
    let (close_reporter, reporter_closing) = watch::channel(false);

    let endpoints = tokio::spawn({
        let (observation, metrics) = (observation.clone(), metrics.clone());
        async move { endpoints::serve(listener, observation, &metrics).await }
    });
    let observer = observer(arguments, &observation, &changed).context("can't wait for debugging signals")?;
    let observer = tokio::spawn(observer.run(observer_closing));
    let reporter = Reporter {
        node: arguments.node_name.clone(),
        operator,
        observation,
        changed,
        metrics,
        patience: Patience::default(),
    };
    let reporter = tokio::spawn(reporter.run(reporter_closing));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        served = endpoints => served.context("the HTTP endpoints panicked")?.context("the HTTP endpoints failed")?,
    }
    tracing::info!("closing");
    // In this order: the last report contains the results of the last reading.
    close(close_observer, observer, "read").await;
    close(close_reporter, reporter, "report").await;
    Ok(ExitCode::SUCCESS)
}

fn observer(arguments: &RunArguments, observation: &SharedObservation, changed: &Arc<Notify>) -> io::Result<Observer> {
    let (capture, without, listing_interval) =
        (arguments.capture.clone(), arguments.capture.clone(), arguments.scan_interval);
    let mut captures = match arguments.mode {
        ModeArgument::Ebpf => Captures {
            preferred: capture_starters::ebpf(move || Ok(Settings { listing_interval, ..capture.settings()? })),
            stand_in: Some(capture_starters::stand_in(move || without.fallback_settings())),
        },
        ModeArgument::Fallback => {
            Captures { preferred: capture_starters::fallback(move || without.fallback_settings()), stand_in: None }
        }
    };
    if arguments.debug_signals {
        tracing::warn!("signals can break the capture: --debug-signals");
        captures.preferred = fault_injection::by_signals(captures.preferred)?;
    }
    let capture = arguments.capture.clone();
    Ok(Observer {
        captures,
        observation: observation.clone(),
        changed: Arc::clone(changed),
        interval: arguments.report_interval,
        cgroup_root: Box::new(move || Ok(capture.cgroup_root()?)),
    })
}

async fn close(ask: watch::Sender<bool>, mut task: JoinHandle<()>, what: &str) {
    ask.send_replace(true);
    match timeout(CLOSING_TIME, &mut task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the last {what} failed"),
        Err(_) => tracing::warn!("the last {what} took longer than {} s and is given up", CLOSING_TIME.as_secs()),
    }
}

fn kernel() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}
